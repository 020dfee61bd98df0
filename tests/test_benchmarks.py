"""The benchmarks tell right from wrong, survive what contenders do, and count and compare as they say."""

import csv
import io
import math
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
from benchmarks.cases import MODELS, SUITES, AttentionShape, Case, ModelShape, RowShape, find_case, select_cases
from benchmarks.channel import LostError, Process
from benchmarks.cli import main
from benchmarks.contenders import PEERS, Spec, select_contenders
from benchmarks.contenders.engine import build_model
from benchmarks.contenders.functional_vit import vit_logits
from benchmarks.costs import cost, parameter_count
from benchmarks.measure import Field, Settings, measure_case
from benchmarks.report import to_html, write_files
from benchmarks.results import CaseResult, Row, Run, compare, from_json, to_csv, to_json
from benchmarks.stats import Summary, differ, is_quiet, noise, quantile, ratios, summarize
from benchmarks.verify import allowed, deviation

ROOT = Path(__file__).resolve().parent.parent
SECONDS = st.floats(1e-7, 1e3)
SERIES = st.lists(SECONDS, min_size=1, max_size=20)
NUMPY = next(spec for spec in PEERS if spec.name == "numpy")


# Statistics ---------------------------------------------------------------------------------------------------------


@given(SERIES, st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values: list[float], q: float) -> None:
    assert quantile(values, q) == pytest.approx(np.quantile(values, q), rel=1e-9)


def test_there_is_no_quantile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


@given(SERIES, st.floats(0.1, 10))
def test_a_contender_that_is_always_as_much_faster_has_that_ratio(seconds: list[float], factor: float) -> None:
    speed = summarize(ratios([factor * s for s in seconds], seconds))
    assert speed == pytest.approx((factor, factor, factor))


@given(SERIES, st.floats(0.1, 10))
def test_noise_is_relative(values: list[float], factor: float) -> None:
    assert noise([factor * v for v in values]) == pytest.approx(noise(values), rel=1e-6, abs=1e-12)


@given(st.lists(st.floats(0.9, 1.1), min_size=5, max_size=20))
def test_more_rounds_of_the_same_are_less_noise(values: list[float]) -> None:
    assert noise(values * 16) <= noise(values) / 2 + 1e-12


def test_the_noise_of_a_median_is_its_standard_error() -> None:
    random = np.random.default_rng(0)
    draws = random.normal(100, 5, (2000, 25))
    estimated = np.mean([noise(row.tolist()) for row in draws])
    assert estimated == pytest.approx(np.median(draws, axis=1).std() / 100, rel=0.15)


def test_a_case_is_done_when_every_series_is_quiet_and_long_enough() -> None:
    steady, restless = [1.0] * 5, [1.0, 2.0, 1.0, 2.0, 1.5]
    assert is_quiet([steady, steady], 0.01, rounds=5)
    assert not is_quiet([steady, restless], 0.01, rounds=5)
    assert not is_quiet([steady[:4]], 0.01, rounds=5)


@given(SERIES, SERIES)
def test_differing_is_symmetric_and_nothing_differs_from_itself(a: list[float], b: list[float]) -> None:
    assert differ(summarize(a), summarize(b)) == differ(summarize(b), summarize(a))
    assert not differ(summarize(a), summarize(a))


# Shapes and their work ----------------------------------------------------------------------------------------------


def test_cases_are_found_by_their_ids() -> None:
    cases = [case for suite in SUITES.values() for case in suite.cases]
    assert len({case.id for case in cases}) == len(cases)
    assert all(find_case(case.id) == case for case in cases)


def test_the_shapes_span_the_vision_transformers() -> None:
    shapes = [case.shape for case in SUITES["attention"].cases]
    assert {shape.N for shape in shapes} == {17, 50, 65, 197, 257, 1024}
    assert (min(shape.D for shape in shapes), max(shape.D for shape in shapes)) == (16, 80)
    by_name = {shape.name: shape for shape in shapes}
    for model in MODELS:
        s = by_name[model.name]
        assert (model.batch, model.heads, model.N, model.dim) == (s.B, s.H, s.N, s.H * s.D)


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_quick_runs_name_shapes_of_the_suite(suite) -> None:
    assert 0 < len(select_cases(suite, suite.quick)) < len(suite.cases)


def test_cases_are_selected_by_name_or_label() -> None:
    attention = SUITES["attention"]
    assert select_cases(attention, ("vit-s",)) == select_cases(attention, ("vit-s n65 d64",))
    with pytest.raises(ValueError, match="no shape vit-xxl; it has digits-s"):
        select_cases(attention, ("vit-s", "vit-xxl"))


class Counted:
    """A number without a value that counts the operations on it."""

    count = 0

    def _count(self, other: object = None) -> "Counted":
        Counted.count += 1
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _count
    function = larger = _count  # exp, erf, tanh or sqrt; the larger of two


def dot(xs: list[Counted], ys: list[Counted]) -> Counted:
    total = Counted()
    for x, y in zip(xs, ys, strict=True):
        total = total + x * y
    return total


def add_all(xs: list[Counted]) -> Counted:
    total = Counted()
    for x in xs:
        total = total + x
    return total


ONE = Counted()


def attention_forward(n: int, d: int) -> None:
    for _ in range(n * n):
        dot([ONE] * d, [ONE] * d)  # S
    for _ in range(n * d):
        dot([ONE] * n, [ONE] * n)  # out


def attention_backward(n: int, d: int) -> None:
    for _ in range(2 * n * n):
        dot([ONE] * d, [ONE] * d)  # S, dP
    for _ in range(3 * n * d):
        dot([ONE] * n, [ONE] * n)  # dv, dq, dk


def layer_norm_forward(row: list[Counted]) -> None:
    mean = add_all(row) / len(row)
    centered = [x - mean for x in row]
    rstd = 1 / (dot(centered, centered) / len(row) + ONE).function()
    for x in row:
        (x - mean) * rstd * ONE + ONE  # subtracted again: a row is read twice, not kept


def layer_norm_backward(row: list[Counted]) -> None:
    mean = rstd = weight = dweight = dbias = dy = ONE
    xhat = [(x - mean) * rstd for x in row]
    g = [dy * weight for _ in row]
    mean_g, mean_gx = add_all(g) / len(row), dot(g, xhat) / len(row)
    for x, gi in zip(xhat, g, strict=True):
        dweight, dbias = dweight + dy * x, dbias + dy
        rstd * (gi - mean_g - x * mean_gx)


def gelu_forward(row: list[Counted]) -> None:
    for x in row:
        z = x + ONE
        z * (0.5 + 0.5 * (ONE * z).function())


def gelu_backward(row: list[Counted]) -> None:
    for x in row:
        z = x + ONE
        cdf = 0.5 + 0.5 * (ONE * z).function()
        slope = cdf + z * (ONE * (-0.5 * (z * z)).function())
        ONE + ONE * slope  # dx = dy slope, and the bias's sum


def gelu_tanh_forward(row: list[Counted]) -> None:
    for x in row:
        z = x + ONE
        0.5 * z * (1 + (ONE * (z + ONE * (z * z * z))).function())


def gelu_tanh_backward(row: list[Counted]) -> None:
    for x in row:
        z = x + ONE
        square = z * z
        t = (ONE * (z + ONE * (square * z))).function()
        slope = 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * (ONE * (1 + ONE * square))
        ONE + ONE * slope


def softmax_forward(row: list[Counted]) -> None:
    largest = row[0]
    for x in row:
        largest = largest.larger(x)
    e = [(x - largest).function() for x in row]
    total = add_all(e)
    for x in e:
        x / total


def softmax_backward(row: list[Counted]) -> None:
    inner = dot(row, row)
    for y in row:
        y * (y - inner)


COUNTED = {
    "layer_norm": (layer_norm_forward, layer_norm_backward),
    "bias_gelu": (gelu_forward, gelu_backward),
    "bias_gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),
    "softmax": (softmax_forward, softmax_backward),
}


def counted(run, *arguments) -> int:
    Counted.count = 0
    run(*arguments)
    return Counted.count


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("operation", COUNTED)
def test_operations_of_rows_are_those_of_a_counted_loop(operation: str, direction: str) -> None:
    rows, columns = 3, 40
    flops = cost(Case("ops", operation, RowShape("tiny", rows, columns), direction)).flops
    found = rows * counted(COUNTED[operation][direction == "backward"], [ONE] * columns)
    assert flops <= found <= flops + 6 * rows  # a few for each row are left out


@pytest.mark.parametrize(("direction", "loop"), [("forward", attention_forward), ("backward", attention_backward)])
def test_operations_of_attention_are_those_of_a_counted_loop(direction: str, loop) -> None:
    shape = AttentionShape("tiny", B=2, H=3, N=5, D=4)
    assert cost(Case("attention", "attention", shape, direction)).flops == 2 * 3 * counted(loop, 5, 4)


def test_operations_of_linear_are_those_of_a_counted_loop() -> None:
    def forward() -> None:
        for _ in range(rows * 4 * columns):
            dot([ONE] * columns, [ONE] * columns) + ONE

    def backward() -> None:
        for _ in range(rows * columns):  # dx
            dot([ONE] * 4 * columns, [ONE] * 4 * columns)
        for _ in range(4 * columns * columns):  # dweight
            dot([ONE] * rows, [ONE] * rows)
        for _ in range(4 * columns):  # dbias
            add_all([ONE] * rows)

    rows, columns = 3, 4
    for direction, loop in (("forward", forward), ("backward", backward)):
        assert cost(Case("ops", "linear", RowShape("tiny", rows, columns), direction)).flops == counted(loop)


class CountingProducts(np.ndarray):
    """An array that counts the operations of its matrix products."""

    count = 0

    def __matmul__(self, other):
        out = np.matmul(self, other)
        CountingProducts.count += 2 * out.size * self.shape[-1]
        return out

    def __rmatmul__(self, other):
        return other.view(CountingProducts) @ self


def test_operations_of_a_model_are_those_of_its_matrix_products() -> None:
    shape = ModelShape("tiny", image=8, channels=3, patch=4, dim=12, depth=2, heads=3, batch=2)
    weights = {name: w.view(CountingProducts) for name, w in build_model(shape).state_dict().items()}
    images = np.ones((2, 3, 8, 8), np.float32)
    CountingProducts.count = 0
    vit_logits(np, np.vectorize(math.erf), weights, images, shape)
    assert cost(Case("inference", "inference", shape, "step")).flops == CountingProducts.count


@pytest.mark.parametrize("shape", MODELS, ids=lambda shape: shape.name)
def test_parameters_are_counted(shape: ModelShape) -> None:
    assert parameter_count(shape) == sum(array.size for array in build_model(shape).state_dict().values())


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
    """Attention of digits-s by the plain path and by all of KERNELS, measured for a moment."""
    folder = tmp_path_factory.mktemp("field")
    file = folder / "kernels.py"
    file.write_text(KERNELS)
    names = re.findall(r"^def (\w+)", KERNELS, re.MULTILINE)
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
    for name in ("numpy", "right"):
        row = attention.row(name)
        assert row is not None
        assert not row.reason
        assert len(row.seconds) == len(attention.gemm) == len(attention.copy) == 3
        assert all(0 < s < 10 for s in row.seconds)
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
def test_the_report_is_one_page_that_needs_nothing_else(suite: str, tmp_path: Path) -> None:
    run = example([0.02] * 3, suite)
    page = to_html(run)
    assert not re.search(r"<script|<link|<img|@import|\b(src|href)=\"(?!#)", re.sub(r"xlink:href=\"#", "", page))
    assert "<mine>" not in page
    assert "&lt;mine&gt;" in page
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == (3 if suite == "attention" else 1)
    for picture in pictures:
        ElementTree.fromstring(picture)
    names = [path.name for path in write_files(run, tmp_path) + write_files(run, tmp_path)]
    stem = f"{suite}-a-cpu-2026-01-02"
    assert names == [f"{s}.{suffix}" for s in (stem, f"{stem}-2") for suffix in ("json", "csv", "html", "png")]
    assert (tmp_path / f"{stem}.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_lists_the_suites() -> None:
    output = CliRunner().invoke(main, []).output
    for suite in SUITES.values():
        assert re.search(rf"^  {suite.name} +{re.escape(suite.about)}$", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("attention --peers tensorflow", "there is no peer 'tensorflow'"),
        ("attention --shapes vit-xxl", "has no shape vit-xxl"),
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
