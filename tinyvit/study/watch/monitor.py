"""Monitoring training: gradients, updates, activations and attention of every layer, at a low cost.

A few times in a run, a line is added to study.jsonl. It has the losses of all steps since the last line, the norm of
each parameter's gradient, the size of the step's update relative to the parameter, and, from a forward pass of a few
validation images, the spread of each activation, the share of silent units, and the entropy of each attention head. At
the end study.html and study.png plot them. The run computes the same bits as without monitoring.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from ... import functional as F
from ...backend.files import parse_json, read_text
from ...backend.terminal import note
from ...checkpoint import atomic_write
from ...context import no_grad
from ...data import Dataset
from ...errors import StudyError
from ...functional.attention import Attention
from ...models import ViT
from ...run.display import Display
from ...run.state import Position, Training
from ..trace import trace
from .measures import IMAGES, alarms, attention_entropy, largest_read, norm, silent_units, spread
from .report import draw_report

LINES, PAGE, PICTURE = "study.jsonl", "study.html", "study.png"
SAMPLES = 60  # most lines in a whole run
SHARE = 0.025  # the largest share of the run's time that measuring may take; the last step is always measured


class Monitor(Display):
    """A display that measures the model as it trains, and shows what another display shows.

    `lines` holds the measurements, `losses` those of every step since the last line, and `warnings` the first warning
    on each topic.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self.lines: list[dict[str, Any]] = []
        self.warnings: dict[str, str] = {}
        self.losses: list[float] = []
        self._sums = (0.0, 0)  # losses and images of the epoch, as they were last read
        self._unread = 0  # steps since then
        self._earliest = 0.0  # time of the next measurement, so that the share is kept
        self._cost = 0.0  # seconds that it took to copy the parameters for the next measurement
        self._before: dict[str, np.ndarray] | None = None  # the parameters before a step that is to be measured

    def __enter__(self) -> "Monitor":
        self._display.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        error = exception[1]
        if isinstance(error, Exception) and isinstance(error.__cause__, FloatingPointError):
            self._warn_where_it_began()
        self._display.__exit__(*exception)
        self._write(with_report=True)

    def accept(self, training: Training) -> None:
        self._display.accept(training)
        if not isinstance(training.measured_data, Dataset) or not isinstance(training.model, ViT):
            raise StudyError("--study works with classifiers of images only; leave it out for this recipe")
        if shards := training.recipe.train.shards:
            raise StudyError(
                f"--study monitors whole batches, but train.shards is {shards}; leave it out, or set it to 0"
            )
        self._data = training.measured_data

    def started(self, training: Training, folder: Path) -> None:
        self._display.started(training, folder)
        self._training, self._folder = training, folder
        self._every = max(1, training.total_steps // SAMPLES)
        self._sums = (training.position.loss_sum, training.position.images)
        path = folder / LINES
        if path.is_file():  # a resumed run keeps the measurements before its checkpoint
            try:
                lines = [parse_json(line) for line in read_text(path).splitlines()]
                self.lines = [line for line in lines if line["step"] <= training.position.step]
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise StudyError(f"{path} is damaged ({error}): remove it, and the report begins here") from error

    def stepped(self, position: Position) -> None:
        self._display.stepped(position)
        began = time.perf_counter()
        self._read_losses(position)
        if self._before is not None:
            self.measure(position)
            now = time.perf_counter()
            self._earliest = now + (now - began + self._cost) / SHARE
        following, copied = position.step + 1, time.perf_counter()
        is_due = following % self._every == 0 and copied >= self._earliest
        self._before = None
        if is_due or following == self._training.total_steps:
            self._before = {name: p.numpy().copy() for name, p in self._training.model.named_parameters()}
            self._cost = time.perf_counter() - copied

    def _read_losses(self, position: Position) -> None:
        """Note the losses of the steps since the last reading. On a GPU that is several steps: each gets their mean."""
        loss_sum, images = self._sums
        self._unread += 1
        if position.images > images:
            self.losses += [(position.loss_sum - loss_sum) / (position.images - images)] * self._unread
            self._sums, self._unread = (position.loss_sum, position.images), 0

    def measuring(self, split: str, done: int, total: int) -> None:
        self._display.measuring(split, done, total)

    def tested(self) -> None:
        self._display.tested()

    def finished_epoch(self, position: Position) -> None:
        self._display.finished_epoch(position)
        self.losses += [position.metrics[-1]["train_loss"]] * self._unread
        self._sums, self._unread = (0.0, 0), 0
        if self.lines and self.lines[-1]["step"] == position.step:
            self.lines[-1]["losses"] += self.losses
            self.losses = []
        self._write(with_report=False)

    # Measurements

    def measure(self, position: Position) -> None:
        """Add a line about the step that was just made, and warn about what it shows."""
        assert self._before is not None
        gradients, updates = {}, {}
        for name, parameter in self._training.model.named_parameters():
            before = self._before[name]
            size = norm(before)
            gradients[name] = 0.0 if parameter.grad is None else norm(parameter.grad.numpy())
            updates[name] = norm(parameter.numpy() - before) / size if size else 0.0
        measured = {"gradients": gradients, "updates": updates, **self._activations()}
        line = {"step": position.step, "losses": self.losses, **measured}
        for topic, words in alarms(line, self.lines).items():
            self._warn(topic, f"step {position.step}: {words}")
        self.lines.append(line)
        self.losses = []

    @no_grad()
    def _activations(self) -> dict[str, Any]:
        """Spread, silent units and entropy of attention in a forward pass of a few images that no step learns from."""
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
            "spread": {entry.key: spread(entry) for entry in inner},
            "silent": {entry.key: silent_units(entry) for entry in inner if entry.op.is_activation},
            "entropy": {entry.key: attention_entropy(entry) for entry in inner if entry.op is Attention},
        }

    def _warn_where_it_began(self) -> None:
        """Run the batch that failed again, with a trace, and name the first operation that was not finite."""
        training = self._training
        with np.errstate(all="ignore"), trace() as recorded:
            for batch in next(training.groups()):
                logits = training.model(batch.images)
                F.cross_entropy(logits, batch.labels, reduction="sum").backward()
        bad = recorded.first_not_finite()
        if bad is not None:
            largest = f"the largest finite number that it reads is {largest_read(bad.place):.2g}"
            self._warn("finite", f"step {training.position.step + 1}: the first NaN or infinity is in {bad}; {largest}")

    def _warn(self, topic: str, words: str) -> None:
        if topic not in self.warnings:
            self.warnings[topic] = words
            note(f"study: {words}")

    def _write(self, with_report: bool) -> None:
        if not self.lines and not self.warnings:
            return
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        atomic_write(self._folder / LINES, text.encode())
        if with_report:
            warnings = list(self.warnings.values())
            steps = self._training.position.step
            draw_report(self._folder / PAGE, self._folder / PICTURE, self._folder.name, self.lines, warnings, steps)
