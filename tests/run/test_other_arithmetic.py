"""A run that is resumed with other kernels, versions or another device says so; with the same ones it says nothing."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import ENVIRONMENT, Watch, isolate, tiny_recipe
from tinyvit.kernels.cpu import processor

import tinyvit as tv
from tinyvit.checkpoint import load
from tinyvit.errors import CheckpointError
from tinyvit.run.loop import resume, train
from tinyvit.run.state import Position, Training

RECIPE = tiny_recipe("epochs=2", "limit=240", "batch_size=60", "checkpoint_minutes=1e-9")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


class Stop(Exception):
    pass


@pytest.fixture
def run() -> Path:
    """A run that ended after its third step."""

    def stop(training: Training, position: Position) -> None:
        if position.step == 3:
            raise Stop

    with tv.use_kernels("auto"), pytest.raises(Stop):
        train(RECIPE, "run", display=Watch(stop))
    return Path("runs/run")


def warnings_of(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    resume(folder)
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_checkpoint_names_what_computed_it(run: Path) -> None:
    found = load(run / "checkpoint.safetensors")["arithmetic"]
    assert found["device"] == "cpu"
    assert found["kernels"] == f"for {processor.level()}"
    assert {"numpy", "numba", "tinyvit", "BLAS"} < found.keys()
    assert all(found.values())


@pytest.mark.parametrize(
    ("name", "before", "way"),
    [
        ("kernels", "for generic", "TINYVIT_CPU=generic"),
        ("kernels", "for avx4096", "This processor cannot run kernels for avx4096"),
        ("kernels", "none", ""),
        ("numpy", "1.0", ""),
        ("numba", "0.1", ""),
        ("tinyvit", "0.0.1", ""),
        ("BLAS", "openblas 0.1 Haswell", ""),
        ("device", "cuda", ""),
    ],
)
def test_everything_that_differs_is_named(run: Path, caplog, monkeypatch, name: str, before: str, way: str) -> None:
    monkeypatch.setattr(processor, "level", lambda: "avx2")
    path = run / "checkpoint.safetensors"
    state = load(path)
    state["arithmetic"]["kernels"] = "for avx2"
    state["arithmetic"][name] = before
    tv.save(path, state)
    with tv.use_kernels("auto"):
        (message,) = warnings_of(run, caplog)
        assert f"{name} {before} before, " in message
        assert message.count(" before, ") == 2  # the sentence has one of its own
        assert message.endswith(way)
        assert ("TINYVIT_CPU" in message) == ("TINYVIT_CPU" in way)
    assert load(path)["arithmetic"][name] != before


def test_the_same_arithmetic_is_no_warning(run: Path, caplog) -> None:
    with tv.use_kernels("auto"):
        assert warnings_of(run, caplog) == []


def test_a_finished_run_does_not_go_on(run: Path, caplog) -> None:
    with tv.use_kernels("auto"):
        resume(run)
        path = run / "checkpoint.safetensors"
        state = load(path)
        state["arithmetic"]["numpy"] = "1.0"
        tv.save(path, state)
        assert warnings_of(run, caplog) == []


def test_plain_rules_after_kernels_are_a_difference(run: Path, caplog) -> None:
    with tv.use_kernels("numpy"):
        training = Training(RECIPE)
        state = load(run / "checkpoint.safetensors") | {"threads": training.threads}
        tv.save("state.safetensors", state)
        training.read_checkpoint(Path("state.safetensors"))
    assert [f"kernels for {processor.level()} before, none now" in r.getMessage() for r in caplog.records] == [True]


def test_a_checkpoint_of_an_earlier_version_says_nothing_of_it(run: Path, caplog) -> None:
    path = run / "checkpoint.safetensors"
    state = load(path)
    del state["arithmetic"]
    tv.save(path, state)
    with tv.use_kernels("auto"):
        assert warnings_of(run, caplog) == []


@pytest.mark.parametrize("value", [None, [], "for avx2", 7])
def test_a_damaged_description_is_a_damaged_checkpoint(run: Path, value: object) -> None:
    state = load(run / "checkpoint.safetensors") | {"arithmetic": value}
    tv.save("state.safetensors", state)
    with tv.use_kernels("auto"), pytest.raises(CheckpointError, match="is not the checkpoint of a run"):
        Training(RECIPE).read_checkpoint(Path("state.safetensors"))


READ = """
from pathlib import Path
from tinyvit.run.folder import read_recipe
from tinyvit.run.state import Training
Training(read_recipe(Path("runs/run"))).read_checkpoint(Path("runs/run/checkpoint.safetensors"))
"""


@pytest.mark.slow
def test_another_level_set_from_outside_is_named(run: Path) -> None:
    best, lower = processor.usable()[:2]
    for level in (best, lower):
        environment = ENVIRONMENT | {"TINYVIT_CPU": level}
        done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, env=environment, check=True)
        expected = f"kernels for {best} before, for {lower} now. To continue as before: TINYVIT_CPU={best}"
        assert (expected in done.stderr) == (level == lower)
