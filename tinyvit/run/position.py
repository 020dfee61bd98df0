"""How far a run has come, and what it has measured so far."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import RecipeError
from ..recipe import Recipe, Train
from ..tasks.options import DEFAULTS
from .steps import Losses

_MEASURED = ("epoch", "step", "train_loss", "val_loss", "val_accuracy", "lr", "images_per_s", "seconds")


@dataclass
class Position:
    """How far a run has come, and what it has measured so far."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # batches of the current epoch that were trained on
    images: int = 0  # images in them whose losses are known
    loss_sum: float = 0.0  # the sum of these losses
    epoch_seconds: float = 0.0  # the time that training took in this epoch
    step: int = 0  # optimizer steps, over all epochs
    seconds: float = 0.0  # over all epochs, evaluations included
    metrics: list[dict[str, Any]] = field(default_factory=list)  # the lines of metrics.jsonl

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Position":
        """Restore the position in a checkpoint. Raises TypeError or ValueError if it is none that a run can have."""
        position = cls(**state)
        if missing := {"epoch", "batch", "step", "metrics"} - state.keys():
            raise ValueError(f"position lacks {', '.join(sorted(missing))}")
        for name, value in dataclasses.asdict(cls()).items():
            found, kinds = getattr(position, name), int | float if type(value) is float else type(value)
            if not isinstance(found, kinds) or type(found) is bool:
                raise TypeError(f"position.{name} is {found!r:.100}")
        counts = (position.epoch, position.batch, position.images, position.step, position.seconds)
        times_agree = (position.batch > 0) == (position.images > 0) == (position.epoch_seconds > 0)
        are_finite = math.isfinite(position.loss_sum + position.seconds + position.epoch_seconds)
        if min(counts) < 0 or len(position.metrics) != position.epoch or not times_agree or not are_finite:
            raise ValueError(f"position is {position!r:.200}")
        for line in position.metrics:
            if not all(isinstance(line.get(key), int | float) for key in _MEASURED):
                raise ValueError(f"position.metrics holds {line!r:.100}")
        return position

    def metrics_lines(self) -> bytes:
        """Return the content of metrics.jsonl."""
        return "".join(json.dumps(line) + "\n" for line in self.metrics).encode()

    def add_losses(self, losses: Losses) -> None:
        """Add the losses of steps to the epoch's, one by one, so that their sum is the same after resuming."""
        for loss_sum, images in losses:
            self.loss_sum += loss_sum
            self.images += images

    def finish_epoch(self, line: dict[str, Any]) -> None:
        """Add the line of this epoch to the metrics, and go to the beginning of the next one."""
        self.metrics.append(line)
        self.epoch += 1
        self.batch = self.images = 0
        self.loss_sum = self.epoch_seconds = 0.0


def check_choice(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe chooses weights or the end of the run without validation images."""
    for key in ("keep", "patience"):
        value, default = getattr(recipe.train, key), DEFAULTS[f"train.{key}"]
        if value != default and not recipe.data.validation:
            raise RecipeError(
                f"train.{key} is {value!r}, which chooses by validation images, but data.validation is 0; hold some "
                f"out, or leave train.{key} at {default!r}"
            )


def best_epoch(metrics: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the epoch with the highest accuracy; of several, the first with the smallest loss."""
    return 1 + max(range(len(metrics)), key=lambda i: (metrics[i]["val_accuracy"], -metrics[i]["val_loss"]))


def is_at_end(settings: Train, metrics: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a run with these metrics has all epochs, or none of its last `patience` epochs was the best.

    The epochs before a continuation do not count towards the patience.
    """
    epoch = len(metrics)
    if epoch >= settings.epochs:
        return True
    waited = epoch - max(best_epoch(metrics), settings.continued_from) if epoch else 0
    return 0 < settings.patience <= waited
