"""Contenders are verified before they are timed, and whatever a contender does becomes a row of the table."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import contenders
from benchmarks.cases import find_case
from benchmarks.contenders import PEERS, Spec, select_contenders
from benchmarks.contenders.engine import Engine
from benchmarks.contenders.kernels import Kernels
from benchmarks.cpu import measure
from benchmarks.cpu.channel import LostError, Process
from benchmarks.cpu.measure import Processes, Settings, measure_case
from benchmarks.inputs import load_inputs, make_inputs
from benchmarks.report.records import CaseResult
from benchmarks.verify import allowed, deviation, verify
from tinyvit import kernels, use_kernels

README = Path(__file__).resolve().parents[2] / "benchmarks/README.md"
NUMPY = next(spec for spec in PEERS if spec.name == "numpy")


# Verification ---------------------------------------------------------------------------------------------------------


def test_only_a_small_deviation_passes() -> None:
    case = find_case("attention/attention/mnist-s n17 d16/forward")
    limit = allowed(case, "out", plain=1e-7, dtype="float32", size=1)
    exact = np.array([1.0, -2.0, 0.5])
    assert deviation(exact.astype(np.float32), exact) <= limit
    assert deviation(exact * (1 + 1e-4), exact) > limit
    assert not deviation(np.array([1.0, np.nan, 0.5]), exact) <= limit
    assert not deviation(np.array([1.0, np.inf, 0.5]), exact) <= limit
    assert not deviation(exact[:2], exact) <= limit
    assert limit < 1e-5 < allowed(case, "out", plain=1e-7, dtype="bfloat16", size=1) < 0.05


def test_dropout_may_draw_other_bits_but_not_another_share() -> None:
    case = find_case("ops/dropout/mnist-s 1088x256/forward")
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 50))
    inputs, plain = {"x": x}, {"out": 0.0, "kept": 0.0}
    expected = {"out": x / 0.9, "kept": np.asarray(0.9)}

    def is_right(y: np.ndarray) -> bool:
        return all(d.is_small for d in verify(case, inputs, {"out": y}, expected, plain, "float32").values())

    kept = random.random(x.shape) >= 0.1
    assert is_right(np.where(kept, x / 0.9, 0))
    assert not is_right(np.where(kept, x, 0))  # not rescaled
    assert not is_right(np.where(random.random(x.shape) >= 0.2, x / 0.9, 0))  # another rate


# Contenders of all kinds ----------------------------------------------------------------------------------------------

KERNELS = '''
"""Kernels that work, and kernels that do not."""
import os, sys
import numpy as np

calls = 0

def right(q, k, v):
    print("a line in Python")           # neither may disturb the answers
    os.write(1, b"and one in C")
    s = np.exp(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5)
    return s / s.sum(-1, keepdims=True) @ v

def unscaled(q, k, v):
    s = np.exp(q @ k.swapaxes(-1, -2))
    return s / s.sum(-1, keepdims=True) @ v

def not_written(q, k, v):
    return np.empty_like(q)

def of_another_shape(q, k, v):
    return right(q, k, v)[..., :-1]

def raising(q, k, v):
    raise RuntimeError("no such instruction")

def dying(q, k, v):
    sys.stderr.write("out of luck\\n"); sys.stderr.flush()
    os._exit(3)

def dying_later(q, k, v):
    global calls
    calls += 1
    if calls == 5:
        os.kill(os.getpid(), 9)
    return right(q, k, v)
'''


@pytest.fixture(scope="module")
def broken_library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A library that is installed, and whose import fails as PyTorch's does without its CUDA libraries."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "a_broken_library.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))
        yield "a_broken_library"


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory, broken_library: str) -> Iterator[CaseResult]:
    """Attention of digits-s by the plain path, all of KERNELS, the kernel of the README, and two absent libraries."""
    folder = tmp_path_factory.mktemp("processes")
    file = folder / "mine.py"
    shown = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert shown
    source = KERNELS + shown[1].replace("def attention(", "def of_the_readme(")
    file.write_text(source)
    names = re.findall(r"^def (\w+)", source, re.MULTILINE)
    specs = select_contenders((), tuple(f"{file}:{name}" for name in names))[len(contenders.OURS) :]
    users = [replace(spec, name=name) for name, spec in zip(names, specs, strict=True)]
    absent = Spec("absent", "nothing:Nothing", needs="a_module_that_nobody_has")
    broken = Spec("broken", "nothing:Nothing", needs=broken_library)
    processes = Processes(Settings(threads=1, rounds=2, budget=1e-6), folder)
    try:
        case = find_case("attention/attention/digits-s n17 d16/forward")
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(measure, "PAUSE", 0)
            yield measure_case(case, [NUMPY, absent, broken, *users], processes, lambda step: None)
    finally:
        processes.close()


@pytest.mark.slow
def test_right_kernels_are_verified_and_timed(attention: CaseResult) -> None:
    assert attention.baseline == "numpy"
    assert attention.gemm is not None
    assert attention.gemm > 1e6
    assert attention.copy is not None
    assert attention.copy > 1e6
    for name in ("numpy", "right", "of_the_readme"):
        row = attention.row(name)
        assert row is not None
        assert not row.reason
        assert len(row.seconds) == 2
        assert all(s > 0 for s in row.seconds)
        assert row.error is not None
        assert 0 < row.error < 1e-5
        assert row.peak_memory is not None
        assert row.peak_memory > 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unscaled", r"WRONG: error of out is \d\.\de[-+]\d\d, allowed \d\.\de-0\d"),
        (
            "not_written",
            r"WRONG: (error of out is \d|[\d,]+ of 34,816 values of out are NaN or infinite, the first at \[)",
        ),
        ("of_another_shape", r"WRONG: out has shape \(64, 2, 17, 15\), not \(64, 2, 17, 16\)"),
        ("raising", r"RuntimeError: no such instruction, at .*mine.py:\d+, in raising: raise RuntimeError\("),
        ("dying", r"died \(exit status 3\): out of luck"),
        ("dying_later", r"died \(SIGKILL\)"),
        ("absent", "a_module_that_nobody_has is not installed"),
        (
            "broken",
            r"a_broken_library is installed, but cannot be imported \(OSError: libcudart.so.12: cannot open shared",
        ),
    ],
)
def test_a_contender_that_cannot_be_timed_is_a_row_with_the_reason(
    attention: CaseResult, name: str, reason: str
) -> None:
    row = attention.row(name)
    assert row is not None
    assert re.match(reason, row.reason)
    assert row.time is None
    kind = "" if name in ("absent", "broken") else "WRONG" if reason.startswith("WRONG") else "failed"
    assert row.verdict == kind


def test_a_process_that_hangs_is_reported_and_killed(tmp_path: Path) -> None:
    process = Process("benchmarks.cpu.worker", (NUMPY.factory, NUMPY.option, ""), tmp_path, threads=1)
    try:
        with pytest.raises(LostError, match="hangs: no answer within 0 s"):
            process.ask("time", timeout=0.001, calls=10**9)
    finally:
        process.close()
    assert process.has_ended


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("id", ["attention/attention/digits-s n17 d16", "layer_norm/layer_norm/mnist-s 1088x64"])
def test_kernels_are_called_by_their_contract(
    id: str, direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions with the signatures of the contract, here made of the engine, give the engine's results."""

    def attention_forward(q, k, v, *, implementation):
        assert implementation == "numba:v1"
        return engine.run().numpy(), None

    def attention_backward(dout, q, k, v, out, lse, *, out_grads, implementation):
        for view, gradient in zip(out_grads, engine.run(), strict=True):
            view[...] = gradient.numpy()
        return *out_grads, None

    def layer_norm_forward(x, weight, bias, eps, *, implementation):
        return engine.run().numpy(), x.mean(-1), x.var(-1)

    def layer_norm_backward(dy, x, weight, mean, rstd, *, implementation):
        assert mean.shape == rstd.shape == x.shape[:1]
        return tuple(gradient.numpy() for gradient in engine.run())

    case = find_case(f"{id}/{direction}")
    np.savez(tmp_path / "inputs.npz", **make_inputs(case))
    inputs = load_inputs(case, tmp_path / "inputs.npz")
    for function in (attention_forward, attention_backward, layer_norm_forward, layer_norm_backward):
        monkeypatch.setattr(kernels, function.__name__, function, raising=False)
    with use_kernels("numpy"):
        engines = {way: Engine("numpy").prepare(find_case(f"{id}/{way}"), inputs) for way in ("forward", "backward")}
        engine = engines["forward"]  # a backward pass begins with it too
        task = Kernels("numba:v1").prepare(case, inputs)
        engine = engines[direction]
        expected, actual = engine.outputs(engine.run()), task.outputs(task.run())
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)
