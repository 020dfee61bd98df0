"""Runs that take a second: a tiny model on the digits."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tinyvit.run.loop
import tinyvit.run.results
from tinyvit.checkpoint import atomic_write
from tinyvit.recipe import About, Data, Model, Recipe, Train
from tinyvit.run.display import Display
from tinyvit.run.state import Position, Training

# All settings that draw from a random stream or keep a state.
ALL_STREAMS = (
    *("shift=1", "flip=true", "rotate=10", "scale=0.1", "cutout=2"),
    *("dropout=0.1", "emb_dropout=0.1", "drop_path=0.2", "depth=2"),
    *("ema=0.9", "accumulate=2", "label_smoothing=0.1", "clip_norm=0.5", "weight_decay=0.05"),
)


def tiny_recipe(*assignments: str) -> Recipe:
    """Return a recipe of two epochs with six steps each, changed by `assignments`."""
    return Recipe(
        about=About(),
        data=Data(name="digits", batch_size=240, validation=0),
        model=Model(patch_size=4, dim=8, depth=1, heads=2, pool="mean"),
        train=Train(epochs=2, lr=1e-2, warmup_epochs=0.5),
    ).override(assignments)


class Watch(Display):
    """Call a function with the training and the position after every step."""

    def __init__(self, function: Callable[[Training, Position], None]) -> None:
        self.function = function

    def started(self, training: Training, folder: Path) -> None:
        self.training = training

    def stepped(self, position: Position) -> None:
        self.function(self.training, position)


def isolate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to `folder` for a test, and draw no curves, which would take as long as the rest of a tiny run."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tinyvit.run.loop, "draw_curves", lambda path, *_: atomic_write(path, b"curves"))
    monkeypatch.setattr(tinyvit.run.results, "draw_confusion", lambda path, *_: atomic_write(path, b"confusion"))


def sha256(folder: Path) -> str:
    """Return the SHA-256 of the weights in a run folder."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics without those that depend on time."""
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "seconds")} for line in metrics_of(folder)]


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start the `tinyvit` command in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "tinyvit", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def command(*arguments: object, **options: Any) -> tuple[int, str, str]:
    """Run the `tinyvit` command; return its exit status, standard output and standard error."""
    with start(*arguments, **options) as process:
        try:
            out, err = process.communicate()
        except BaseException:  # pytest's limit of time: leaving the block would wait for the process
            process.kill()
            raise
    return process.returncode, out, err


def settings(*assignments: str) -> list[str]:
    """Return `assignments` as arguments of `tinyvit train`."""
    return [word for assignment in assignments for word in ("--set", assignment)]


ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("TINYVIT_")} | {
    "TINYVIT_ANNOUNCE": "0",
    "TINYVIT_COMPILE_AHEAD": "0",
}
