"""Damaged checkpoints: noticed by their checksum, refused in one sentence, whatever in them is wrong."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_flat
from safetensors.numpy import save as serialize
from tiers import quick_first
from tiny_run import isolate, tiny_recipe

from tinyvit import cli
from tinyvit.backend.files import MAX_DEPTH, parse_json
from tinyvit.checkpoint import load, require_finite, save
from tinyvit.errors import CheckpointError
from tinyvit.run.loop import train
from tinyvit.run.state import Position

STATE = {"model": {"w": np.arange(9.0), "b": [np.zeros(0), 1.5, "text"]}, "step": 7, "x": np.float16([1, 2])}


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=150)
def test_one_flipped_bit_is_noticed_or_changes_nothing(tmp_path_factory, place: int, bit: int) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    save(path, STATE)
    content, expected = bytearray(path.read_bytes()), load(path)
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        found = load(path)
        if "model" in found:  # else the name of the entry was hit, and the file reads as one of another program
            np.testing.assert_equal(found, expected)
        else:
            np.testing.assert_equal(sorted(a.tobytes() for a in found.values()), sorted(arrays(expected)))


def arrays(state: Any) -> list[bytes]:
    if isinstance(state, np.ndarray):
        return [state.tobytes()]
    children = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [found for child in children for found in arrays(child)]


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], object]) -> None:
    """Change what the JSON of a checkpoint says, or its arrays, and write it again as another program would."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entry = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["tinyvit"])
    held = dict(load_flat(content))
    change(entry, held)
    path.write_bytes(serialize(held, metadata={"tinyvit": json.dumps(entry)}))


@pytest.mark.parametrize(
    "change",
    [
        lambda entry, held: held.update(x=held["x"] + 1),
        lambda entry, held: held.update(x=held["x"].astype(np.float32)),
        lambda entry, held: held.update(x=held["x"][:, None]),
        lambda entry, held: held.update(extra=held["x"]),
        lambda entry, held: entry["state"].update(step=8),
        lambda entry, held: entry["state"].update(more=None),
        lambda entry, held: entry.update(sha256=None),
        lambda entry, held: entry.update(sha256="0" * 64),
    ],
)
def test_what_does_not_have_its_checksum_is_damaged(tmp_path: Path, change: Any) -> None:
    save(tmp_path / "a.safetensors", STATE)
    rewritten(tmp_path / "a.safetensors", change)
    with pytest.raises(CheckpointError, match="is damaged: its content does not have the checksum"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_values_that_are_not_finite_are_found_in_every_dtype(dtype: Any, bad: float) -> None:
    array = np.zeros((2, 3), dtype)
    state = {"n": np.arange(3), "b": np.ones(2, bool), "text": "x", "w": array}
    require_finite("a.safetensors", state)
    array[1, 2] = bad
    with pytest.raises(CheckpointError, match=r"a\.safetensors holds values that are not finite in w"):
        require_finite("a.safetensors", state)


def test_files_without_a_checksum_are_read_as_before(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", STATE)
    expected = load(tmp_path / "a.safetensors")
    rewritten(tmp_path / "a.safetensors", lambda entry, held: entry.pop("sha256"))
    np.testing.assert_equal(load(tmp_path / "a.safetensors"), expected)


def nested(depth: int) -> Any:
    state: Any = 1
    for i in range(depth):
        state = [state] if i % 2 else {"a": state}
    return state


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1000, 100_000])
def test_nesting_without_end_is_refused(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.safetensors"
    for deep in ('{"a":' * depth + "1" + "}" * depth, "[" * depth + "]" * depth):
        with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} times"):
            parse_json(deep)
        for entry in (deep, f'{{"version": 1, "state": {deep}}}', f'{{"version": {deep}, "state": {{}}}}'):
            path.write_bytes(serialize({}, metadata={"tinyvit": entry}))
            with pytest.raises(CheckpointError, match="damaged"):
                load(path)
        header = f'{{"__metadata__":{deep}}}'.encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(CheckpointError):
            load(path)


def test_what_can_be_saved_can_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="state is nested"):
        save(tmp_path / "a.safetensors", {"a": nested(MAX_DEPTH)})
    deep = {"a": nested(MAX_DEPTH - 12)}
    save(tmp_path / "a.safetensors", deep)
    assert load(tmp_path / "a.safetensors") == deep


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(tiny_recipe("epochs=1", "batch_size=719", "ema=0.5"), "x", folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Return a function that changes the files of a finished run and calls the command: its status and errors."""
    isolate(tmp_path, monkeypatch)
    Path("run").mkdir()

    def call(change: Callable[[dict[str, Any]], object], *arguments: str, file: str = "checkpoint") -> tuple[int, str]:
        for name in ("recipe.toml", "metrics.jsonl", "model.safetensors", "checkpoint.safetensors"):
            (Path("run") / name).write_bytes((trained / name).read_bytes())
        path = Path("run") / f"{file}.safetensors"
        state = load(path)
        change(state)
        save(path, state)  # with a right checksum
        monkeypatch.setattr(sys, "argv", ["tinyvit", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capfd.readouterr().err

    return call


def set_in(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = to

    return change


WRONG: list[Any] = [None, True, -1, 10**30, 1.5, float("nan"), float("inf"), "x", [], [1], {}, {"a": 1}, np.zeros(2)]
PLACES = [
    *((key,) for key in ("recipe", "data", "train_images", "position", "generator", "model", "optimizer", "ema")),
    *(("data", key) for key in ("classes", "shape", "mean", "std", "words", "lengths")),
    *(("position", key) for key in ("epoch", "batch", "images", "loss_sum", "step", "seconds", "metrics")),
    *(("generator", key) for key in ("seed", "offset")),
    *(("optimizer", key) for key in ("steps", "groups", "arrays")),
    *(("optimizer", "groups", "0", key) for key in ("lr", "betas", "eps", "weight_decay")),
    *(("optimizer", "arrays", "0"), ("optimizer", "arrays", "0", "m"), ("ema", "steps"), ("ema", "averages", "0")),
]
# Where another value is one that a run could have, or replaced before it is used.
FITTING = ("words", "lengths", "betas", "lr", "eps", "weight_decay", "loss_sum", "seconds", "offset", "seed")


def test_a_checkpoint_written_again_is_taken(run) -> None:
    assert run(lambda state: None, "train", "--resume", "run") == (0, "")


@pytest.mark.parametrize("place", quick_first(((place,) for place in PLACES), 8), ids="/".join)
def test_a_wrong_value_anywhere_in_a_checkpoint_is_refused(run, place: tuple[str, ...]) -> None:
    for wrong in WRONG:
        status, said = run(set_in(*place, to=wrong), "train", "--resume", "run")
        assert status in ((0, 2) if place[-1] in FITTING or place[-1] == "steps" else (2,)), (wrong, said)
        assert "a bug" not in said, said
        if status:
            assert said.startswith("tinyvit: error: run/checkpoint.safetensors"), (wrong, said)


@pytest.mark.parametrize("betas", [[], [0.9], [0.9, 0.9, 0.9], [0.9, 2.0], [0.9, "x"], [None, None]])
def test_lists_of_another_length_in_the_state_of_an_optimizer_are_refused(run, betas: list[Any]) -> None:
    status, said = run(set_in("optimizer", "groups", "0", "betas", to=betas), "train", "--resume", "run")
    assert status == 2
    assert "betas" in said


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("arguments", [("evaluate", "run"), ("predict", "run", "a.png"), ("study", "run", "--text")])
def test_weights_that_are_not_finite_are_refused(run, value: float, arguments: tuple[str, ...]) -> None:
    def change(state: dict[str, np.ndarray]) -> None:
        state["norm.weight" if "norm.weight" in state else "fc_norm.weight"][-1] = value

    status, said = run(change, *arguments, file="model")
    assert status == 2
    assert "holds values that are not finite in" in said


def test_a_position_that_no_run_has_is_refused() -> None:
    start = {"epoch": 0, "batch": 0, "step": 0, "metrics": []}
    assert Position.from_state(start) == Position()
    with pytest.raises(ValueError, match="position is"):
        Position.from_state(start | {"batch": 3})
    with pytest.raises(TypeError, match=r"position\.epoch"):
        Position.from_state(start | {"epoch": True})
    with pytest.raises(TypeError, match="unexpected"):
        Position.from_state({"epochs": 1})
