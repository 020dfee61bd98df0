"""Write a ViT as a folder that timm or Hugging Face loads: weights, configuration, and how images are prepared."""

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import atomic_write
from ..data.preprocessing import INTERPOLATIONS, Preprocessing
from ..errors import CheckpointError, log
from ..models import ViT
from ..nn import Module, merge_lora
from .describe import CannotExport, Form, form_of_model, preprocessing_of, tensors_of
from .files import WEIGHTS
from .load import CONFIG, PROCESSOR
from .names import FAMILIES, theirs_of

STYLES = ("timm", "hf")
_TIMM_EPS = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}  # architectures with these eps
_TIMM_DISTILLED = {1e-6: "deit_base_distilled_patch16_224"}


def save_pretrained(
    model: Module, folder: str | os.PathLike[str], style: str = "timm", labels: Sequence[str] | None = None
) -> Path:
    """Write a Vision Transformer as a folder that timm or transformers loads, with the same logits.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it, or transformers'
    `AutoModelForImageClassification.from_pretrained(FOLDER)`. Mean, std, size and crop are written too.

    Parameters
    ----------
    model : ViT
    folder : made if it does not exist; files of an earlier export in it are replaced.
    style : {"timm", "hf"}
        "hf" writes a ViT, a DeiT or a DINOv2, by what the model has.
    labels : the names of the classes; by default those of the model, `model.labels`.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If the model has a part that the other library cannot express; the message names it. Nothing is written.
    CheckpointError
        If a file cannot be written.
    """
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; it must be one of {', '.join(STYLES)}")
    form = form_of_model(model)
    assert isinstance(model, ViT)
    names = tuple(model.labels if labels is None else map(str, labels))
    if names and form.num_classes and len(names) != form.num_classes:
        raise ValueError(f"there are {len(names)} labels; the model has {form.num_classes} classes")
    preprocessing = preprocessing_of(model)
    if style == "timm":
        files = {CONFIG: _timm_config(form, preprocessing, names)}
        tensors = tensors_of(model)
    else:
        kind = _hf_kind(form)
        files = {CONFIG: _hf_config(form, kind, names), PROCESSOR: _hf_processor(form, preprocessing)}
        tensors = _hf_tensors(tensors_of(model), form, kind)
    return _write(Path(folder), files, tensors)


def export_folder(model: Module, folder: Path, style: str) -> str:
    """Write a trained model with its adapters merged; return a line about it. Raises what `save_pretrained` raises."""
    merged = merge_lora(copy.deepcopy(model)).to("cpu")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CannotExport(f"{folder} is not empty; give a folder that does not exist")
    save_pretrained(merged, folder, style)
    size = (folder / WEIGHTS).stat().st_size / 1e6
    return f"{sum(p.size for p in merged.parameters()):,} parameters, {size:.1f} MB, for {style} -> {folder}"


def next_step(folder: Path, style: str) -> str:
    """Return a line that says how the other library loads such a folder."""
    return f"next, in Python: {_LOADERS[style].format(folder=folder)}"


_LOADERS = {
    "timm": 'timm.create_model("local-dir:{folder}", pretrained=True)',
    "hf": 'transformers.AutoModel.from_pretrained("{folder}"), or AutoModelForImageClassification for its head',
}


def _write(folder: Path, files: dict[str, dict[str, Any]], tensors: dict[str, np.ndarray]) -> Path:
    from safetensors.numpy import save as serialize

    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / WEIGHTS, serialize(arrays, metadata={"format": "pt"}))  # transformers asks for this entry
        for name, content in files.items():
            atomic_write(folder / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder} cannot be written ({error.strerror})") from error
    return folder


# timm ---------------------------------------------------------------------------------------------------------------


def _timm_config(form: Form, preprocessing: Preprocessing, labels: tuple[str, ...]) -> dict[str, Any]:
    """Return config.json for timm, in which every argument of the architecture is stated."""
    if form.pool == "cls_mean":
        raise CannotExport("pool is 'cls_mean', which timm's VisionTransformer lacks; export with style='hf'")
    if form.distilled and form.place == "fc_norm":
        raise CannotExport("distilled with last_norm='fc_norm' is not exported to timm")
    architecture = _timm_architecture(form)
    pool = "token" if form.pool == "cls" else "avg"
    resize = preprocessing.resize
    args: dict[str, Any] = {
        "img_size": list(form.image_size),
        "patch_size": list(form.patch_size),
        "in_chans": form.in_channels,
        "num_classes": form.num_classes,
        "global_pool": pool,
        "embed_dim": form.dim,
        "depth": form.depth,
        "num_heads": form.heads,
        "mlp_ratio": _ratio(form.mlp_dim, form.dim),
        "qkv_bias": form.qkv_bias,
        "qk_norm": form.qk_norm,
        "proj_bias": form.proj_bias,
        "init_values": 1.0 if form.layer_scale else None,
        "class_token": form.class_token,
        "pos_embed": "learn" if form.has_positions else "none",
        "no_embed_class": form.no_embed_class,
        "reg_tokens": form.registers,
        "pre_norm": form.pre_norm,
        "final_norm": form.place != "none",
        "fc_norm": form.place == "fc_norm",
        "act_layer": form.act,
    }
    cfg: dict[str, Any] = {
        "input_size": [form.in_channels, *form.image_size],
        "fixed_input_size": True,
        "interpolation": resize.interpolation,
        "crop_pct": resize.crop_pct,
        "crop_mode": resize.crop_mode,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "num_classes": form.num_classes,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if form.distilled else "head",
    }
    config = {"architecture": architecture, "num_classes": form.num_classes, "num_features": form.dim}
    config |= {"global_pool": pool, "model_args": args, "pretrained_cfg": cfg}
    return config | ({"label_names": list(labels)} if labels else {})


def _timm_architecture(form: Form) -> str:
    """Return an architecture of timm with this eps, which a file cannot state in another way."""
    known = {eps: name for eps, name in _TIMM_EPS.items() if not form.distilled} or _TIMM_DISTILLED
    if form.eps in known:
        return known[form.eps]
    if form.eps > 1e-6:
        raise CannotExport(f"eps is {form.eps}; timm's architectures of this form have {' or '.join(map(str, known))}")
    log.warning("eps is %s, for which timm has no setting; it uses 1e-06, so logits differ by about as much", form.eps)
    return known[1e-6]


def _ratio(hidden: int, dim: int) -> float:
    """Return a ratio with int(dim * ratio) == hidden, as others compute it."""
    ratio = hidden / dim
    while int(dim * ratio) < hidden:
        ratio = float(np.nextafter(ratio, np.inf))
    return ratio


# Hugging Face -------------------------------------------------------------------------------------------------------

_ARCHITECTURES = {  # by model type: the prefix of names, the class with a head
    "vit": ("vit.", "ViTForImageClassification"),
    "deit": ("deit.", "DeiTForImageClassificationWithTeacher"),
    "dinov2": ("dinov2.", "Dinov2ForImageClassification"),
    "dinov2_with_registers": ("dinov2_with_registers.", "Dinov2WithRegistersForImageClassification"),
}
_ACTS = {"gelu_tanh": "gelu_pytorch_tanh"}  # the others have the same name


def _hf_kind(form: Form) -> str:
    """Return the simplest model type of Hugging Face that can express the model, else raise CannotExport."""
    missing = [
        (form.qk_norm, "qk_norm is True"),
        (not form.proj_bias, "proj_bias is False"),
        (form.pre_norm, "pre_norm is True"),
        (not form.class_token, "class_token is False"),
        (form.place == "none", "last_norm is 'none'"),
        (
            form.place == "fc_norm" and form.pool != "cls",
            "last_norm is 'fc_norm'",
        ),
        (not form.has_positions, "pos_embed is 'none'"),
        (form.patch_size[0] != form.patch_size[1], f"patch_size is {form.patch_size}"),
        (form.image_size[0] != form.image_size[1], f"image_size is {form.image_size}"),
    ]
    if found := [what for is_so, what in missing if is_so]:
        raise CannotExport(f"{found[0]}, which Hugging Face's ViT, DeiT and DINOv2 lack; export with style='timm'")
    needs_dinov2 = form.layer_scale or form.registers or form.pool != "cls" or not form.num_classes
    if form.distilled:
        if needs_dinov2:
            raise CannotExport("distilled with layer scale, or without a head, is not exported to Hugging Face")
        return "deit"
    if not needs_dinov2:
        return "vit"
    if form.mlp_dim % form.dim:
        raise CannotExport(
            f"mlp_dim is {form.mlp_dim}, no multiple of dim, {form.dim}: Hugging Face's DINOv2 needs that, and its ViT "
            "has neither layer scale nor registers, and needs a class token to read and a head"
        )
    return "dinov2_with_registers" if form.registers else "dinov2"


def _hf_config(form: Form, kind: str, labels: tuple[str, ...]) -> dict[str, Any]:
    names = labels or tuple(f"LABEL_{i}" for i in range(form.num_classes))
    _, architecture = _ARCHITECTURES[kind]
    if not form.num_classes:
        architecture = architecture.replace("ForImageClassification", "Model")
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": form.dim,
        "num_hidden_layers": form.depth,
        "num_attention_heads": form.heads,
        "hidden_act": _ACTS.get(form.act, form.act),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": form.eps,
        "image_size": form.image_size[0],
        "patch_size": form.patch_size[0],
        "num_channels": form.in_channels,
        "qkv_bias": form.qkv_bias,
        "torch_dtype": "float32",
    }
    if kind in ("vit", "deit"):
        config["intermediate_size"] = form.mlp_dim
    else:
        config |= {"mlp_ratio": form.mlp_dim // form.dim, "layerscale_value": 1.0, "use_swiglu_ffn": False}
    if kind == "dinov2":
        config["use_mask_token"] = False
    if form.registers:
        config["num_register_tokens"] = form.registers
    if form.num_classes:
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return config


def _hf_tensors(state: dict[str, np.ndarray], form: Form, kind: str) -> dict[str, np.ndarray]:
    """Rename the weights; express our tokens, norms and heads by theirs, which gives the same numbers."""
    prefix, _ = _ARCHITECTURES[kind]
    family = FAMILIES["vit" if kind in ("vit", "deit") else "dinov2"]
    state = {name.replace("fc_norm.", "norm."): array for name, array in state.items()}
    state["pos_embed"] = _with_class_position(state, form)
    if kind.startswith("dinov2"):
        if not form.layer_scale:
            one = np.ones(form.dim, np.float32)
            state |= {f"blocks.{i}.ls{j}.gamma": one for i in range(form.depth) for j in (1, 2)}
        if form.num_classes and form.pool != "cls_mean":  # their head reads the class token beside the mean
            weight, nothing = state["head.weight"], np.zeros_like(state["head.weight"])
            state["head.weight"] = np.hstack([weight, nothing] if form.pool == "cls" else [nothing, weight])
        if kind == "dinov2_with_registers":
            state["mask_token"] = np.zeros((1, form.dim), np.float32)
    written: dict[str, np.ndarray] = {}
    for name, array in state.items():
        if name == "mask_token":
            written[f"{prefix}embeddings.mask_token"] = array
            continue
        theirs = theirs_of(name, family)
        if kind == "deit" and name.startswith("head."):
            theirs = (f"cls_{theirs[0]}",)
        before = "" if name.startswith(("head.", "head_dist.")) or not form.num_classes else prefix
        written |= {f"{before}{other}": part for other, part in zip(theirs, np.split(array, len(theirs)), strict=True)}
    return written


def _with_class_position(state: dict[str, np.ndarray], form: Form) -> np.ndarray:
    """Return positions of the class token (and the distillation token) and the patches, as Hugging Face's models have.

    The positions of registers are added to the registers; tokens without a position get zeros.
    """
    positions = state["pos_embed"]
    prefix = 1 + form.distilled
    if form.no_embed_class:
        return np.concatenate([np.zeros((1, prefix, form.dim), np.float32), positions], axis=1)
    if form.registers:
        state["reg_token"] = state["reg_token"] + positions[:, prefix : prefix + form.registers]
        return np.concatenate([positions[:, :prefix], positions[:, prefix + form.registers :]], axis=1)
    return positions


def _hf_processor(form: Form, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return preprocessor_config.json."""
    resize, (height, width) = preprocessing.resize, form.image_size
    if resize.crop_mode == "border":
        raise CannotExport("crop_mode is 'border', which Hugging Face's processors lack; export with style='timm'")
    pillow = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
    assert set(pillow) == set(INTERPOLATIONS)
    scaled = int(height / resize.crop_pct), int(width / resize.crop_pct)
    content: dict[str, Any] = {
        "do_resize": True,
        "resample": pillow[resize.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    if resize.crop_mode == "squash" and scaled == (height, width):
        return content | {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    crop = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    if resize.crop_mode == "squash":
        size: dict[str, int] = {"height": scaled[0], "width": scaled[1]}
        return content | crop | {"image_processor_type": "DeiTImageProcessor", "size": size}
    size = {"shortest_edge": scaled[0]}
    return content | crop | {"image_processor_type": "BitImageProcessor", "do_convert_rgb": True, "size": size}
