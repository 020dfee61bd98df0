"""Killed runs of every task and precision: they resume to the bits of a run that never died, with other threads too.

A seed decides the run, its deaths and the threads. TINYVIT_KILLED_RUNS=100 kills a hundred runs instead of a few, also
at the instruction level that has no vectors, whose kernels have to be compiled first.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import killed_run
import numpy as np
import pytest
from tiny_run import ENVIRONMENT, metrics_of, timeless
from tiny_tasks import KINDS, tiny

from tinyvit.checkpoint import load
from tinyvit.recipe import Recipe, load_recipe
from tinyvit.tasks import task_of

pytest.importorskip("fcntl", reason="this system has no SIGKILL")
pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("TINYVIT_KILLED_RUNS", "0"))
DEATHS = 3  # of every run
EVENTS = 5  # of a file: open, write, sync, rename, sync the folder
STEPS = 6

CLASSIFY = {"digits": 2, "motion": 8, "chirps": 8}  # data sets, and sides of patches that divide their images
TASKS = [*KINDS, *CLASSIFY]
OPTIMIZERS = (
    ("weight_decay=0.05",),
    ("optimizer=adam", "beta2=0.99"),
    ("optimizer=sgd", "nesterov=true"),
    ("optimizer=sgd", "momentum=0"),
    ("optimizer=lion", "weight_decay=0.05"),
    ("optimizer=muon", "weight_decay=0.05"),
)
OPTIONS = (
    ("accumulate=1", "accumulate=2", "accumulate=3"),
    ("ema=0", "ema=0.9"),
    ("clip_norm=0", "clip_norm=0.5"),
    ("schedule=cosine", "schedule=linear", "schedule=constant", "schedule=cooldown"),
    ("warmup_epochs=0", "warmup_epochs=0.7"),
    ("drop_path=0", "drop_path=0.3"),
    ("emb_dropout=0", "emb_dropout=0.1"),
    ("layer_scale=0", "layer_scale=0.1"),
    ("batch_size=20", "batch_size=17", "batch_size=7"),
    ("checkpoint_minutes=10", "checkpoint_minutes=1e-9", "checkpoint_minutes=1e-9"),
    ("seed=0", "seed=7"),
    ("validation=0", "validation=0.2", "validation=0.2 keep=best", "validation=0.2 keep=best patience=1"),
)


def recipe_of(rng: random.Random, task: str, precision: str) -> Recipe:
    """Draw a recipe of six or more steps with random augmentation, optimizer and options."""
    options = [rng.choice(choices) for choices in OPTIONS]
    if task not in ("translate", "masked-words"):
        options += rng.sample(
            ["shift=1", "rotate=10", "scale=0.1", "cutout=2", "crop=0.5", "erasing=0.3"], rng.randrange(4)
        )
    if task not in ("retrieve", "masked-both", "masked-words", "masked-patches"):
        options.append(rng.choice(("label_smoothing=0", "label_smoothing=0.1")))
    name = task
    if task in CLASSIFY:
        name = "masked-patches"
        options = [f"data.name={task}", "kind=classify", f"patch_size={CLASSIFY[task]}", *options]
    if "accumulate=3" in options:
        options.append("epochs=4")
    unused = {key.rpartition(".")[2] for key in task_of(tiny(name)).unused}  # such a recipe is refused
    options = [assignment for option in options for assignment in option.split()]
    options = [option for option in options if option.partition("=")[0] not in unused]
    return tiny(name, "lr=3e-3", f"precision={precision}", "limit=40", *options, *rng.choice(OPTIMIZERS))


def death_of(rng: random.Random, frequent: bool) -> dict[str, Any]:
    """Draw a death: between steps, at a write, by an error of the disk, or at any time."""
    how = rng.choice(("before", "before", "after", "after", *killed_run.ERRORS, "step", "limit", "time", "signal"))
    writes = 3 * (STEPS + 2 if frequent else 3) + 2
    return {
        "step": {"how": how, "step": rng.randrange(STEPS)},
        "limit": {"how": how, "bytes": rng.choice((0, 100, 2_000, 20_000))},
        "time": {"how": how, "seconds": rng.uniform(0, 1)},
        "signal": {"how": how, "seconds": rng.uniform(0, 1), "number": rng.choice((signal.SIGTERM, signal.SIGINT))},
    }.get(how, {"how": how, "event": rng.choice((rng.randrange(2 * EVENTS), rng.randrange(EVENTS * writes)))})


class Run:
    """A run in processes of their own, with one set of kernels."""

    def __init__(self, folder: Path, recipe: Path, mode: str) -> None:
        self.folder, self.recipe = folder, recipe
        self.kernels = "numpy" if mode == "numpy" else "auto"
        self.level = {"TINYVIT_CPU": "generic"} if mode == "generic" else {}

    def process(self, threads: int, death: dict[str, Any]) -> tuple[int, str]:
        """Start the run, or resume it if it began; return the exit status and standard error."""
        began = (self.folder / "recipe.toml").exists()
        arguments = ["train", *(["--resume", self.folder] if began else [self.recipe, "--out", self.folder])]
        work = json.dumps({"arguments": list(map(str, arguments)), "kernels": self.kernels, "death": death})
        command = [sys.executable, "-W", "error", killed_run.__file__, work]
        environment = ENVIRONMENT | self.level | {"TINYVIT_THREADS": str(threads)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as process:
            if death["how"] in ("time", "signal"):
                process.stdout.readline()  # training is about to begin
                time.sleep(death["seconds"])
                process.send_signal(death.get("number", signal.SIGKILL))
            _, err = process.communicate()
        return process.returncode, err

    def is_complete(self) -> bool:
        """Return whether all epochs are in the checkpoint and the curves are drawn."""
        checkpoint = self.folder / "checkpoint.safetensors"
        epochs = load_recipe(self.recipe).train.epochs
        return (
            checkpoint.exists()
            and load(checkpoint)["position"]["epoch"] == epochs
            and (self.folder / "curves.png").exists()
        )

    def state(self) -> dict[str, Any]:
        """Return all that the run left, without times."""
        state = load(self.folder / "checkpoint.safetensors")
        for name in ("seconds", "epoch_seconds", "metrics"):
            del state["position"][name]
        return {
            "files": sorted(path.name for path in self.folder.iterdir()),
            "recipe": (self.folder / "recipe.toml").read_text(),
            "metrics": timeless(self.folder),
            "weights": (self.folder / "model.safetensors").read_bytes(),
            "checkpoint": in_bits(state),
            "times": all(line["seconds"] > 0 for line in metrics_of(self.folder)),
        }


def in_bits(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: in_bits(value) for key, value in state.items()}
    if isinstance(state, list):
        return list(map(in_bits, state))
    return (state.dtype.name, state.shape, state.tobytes()) if isinstance(state, np.ndarray) else state


def assert_death(run: Run, death: dict[str, Any], status: int, err: str) -> None:
    """Check how a process ended: killed without a word, by an error in one sentence, or too early for its death.

    A signal that comes after the last checkpoint, when the run no longer handles it, ends the process as any other;
    while Python shuts down, that holds for SIGINT as well.
    """
    if status == -signal.SIGKILL or status == 0:
        assert err == ""
        return
    if status in (-death.get("number", 0), 130) and death["how"] == "signal" and run.is_complete():
        assert err.count("\n") <= (status == 130)
        return
    assert err.strip().count("\n") == 0, err
    if death["how"] == "signal":
        assert status == 130
        assert re.search("continue with: tinyvit train --resume", err)
        return
    assert status in (1, 2)
    assert re.match(r"tinyvit: error: .*(cannot be (written|made)).*(space|quota|large|error)", err, re.I), err
    assert "a bug" not in err


MODES = ("auto", "numpy", "auto", "generic") if COUNT else ("auto", "numpy")


@pytest.mark.parametrize("seed", range(COUNT or 4))
def test_a_run_that_dies_in_any_way_resumes_to_the_same_bits(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    task, precision = TASKS[seed * 5 % len(TASKS)], ("float16", "float32", "bfloat16")[seed % 3]
    mode = MODES[seed // 3 % len(MODES)]
    recipe = recipe_of(rng, task, precision)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    whole = Run(tmp_path / "whole", tmp_path / "recipe.toml", mode)
    killed = Run(tmp_path / "killed", tmp_path / "recipe.toml", mode)
    threads = rng.choice((1, 2, 3))
    assert whole.process(threads, {"how": "none"}) == (0, "")
    any_number = whole.state()["checkpoint"]["threads"] == 1
    assert any_number or mode != "auto"

    deaths = [death_of(rng, recipe.train.checkpoint_minutes < 1) for _ in range(DEATHS)]
    for death in (*deaths, {"how": "none"}):
        now = rng.choice((1, 2, 3))
        fixed = not any_number or mode != "auto"
        if fixed and precision != "float16" and now != threads:
            if (killed.folder / "checkpoint.safetensors").exists():
                status, err = killed.process(now, {"how": "none"})
                assert (status, err.count("\n")) == (2, 1)
                assert f"Resume it with TINYVIT_THREADS={threads}" in err
            now = threads
        assert_death(killed, death, *killed.process(now, death))
    assert killed.state() == whole.state()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "recipe.toml", "whole"]
