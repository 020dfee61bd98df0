"""Infer the form of a ViT from the names and shapes of its weights, in our names."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

# Widths whose heads are not 64 channels wide in the published models: huge, giant, gigantic, so400m, and timm's tests.
_HEADS_OF = {1280: 16, 1408: 16, 1664: 16, 1152: 16, 64: 2, 96: 3}


def form_of(shapes: Shapes) -> dict[str, Any]:
    """Return the arguments of `ViT` that the weights decide, without `image_size` and `heads`.

    Raises CheckpointError if these are not the weights of a ViT, or of one with parts that ours does not have.
    """
    patches = shapes.get("patch_embed.proj.weight", ())
    numbers = {int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))}
    if len(patches) != 4 or not numbers:
        raise CheckpointError(
            "these are not the weights of a Vision Transformer: they lack "
            + ("blocks" if len(patches) == 4 else "a patch embedding (dim, channels, height, width)")
        )
    dim, channels, *patch = patches
    _refuse_other_parts(shapes, dim)
    has = shapes.keys()
    head = shapes.get("head.weight", (0, dim))
    place = "fc_norm" if "fc_norm.weight" in has else "norm" if "norm.weight" in has else "none"
    class_token = "cls_token" in has
    pool = "cls" if class_token and place != "fc_norm" else "mean"
    return {
        "patch_size": tuple(patch),
        "in_channels": channels,
        "num_classes": head[0],
        "dim": dim,
        "depth": max(numbers) + 1,
        "mlp_dim": shapes["blocks.0.mlp.fc1.weight"][0],
        "pool": "cls_mean" if head[1:] == (2 * dim,) else pool,
        "class_token": class_token,
        "distilled": "dist_token" in has,
        "register_tokens": shapes["reg_token"][1] if "reg_token" in has else 0,
        "pos_embed": "learned" if "pos_embed" in has else "none",
        "qkv_bias": "blocks.0.attn.qkv.bias" in has,
        "proj_bias": "blocks.0.attn.proj.bias" in has,
        "qk_norm": "blocks.0.attn.q_norm.weight" in has,
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in has else None,
        "pre_norm": "norm_pre.weight" in has,
        "last_norm": place,
    }


def _refuse_other_parts(shapes: Shapes, dim: int) -> None:
    """Raise CheckpointError, with the name of the part, for blocks of another form than `nn.Block`."""
    if "blocks.0.mlp.fc1.weight" not in shapes or "blocks.0.mlp.fc2.weight" not in shapes:
        raise CheckpointError(
            "blocks.0.mlp.fc1 and fc2 are missing: the MLP has another form (such as SwiGLU), which this ViT lacks"
        )
    hidden, back = shapes["blocks.0.mlp.fc1.weight"][0], shapes["blocks.0.mlp.fc2.weight"]
    if back != (dim, hidden):
        raise CheckpointError(
            f"blocks.0.mlp.fc1 has {hidden} outputs and fc2 the shape {back}: a gated MLP, which this ViT lacks"
        )
    norm = next((name for name in shapes if re.fullmatch(r"blocks\.0\.norm1\.weight", name)), "")
    if norm and "blocks.0.norm1.bias" not in shapes:
        raise CheckpointError("blocks.0.norm1 has no bias: an RMS norm or a norm without bias, which this ViT lacks")


def heads_of(dim: int, shapes: Shapes) -> int:
    """Return the number of heads: from the norm of the queries if there is one, else as published models have it."""
    if "blocks.0.attn.q_norm.weight" in shapes:
        return dim // shapes["blocks.0.attn.q_norm.weight"][0]
    heads = _HEADS_OF.get(dim, dim // 64)
    if not heads or dim % heads:
        raise CheckpointError(
            f"the number of heads is not in the file, and cannot be inferred from a width of {dim}; "
            "put a config.json with num_heads beside it"
        )
    return heads


def grid_of(form: Mapping[str, Any], shapes: Shapes, image_size: tuple[int, ...] | None) -> dict[str, Any]:
    """Return the arguments `image_size` and `no_embed_class`, from the number of positions.

    `image_size` is that of a configuration, which decides how many rows and columns the positions have; without one the
    grid is square.
    """
    prefix = form["class_token"] + form["distilled"] + form["register_tokens"]
    patch = form["patch_size"]
    if "pos_embed" not in shapes:
        if image_size is None:
            raise CheckpointError("the weights have no positions and no config.json, so the size of images is unknown")
        return {"image_size": image_size, "no_embed_class": False}
    count = shapes["pos_embed"][1]
    if image_size is not None:
        patches = math.prod(n // p for n, p in zip(image_size, patch, strict=True))
        for without in (False, True):
            if count == patches + (0 if without else prefix):
                return {"image_size": image_size, "no_embed_class": without and prefix > 0}
    for without in (False, True):
        side = math.isqrt(max(0, count - (0 if without else prefix)))
        if side and side**2 == count - (0 if without else prefix):
            return {"image_size": (side * patch[0], side * patch[1]), "no_embed_class": without and prefix > 0}
    raise CheckpointError(
        f"there are {count} positions: neither a square grid of patches nor one with {prefix} tokens before it"
        + (f", and not that of images of {image_size}" if image_size else "; put a config.json beside the file")
    )
