"""Read the configurations of timm and Hugging Face: the form of the model, its images, the names of its classes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data.preprocessing import Preprocessing, Resize
from ..errors import CheckpointError, DataError
from .shapes import Shapes, form_of, grid_of, heads_of

_HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Description:
    """What a folder says about its model.

    Attributes
    ----------
    options : the arguments of `ViT`, for the sizes that the weights have.
    target : image_size and patch_size that the configuration asks for, if the weights must be resampled for them.
    preprocessing : how images are prepared.
    labels : the names of the classes; empty if they are not given.
    inferred : what had to be inferred from the shapes, in words.
    """

    options: dict[str, Any]
    target: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    inferred: str = ""


# timm ---------------------------------------------------------------------------------------------------------------

_POOLS = {"token": "cls", "avg": "mean"}
# Arguments of timm's VisionTransformer that shapes decide already, that change nothing here, or only initial values.
_DECIDED = (
    *("embed_dim", "depth", "qkv_bias", "qk_norm", "proj_bias", "init_values", "class_token", "no_embed_class"),
    *("reg_tokens", "pre_norm", "final_norm", "fc_norm", "pos_embed", "mlp_ratio", "num_classes", "in_chans"),
)
_WITHOUT_EFFECT = (
    *("weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "pretrained", "dtype"),
    *("device", "img_size", "patch_size", "global_pool", "num_heads", "act_layer", "norm_layer", "features_only"),
    *("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "cache_dir", "out_indices"),
)
_MUST_BE: dict[str, tuple[Any, ...]] = {  # arguments that change the model in ways that ours lacks, unless they are so
    "pool_include_prefix": (False, None),
    "scale_attn_norm": (False, None),
    "scale_mlp_norm": (False, None),
    "patch_drop_rate": (0, 0.0, None),
    "embed_layer": (None,),
    "embed_norm_layer": (None,),
    "block_fn": (None,),
    "mlp_layer": (None,),
    "attn_layer": (None,),
}
_ACTS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "quickgelu": "quick_gelu"} | {
    name: name for name in ("relu", "silu")
}
_NORMS = {"layernorm": 1e-6, "layer_norm": 1e-6}


def read_timm(config: Mapping[str, Any], shapes: Shapes) -> Description:
    """Read the config.json of a timm folder; an empty one stands for a bare file. Raises CheckpointError."""
    cfg = config.get("pretrained_cfg") or config
    args = dict(config.get("model_args") or cfg.get("model_args") or {})
    name = str(config.get("architecture") or cfg.get("architecture") or "")
    _refuse_arguments(name, args)
    form = form_of(shapes)
    chosen = args.get("global_pool", config.get("global_pool", cfg.get("global_pool")))
    if chosen is None and re.search(r"_gap_|^eva_|^beit3_", name):
        chosen = "avg"
    if chosen is not None and form["pool"] != "cls_mean" and (chosen or form["num_classes"]):  # "": only without a head
        if chosen not in _POOLS:
            raise CheckpointError(
                f"global_pool is {chosen!r}, which this ViT lacks; it has {', '.join(map(repr, _POOLS))}"
            )
        form["pool"] = _POOLS[chosen]
    form["heads"] = args.get("num_heads") or _heads_of_name(name) or heads_of(form["dim"], shapes)
    form["act"], form["eps"] = _act_of(name, args), _eps_of(name, args)
    form |= _rates(args)
    stated = _size(args.get("img_size")) or _size((cfg.get("input_size") or (None,))[1:]) or None
    form |= grid_of(form, shapes, stated)
    target = {"image_size": stated or form["image_size"], "patch_size": _size(args.get("patch_size"))}
    unknown = [] if config else ["the number of heads", "the activation", "the pooling", "the normalization of images"]
    return Description(
        form,
        {key: value for key, value in target.items() if value and value != form[key]},
        timm_preprocessing(cfg, form["in_channels"]),
        _labels(config.get("label_names") or cfg.get("label_names")),
        ", ".join(unknown),
    )


def _refuse_arguments(name: str, args: Mapping[str, Any]) -> None:
    """Raise CheckpointError for an argument of timm, or an architecture, that our ViT has no option for."""
    for key, value in args.items():
        if key in _MUST_BE and value not in _MUST_BE[key]:
            raise CheckpointError(f"model_args has {key}={value!r}, which this ViT lacks")
        if key not in (*_MUST_BE, *_DECIDED, *_WITHOUT_EFFECT):
            raise CheckpointError(f"model_args has {key!r}, an argument that is not known here")
    if re.search(r"_(rpn|xp|parallel|map|2x1)(_|$)|^aimv2|^vit_relpos|^vit_srelpos|_rope|_siglip_(?!gap)", name):
        raise CheckpointError(f"the architecture {name} has parts that this ViT lacks")


def _heads_of_name(name: str) -> int:
    """Return the heads of an architecture whose width does not tell them, else 0."""
    if name.startswith("vit_base_patch16_gap"):
        return 16
    return 16 if name.startswith("vit_giantopt") else 0


def _act_of(name: str, args: Mapping[str, Any]) -> str:
    chosen = args.get("act_layer")
    if chosen is None:
        tanh = r"patch32_siglip|so400m_patch16_siglip|giantopt_patch16_siglip|large_patch16_siglip_gap_512"
        return "quick_gelu" if "quickgelu" in name else "gelu_tanh" if re.search(tanh, name) else "gelu"
    if str(chosen).lower() not in _ACTS:
        raise CheckpointError(f"act_layer is {chosen!r}, which this ViT lacks; it has {', '.join(_ACTS)}")
    return _ACTS[str(chosen).lower()]


def _eps_of(name: str, args: Mapping[str, Any]) -> float:
    chosen = args.get("norm_layer")
    if chosen is not None and str(chosen).lower() not in _NORMS:
        raise CheckpointError(f"norm_layer is {chosen!r}, which this ViT lacks; it has 'layernorm'")
    return 1e-5 if chosen is None and re.search(r"(?<!siglip)_clip_|^beit3_", name) else 1e-6


def _rates(args: Mapping[str, Any]) -> dict[str, float]:
    """Return our rates of dropout; timm has two inside of blocks, ours is one."""
    inside = {float(args.get(key) or 0) for key in ("proj_drop_rate", "attn_drop_rate")}
    if len(inside) > 1:
        raise CheckpointError("proj_drop_rate and attn_drop_rate differ; this ViT has one rate for both")
    return {
        "dropout": inside.pop(),
        "emb_dropout": float(args.get("pos_drop_rate") or 0),
        "drop_path": float(args.get("drop_path_rate") or 0),
        "head_dropout": float(args.get("drop_rate") or 0),
    }


def timm_preprocessing(cfg: Mapping[str, Any], channels: int) -> Preprocessing:
    """Read mean, std and crop from a `pretrained_cfg`; timm's defaults stand for what is missing."""
    mean, std = (tuple(cfg.get(key) or default) for key, default in zip(("mean", "std"), IMAGENET, strict=True))
    mode = cfg.get("crop_mode") or "center"
    return _preprocessing(
        mean, std, cfg.get("interpolation") or "bicubic", cfg.get("crop_pct") or 0.875, mode, channels
    )


def _preprocessing(mean: Any, std: Any, interpolation: str, crop: float, mode: str, channels: int) -> Preprocessing:
    if len(mean) != channels:  # of colours, while the model has another number of channels
        mean, std = (mean[:1] * channels, std[:1] * channels) if len(set(mean)) == 1 else ((0.5,) * channels,) * 2
    try:
        fill = tuple(round(255 * m) for m in mean) if mode == "border" else ()
        return Preprocessing(tuple(mean), tuple(std), Resize(interpolation, crop, mode, fill))
    except (DataError, TypeError) as error:
        raise CheckpointError(f"the preprocessing of the configuration cannot be read: {error}") from error


# Hugging Face -------------------------------------------------------------------------------------------------------

MODEL_TYPES = {"vit": "vit", "deit": "vit", "dinov2": "dinov2", "dinov2_with_registers": "dinov2"}  # to families
HF_ACTS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_EPS_OF = {"vit": 1e-12, "deit": 1e-12}  # where the configuration leaves the default out
_PATCH_OF = {"vit": 16, "deit": 16}
_PILLOW = dict(enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")))


def read_hf(config: Mapping[str, Any], processor: Mapping[str, Any], shapes: Shapes) -> Description:
    """Read config.json and preprocessor_config.json of Hugging Face's ViT, DeiT and DINOv2. Raises CheckpointError."""
    kind = config["model_type"]
    if config.get("use_swiglu_ffn"):
        raise CheckpointError("use_swiglu_ffn is true: a gated MLP (SwiGLU), which this ViT lacks")
    act = config.get("hidden_act", "gelu")
    if act not in HF_ACTS:
        raise CheckpointError(f"hidden_act is {act!r}, which this ViT lacks; it has {', '.join(HF_ACTS)}")
    form = form_of(shapes)
    form["heads"] = config.get("num_attention_heads") or heads_of(form["dim"], shapes)
    form["act"], form["eps"] = HF_ACTS[act], float(config.get("layer_norm_eps", _EPS_OF.get(kind, 1e-6)))
    inside = {float(config.get(key) or 0) for key in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
    if len(inside) == 1:  # else one of the two rates: they matter to training only, which starts without
        form["dropout"] = inside.pop()
    form["drop_path"] = float(config.get("drop_path_rate") or 0)
    size = _size(config.get("image_size", 224))
    form |= grid_of(form, shapes, size)
    names = config.get("id2label") or {}
    labels = _labels([names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else names)
    return Description(form, {}, hf_preprocessing(processor, kind, form), labels)


def hf_preprocessing(processor: Mapping[str, Any], kind: str, form: Mapping[str, Any]) -> Preprocessing:
    """Read how images are prepared; the defaults are those of the model types."""
    default = (_HALF, _HALF) if kind == "vit" else IMAGENET
    mean, std = (
        tuple(processor.get(key) or values) for key, values in zip(("image_mean", "image_std"), default, strict=True)
    )
    if processor.get("do_normalize") is False:
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    resample = processor.get("resample", 2 if kind == "vit" else 3)
    if resample not in _PILLOW:
        raise CheckpointError(f"resample is {resample!r}; it must be one of Pillow's filters, 0 to {len(_PILLOW) - 1}")
    height, width = form["image_size"]
    size = processor.get("size") or {"height": height, "width": width}
    size = {"height": size, "width": size} if isinstance(size, int) else size
    mode = "center" if "shortest_edge" in size else "squash"
    side = size.get("shortest_edge") or size.get("height") or height
    crop = processor.get("crop_size") if processor.get("do_center_crop", kind != "vit" and bool(processor)) else None
    target = (crop.get("height", height) if isinstance(crop, dict) else crop) or (side if mode == "squash" else height)
    return _preprocessing(mean, std, _PILLOW[resample], crop_share(target, side), mode, form["in_channels"])


def crop_share(target: int, side: int) -> float:
    """Return the share p with floor(target / p) == side, by which timm finds the size of the resized image."""
    share = target / side
    while math.floor(target / share) < side:
        share = math.nextafter(share, 0)
    return share


def _size(value: Any) -> tuple[int, int] | None:
    """Return (height, width) of a size that is one number, two, or missing."""
    numbers = (value, value) if isinstance(value, int) else tuple(value or ())
    if not numbers or numbers[0] is None:
        return None
    if len(numbers) != 2 or not all(type(n) is int and 0 < n <= 2**16 for n in numbers):
        raise CheckpointError(f"the configuration has the size {value!r}; it must be one or two positive integers")
    return numbers


def _labels(names: Any) -> tuple[str, ...]:
    """Return the names of the classes as different texts: of equal names all but the first get their number."""
    if isinstance(names, Mapping):
        names = list(names.values())
    seen: set[str] = set()
    labels = []
    for number, name in enumerate(map(str, names or ())):
        labels.append(f"{name} ({number})" if name in seen else name)
        seen.add(labels[-1])
    return tuple(labels)
