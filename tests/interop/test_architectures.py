"""Every architecture of timm's vision_transformer and deit is understood from its name, or refused."""

from typing import Any

import pytest
from peers import peer

from tinyvit.errors import CheckpointError
from tinyvit.interop.configs import read_timm
from tinyvit.interop.names import FAMILIES, translate

POOLS = {"token": "cls", "avg": "mean"}
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}


def lacks(model: Any) -> bool:
    """Whether an architecture has parts that our ViT lacks."""
    block = model.blocks[0] if hasattr(model, "blocks") else None
    plain = type(block).__name__ == "Block" and type(getattr(block, "mlp", None)).__name__ == "Mlp"
    plain = plain and not any(".norm." in name for name, _ in block.named_parameters())  # within attention or MLP
    plain = plain and type(block.attn).__name__ == "Attention" and type(block.norm1).__name__ == "LayerNorm"
    plain = plain and type(model.patch_embed).__name__ == "PatchEmbed" and not model.pool_include_prefix
    return not plain or model.global_pool not in POOLS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_architectures_of_timm_are_understood_or_refused() -> None:
    timm, torch = peer("timm"), peer("torch")
    understood = 0
    for name in [*timm.list_models(module="vision_transformer"), *timm.list_models(module="deit")]:
        with torch.device("meta"):
            model = timm.create_model(name)
        shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
        cfg = {key: model.pretrained_cfg.get(key) for key in ("input_size", "mean", "std", "crop_pct", "interpolation")}
        config = {"architecture": name, "global_pool": model.global_pool}
        config |= {"pretrained_cfg": cfg | {"input_size": (3, *model.patch_embed.img_size)}}
        if translate(shapes, FAMILIES["timm"]).unknown:  # `from_pretrained` lists these names
            assert lacks(model), name
            continue
        try:
            form = read_timm(config, shapes).options
        except CheckpointError:
            assert lacks(model), name
            continue
        assert not lacks(model), name
        block, last = model.blocks[0], model.norm if hasattr(model.norm, "eps") else model.fc_norm
        found = {
            "heads": block.attn.num_heads,
            "eps": block.norm1.eps,
            "act": ACTIVATIONS[type(block.mlp.act).__name__],
            "pool": POOLS[model.global_pool],
            "no_embed_class": bool(model.no_embed_class and model.num_prefix_tokens),
            "depth": len(model.blocks),
            "dim": model.embed_dim,
            "image_size": tuple(model.patch_embed.img_size),
            "class_token": model.has_class_token,
            "register_tokens": model.num_reg_tokens,
        }
        differs = {key: (form[key], value) for key, value in found.items() if form[key] != value}
        assert not differs, (name, differs)
        assert getattr(last, "eps", form["eps"]) == form["eps"]
        understood += 1
    assert understood > 90
