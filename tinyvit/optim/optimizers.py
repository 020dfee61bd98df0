"""Optimizers, and groups of parameters with their own settings."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from .. import dispatch
from ..backend import Array, is_capturing, is_on_gpu, select_gpu_of, to_device_of, to_host
from ..backend.checks import finite_number, flag
from ..engine import Tensor
from .bundle import MOMENTS, UPDATES, HostBundle, Member
from .device import DeviceBundle
from .parameters import groups_of, pairs_of, require_keys, tensors_of
from .rules import adam_update

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class Optimizer:
    """The base class of optimizers: groups of parameters with their settings, and arrays kept for each parameter.

    Parameters
    ----------
    params : tensors, or groups as mappings with "params" and settings that differ from the defaults.

    Raises
    ------
    TypeError, ValueError
        If a setting is not a number, or out of range: betas must be in [0, 1), the others finite and at least 0. If
        there are no parameters, or something among them could never be updated: no tensor, the result of an operation,
        or a tensor that requires no gradient (frozen parameters are accepted beside others).
    """

    slots: Sequence[str] = ()  # the names of the arrays kept for each parameter

    def __init__(self, params: Parameters, **defaults: Any) -> None:
        self.groups: list[dict[str, Any]] = []
        for group in groups_of(type(self).__name__, params):
            unknown = group.keys() - defaults.keys() - {"params"}
            if unknown:
                raise ValueError(
                    f"{type(self).__name__}: unknown settings {sorted(unknown)}; known: {sorted(defaults)}"
                )
            self.groups.append({**defaults, **group})
            _check_settings(type(self).__name__, self.groups[-1])
            if "betas" in defaults:
                self.groups[-1]["betas"] = tuple(self.groups[-1]["betas"])
        tensors = [p for group in self.groups for p in group["params"]]
        self.steps = 0
        select_gpu_of(p.data for p in tensors)
        self._arrays = [{slot: np.zeros_like(p.data) for slot in self.slots} for p in tensors]

    def zero_grad(self) -> None:
        """Delete all gradients."""
        for group in self.groups:
            for p in group["params"]:
                p.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        self.steps += 1
        arrays = iter(self._arrays)
        for group in self.groups:
            for p in group["params"]:
                kept = next(arrays)
                if p.grad is not None:
                    self._update(p.data, p.grad.data, kept, group)
                    p.mark_modified()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every group. Raises TypeError or ValueError as the constructor does."""
        _check_settings(type(self).__name__, {"lr": lr})
        for group in self.groups:
            group["lr"] = lr

    def device_bundle(self) -> DeviceBundle | None:
        """Return all parameters, if one kernel on their GPU makes the step with its clipping and scaling; else None."""
        return None

    def _update(self, p: Array, g: Array, kept: dict[str, Array], group: dict[str, Any]) -> None:
        """Update the parameter p in place from its gradient g."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, the settings of each group, and copies of the arrays kept for each parameter."""
        settings = {
            str(i): {k: list(v) if isinstance(v, tuple) else v for k, v in group.items() if k != "params"}
            for i, group in enumerate(self.groups)
        }
        arrays = {
            str(i): {k: to_host(a).copy() for k, a in kept.items()} for i, kept in enumerate(self._arrays) if kept
        }
        return {"steps": self.steps, "groups": settings, "arrays": arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state`. Raises ValueError if it belongs to other parameters or to another optimizer."""
        require_keys(type(self).__name__, state, ("steps", "groups"))
        arrays, own = state.get("arrays", {}), {str(i): kept for i, kept in enumerate(self._arrays) if kept}
        if len(state["groups"]) != len(self.groups) or arrays.keys() != own.keys():
            raise ValueError(
                f"optimizer state has {len(state['groups'])} groups and {len(arrays)} parameters; "
                f"this optimizer has {len(self.groups)} and {len(own)}"
            )
        for key, kept in own.items():
            if {k: a.shape for k, a in kept.items()} != {k: a.shape for k, a in arrays[key].items()}:
                raise ValueError(f"optimizer state of parameter {key} has other arrays or shapes than this optimizer")
        if type(state["steps"]) is not int or state["steps"] < 0:
            raise ValueError(f"optimizer state has steps {state['steps']!r}; they must be counted from 0")
        saved = [_restored(type(self).__name__, group, state["groups"], i) for i, group in enumerate(self.groups)]
        self.steps = state["steps"]
        for group, settings in zip(self.groups, saved, strict=True):
            group.update(settings)
        for key, kept in own.items():
            for name, array in kept.items():
                array[...] = to_device_of(arrays[key][name], array)


def _restored(name: str, group: Mapping[str, Any], states: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the settings of a group from the state of an optimizer. Raises ValueError if they are not its own."""
    known = group.keys() - {"params"}
    require_keys(f"{name}: groups", states, (str(number),))
    require_keys(f"{name}: group {number}", states[str(number)], tuple(sorted(known)))
    saved = {k: tuple(v) if isinstance(v, list) else v for k, v in states[str(number)].items()}
    if unknown := saved.keys() - known:
        raise ValueError(f"{name}: the state of group {number} has unknown settings {sorted(unknown)}")
    for key, value in saved.items():
        own = group[key]
        alike = len(value) == len(own) if isinstance(value, tuple) and isinstance(own, tuple) else True
        if not alike or (isinstance(own, bool | tuple | str) and type(value) is not type(own)):
            raise ValueError(f"{name}: the state of group {number} has {key} {value!r}; this optimizer has {own!r}")
    _check_settings(name, saved)
    return saved


def _check_settings(name: str, settings: Mapping[str, Any]) -> None:
    betas = settings.get("betas", (0.0, 0.0))
    if not isinstance(betas, Sequence | np.ndarray) or isinstance(betas, str | bytes):
        raise TypeError(f"{name}: betas is {betas!r}; it must be two numbers in [0, 1)")
    if np.shape(betas) != (2,) or not all(isinstance(beta, Real) and 0 <= float(beta) < 1 for beta in betas):
        raise ValueError(f"{name}: betas is {betas}; it must be two numbers in [0, 1)")
    for key in ("nesterov", "use_muon"):
        flag(f"{name}: {key}", settings.get(key, False))
    for key in ("lr", "eps", "momentum", "weight_decay"):
        finite_number(f"{name}: {key}", settings.get(key, 0.0), 0)


class SGD(Optimizer):
    """Stochastic gradient descent: v <- m v + g,  p <- p - lr v  (Nesterov: p - lr (g + m v)).

    Weight decay adds weight_decay * p to g. (Sutskever et al., On the importance of initialization and momentum, 2013,
    in the form where the learning rate multiplies the velocity.)
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if flag("SGD: nesterov", nesterov) and not finite_number("SGD: momentum", momentum, 0):
            raise ValueError("SGD: nesterov=True needs a momentum above 0")
        self.slots = ("velocity",) if finite_number("SGD: momentum", momentum, 0) else ()
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def _update(self, p: Array, g: Array, kept: dict[str, Array], group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        if "velocity" in kept:
            v = kept["velocity"]
            v *= group["momentum"]
            v += g
            g = g + group["momentum"] * v if group["nesterov"] else v
        p -= group["lr"] * g


class Adam(Optimizer):
    """m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2,  p <- p - lr mhat / (sqrt(vhat) + eps)

    with mhat = m / (1 - b1^t), vhat = v / (1 - b2^t), where t counts the updates of p itself: a parameter that gets its
    first gradient late starts as all others did. Weight decay adds weight_decay * p to g.
    (Kingma and Ba, Adam: a method for stochastic optimization, 2015, algorithm 1.)
    """

    slots = MOMENTS
    decoupled = False  # whether weight decay bypasses the moments
    update = "adamw"  # the name under which kernels for the step are registered

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        for kept in self._arrays:
            kept[UPDATES] = np.zeros((), np.int64)
        self._bundle()

    def _bundle(self) -> None:
        """Bundle the parameters of each dtype, so that their moments lie together."""
        members: dict[Any, list[Member]] = {}
        arrays = iter(self._arrays)
        for i, group in enumerate(self.groups):
            for p in group["params"]:
                members.setdefault(p.dtype, []).append((p, next(arrays), i))
        on_gpu = {dtype for dtype, entries in members.items() if any(is_on_gpu(p.data) for p, _, _ in entries)}
        self._bundles = [HostBundle(dtype, entries) for dtype, entries in members.items() if dtype not in on_gpu]
        self.device_bundles = [DeviceBundle(dtype, members[dtype], len(self.groups)) for dtype in on_gpu]
        for bundle in self.device_bundles:
            bundle["step"] = self.steps

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy without the bundles: the copy makes its own, as views of its own arrays."""
        return {name: value for name, value in self.__dict__.items() if not name.endswith("_bundles")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bundle()

    def step(self) -> None:
        """Update every parameter that has a gradient: all of one dtype in one call of a kernel, if a kernel serves."""
        self.steps += 1
        settings_of = lambda group, updates: self._settings(self.groups[group], updates)  # noqa: E731
        for bundle in self._bundles:
            published = self._is_as_published()
            kernel = dispatch.select_update(self.update, bundle.dtype, "cpu") if published else None
            for p, kept, i in bundle.step(kernel, settings_of) if kernel else bundle.members:
                if p.grad is not None:
                    self._update(p.data, p.grad.data, kept, self.groups[i])
                    p.mark_modified()
        if self.device_bundles:
            self._step_on_gpu()

    def _step_on_gpu(self) -> None:
        for bundle in self.device_bundles:
            select_gpu_of([bundle.state])
            published = self._is_as_published()
            kernel = dispatch.select_update(self.update, bundle.dtype, "cuda") if published else None
            if kernel and not is_capturing():
                bundle.set_groups(self.groups)
            rest = bundle.step(kernel, self.decoupled) if kernel else bundle.members
            for p, kept, i in rest:
                if p.grad is not None:
                    self._update(p.data, p.grad.data, kept, self.groups[i])
                    p.mark_modified()

    def device_bundle(self) -> DeviceBundle | None:
        fits = len(self.device_bundles) == 1 and not self._bundles and self._is_as_published()
        return self.device_bundles[0] if fits and self.device_bundles[0].dtype == np.float32 else None

    def state_dict(self) -> dict[str, Any]:
        for bundle in self.device_bundles:
            self.steps = int(bundle["step"]) or self.steps
        return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        require_keys(type(self).__name__, state, ("steps", "groups"))
        arrays = {}
        for key, kept in state.get("arrays", {}).items():
            # A state of an earlier version counts the steps of all parameters together.
            updates = kept.get(UPDATES, np.array(state["steps"] if np.any(kept.get("v", 0)) else 0))
            if np.any(to_host(updates) < 0):
                raise ValueError(f"optimizer state of parameter {key} has a negative number of updates")
            arrays[key] = {**kept, UPDATES: updates}
        super().load_state_dict({**state, "arrays": arrays})
        for bundle in self.device_bundles:
            bundle["step"] = self.steps

    def _is_as_published(self) -> bool:
        """Return whether the kernels compute this rule; a subclass may override it."""
        return type(self)._update is Adam._update and type(self)._settings is Adam._settings

    def _settings(self, group: dict[str, Any], updates: int) -> tuple[float, ...]:
        """Return keep, l2, b1, b2, rate, c2 and eps of the kernel `adamw`, whose formula is equal to `_update`."""
        t = max(updates, 1)  # 0: a parameter without a gradient so far, which stays as it is
        lr, (b1, b2), decay = group["lr"], group["betas"], group["weight_decay"]
        keep, l2 = (1 - lr * decay, 0.0) if self.decoupled else (1.0, decay)
        return keep, l2, b1, b2, lr / (1 - b1**t), 1 / (1 - b2**t), group["eps"]

    def _update(self, p: Array, g: Array, kept: dict[str, Array], group: dict[str, Any]) -> None:
        adam_update(p, g, kept, group, self.decoupled)


class AdamW(Adam):
    """Adam with weight decay that bypasses the moments: p <- p - lr weight_decay p before each step.

    (Loshchilov and Hutter, Decoupled weight decay regularization, 2019, algorithm 2.)
    """

    decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


def decay_groups(named_parameters: Iterable[tuple[str, Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices and filters, with weight decay, and all other parameters, without it.

    The others have one axis, as biases and norms do, or a name that ends in `pos_embed` or `_token` or contains
    `embedding`. Raises TypeError or ValueError if `named_parameters` are not pairs of a name and a tensor.
    """
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    finite_number("decay_groups: weight_decay", weight_decay, 0)
    pairs = pairs_of("decay_groups", named_parameters)
    if not pairs:
        raise ValueError("decay_groups: named_parameters is empty; a generator can be used once")
    for i, pair in enumerate(pairs):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)):
            kind = type(pair).__name__
            raise TypeError(
                f"decay_groups: named_parameters[{i}] is a {kind}, not a name and a tensor; give "
                "model.named_parameters()"
            )
    tensors_of("decay_groups", [p for _, p in pairs], "named_parameters")
    for name, p in pairs:
        is_other = p.ndim < 2 or name.endswith(("pos_embed", "_token")) or "embedding" in name
        (others if is_other else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
