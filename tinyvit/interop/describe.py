"""Read the form of a ViT from the model itself, so that what is written describes what is there."""

from dataclasses import dataclass
from typing import Any

from ..data.preprocessing import Preprocessing, Resize
from ..errors import TinyvitError
from ..models import ViT
from ..nn import (
    GELU,
    Attention,
    Block,
    Identity,
    LayerNorm,
    LayerScale,
    Linear,
    LocalMlp,
    Mlp,
    Module,
    PatchProjection,
    QuickGELU,
    ReLU,
    RMSNorm,
    SiLU,
    SwiGLU,
)


class CannotExport(TinyvitError, ValueError):
    """A model with a part that the other library cannot express; the message names it."""


@dataclass(frozen=True)
class Form:
    """The form of a model, in the words of `ViT`.

    Attributes
    ----------
    place : the attribute that has the last layer norm: "norm", "fc_norm" or "none".
    registers : the number of register tokens.
    has_positions : whether positions are added.
    """

    image_size: tuple[int, ...]
    patch_size: tuple[int, ...]
    in_channels: int
    num_classes: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    pool: str
    place: str
    act: str
    eps: float
    qkv_bias: bool
    proj_bias: bool
    qk_norm: bool
    layer_scale: bool
    pre_norm: bool
    class_token: bool
    distilled: bool
    registers: int
    has_positions: bool
    no_embed_class: bool


def form_of_model(model: Module) -> Form:
    """Return the form of a ViT. Raises CannotExport if it is none, or was changed into something else."""
    if not isinstance(model, ViT):
        raise CannotExport(f"the model is a {type(model).__name__}; only a ViT is exported")
    _require_plain(model)
    first: Any = model.blocks[0]
    return Form(
        image_size=model.patch_embed.image_size,
        patch_size=model.patch_embed.patch_size,
        in_channels=model.patch_embed.in_channels,
        num_classes=model.num_classes,
        dim=first.attn.proj.weight.shape[0],
        depth=len(model.blocks),
        heads=first.attn.heads,
        mlp_dim=first.mlp.fc1.weight.shape[0],
        pool=model.pool,
        place=next((name for name in ("norm", "fc_norm") if isinstance(getattr(model, name), LayerNorm)), "none"),
        act=_act_of(first.mlp.act),
        eps=first.norm1.eps,
        qkv_bias=first.attn.qkv.bias is not None,
        proj_bias=first.attn.proj.bias is not None,
        qk_norm=isinstance(first.attn.q_norm, LayerNorm),
        layer_scale=isinstance(first.ls1, LayerScale),
        pre_norm=isinstance(model.norm_pre, LayerNorm),
        class_token=model.cls_token is not None,
        distilled=model.dist_token is not None,
        registers=0 if model.reg_token is None else model.reg_token.shape[1],
        has_positions=model.pos_embed is not None,
        no_embed_class=model.no_embed_class,
    )


def _require_plain(model: ViT) -> None:
    """Raise CannotExport for forms that neither timm nor Hugging Face has."""
    if len(model.patch_embed.grid) != 2:
        raise CannotExport("the model takes videos; only models of images are exported")
    if model.patch_embed.stem is not None:
        raise CannotExport(f"stem is {model.patch_embed.stem_name!r}; only stem='linear' is exported: {_WAYS_OUT}")
    if model.pool in ("first", "seq"):
        raise CannotExport(f"pool is {model.pool!r}; only 'cls', 'mean' and 'cls_mean' are exported")
    if not len(model.blocks):
        raise CannotExport("depth is 0; a model without blocks is not exported")
    block: Any
    for number, block in enumerate(model.blocks):
        if type(block.mlp) in _OTHER_MLPS:
            name = _OTHER_MLPS[type(block.mlp)]
            raise CannotExport(f"mlp_layer is {name!r}; only mlp_layer='mlp' is exported: {_WAYS_OUT}")
        if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
            raise CannotExport(f"blocks.{number} is of another kind than `nn.Block`; it is not exported")
        if block.post:
            raise CannotExport("norm is 'post'; only norm='pre' is exported")
        if isinstance(block.norm1, RMSNorm):
            raise CannotExport("norm_layer is 'rmsnorm'; only norm_layer='layernorm' is exported")
        if block.attn.temperature is not None:
            raise CannotExport("lsa is True; only models with lsa=False are exported")
        if not isinstance(block.attn.rope, Identity):
            raise CannotExport("rope is True; only models with rope=False are exported")
        own = {"attn.qkv": block.attn.qkv, "attn.proj": block.attn.proj, "mlp.fc1": block.mlp.fc1}
        for name, layer in (own | {"mlp.fc2": block.mlp.fc2}).items():
            if type(layer) is not Linear:
                raise CannotExport(
                    f"blocks.{number}.{name} is a {type(layer).__name__}; merge adapters first: nn.merge_lora(model)"
                )
    if type(model.patch_embed.proj) is not PatchProjection:
        raise CannotExport(f"patch_embed.proj is a {type(model.patch_embed.proj).__name__}; it is not exported")


_WAYS_OUT = "train with --set stem=linear --set mlp_layer=mlp, or export to ONNX or C"
_OTHER_MLPS: dict[type[Module], str] = {LocalMlp: "local", SwiGLU: "swiglu"}
_ACTS: dict[type[Module], str] = {QuickGELU: "quick_gelu", ReLU: "relu", SiLU: "silu"}


def _act_of(act: Module) -> str:
    if isinstance(act, GELU):
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    if type(act) not in _ACTS:
        raise CannotExport(f"the activation is a {type(act).__name__}; it is not exported")
    return _ACTS[type(act)]


def preprocessing_of(model: ViT) -> Preprocessing:
    """Return how images are prepared for a model; for a new one, pixels from -1 to 1, resized as images are here."""
    if model.preprocessing is not None:
        return model.preprocessing
    half = (0.5,) * model.patch_embed.in_channels
    return default_preprocessing(half, half)


def default_preprocessing(mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
    """Return the rule of `tinyvit.data.images` in the words of others: the largest centred square, resized bilinear."""
    return Preprocessing(mean, std, Resize("bilinear", 1.0, "center"))


def tensors_of(model: ViT) -> dict[str, Any]:
    """Return all weights on the host, with the constant positions of models whose positions are not learned."""
    state = model.state_dict()
    if model.pos_embed is not None:
        state["pos_embed"] = model.pos_embed.numpy().copy()
    return state
