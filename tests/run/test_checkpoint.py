"""Checkpoints: a state is restored exactly, and a failure never damages the previous file."""

import contextlib
import errno
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

import tinyvit as tv
from tinyvit.checkpoint import FORMAT_VERSION, atomic_write, load, save
from tinyvit.errors import CheckpointError

DTYPES = [
    *(np.bool_, np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64),
    *(np.float16, ml_dtypes.bfloat16, np.float32, np.float64),
]


def assert_same(actual: object, expected: object) -> None:
    """Assert that two states are equal in type, structure, order and every bit."""
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.tobytes() == expected.tobytes()
    elif isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(actual)
    else:
        assert actual == expected
        assert str(actual) == str(expected)  # distinguishes -0.0 from 0.0


def round_trip(folder: Path, state: dict) -> dict:
    save(folder / "state.safetensors", state)
    return load(folder / "state.safetensors")


# Restoring ----------------------------------------------------------------------------------------------------------

shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
arrays = st.builds(
    lambda dtype, shape, seed: np.frombuffer(
        np.random.default_rng(seed).bytes(math.prod(shape) * np.dtype(dtype).itemsize), dtype
    ).reshape(shape),
    st.sampled_from(DTYPES[1:]),  # random bits are not valid booleans
    shapes,
    st.integers(0, 99),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"])).filter(
    lambda key: key != "__metadata__"
)
states = st.dictionaries(
    keys,
    st.recursive(
        arrays | scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(state=states)
def test_any_nested_state_comes_back_exactly(tmp_path_factory, state):
    assert_same(round_trip(tmp_path_factory.getbasetemp(), state), state)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)])
def test_dtypes_and_shapes_come_back(tmp_path, dtype, shape):
    state = {"x": (np.arange(math.prod(shape)) % 2).astype(dtype).reshape(shape)}
    assert_same(round_trip(tmp_path, state), state)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: np.asfortranarray(x),
        lambda x: x.T,
        lambda x: x[::2, ::-1],
        lambda x: x[:, 1],
        lambda x: np.broadcast_to(x[0], (3, 6)),
        lambda x: x[1, 1],  # a NumPy scalar is saved as an array without axes
        lambda x: x.astype(np.float64)[1, 1],  # a NumPy scalar that is also a Python float
        lambda x: x.astype(">f4"),
        lambda x: x.T.astype(">f8"),
    ],
)
def test_the_layout_in_memory_does_not_matter(tmp_path, view):
    x = view(np.arange(24, dtype=np.float32).reshape(4, 6))
    saved = round_trip(tmp_path, {"x": x})["x"]
    assert saved.dtype == x.dtype.newbyteorder("=")
    assert saved.shape == x.shape
    np.testing.assert_array_equal(saved, x)


@pytest.mark.parametrize("value", [2**53 + 1, -(2**127), 1e-320, 0.1, -0.0, math.inf, -math.inf, math.nan])
def test_numbers_beyond_json_come_back_exactly(tmp_path, value):
    state = {"optimizer": {"value": value, "list": [value, None, True, "x"]}}
    assert_same(round_trip(tmp_path, state), state)


def test_tensors_are_saved_as_their_arrays(tmp_path):
    state = {"weight": tv.tensor([1.0, 2.0], requires_grad=True), "more": [tv.tensor([3])]}
    expected = {"weight": np.array([1, 2], np.float32), "more": [np.array([3])]}
    assert_same(round_trip(tmp_path, state), expected)


def test_loaded_arrays_can_be_written_to(tmp_path):
    loaded = round_trip(tmp_path, {"x": np.zeros(3)})
    loaded["x"] += 1
    assert loaded["x"].tolist() == [1, 1, 1]


def test_bfloat16_loads_in_a_process_without_ml_dtypes(tmp_path):
    path = tmp_path / "state.safetensors"
    save(path, {"x": np.ones(2, ml_dtypes.bfloat16)})
    script = "import sys; from tinyvit.checkpoint import load; print(load(sys.argv[1])['x'].dtype)"
    answer = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "bfloat16"


# Other readers and writers ------------------------------------------------------------------------------------------


def test_other_readers_see_a_state_dict_under_its_own_names(tmp_path):
    state = {"blocks.0.attn.qkv.weight": np.arange(6.0).reshape(2, 3).T, "head.bias": np.ones(2, np.float32)}
    save(tmp_path / "model.safetensors", state)
    seen = load_file(tmp_path / "model.safetensors")
    assert seen.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(seen[name], value)


def test_other_readers_see_nested_arrays_under_joined_names(tmp_path):
    save(tmp_path / "run.safetensors", {"model": {"w": np.ones(2)}, "moments": [np.zeros(1), 3, np.ones(1)]})
    assert load_file(tmp_path / "run.safetensors").keys() == {"model/w", "moments/0", "moments/2"}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_from_elsewhere_loads_as_a_flat_mapping(tmp_path, metadata):
    weights = {"a/b": np.arange(3.0), "c.d": np.ones((2, 2), np.float16)}
    save_file(weights, tmp_path / "theirs.safetensors", metadata)
    loaded = load(tmp_path / "theirs.safetensors")
    assert loaded.keys() == weights.keys()
    for name, value in weights.items():
        assert_same(loaded[name], value)


# States that cannot be saved ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "error", "named"),
    [
        ([1], TypeError, "list"),
        ({"a/b": 1}, ValueError, "'a/b'"),
        ({"m": {3: 1}}, ValueError, "3"),
        ({"__metadata__": np.ones(1)}, ValueError, "__metadata__"),
        ({"m": {"betas": (0.9, 0.999)}}, TypeError, "'m/betas'"),
        ({"m": object()}, TypeError, "'m'"),
        ({"m": np.array(["text"])}, TypeError, "'m'"),
        ({"m": np.array([None])}, TypeError, "object"),
        ({"m": np.ones(1, np.complex128)}, TypeError, "complex128"),
        ({"m": np.ones(1, np.longdouble)}, TypeError, "'m'"),
    ],
)
def test_values_that_cannot_be_restored_are_refused_by_name(tmp_path, state, error, named):
    with pytest.raises(error, match=re.escape(named)):
        save(tmp_path / "state.safetensors", state)
    assert list(tmp_path.iterdir()) == []


# Files that cannot be loaded ----------------------------------------------------------------------------------------


def header(tree: dict) -> bytes:
    text = json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\x80\x04\x95" + bytes(99), "a pickle"),
        (b"\x80\x02}q\x00X\x04\x00\x00\x00stepq\x01K\x01s.", "a pickle"),
        (b"PK\x03\x04" + bytes(99), "PyTorch"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x93NUMPY\x01\x00v\x00" + bytes(99), ".npy"),
        (b"epoch,loss\n1,0.5\n", "not a safetensors file"),
        (header({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + bytes(8), "damaged"),
        (header({"w": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}}) + b"0", "NumPy lacks"),
        (header({"__metadata__": {"tinyvit": "{"}}), "damaged"),
        (header({"__metadata__": {"tinyvit": "[]"}}), "damaged"),
        (header({"__metadata__": {"tinyvit": '{"version": 1, "state": 3}'}}), "damaged"),
        (header({"__metadata__": {"tinyvit": '{"version": 1, "state": {"w": {"/": "w"}}}'}}), "damaged"),
        (header({"__metadata__": {"tinyvit": json.dumps({"version": FORMAT_VERSION + 1})}}), "newer tinyvit"),
    ],
)
def test_an_error_about_a_bad_file_names_the_file_and_its_content(tmp_path, content, says):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(says)) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.safetensors", "missing/model.safetensors", "."])
def test_an_error_about_a_path_without_a_file_names_the_path(tmp_path, name):
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / name))):
        load(tmp_path / name)


def test_a_file_cut_short_anywhere_never_loads(tmp_path):
    complete, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    save(complete, {"model": {"w": np.arange(5.0), "b": np.zeros(0)}, "step": 7})
    content = complete.read_bytes()
    for length in range(len(content)):  # within the length, the header, the padding and the arrays
        part.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is empty" if length == 0 else "is cut short or damaged"):
            load(part)


@given(position=st.integers(0, 399), value=st.integers(0, 255))
@settings(max_examples=300)
def test_a_damaged_byte_gives_a_checkpoint_error_or_a_state(tmp_path_factory, position, value):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save(path, {"model": {"w": np.arange(9.0), "b": [np.zeros(0)]}, "step": 7})
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        assert isinstance(load(path), dict)


# Atomic writes ------------------------------------------------------------------------------------------------------


def fail(error: BaseException):
    def function(*args, **kwargs):
        raise error

    return function


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    path = tmp_path / "model.safetensors"
    save(path, {"step": 1})
    monkeypatch.setattr(os, step, fail(error))
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        save(path, {"step": 2})
    if expected is CheckpointError:
        assert str(path) in str(caught.value)
        assert "No space left on device" in str(caught.value)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert load(path) == {"step": 1}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    resource = pytest.importorskip("resource", reason="limits on file sizes exist on POSIX systems only")
    path = tmp_path / "model.safetensors"
    save(path, {"step": 1})
    script = (
        "import sys, numpy as np; from tinyvit.checkpoint import save; from tinyvit.errors import *\n"
        "try: save(sys.argv[1], {'x': np.zeros(100_000)})\n"
        "except CheckpointError as error: print(error)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, path],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "File too large" in answer.stdout
    assert str(path) in answer.stdout
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert load(path) == {"step": 1}


@pytest.mark.parametrize("name", ["missing/model.safetensors", "."])
def test_an_error_about_an_unwritable_path_names_the_path(tmp_path, name):
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / name))):
        save(tmp_path / name, {"step": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_keeps_its_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, {"step": 1})
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(path, {"step": 2})
        assert load(path) == {"step": 1}
    finally:
        tmp_path.chmod(0o700)


def test_the_bytes_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, original=original: (calls.append(name), original(*args)))
    atomic_write(tmp_path / "file", b"new")
    assert calls == ["fsync", "replace", "fsync"]  # the file, the name, the folder that holds the name
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_file_system_that_cannot_synchronize_folders_still_holds_files(tmp_path, monkeypatch):
    original = os.fsync

    def refused(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
    save(tmp_path / "file", {"step": 1})
    assert load(tmp_path / "file") == {"step": 1}


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    atomic_write(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_keeps_pointing_to_the_file_that_is_replaced(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    atomic_write(elsewhere / "file", b"old")
    (tmp_path / "link").symlink_to(elsewhere / "file")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (elsewhere / "file").read_bytes() == b"new"


def kill_while_saving(path: Path, delay: float, saves: int = 1) -> int:
    """Kill a process that keeps saving states, `delay` seconds after some saves; return the step on disk."""
    script = (
        "import itertools, sys, numpy as np; from tinyvit.checkpoint import save\n"
        "for step in itertools.count():\n"
        "    save(sys.argv[1], {'x': np.full(300_000, step), 'step': step})\n"
        "    print('saved', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as process:
        for _ in range(saves):
            assert process.stdout.readline() == b"saved\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    state = load(path)
    assert (state["x"] == state["step"]).all()
    return state["step"]


def test_a_killed_process_leaves_a_complete_file(tmp_path):
    steps = [kill_while_saving(tmp_path / "model.safetensors", 0.007 * n, saves=2) for n in range(3)]
    assert min(steps) > 0  # it was killed between saves or during one, not before the second


@pytest.mark.slow
def test_processes_killed_many_times_leave_complete_files(tmp_path):
    for n in range(40):
        kill_while_saving(tmp_path / "model.safetensors", 0.0023 * n)
    temporaries = [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    assert temporaries, "no kill came in the middle of a write, so this proved nothing"
