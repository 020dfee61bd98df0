"""Muon: the momentum of a matrix is made orthogonal before it is used as a step; AdamW updates all else."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..backend import Array, namespace_of
from ..engine import Tensor
from .bundle import MOMENTS, UPDATES
from .optimizers import Optimizer, Parameters, decay_groups
from .parameters import pairs_of
from .rules import adam_update, orthogonalized

_ADJUSTMENTS = ("match_rms_adamw", "original")  # by the names of torch.optim.Muon
_HIDDEN = re.compile(r"\bblocks\.\d+\.")
_PARTS = {"qkv.weight": 3, "kv.weight": 2}  # maps of several matrices in one


class Muon(Optimizer):
    """M <- m M + (1-m) G,  W <- W - lr (s O + weight_decay W),  O = (1-m) G + m M made orthogonal

    for matrices W; without `nesterov` O is made of M. Parameters of another number of axes, and groups with
    `use_muon=False`, are updated as by AdamW with the same `lr` and `weight_decay`. Embeddings and heads belong there
    too: `muon_groups` says so. (Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.)

    Parameters
    ----------
    momentum, nesterov, ns_steps : m, and the steps of the Newton-Schulz iteration, see `orthogonalized`.
    adjust_lr_fn : {"match_rms_adamw", "original"}
        The factor s: 0.2 sqrt(max(rows, columns)), by which steps are about as large as those of AdamW, so that both
        share a learning rate (Liu et al., Muon is scalable for LLM training, 2025, equation 4), or Jordan's
        sqrt(max(1, rows / columns)), for learning rates near 0.02.
    parts : how many matrices lie below each other in each parameter of a group; each is made orthogonal by itself.
    betas, eps : of AdamW.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        use_muon: bool = True,
        parts: int = 1,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn, betas=betas, eps=eps, use_muon=use_muon, parts=parts,
        )  # fmt: skip
        self._arrays = []
        for group in self.groups:
            _check(group)
            self._arrays += [_new_arrays(p.data, _is_muon(p.data, group)) for p in group["params"]]

    def _update(self, p: Array, g: Array, kept: dict[str, Array], group: dict[str, Any]) -> None:
        if not _is_muon(p, group):
            adam_update(p, g, kept, group, decoupled=True)
            return
        lr, m, kept_momentum = group["lr"], group["momentum"], kept["momentum"]
        kept_momentum *= m
        kept_momentum += (1 - m) * g
        direction = (1 - m) * g + m * kept_momentum if group["nesterov"] else kept_momentum
        rows, columns = p.shape[0] // group["parts"], p.shape[1]
        step = orthogonalized(direction.reshape(group["parts"], rows, columns), group["ns_steps"])
        original = group["adjust_lr_fn"] == "original"
        factor = math.sqrt(max(1, rows / columns)) if original else 0.2 * math.sqrt(max(rows, columns))
        if group["weight_decay"]:
            p *= 1 - lr * group["weight_decay"]
        p -= (lr * factor * step).reshape(p.shape).astype(p.dtype)


def _is_muon(p: Array, group: Mapping[str, Any]) -> bool:
    return group["use_muon"] and p.ndim == 2


def _new_arrays(p: Array, is_muon: bool) -> dict[str, Array]:
    zeros_like = namespace_of(p).zeros_like
    if is_muon:
        return {"momentum": zeros_like(p)}
    return {**{name: zeros_like(p) for name in MOMENTS}, UPDATES: np.zeros((), np.int64)}


def _check(group: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError if a setting of a group is out of range, or its matrices are not of its parts."""
    for key in ("ns_steps", "parts"):
        if type(group[key]) is not int or group[key] < 1:
            raise ValueError(f"Muon: {key} is {group[key]!r}; it must be an integer, at least 1")
    if not group["momentum"] < 1:
        raise ValueError(f"Muon: momentum is {group['momentum']}; it must be below 1")
    if not isinstance(group["adjust_lr_fn"], str) or group["adjust_lr_fn"] not in _ADJUSTMENTS:
        raise ValueError(
            f"Muon: adjust_lr_fn is {group['adjust_lr_fn']!r}; it must be one of {', '.join(_ADJUSTMENTS)}"
        )
    for p in group["params"]:
        if _is_muon(p.data, group) and (p.shape[0] % group["parts"] or 0 in p.shape):
            raise ValueError(f"Muon: a parameter has shape {p.shape}; its rows must be {group['parts']} equal parts")


def muon_groups(named_parameters: Iterable[tuple[str, Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups of `decay_groups`, in which the matrices of blocks are apart, for `Muon`.

    All others, such as embeddings, heads, biases and norms, have `use_muon=False`. The queries, keys and values of an
    attention layer, which are one parameter, are three `parts`. Raises what `decay_groups` raises.
    """
    named = pairs_of("muon_groups", named_parameters)
    groups = decay_groups(named, weight_decay)
    names = {id(p): name for name, p in named}
    found: dict[tuple[float, bool, int], dict[str, Any]] = {}
    for group in groups:
        for p in group["params"]:
            is_muon = p.ndim == 2 and bool(_HIDDEN.search(names[id(p)]))
            parts = next((n for end, n in _PARTS.items() if names[id(p)].endswith(f".{end}")), 1) if is_muon else 1
            new = {"params": [], "weight_decay": group["weight_decay"], "use_muon": is_muon, "parts": parts}
            found.setdefault((group["weight_decay"], is_muon, parts), new)["params"].append(p)
    return list(found.values())
