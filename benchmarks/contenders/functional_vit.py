"""The ViT of `tinyvit.models` as a function of its weights, for libraries whose functions have NumPy's names."""

import math
from typing import Any

from ..cases import ModelShape
from ..inputs import MODEL_EPS

Weights = dict[str, Any]


def vit_loss(np: Any, erf: Any, p: Weights, images: Any, one_hot: Any, shape: ModelShape, narrow: Any = None) -> Any:
    """The mean cross-entropy of a batch; `np` and `erf` are those of the library."""
    x = vit_logits(np, erf, p, images, shape, narrow)
    x = x - np.max(x, axis=-1, keepdims=True)
    log_p = x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))
    return -np.sum(one_hot * log_p) / len(images)


def vit_logits(np: Any, erf: Any, p: Weights, images: Any, shape: ModelShape, narrow: Any = None) -> Any:
    """images (B, C, H, W) -> logits (B, classes). Products of matrices are computed in the dtype `narrow`, if given."""

    def product(x: Any, y: Any) -> Any:
        return x @ y if narrow is None else (x.astype(narrow) @ y.astype(narrow)).astype(x.dtype)

    b, n, c, d = len(images), shape.N, shape.dim, shape.dim // shape.heads
    x = product(patches(np, images, shape.patch), p["patch_embed.proj.weight"].reshape(c, -1).T)
    x = x + p["patch_embed.proj.bias"]
    x = np.concatenate([np.broadcast_to(p["cls_token"], (b, 1, c)), x], axis=1) + p["pos_embed"]
    for i in range(shape.depth):

        def linear(name: str, x: Any, i: int = i) -> Any:
            return product(x, p[f"blocks.{i}.{name}.weight"].T) + p[f"blocks.{i}.{name}.bias"]

        y = _layer_norm(np, x, p, f"blocks.{i}.norm1")
        qkv = np.transpose(linear("attn.qkv", y).reshape(b, n, 3, shape.heads, d), (2, 0, 3, 1, 4))
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = product(q * d**-0.5, np.swapaxes(k, -1, -2))
        e = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
        out = product(e / np.sum(e, axis=-1, keepdims=True), v)
        x = x + linear("attn.proj", np.transpose(out, (0, 2, 1, 3)).reshape(b, n, c))
        hidden = linear("mlp.fc1", _layer_norm(np, x, p, f"blocks.{i}.norm2"))
        x = x + linear("mlp.fc2", 0.5 * hidden * (1 + erf(hidden * 0.5**0.5)))
    return product(_layer_norm(np, x[:, 0], p, "norm"), p["head.weight"].T) + p["head.bias"]


def _layer_norm(np: Any, x: Any, p: Weights, name: str) -> Any:
    centered = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centered * centered, axis=-1, keepdims=True)
    return centered / np.sqrt(variance + MODEL_EPS) * p[f"{name}.weight"] + p[f"{name}.bias"]


def patches(np: Any, images: Any, patch: int) -> Any:
    """Cut images (B, C, H, W) into patches (B, N, C P P), row by row."""
    b, c, h, w = images.shape
    x = np.transpose(images.reshape(b, c, h // patch, patch, w // patch, patch), (0, 2, 4, 1, 3, 5))
    return x.reshape(b, (h // patch) * (w // patch), c * patch * patch)


def adamw(np: Any, p: Any, g: Any, m: Any, v: Any, step: Any, lr: float, decay: float) -> tuple[Any, Any, Any]:
    """Update the parameter p and its moments m and v by AdamW with the usual betas; return the new p, m and v."""
    b1, b2 = 0.9, 0.999
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * (g * g)
    c1, c2 = (-np.expm1(step * math.log(b)) for b in (b1, b2))  # 1 - b^step, without cancellation in float32
    update = m / c1 / (np.sqrt(v / c2) + 1e-8)
    return p * (1 - lr * decay) - lr * update, m, v
