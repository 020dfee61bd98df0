"""Measurements of a model while it trains, and the warnings that they call for."""

from typing import Any

import numpy as np

from ...backend import NUMPY, to_host
from ...backend.words import counted
from ...functional.attention import attention_probabilities
from ..record.records import Backward, Entry, arrays_of

# Images of the forward pass in which activations are measured: of the validation split, or of the test split if a run
# has no other.
IMAGES = 4
_SILENT = 1e-6  # the largest magnitude of a silent unit
_VANISHED, _EXPLODED = 1e-6, 1e3  # gradient norms, relative to the largest one and to the usual largest one
_RECENT = 10  # steps over which the median loss is taken
_GROWN = 1.5  # times the first loss: the run is worse than at its start


def norm(array: np.ndarray) -> float:
    flat = array.ravel()
    return float(np.sqrt(np.dot(flat, flat)))


def spread(entry: Entry) -> float:
    """The standard deviation of an operation's output."""
    s = entry.outputs[0].statistics
    count = max(1, int(np.prod(s.shape)))
    return float(np.sqrt(max(0.0, s.norm**2 / count - s.mean**2)))


def silent_units(entry: Entry) -> float:
    """The share of an activation's units that are zero for every token of every image."""
    (y,) = arrays_of(entry.outputs)
    units = np.moveaxis(y, 1, -1) if y.ndim == 4 else y  # images have their channels on axis 1
    return float(np.mean(np.abs(units).reshape(-1, units.shape[-1]).max(axis=0) < _SILENT))


def attention_entropy(entry: Entry) -> list[float]:
    """For each head, the mean entropy over queries in nats: 0 for a single key, log S for equal weights."""
    application = entry.application()
    q, k, _, bias, _ = application.saved
    mask = None if application.mask is None else to_host(application.mask)
    p = attention_probabilities(NUMPY, q, k, bias, mask, application.is_causal, application.scale)
    return [float(x) for x in -(p * np.log(p + 1e-12)).sum(axis=-1).mean(axis=(0, 2))]


def largest_read(place: Entry | Backward) -> float:
    """The largest finite number that an operation or a gradient rule read."""
    values = place.inputs if isinstance(place, Entry) else (*place.entry.inputs, *place.incoming)
    read = [v.statistics for v in values if hasattr(v, "statistics")]
    return max(max(abs(s.smallest), abs(s.largest)) for s in read)


def alarms(line: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, str]:
    """The warnings that a line of measurements calls for, by topic; `before` has the earlier lines."""
    found = _loss_alarms([loss for earlier in (*before, line) for loss in earlier["losses"]])
    gradients = line["gradients"]
    broken = [name for name, size in gradients.items() if not np.isfinite(size)]
    if broken:
        others = f", nor are those of {counted(len(broken) - 1, 'other parameters')}" if len(broken) > 1 else ""
        return found | {"finite": f"the gradient of {broken[0]} is not finite{others}"}
    weights = {name: size for name, size in gradients.items() if name.endswith("weight")}
    if weights:
        most, (name, least) = max(weights.values()), min(weights.items(), key=lambda item: item[1])
        if not most:
            found["vanishing"] = "the gradients of all weights are zero"
        elif least < _VANISHED * most:
            found["vanishing"] = f"the gradient of {name} vanishes: it is {least:.1e}, while the largest is {most:.1e}"
    usual = np.median([max(b["gradients"].values()) for b in before]) if len(before) >= 3 else 0.0
    name, largest = max(gradients.items(), key=lambda item: item[1])
    if usual and largest > _EXPLODED * usual:
        found["exploding"] = f"the gradient of {name} explodes: it is {largest:.1e}, while {usual:.1e} is usual"
    for key, share in line["silent"].items():
        if share > 0.5:
            found[f"dead {key}"] = f"{100 * share:.0f} % of the units of {key} are silent on {IMAGES} images"
    for key, heads in line["entropy"].items():
        if min(heads) < 1e-3:
            found[f"collapsed {key}"] = f"head {int(np.argmin(heads))} of {key} attends to a single key"
    return found


def _loss_alarms(losses: list[float]) -> dict[str, str]:
    recent = float(np.median(losses[-_RECENT:])) if losses else 0.0
    if len(losses) <= _RECENT or recent <= _GROWN * losses[0]:
        return {}
    return {"diverging": f"the loss grows: it is {recent:.3g}, and was {losses[0]:.3g} at the start"}
