"""The groups of parameters of a run: with and without weight decay, and with smaller learning rates in lower blocks."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..engine import Tensor
from ..nn import Module
from ..optim import decay_groups

Split = Callable[[Iterable[tuple[str, Tensor]], float], list[dict[str, Any]]]


def parameter_groups(
    model: Module, weight_decay: float, layer_decay: float, split: Split = decay_groups
) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the groups of an optimizer for all parameters that are trained, and a factor of the learning rate of each.

    The factor is `layer_decay` to the power of the number of blocks above: 1 for the head and the last norm,
    `layer_decay` for the last block, and the smallest for embeddings. (Clark et al., ELECTRA, 2020; Bao et al., BEiT,
    2022.) `split` divides named parameters into groups with and without weight decay.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if layer_decay == 1:
        groups = split(trainable, weight_decay)
        return groups, [1.0] * len(groups)
    depth = 1 + max((int(found[1]) for name, _ in trainable if (found := _BLOCK.search(name))), default=-1)
    levels: dict[int, list[tuple[str, Tensor]]] = {}
    for name, p in trainable:
        levels.setdefault(_level(name, depth), []).append((name, p))
    groups, factors = [], []
    for level, members in sorted(levels.items()):
        new = split(members, weight_decay)
        groups += new
        factors += [layer_decay ** (depth + 1 - level)] * len(new)
    return groups, factors


_BLOCK = re.compile(r"\bblocks\.(\d+)\.")
_EMBEDDINGS = re.compile(r"\b(patch_embed|pos_embed|cls_token|dist_token|reg_token|norm_pre|embedding)\b")


def _level(name: str, depth: int) -> int:
    """Return 0 for embeddings, i + 1 for block i, and `depth` + 1 for what follows the blocks."""
    if found := _BLOCK.search(name):
        return int(found[1]) + 1
    return 0 if _EMBEDDINGS.search(name) else depth + 1


def set_rates(groups: Sequence[dict[str, Any]], factors: Sequence[float], lr: float) -> None:
    """Set the learning rate of each group to `lr` times its factor."""
    for group, factor in zip(groups, factors, strict=True):
        group["lr"] = lr * factor
