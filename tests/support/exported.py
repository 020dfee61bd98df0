"""Small models to export, each with a function that draws inputs for a batch."""

from collections.abc import Callable
from typing import Any

import numpy as np

import tinyvit as tv

M = tv.models


def images(batch: int, channels: int = 3, size: int = 16) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, channels, size, size)).astype(np.float32)


def texts(batch: int, length: int = 6, empty: bool = False) -> np.ndarray:
    """Token ids; the second half of the rows ends with padding, and `empty` makes the last of several all padding."""
    ids = np.random.default_rng(batch).integers(3, 40, (batch, length))
    ids[batch // 2 :, length - 2 :] = 0
    if empty and batch > 2:
        ids[-1] = 0
    return ids


def _vision() -> Any:
    return M.ViT(16, 8, 0, dim=16, depth=1, heads=2, pool="first")


def _reader() -> Any:
    return M.TextEncoder(40, 16, 1, 2)


def _vit(**options: Any) -> tuple[Any, Callable[[int], tuple[np.ndarray, ...]]]:
    return M.ViT(16, 4, 7, dim=16, depth=2, heads=2, **options), lambda b: (images(b),)


def _segmenter(head: Any, **options: Any) -> Any:
    vision = _vision()
    return M.Segmenter(vision, head(vision.patch_embed, 16, 3, **options))


def _both(b: int) -> tuple[np.ndarray, ...]:
    return images(b), texts(b)


MODELS: dict[str, Callable[[], tuple[Any, Callable[[int], tuple[np.ndarray, ...]]]]] = {
    "class token": _vit,
    "mean": lambda: _vit(pool="mean", norm="post", qkv_bias=False, layer_scale=0.5),
    "first, registers": lambda: _vit(pool="first", register_tokens=2, pos_embed="sincos2d", stem="conv"),
    "no positions": lambda: _vit(pos_embed="none", mlp_dim=5, register_tokens=1),
    "cct": lambda: _vit(stem="cct", pool="seq", mlp_layer="local", norm_layer="rmsnorm", register_tokens=1),
    "spt, lsa": lambda: _vit(stem="spt", lsa=True, mlp_layer="swiglu", rope=True, qk_norm=True),
    "video": lambda: (
        M.ViT((4, 8, 8), (2, 4, 4), 5, 16, 1, 2),
        lambda b: (images(4 * b, 3, 8).reshape(b, 4, 3, 8, 8),),
    ),
    "text": lambda: (_reader(), lambda b: (texts(b, empty=True),)),
    "post-norm text": lambda: (M.TextEncoder(40, 16, 2, 2, norm="post", positions="learned"), lambda b: (texts(b),)),
    "towers": lambda: (M.TwoTowers(_vision(), _reader(), 16), _both),
    "translator": lambda: (M.EncoderDecoder(40, 16, 1, 2), lambda b: (texts(b), texts(b, 4))),
    "captioner": lambda: (M.Captioner(_vision(), M.TextDecoder(40, 16, 1, 2)), _both),
    "product": lambda: (M.VQA(_vision(), _reader(), M.ProductFusion(16), 16, 3), _both),
    "cross": lambda: (M.VQA(_vision(), _reader(), M.CrossFusion(16, 1, 2), 16, 3), _both),
    "joint": lambda: (M.VQA(_vision(), _reader(), M.JointFusion(16, 1, 2), 16, 3), _both),
    "masks": lambda: (_segmenter(M.LinearHead), lambda b: (images(b),)),
    "masks by queries": lambda: (_segmenter(M.QueryHead, depth=1, heads=2), lambda b: (images(b),)),
    "boxes": lambda: (M.Detr(_vision(), 3, 5, 16, 1, 2), lambda b: (images(b),)),
    "convolutions": lambda: (M.VQA(M.ConvEncoder((16, 16), 3, 16), _reader(), M.ProductFusion(16), 16, 3), _both),
}


def arrays(returned: Any) -> list[np.ndarray]:
    """Return the outputs of a model or of a program as arrays."""
    parts = returned if isinstance(returned, tuple) else (returned,)
    return [np.asarray(part.numpy() if isinstance(part, tv.Tensor) else part) for part in parts]


def difference(x: np.ndarray, y: np.ndarray) -> float:
    """Return the largest difference, relative to the largest number in x; infinity if any is not finite."""
    worst = np.abs(x.astype(np.float64) - y).max(initial=0) / (np.abs(x).max(initial=0) or 1)
    return float(worst) if np.isfinite(worst) else np.inf
