"""The benchmarks tell right from wrong, survive what contenders do, and write and compare what they measured."""

import csv
import io
import re
import shlex
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import benchmarks.contenders as contenders
from benchmarks import measure
from benchmarks.cases import SUITES, find_case
from benchmarks.channel import LostError, Process
from benchmarks.cli import main
from benchmarks.contenders import PEERS, Spec, select_contenders
from benchmarks.contenders.engine import Engine
from benchmarks.contenders.kernels import Kernels
from benchmarks.costs import cost
from benchmarks.inputs import load_inputs, make_inputs
from benchmarks.measure import Field, Settings, measure_case
from benchmarks.report import to_html, write_files
from benchmarks.results import CaseResult, Row, Run, compare, from_json, to_csv, to_json
from benchmarks.stats import Summary
from benchmarks.verify import allowed, deviation
from tinyvit import kernels, use_kernels

ROOT = Path(__file__).resolve().parents[2]
SECONDS = st.floats(1e-7, 1e3)
NUMPY = next(spec for spec in PEERS if spec.name == "numpy")


# Verification -------------------------------------------------------------------------------------------------------


def test_nothing_but_a_small_deviation_passes() -> None:
    case = find_case("attention/attention/mnist-s n17 d16/forward")
    limit = allowed(case, "out", plain=1e-7, dtype="float32", size=1)
    exact = np.array([1.0, -2.0, 0.5])
    assert deviation(exact.astype(np.float32), exact) <= limit
    assert deviation(exact * (1 + 1e-4), exact) > limit
    assert not deviation(np.array([1.0, np.nan, 0.5]), exact) <= limit
    assert not deviation(np.array([1.0, np.inf, 0.5]), exact) <= limit
    assert not deviation(exact[:2], exact) <= limit
    assert limit < 1e-5 < allowed(case, "out", plain=1e-7, dtype="bfloat16", size=1) < 0.05


KERNELS = '''
"""Kernels that behave, and kernels that do not."""
import os, sys
import numpy as np

calls = 0

def right(q, k, v):
    print("chatter")                    # must not disturb the answers
    os.write(1, b"more of it")
    s = np.exp(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5)
    return s / s.sum(-1, keepdims=True) @ v

def unscaled(q, k, v):
    s = np.exp(q @ k.swapaxes(-1, -2))
    return s / s.sum(-1, keepdims=True) @ v

def nowhere_written(q, k, v):
    return np.empty_like(q)

def misshapen(q, k, v):
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
def attention(tmp_path_factory: pytest.TempPathFactory) -> CaseResult:
    """Attention of digits-s by the plain path, by all of KERNELS and by the README's, measured for a moment."""
    folder = tmp_path_factory.mktemp("field")
    file = folder / "mine.py"
    shown = re.search(r"```python\n(.*?)```", (ROOT / "benchmarks/README.md").read_text("utf-8"), re.DOTALL)
    source = KERNELS + shown[1].replace("def attention(", "def of_the_readme(")
    file.write_text(source)
    names = re.findall(r"^def (\w+)", source, re.MULTILINE)
    users = [replace(spec, name=name) for name, spec in zip(
        names, select_contenders((), tuple(f"{file}:{name}" for name in names))[len(contenders.OURS):], strict=True
    )]  # fmt: skip
    absent = Spec("absent", "nothing:Nothing", needs="a_module_that_nobody_has")
    field = Field(Settings(threads=1, rounds=3, budget=1e-6), folder)
    try:
        case = find_case("attention/attention/digits-s n17 d16/forward")
        return measure_case(case, [NUMPY, absent, *users], field, lambda doing: None)
    finally:
        field.close()


def test_right_kernels_are_verified_and_timed(attention: CaseResult) -> None:
    assert attention.baseline == "numpy"
    for name in ("numpy", "right", "of_the_readme"):
        row = attention.row(name)
        assert row is not None
        assert not row.reason
        assert len(row.seconds) == len(attention.gemm) == len(attention.copy) == 3
        assert all(s > 0 for s in row.seconds)
        assert 0 < row.error < 1e-5
        assert row.peak_memory > 2**20


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unscaled", r"WRONG: error of out is \d\.\de[-+]\d\d, allowed \d\.\de-0\d"),
        ("nowhere_written", r"WRONG: error of out is (nan|\d)"),
        ("misshapen", r"WRONG: out has shape \(64, 2, 17, 15\), not \(64, 2, 17, 16\)"),
        ("raising", "RuntimeError: no such instruction"),
        ("dying", r"died \(exit status 3\): out of luck"),
        ("dying_later", r"died \(SIGKILL\)"),
        ("absent", "a_module_that_nobody_has is not installed"),
    ],
)
def test_others_are_a_row_with_their_reason(attention: CaseResult, name: str, reason: str) -> None:
    row = attention.row(name)
    assert row is not None
    assert re.match(reason, row.reason)
    assert row.time is None


def test_a_process_that_hangs_is_told_and_ended(tmp_path: Path) -> None:
    process = Process("benchmarks.worker", (NUMPY.factory, NUMPY.option), tmp_path, threads=1)
    try:
        with pytest.raises(LostError, match="hangs: no answer within 0 s"):
            process.ask("time", timeout=0.001, calls=10**9)
    finally:
        process.close()


def test_other_bits_of_dropout_are_right_and_a_wrong_share_is_not() -> None:
    from benchmarks.verify import verify

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


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("id", ["attention/attention/digits-s n17 d16", "layer_norm/layer_norm/mnist-s 1088x64"])
def test_kernels_are_called_by_their_contract(
    id: str, direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions of the contract's signatures, made of the engine here, give the engine's results."""

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
        engine = engines["forward"]  # also before a backward pass
        task = Kernels("numba:v1").prepare(case, inputs)
        engine = engines[direction]
        expected, actual = engine.outputs(engine.run()), task.outputs(task.run())
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)


# Files and commands -------------------------------------------------------------------------------------------------

ROWS = st.builds(
    Row,
    contender=st.sampled_from(["tinyvit", "numpy", "torch", "mine.py:fast"]),
    seconds=st.lists(SECONDS, max_size=4),
    reason=st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20),
    deviations=st.dictionaries(st.sampled_from(["out", "dq"]), st.lists(SECONDS, min_size=2, max_size=2)),
    peak_memory=st.none() | st.integers(0, 2**40),
)
CASES = st.builds(
    CaseResult,
    id=st.text(max_size=20), label=st.text(max_size=20), operation=st.just("attention"),
    direction=st.sampled_from(["forward", "backward"]), shape=st.just({"N": 17, "D": 16}),
    flops=st.integers(0, 10**12), bytes=st.none() | st.integers(0, 10**12), baseline=st.sampled_from(["", "numpy"]),
    gemm=st.lists(SECONDS, max_size=3), copy=st.lists(SECONDS, max_size=3),
    rows=st.lists(ROWS, max_size=3, unique_by=lambda row: row.contender),
)  # fmt: skip
RUNS = st.builds(
    Run, suite=st.sampled_from(list(SUITES)), date=st.just("2026-01-02T03:04:05+00:00"), commit=st.just("abc+"),
    machine=st.just({"cpu": "A CPU", "processors": 2}), versions=st.just({"numpy": "2"}),
    settings=st.just({"threads": 2}), cases=st.lists(CASES, max_size=3),
)  # fmt: skip


@given(RUNS)
def test_a_run_survives_its_json(run: Run) -> None:
    assert from_json(to_json(run)) == run


@given(RUNS)
def test_csv_has_a_line_for_each_row(run: Run) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(run), newline="")))
    rows = [row for case in run.cases for row in case.rows]
    assert [line["contender"] for line in lines] == [row.contender for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert (line["seconds"] == "") == (not row.seconds)


def test_a_break_in_a_reason_stays_in_its_field_of_the_csv() -> None:
    run = example([0.02])
    run.cases[0].rows[2].reason = "one\rtwo"
    assert list(csv.DictReader(io.StringIO(to_csv(run), newline="")))[2]["reason"] == "one\rtwo"


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 0}', "no json"])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"result file|Expecting value"):
        from_json(text)


def example(seconds: list[float], suite: str = "attention") -> Run:
    case = SUITES[suite].cases[0]
    flops, size = cost(case)
    rows = [Row("numpy", [0.010, 0.011, 0.012]), Row("<mine>", seconds), Row("torch", reason="WRONG: <b>")]
    result = CaseResult(case.id, case.label, case.operation, case.direction, vars(case.shape), flops, size,
                        "numpy", [1e11] * 3, [3e10] * 3, rows)  # fmt: skip
    machine = {"cpu": "A <CPU>", "processors": 2, "features": [], "memory": 2**30, "system": "a system", "load": 0.1}
    settings = {"threads": 2, "rounds": 3, "budget": 1.0}
    return Run(suite, "2026-01-02T03:04:05+00:00", "abc+", machine, {"numpy": "2"}, settings, [result])


def test_comparing_marks_what_is_beyond_the_noise() -> None:
    before = example([0.020, 0.021, 0.022])
    for seconds, verdict in (([0.010] * 3, "faster"), ([0.040] * 3, "slower"), ([0.0205, 0.0215, 0.023], "same")):
        own, mine = compare(before, example(seconds))
        assert (own.contender, own.verdict, own.ratio) == ("numpy", "same", 1)
        assert (mine.contender, mine.verdict) == ("<mine>", verdict)
        assert mine.ratio == pytest.approx(0.021 / sorted(seconds)[1])


def test_shares_are_those_of_the_ceilings() -> None:
    case = example([0.02] * 3).cases[0]
    row = case.row("<mine>")
    assert case.share_of_gemm(row) == pytest.approx(case.flops / 0.02 / 1e11)
    assert case.share_of_copy(row) == pytest.approx(case.bytes / 0.02 / 3e10)
    assert case.speed(row) == pytest.approx(Summary(0.55, 0.52, 0.58))


@pytest.mark.parametrize("suite", ["attention", "train"])
def test_the_report_is_one_page_that_needs_nothing_else(suite: str) -> None:
    page = to_html(example([0.02] * 3, suite))
    assert not re.search(r"<script|<link|<img|@import|\b(src|href)=\"(?!#)", page)
    assert "<mine>" not in page
    assert "&lt;mine&gt;" in page
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == (3 if suite == "attention" else 1)
    for picture in pictures:
        ElementTree.fromstring(picture)


def test_files_are_named_after_suite_processor_and_day_and_never_overwritten(tmp_path: Path) -> None:
    run = example([0.02] * 3, "train")
    names = [path.name for _ in range(2) for path in write_files(run, tmp_path)]
    stems = "train-a-cpu-2026-01-02", "train-a-cpu-2026-01-02-2"
    assert names == [f"{stem}.{suffix}" for stem in stems for suffix in ("json", "csv", "html", "png")]
    assert (tmp_path / f"{stems[0]}.png").read_bytes().startswith(b"\x89PNG")
    assert from_json((tmp_path / f"{stems[1]}.json").read_text("utf-8")) == run


def test_the_command_lists_the_suites() -> None:
    output = CliRunner().invoke(main, []).output
    for suite in SUITES.values():
        assert re.search(rf"^  {suite.name} +{re.escape(suite.about)}$", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("attention --peers tensorflow", "there is no peer 'tensorflow'"),
        ("attention --shapes vit-xxl", "has no shape vit-xxl"),
        ("train --without attention,everything", "there is no fusion 'everything'; there are linear_bias"),
        ("train --baseline nobody", "--baseline nobody does not take part"),
        ("compare nowhere.json nowhere.json", "nowhere.json"),
    ],
)
def test_wrong_usage_is_told(arguments: str, message: str) -> None:
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code != 0
    assert message in result.output


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "OURS", ())
    monkeypatch.setattr(measure, "_PAUSE", 0)
    options = "--shapes digits-s --peers numpy --rounds 2 --budget 0.01 --threads 1"
    result = CliRunner().invoke(main, ["train", *options.split(), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "digits-s b64" in result.output
    (file,) = tmp_path.glob("*.json")
    (case,) = from_json(file.read_text()).cases
    (row,) = case.rows
    assert (row.contender, len(row.seconds), row.reason) == ("numpy", 2, "")
    result = CliRunner().invoke(main, ["compare", str(file), str(file)])
    assert result.exit_code == 0
    assert "same" in result.output


@pytest.mark.parametrize("name", ["README.md", "benchmarks/README.md"])
def test_commands_shown_in_the_documents_parse(name: str) -> None:
    for line in re.findall(r"^    python -m benchmarks ?(.*)$", (ROOT / name).read_text("utf-8"), re.MULTILINE):
        words = shlex.split(line, comments=True)
        if words:
            main.commands[words[0]].make_context(words[0], words[1:])
