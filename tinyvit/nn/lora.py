"""Low-rank adapters: fine-tune a frozen model by small matrices beside its linear maps."""

import fnmatch
from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import functional as F
from ..functional.tensors import Tensor, no_draws
from . import init
from .layers import Linear
from .module import Module, Parameter


class LoRALinear(Linear):
    """y = x W^T + b + (alpha / rank) (x A^T) B^T: a linear map W and a learned change of it of low rank.

    W and b are those of `layer`, and are trained too unless they are frozen, as by `add_lora`. lora_a (rank,
    in_features) is drawn, lora_b (out_features, rank) is zero, so that nothing changes at first. (Hu et al., LoRA,
    2021, equation 3.)
    """

    def __init__(self, layer: Linear, rank: int, alpha: float | None = None) -> None:
        init.check_sizes("LoRALinear", rank=rank)
        out_features, in_features = layer.weight.shape
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_a = Parameter(init.uniform_fan_in((rank, in_features), in_features))
        self.lora_b = Parameter(np.zeros((out_features, rank), np.float32))
        self.scale = (rank if alpha is None else alpha) / rank
        for parameter in (self.lora_a, self.lora_b):
            parameter.data = parameter.to(layer.weight.dtype).to(layer.weight.device).data

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)

    def merged(self) -> Linear:
        """Return a linear map with the same result, W + (alpha / rank) B A."""
        out_features, in_features = self.weight.shape
        with no_draws():
            layer = Linear(in_features, out_features, bias=False)
        change = self.lora_b.numpy().astype(np.float64) @ self.lora_a.numpy()
        layer.weight = Parameter((self.weight.numpy() + self.scale * change).astype(self.weight.dtype))
        layer.weight.data = layer.weight.to(self.weight.device).data
        layer.bias = self.bias
        return layer


def add_lora(
    model: Module, rank: int, targets: Iterable[str] = ("*.qkv", "*.proj"), alpha: float | None = None
) -> list[str]:
    """Freeze `model`, and put a `LoRALinear` in place of every linear map whose name matches one of `targets`.

    Parameters
    ----------
    model : changed in place.
    rank : of the change of each weight.
    targets : patterns such as "*.qkv" or "blocks.*.mlp.fc?"; only layers of the kind `Linear` are meant.
    alpha : the change is multiplied with alpha / rank; by default with 1.

    Returns
    -------
    list of str
        The names of the layers.

    Raises
    ------
    ValueError
        If no layer matches a target.
    """
    patterns = [targets] if isinstance(targets, str) else list(targets)
    linear = {name: layer for name, layer in model.named_modules() if type(layer) is Linear}
    chosen = [name for name in linear if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in linear):
            raise ValueError(f"targets has {pattern!r}, which no linear map matches; available: {', '.join(linear)}")
    model.requires_grad_(False)
    for name in chosen:
        _replace(model, name, LoRALinear(linear[name], rank, alpha))
    return chosen


def merge_lora(model: Module) -> Module:
    """Put a linear map with the same result in place of every `LoRALinear`; return the model, changed in place."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoRALinear):
            _replace(model, name, layer.merged())
    return model


def _replace(model: Module, name: str, layer: Module) -> None:
    """Put `layer` in place of the module with this dotted name."""
    before, _, last = name.rpartition(".")
    parent: Any = dict(model.named_modules())[before]
    setattr(parent, last, layer)
