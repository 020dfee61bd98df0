"""What is said about an own kernel that fails or breaks its contract: what happened, where, and the way out."""

import re
from pathlib import Path

import numpy as np
import pytest
from peers import peer
from rich.console import Console

from benchmarks.cases import find_case
from benchmarks.contenders.user import UserKernel
from benchmarks.inputs import Arrays, load_inputs, make_inputs
from benchmarks.peers import OwnCodeError, describe_error
from benchmarks.report.records import CaseResult, Row
from benchmarks.report.table import case_table, reasons
from benchmarks.verify import WrongOutputError

ATTENTION, LAYER_NORM = "attention/attention/digits-s n17 d16", "layer_norm/layer_norm/mnist-s 1088x64"
SOURCE = """\
import numpy as np

def helper(x):
    return np.reshape(x, (3, 3))  # raises

def raising(q, k, v):
    return helper(q)

def with_two(q, k):
    return q

def without_return(q, k, v):
    out = q + v

def in_place(q, k, v):
    k *= 2
    return q + v

def in_place_backward(dout, q, k, v, out):
    out[...] = 0
    return q, k, v

def of_two(q, k, v):
    return q, v

def transposed(q, k, v):
    return q.swapaxes(1, 2)

def shorter(q, k, v):
    return q[..., 1:]

def double(q, k, v):
    return q / np.sqrt(q.shape[-1])

def half(q, k, v):
    return q.astype(np.float16)

def right(q, k, v):
    return q + v

def right_backward(dout, q, k, v, out):
    return dout

def norm(x, weight, bias, eps):
    return x * weight + bias + eps

def norm_backward(dy, x, weight, eps):
    return dy, weight, x.sum(0)[:-1]

number = 3
"""


def line_with(text: str) -> int:
    return next(number for number, line in enumerate(SOURCE.splitlines(), 1) if text in line)


def inputs_of(id: str, folder: Path) -> Arrays:
    case = find_case(f"{id}/forward")
    np.savez(folder / "inputs.npz", **make_inputs(case))
    return load_inputs(case, folder / "inputs.npz")


def complaint(name: str, id: str, folder: Path, direction: str = "forward") -> str:
    """What is said about a kernel of SOURCE, which lies in the current folder."""
    Path("mine.py").write_text(SOURCE)
    try:
        task = UserKernel(f"mine.py:{name}").prepare(find_case(f"{id}/{direction}"), inputs_of(id, folder))
        task.outputs(task.run())
    except (OwnCodeError, WrongOutputError) as error:
        return describe_error(error) if isinstance(error, OwnCodeError) else str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("raising", r"ValueError: cannot reshape array .*, at mine.py:{raises}, in helper: return np.reshape\(x, .*"),
        ("with_two", r"TypeError: .* 3 were given, in with_two at mine.py:{with_two}, called with \(q, k, v\)"),
        (
            "without_return",
            r"it returned None, not out: is there a `return` .* \(without_return at mine.py:{without_}\)",
        ),
        (
            "in_place",
            r"it changed its argument k in place.*`k = k \* 2` in place of `k \*= 2` \(in_place at mine.py:\d+\)",
        ),
        ("of_two", r"it returned a tuple of 2, and must return out \(of_two at mine.py:{of_two}\)"),
        ("transposed", r"out has shape \(64, 17, 2, 16\), not \(64, 2, 17, 16\): its axes are in another order .*"),
        ("shorter", r"out has shape \(64, 2, 17, 15\), not \(64, 2, 17, 16\) \(shorter at mine.py:{shorter}\)"),
        ("double", r"out has dtype float64, not float32: NumPy's float64 numbers, .* \(double at mine.py:{double}\)"),
        ("half", r"out has dtype float16, not float32: return `out.astype\(np.float32\)` \(half at mine.py:{half}\)"),
        ("right", ""),
    ],
)
def test_a_forward_pass_that_breaks_its_contract_is_explained(
    name: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pattern = re.sub(r"\{(\D.*?)\}", lambda found: str(line_with(found[1])), pattern)
    assert re.fullmatch(pattern, complaint(name, ATTENTION, tmp_path))


@pytest.mark.slow
def test_a_kernel_that_numba_cannot_compile_names_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer("numba")
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("import numba\n\n@numba.njit\ndef compiled(q, k, v):\n    return q.nothing\n")
    task = UserKernel("mine.py:compiled").prepare(find_case(f"{ATTENTION}/forward"), inputs_of(ATTENTION, tmp_path))
    with pytest.raises(OwnCodeError, match=r"^TypingError: .*, at .*mine\.py:5: return q\.nothing$"):
        task.run()


@pytest.mark.parametrize(
    ("name", "id", "pattern"),
    [
        ("right", ATTENTION, r"it returned a single ndarray, and must return dq, dk, dv \(right_backward at .*"),
        (
            "in_place",
            ATTENTION,
            r"it changed its argument k in place.* \(in_place at .*",
        ),  # already by the forward pass
        ("norm", LAYER_NORM, r"dbias has shape \(63,\), not \(64,\) \(norm_backward at .*"),
    ],
)
def test_a_backward_pass_that_breaks_its_contract_is_explained(
    name: str, id: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(pattern, complaint(name, id, tmp_path, "backward"))


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        ("def attention(q):\n    return q @\n", r"SyntaxError: .*, at mine.py:2: return q @"),
        ("import numpy\nx = 1 / 0\n", r"ZeroDivisionError: division by zero, at mine.py:2: x = 1 / 0"),
        ("import a_module_that_nobody_has\n", r"ModuleNotFoundError: .*, at mine.py:1: import a_module_.*"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_its_line(
    source: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(source)
    with pytest.raises(OwnCodeError) as caught:
        UserKernel("mine.py:attention")
    assert re.fullmatch(pattern, describe_error(caught.value))


def test_a_name_that_is_not_a_function_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    with pytest.raises(TypeError, match=r"mine\.number is int, not a function"):
        UserKernel(f"{tmp_path / 'mine.py'}:number")


def test_a_table_has_a_row_for_each_contender_that_was_wrong_or_failed_and_says_what_its_ratios_are() -> None:
    case = CaseResult("digits-s", "forward", {}, 0, None, "numpy")
    case.rows = [Row("numpy", [2e-3, 4e-3]), Row("mine:quick", [1e-3, 1e-3])]
    for name, reason, absent in (
        ("mine:wrong", "WRONG: error of out is 1.0e+00", False),
        ("mine:raising", "ValueError: no", False),
        ("torch", "torch is not installed", True),
    ):
        case.rows.append(Row(name))
        case.rows[-1].give_up(reason, absent)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(case_table(case, memory=False, about="a processor"))
    table = captured.get()
    assert re.search(r"^mine:wrong +WRONG *$", table, re.MULTILINE)
    assert re.search(r"^mine:raising +failed *$", table, re.MULTILINE)
    assert "torch" not in table
    assert re.search(r"^mine:quick +1.00 ms .* 3.00 ", table, re.MULTILINE)  # the median of 2 and 4
    assert "x numpy: median of the ratios of the rounds, not ratio of the medians" in " ".join(table.split())
    assert [line.rpartition("]: ")[2] for line in reasons(case)] == [row.reason for row in case.rows[2:]]
