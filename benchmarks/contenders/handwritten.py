"""A training step written by hand: the kernels of tinyvit called one after another, without tensors or a tape.

Its distance from `engine.py` is the time that the general engine takes itself, and what it would save to add residual
sums up in the kernel of the layer norm after them.
"""

from typing import Any

import numpy as np
from tinyvit.kernels.attention import numba_cpu as attention
from tinyvit.kernels.cross_entropy import numba_cpu as cross_entropy
from tinyvit.kernels.gelu import numba_cpu as gelu
from tinyvit.kernels.layer_norm import numba_cpu as layer_norm
from tinyvit.kernels.linear import numba_cpu as linear
from tinyvit.kernels.patches import numba_cpu as patches

import tinyvit as tv
from tinyvit.backend import keep_freed_memory
from tinyvit.engine import Tensor
from tinyvit.models.vit import EPS

from ..cases import Case, ModelShape
from ..inputs import LEARNING_RATE, WEIGHT_DECAY, Arrays, weights_of
from .base import Contender, Task

V = {"version": 2}  # for all kernels but that of GELU, which has one
NORM = {"eps": EPS, "needs": (True,) * 4, **V}
ALL = {"needs": (True, True, True), **V}


class Step:
    """A forward and a backward pass over the weights of a ViT. `self.kept` is a stack of arrays for backward."""

    def __init__(self, shape: ModelShape, weights: Arrays) -> None:
        self.shape, self.weights = shape, weights
        self.scale = (shape.dim // shape.heads) ** -0.5

    def _heads(self, qkv: Any) -> Any:
        b, n, _ = qkv.shape
        return qkv.reshape(b, n, 3, self.shape.heads, -1).transpose(2, 0, 3, 1, 4)

    def _at_first_token(self, gradient: Any) -> Any:
        """Zeros (B, N, C) with a gradient (B, C) at the first token."""
        full = np.zeros((len(gradient), self.shape.N, self.shape.dim), gradient.dtype)
        full[:, 0] = gradient
        return full

    def forward(self, images: Any) -> Any:
        w, side = self.weights, self.shape.patch
        cut, _ = patches.forward(images, size=(side, side), **V)
        kernel = w["patch_embed.proj.weight"].reshape(self.shape.dim, -1)
        (tokens,) = linear.forward(cut, kernel, w["patch_embed.proj.bias"], **V)
        x = np.empty((len(images), self.shape.N, self.shape.dim), tokens.dtype)
        x[:, 0] = w["cls_token"][0, 0]
        x[:, 1:] = tokens
        x += w["pos_embed"]
        branch, self.kept = None, [cut]
        for i in range(self.shape.depth):
            p, is_last = f"blocks.{i}.", i == self.shape.depth - 1
            first = layer_norm.normalize(x, branch, w[p + "norm1.weight"], w[p + "norm1.bias"], EPS, 2)
            (qkv,) = linear.forward(first[1], w[p + "attn.qkv.weight"], w[p + "attn.qkv.bias"], **V)
            heads = self._heads(qkv)
            out, lse = attention.forward(*heads, None, scale=self.scale, **V)
            merged, stream = out.transpose(0, 2, 1, 3).reshape(x.shape), first[0]
            if is_last:  # the class is read from the first token alone
                merged, stream = merged[:, 0], stream[:, 0]
            (branch,) = linear.forward(merged, w[p + "attn.proj.weight"], w[p + "attn.proj.bias"], **V)
            second = layer_norm.normalize(stream, branch, w[p + "norm2.weight"], w[p + "norm2.bias"], EPS, 2)
            (h,) = linear.forward(second[1], w[p + "mlp.fc1.weight"], w[p + "mlp.fc1.bias"], **V)
            (active,) = gelu.forward(h, version=1)
            x, (branch,) = second[0], linear.forward(active, w[p + "mlp.fc2.weight"], w[p + "mlp.fc2.bias"], **V)
            self.kept.append((first, heads, out, lse, merged, second, active, h))
        last = layer_norm.normalize(x, branch, w["norm.weight"], w["norm.bias"], EPS, 2)
        self.kept.append(last)
        return linear.forward(last[1], w["head.weight"], w["head.bias"], **V)[0]

    def backward(self, dlogits: Any) -> Arrays:
        w, g = self.weights, {}
        total, y, mean, rstd = self.kept.pop()
        dy, g["head.weight"], g["head.bias"] = linear.backward(dlogits, y, w["head.weight"], **ALL)
        dx, g["norm.weight"], g["norm.bias"] = layer_norm.normalize_backward(
            *(dy, None, total, w["norm.weight"], mean, rstd, 2)
        )
        for i in reversed(range(self.shape.depth)):
            p = f"blocks.{i}."
            before, heads, out, lse, merged, second, active, h = self.kept.pop()

            def back(name: str, dy: Any, x: Any, prefix: str = p) -> Any:
                name = prefix + name
                dx, g[name + ".weight"], g[name + ".bias"] = linear.backward(dy, x, w[name + ".weight"], **ALL)
                return dx

            def norm(name: str, dy: Any, dx: Any, kept: Any, prefix: str = p) -> Any:
                name = prefix + name
                dx, g[name + ".weight"], g[name + ".bias"] = layer_norm.normalize_backward(
                    *(dy, dx, kept[0], w[name + ".weight"], *kept[2:], 2)
                )
                return dx

            (dh,) = gelu.backward(back("mlp.fc2", dx, active), h, needs=(True,), version=1)
            dx = norm("norm2", back("mlp.fc1", dh, second[1]), dx, second)
            dmerged = back("attn.proj", dx, merged)
            if dx.ndim == 2:  # the last block
                dx, dmerged = self._at_first_token(dx), self._at_first_token(dmerged)
            dout = dmerged.reshape(*dx.shape[:2], self.shape.heads, -1).transpose(0, 2, 1, 3)
            dq, *_ = attention.backward(
                *(dout, *heads, None, out, lse), scale=self.scale, needs=(True, True, True, False), **V
            )
            dx = norm("norm1", back("attn.qkv", dq.base.reshape(*dx.shape[:2], -1), before[1]), dx, before)
        g["pos_embed"] = dx.sum(axis=0, keepdims=True)
        g["cls_token"] = g["pos_embed"][:, :1].copy()
        kernel = w["patch_embed.proj.weight"]
        _, dkernel, g["patch_embed.proj.bias"] = linear.backward(
            *(dx[:, 1:], self.kept.pop(), kernel.reshape(len(kernel), -1)), needs=(False, True, True), **V
        )
        g["patch_embed.proj.weight"] = dkernel.reshape(kernel.shape)
        return g


class Handwritten(Contender):
    """The option is ignored."""

    def train(self, case: Case, inputs: Arrays) -> Task:
        keep_freed_memory()
        parameters = {name: Tensor(array.copy(), requires_grad=True) for name, array in weights_of(inputs).items()}
        step = Step(case.model, {name: p.data for name, p in parameters.items()})
        optimizer = tv.optim.AdamW(parameters.values(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        images, labels = inputs["images"], inputs["labels"]

        def run() -> float:
            logits = step.forward(images)
            loss, *kept = cross_entropy.forward(logits, None, ids=labels, **V)
            (dlogits, _) = cross_entropy.backward(
                *(np.ones_like(loss), logits, None, *kept), ids=labels, needs=(True, False), **V
            )
            for name, gradient in step.backward(dlogits).items():
                parameters[name].grad = Tensor(gradient)
            optimizer.step()
            return float(loss)

        return Task(run, lambda loss: {"loss": np.asarray(loss)})

    def inference(self, case: Case, inputs: Arrays) -> Task:
        step, images = Step(case.model, weights_of(inputs)), inputs["images"]
        return Task(lambda: step.forward(images), lambda logits: {"out": logits})
