"""Looking on while a model trains: gradients, updates, activations and attention of every layer, at a low cost.

A few times in a run a line is written to study.jsonl: the losses of the steps since the last line, the norm of each
parameter's gradient, how far the step moved it beside its own size, and, from a forward pass of a few test images, the
spread of each activation, the share of units that are silent, and the entropy of each attention head. study.html and
study.png draw them at the end. The run itself computes the same bits as without.
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import functional as F
from ...checkpoint import atomic_write
from ...context import no_grad
from ...data import Dataset
from ...errors import StudyError
from ...models import ViT
from ...run.display import Display
from ..record.records import Backward, Entry, whole
from ..trace import trace
from .page import draw_page

if TYPE_CHECKING:
    from ...run.state import Position, Training

LINES, PAGE, PICTURE = "study.jsonl", "study.html", "study.png"
SAMPLES = 60  # lines in a whole run, at most
SHARE = 0.025  # of the time that looking may take; the last step is always looked at
IMAGES = 4  # in the pass that looks at activations
_SILENT = 1e-6
_VANISHED, _EXPLODED = 1e-6, 1e3
_RECENT = 10  # steps, of whose losses the median is taken
_GROWN = 1.5  # times the first loss: a run that is worse than at its start
_ACTIVATIONS = ("relu", "gelu", "bias_gelu", "silu")


class Watch(Display):
    """Shows what another display shows, and looks on."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self.lines: list[dict[str, Any]] = []
        self.warnings: dict[str, str] = {}  # by what they are about, the first time each
        self._losses: list[float] = []  # of every step since the last line
        self._sums = (0.0, 0)  # of losses and images of the epoch, when they were last read
        self._unread = 0  # steps since then
        self._free = 0.0  # the time from which on another look is within the share
        self._cost = 0.0  # seconds of copying the weights for the next look
        self._before: dict[str, np.ndarray] | None = None  # the weights before a step that is looked at

    def __enter__(self) -> "Watch":
        self._display.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        error = exception[1]
        if isinstance(error, Exception) and isinstance(error.__cause__, FloatingPointError):
            self._find_where_it_began()
        self._display.__exit__(*exception)
        self._write(drawn=True)

    def accept(self, training: "Training") -> None:
        self._display.accept(training)
        if not isinstance(training.test_data, Dataset) or not isinstance(training.model, ViT):
            raise StudyError("--study looks on while a classifier of images trains; leave it out for this recipe")
        self._training, self._data = training, training.test_data

    def started(self, training: "Training", folder: Path) -> None:
        self._display.started(training, folder)
        self._folder = folder
        self._every = max(1, training.total_steps // SAMPLES)
        self._sums = (training.position.loss_sum, training.position.images)
        path = folder / LINES
        if path.is_file():  # a run that goes on: what was seen before its checkpoint stays
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            self.lines = [line for line in lines if line["step"] <= training.position.step]

    def stepped(self, position: "Position") -> None:
        self._display.stepped(position)
        began = time.perf_counter()
        loss_sum, images = self._sums
        self._unread += 1
        if position.images > images:  # a GPU's losses are read every few steps: each of those gets their mean
            self._losses += [(position.loss_sum - loss_sum) / (position.images - images)] * self._unread
            self._sums, self._unread = (position.loss_sum, position.images), 0
        if self._before is not None:
            self._look(position)
            now = time.perf_counter()
            self._free = now + (now - began + self._cost) / SHARE
        following, copied = position.step + 1, time.perf_counter()
        is_due = following % self._every == 0 and copied >= self._free
        self._before = None
        if is_due or following == self._training.total_steps:
            self._before = {name: p.numpy().copy() for name, p in self._training.model.named_parameters()}
            self._cost = time.perf_counter() - copied

    def finished_epoch(self, position: "Position") -> None:
        self._display.finished_epoch(position)
        self._losses += [position.metrics[-1]["train_loss"]] * self._unread
        self._sums, self._unread = (0.0, 0), 0
        if self.lines and self.lines[-1]["step"] == position.step:
            self.lines[-1]["losses"] += self._losses
            self._losses = []
        self._write(drawn=False)

    # Looking

    def _look(self, position: "Position") -> None:
        assert self._before is not None
        gradients, updates = {}, {}
        for name, parameter in self._training.model.named_parameters():
            before = self._before[name]
            size = _norm(before)
            gradients[name] = 0.0 if parameter.grad is None else _norm(parameter.grad.numpy())
            updates[name] = _norm(parameter.numpy() - before) / size if size else 0.0
        seen = {"gradients": gradients, "updates": updates, **self._activations()}
        line = {"step": position.step, "losses": self._losses, **seen}
        for about, words in alarms(line, self.lines).items():
            self._warn(about, f"step {position.step}: {words}")
        self.lines.append(line)
        self._losses = []

    @no_grad()
    def _activations(self) -> dict[str, Any]:
        """Spread and silence of every layer's output and entropy of every head, on a few test images."""
        model, data = self._training.model, self._data
        was_training = model.training
        model.eval()
        try:
            with trace() as recorded:
                model(data.normalize(data.images[:IMAGES]))
        finally:
            model.train(was_training)
        inner = [entry for entry in recorded if entry.module]
        return {
            "spread": {entry.key: _spread(entry) for entry in inner},
            "silent": {entry.key: silent_units(entry) for entry in inner if entry.op.name in _ACTIVATIONS},
            "entropy": {entry.key: attention_entropy(entry) for entry in inner if entry.op.name == "attention"},
        }

    def _find_where_it_began(self) -> None:
        """Go through the batch that failed again, recording, and name the first operation that was not finite."""
        training = self._training
        with np.errstate(all="ignore"), trace() as recorded:
            for batch in next(training.groups()):
                logits = training.model(batch.images)
                F.cross_entropy(logits, batch.labels, reduction="sum").backward()
        bad = recorded.first_not_finite()
        if bad is not None:
            words = f"the first NaN or infinity is in {bad}, on numbers of up to {_largest_given(bad.place):.2g}"
            self._warn("finite", f"step {training.position.step + 1}: {words}")

    def _warn(self, about: str, words: str) -> None:
        if about not in self.warnings:
            self.warnings[about] = words
            print(f"study: {words}", file=sys.stderr, flush=True)

    def _write(self, drawn: bool) -> None:
        if not self.lines and not self.warnings:
            return
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        atomic_write(self._folder / LINES, text.encode())
        if drawn:
            warnings = list(self.warnings.values())
            steps = self._training.position.step
            draw_page(self._folder / PAGE, self._folder / PICTURE, self._folder.name, self.lines, warnings, steps)


def _norm(array: np.ndarray) -> float:
    flat = array.ravel()
    return float(np.sqrt(np.dot(flat, flat)))


def _spread(entry: Entry) -> float:
    """The standard deviation of an operation's output."""
    s = entry.outputs[0].statistics
    count = max(1, int(np.prod(s.shape)))
    return float(np.sqrt(max(0.0, s.norm**2 / count - s.mean**2)))


def silent_units(entry: Entry) -> float:
    """The share of units of an activation that gave nothing, on any token of any image."""
    (y,) = whole(entry.outputs)
    units = np.moveaxis(y, 1, -1) if y.ndim == 4 else y  # images have their channels second
    return float(np.mean(np.abs(units).reshape(-1, units.shape[-1]).max(axis=0) < _SILENT))


def attention_entropy(entry: Entry) -> list[float]:
    """Of each head, the mean entropy of its weights over queries, in nats: 0 for one key alone, log S for all alike."""
    q, k, _, bias = whole(entry.inputs)
    s = entry.params["scale"] * (q @ k.swapaxes(-1, -2)) + (0 if bias is None else bias)
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    return [float(x) for x in -(p * np.log(p + 1e-12)).sum(axis=-1).mean(axis=(0, 2))]


def _largest_given(place: Entry | Backward) -> float:
    """The largest number that went into what was not finite."""
    values = place.inputs if isinstance(place, Entry) else (*place.entry.inputs, *place.incoming)
    given = [v.statistics for v in values if hasattr(v, "statistics")]
    return max(max(abs(s.smallest), abs(s.largest)) for s in given)


def alarms(line: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, str]:
    """What a line has that should worry: words, by what they are about."""
    found = {}
    losses = [loss for earlier in (*before, line) for loss in earlier["losses"]]
    recent = float(np.median(losses[-_RECENT:])) if losses else 0.0
    if len(losses) > _RECENT and recent > _GROWN * losses[0]:
        found["diverging"] = f"the loss grows: it is {recent:.3g}, and was {losses[0]:.3g} at first"
    broken = [name for name, norm in line["gradients"].items() if not np.isfinite(norm)]
    if broken:
        return found | {"finite": f"the gradient of {broken[0]} is not finite, nor those of {len(broken) - 1} others"}
    weights = {n: g for n, g in line["gradients"].items() if n.endswith("weight")}
    if weights:
        most, (name, least) = max(weights.values()), min(weights.items(), key=lambda item: item[1])
        if not most:
            found["vanishing"] = "the gradients of all weights are zero"
        elif least < _VANISHED * most:
            found["vanishing"] = f"the gradient vanishes: that of {name} is {least:.1e}, the largest {most:.1e}"
    usual = np.median([max(b["gradients"].values()) for b in before]) if len(before) >= 3 else 0.0
    name, largest = max(line["gradients"].items(), key=lambda item: item[1])
    if usual and largest > _EXPLODED * usual:
        found["exploding"] = f"the gradient explodes: that of {name} is {largest:.1e}, usual is {usual:.1e}"
    for key, share in line["silent"].items():
        if share > 0.5:
            found[f"dead {key}"] = f"{100 * share:.0f} % of the units of {key} are silent on {IMAGES} test images"
    for key, heads in line["entropy"].items():
        if min(heads) < 1e-3:
            found[f"collapsed {key}"] = f"head {int(np.argmin(heads))} of {key} looks at one key alone"
    return found
