"""The public names that users' code stands on: they may grow in number, and none may go."""

from typing import Any

import pytest
import tinyvit.kernels

import tinyvit as tv
import tinyvit.functional as F

PROMISED = {
    tv: """Tensor tensor grad no_grad gradcheck GradcheckError manual_seed use_kernels set_default_device autocast
        save load load_run functional nn optim models study""",
    tv.Tensor: """data grad requires_grad shape ndim dtype device numpy item detach to backward register_hook
        retain_grad sum mean max reshape transpose swapaxes T""",
    F: """abs add add_layer_norm avg_pool2d bias_gelu binary_cross_entropy_with_logits broadcast_to clip concatenate
        contrastive_loss conv2d cross_entropy cumsum divide dropout einsum embedding erf exp flip gelu layer_norm linear
        log log_softmax logsumexp matmul max max_pool2d maximum mean min minimum mse_loss multiply negative pad power
        relu reshape scaled_dot_product_attention sigmoid silu softmax split sqrt stack subtract sum swapaxes take tanh
        transpose unbind var where""",
    tv.nn: """Module Parameter Sequential ModuleList Linear LayerNorm Embedding Dropout DropPath Conv2d MaxPool2d GELU
        Mlp Attention CrossAttention Block PatchEmbed TransformerEncoder TransformerDecoder""",
    tv.nn.Module: "parameters named_parameters state_dict load_state_dict train eval to",
    tv.optim: "SGD Adam AdamW clip_grad_norm cosine_with_warmup EMA",
    tv.models: "ViT from_pretrained save_pretrained",
    tv.models.ViT: "forward_features reset_classifier",
    tinyvit.kernels: "attention_forward attention_backward layer_norm_forward layer_norm_backward",
}


@pytest.mark.parametrize("place", PROMISED, ids=lambda place: place.__name__)
def test_no_public_name_is_lost(place: Any) -> None:
    example = tv.tensor(1.0) if place is tv.Tensor else place
    assert not [name for name in PROMISED[place].split() if not hasattr(example, name)]


@pytest.mark.parametrize("place", PROMISED, ids=lambda place: place.__name__)
def test_completion_offers_every_public_name(place: Any) -> None:
    """Also those that are loaded when they are first used: shells complete the names in `dir`."""
    assert set(PROMISED[place].split()) <= set(dir(place))
