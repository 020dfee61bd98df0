"""The study page without a browser: what is in its document, and what the command writes."""

import base64
import json
import os
import re
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
from tiny_run import isolate, tiny_recipe

import tinyvit as tv
import tinyvit.functional as F
import tinyvit.train as training
from tinyvit.autograd import Op
from tinyvit.cli import commands
from tinyvit.study import check, trace
from tinyvit.study.page import page_of
from tinyvit.study.plant import FAULTS, PlantError, place_for
from tinyvit.study.records import Recording
from tinyvit.study.subject import about, study_operation, study_run
from tinyvit.study.values import Value

DTYPES = {"f4": "<f4", "f8": "<f8", "i4": "<i4", "u1": "u1"}


class Page:
    """A page as its own scripts see it: the document, and arrays by the number of a value."""

    def __init__(self, text: str) -> None:
        self.text = text
        found = re.search(r'<script type="application/json" id="trace">(.*?)</script>', text, re.DOTALL)
        assert found
        self.document = json.loads(found[1], parse_constant=_refused)
        self._blobs = {}
        for code in self.document["blobs"]:
            packed = re.search(rf'id="blob-{code}">(.*?)</script>', text)
            assert packed
            planes = np.frombuffer(zlib.decompress(base64.b64decode(packed[1])), np.uint8)
            width = np.dtype(DTYPES[code]).itemsize
            self._blobs[code] = np.ascontiguousarray(planes.reshape(width, -1).T).view(DTYPES[code]).ravel()

    def array(self, number: int) -> np.ndarray | None:
        code, offset, shape, *_ = self.document["arrays"][number]
        size = int(np.prod(shape))
        return None if offset is None else self._blobs[code][offset : offset + size].reshape(shape)

    def value(self, v: int) -> np.ndarray | None:
        return self.array(self.document["values"][v][1])

    def source(self, v: int) -> int:
        origin = self.document["values"][v][3]
        return self.source(origin[1]) if origin[0] == "same" else v


def _refused(constant: str) -> None:
    raise AssertionError(f"JSON has no {constant}")


@cache
def digits() -> tuple[Recording, Page]:
    subject = study_run()
    return subject.trace, Page(page_of(subject.trace, about(subject)))


def references(recording: Recording, page: Page) -> Any:
    """Each value of a trace with the number under which the page has it."""
    for entry, op in zip(recording.entries, page.document["ops"], strict=True):
        groups = [(entry.inputs, op["in"]), (entry.outputs, op["out"])]
        if entry.backward:
            groups += [(entry.backward.incoming, op["din"]), (entry.backward.outgoing, op["dout"])]
        for values, shown in groups:
            for value, reference in zip(values, shown, strict=True):
                if isinstance(value, Value):
                    yield value, reference["v"]


def test_every_number_of_the_trace_is_on_the_page_bit_for_bit() -> None:
    recording, page = digits()
    count = 0
    for value, v in references(recording, page):
        found = page.value(v)
        assert found is not None
        assert found.tobytes() == value.array.tobytes()
        assert found.shape == value.shape
        count += 1
    assert count > 300


def test_the_default_page_is_small_and_reaches_for_nothing() -> None:
    _, page = digits()
    assert len(page.text.encode()) < 5_000_000
    assert "default-src 'none'" in page.text
    outward = r"(?:src|href)\s*=\s*[\"']?[^\"'>\s]+|url\([^#][^)]*\)|@import|fetch\(|XMLHttpRequest"
    outside = re.findall(outward, page.text)
    assert not outside
    links = set(re.findall(r"https?://[^\"'\s)<]+", page.text)) - {"http://www.w3.org/2000/svg"}
    assert not links


def test_everything_agrees_and_has_steps_and_formulas() -> None:
    _, page = digits()
    document = page.document
    for op in document["ops"]:
        assert op["check"]["verdict"] == "agrees", op["key"]
        assert document["kinds"][op["op"]]["f"].startswith("<math")
        assert all(line["m"].startswith("<math") for side in op["lines"] for line in side)
    assert {layer["title"] for layer in document["attention"]} == {f"blocks.{i}.attn" for i in range(4)}
    assert document["firstBad"] is None
    assert len(document["quiz"]) > 5
    for question in document["quiz"]:
        assert len(set(question["options"])) == len(question["options"]) > question["answer"]
    noscript = page.text.partition("<noscript>")[2].partition("</noscript>")[0]
    assert all(op["key"] in noscript for op in document["ops"])


def unfolded(page: Page, v: int) -> np.ndarray | None:
    """A value computed from its terms, all elements at once; None where the page does not unfold it."""
    kind, op, direction, k = page.document["values"][v][3]
    assert kind == "step"
    step = page.document["ops"][op]["steps"][direction][k]
    link, sign, axes, start, source = step["l"]
    arrays = [page.value(o["v"]).astype(np.float64) for o in step["o"] if "v" in o]
    shape = page.value(v).shape
    if link == "each":
        x = [page.value(o["v"]).astype(np.float64) if "v" in o else float(o["c"]) for o in step["o"]]
        signs = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "neg": np.negative, "where": np.where}
        return signs[sign](*x) if sign in signs else None
    if link == "matmul":
        return arrays[0] @ arrays[1]
    if link == "reduce":
        return getattr(np, sign)(arrays[0], axis=tuple(axes)).reshape(shape)
    flat = np.concatenate([a.ravel() for a in arrays]) if arrays else np.zeros(1)
    if link == "view":
        at = np.full(shape, start)
        for a, step_size in enumerate(axes):
            at += step_size * np.arange(shape[a]).reshape([-1 if i == a else 1 for i in range(len(shape))])
        return flat[at]
    if link == "move":
        at = page.array(source)
        return np.where(at < 0, page.value(v), flat[np.maximum(at, 0)])
    if link == "scatter":
        target = page.array(source).ravel()
        added = arrays[0].ravel()
        return np.bincount(target[target >= 0], added[target >= 0], minlength=int(np.prod(shape))).reshape(shape)
    return None


def holds(page: Page) -> dict[str, int]:
    """Hold every step of a page against its terms; how many of each kind of link there were."""
    kinds: dict[str, int] = {}
    for v, (_, _, _, origin) in enumerate(page.document["values"]):
        if origin[0] != "step":
            continue
        step = page.document["ops"][origin[1]]["steps"][origin[2]][origin[3]]
        result, recorded = unfolded(page, v), page.value(v)
        kinds[step["l"][0]] = kinds.get(step["l"][0], 0) + 1
        if result is not None:
            scale = np.abs(recorded[np.isfinite(recorded)]).max(initial=0)
            eps = 1e-5 if recorded.dtype == np.float32 else 1e-12
            np.testing.assert_allclose(recorded, result, rtol=eps, atol=eps * max(scale, 1e-30), err_msg=step["s"])
    return kinds


def test_every_step_is_reproduced_by_its_terms() -> None:
    kinds = holds(digits()[1])
    assert kinds.keys() >= {"each", "matmul", "reduce", "view", "move", "scatter"}
    assert kinds.get("none", 0) < 0.02 * sum(kinds.values())


@pytest.mark.parametrize("name", sorted(n for n, op in Op.registry.items() if op.__module__.startswith("tinyvit.")))
def test_every_operation_has_a_page_whose_terms_hold(name: str) -> None:
    page = Page(page_of(study_operation(name)))
    assert {op["check"]["verdict"] for op in page.document["ops"] if op["op"] == name} == {"agrees"}
    holds(page)


def test_each_gradient_leads_back_to_the_loss() -> None:
    """Through steps and sums, without a gap: every gradient's ancestors reach the seed."""
    recording, page = digits()
    values = page.document["values"]
    memory: dict[int, bool] = {}

    def reaches(v: int) -> bool:
        v = page.source(v)
        if v not in memory:
            memory[v] = False
            origin = values[v][3]
            if origin[0] == "seed":
                memory[v] = True
            elif origin[0] == "sum":
                memory[v] = any(reaches(part) for part in origin[1])
            elif origin[0] == "step":
                step = page.document["ops"][origin[1]]["steps"][origin[2]][origin[3]]
                memory[v] = any(reaches(o["v"]) for o in step["o"] if "v" in o)
        return memory[v]

    for op in page.document["ops"]:
        for reference in op["dout"]:
            assert reference is None or reaches(reference["v"]), op["key"]
    assert recording.backwards


def test_what_a_fused_kernel_gave_is_shown_beside_what_the_rule_gives() -> None:
    x = tv.tensor(np.random.default_rng(0).standard_normal((3, 8), np.float32), requires_grad=True)
    with tv.use_kernels("numba"), trace() as recorded:
        F.softmax(x)[:, 3].sum().backward()
    page = Page(page_of(recorded))
    assert page.document["ops"][0]["kernel"].startswith("numba")
    assert page.document["ops"][0]["check"]["verdict"] == "agrees"
    for value, v in references(recorded, page):
        assert page.value(v).tobytes() == value.array.tobytes()  # what ran
        name, _, _, origin = page.document["values"][v]
        if origin[0] == "kernel":
            np.testing.assert_allclose(page.value(origin[3]), value.array, rtol=1e-5, err_msg=name)


def test_beyond_its_budget_a_page_says_what_is_left_out() -> None:
    with trace() as recorded:
        x = tv.tensor(np.ones((1300, 1000), np.float32), requires_grad=True)
        (x * 2).sum().backward()
    page = Page(page_of(recorded))
    left_out = [row for row in page.document["arrays"] if row[1] is None]
    assert left_out
    assert left_out[0][3][:3] == [1, 1, 1]  # smallest, largest, mean
    assert any("left out" in fact[0] for fact in page.document["facts"])


def test_what_the_trace_did_not_keep_is_there_without_steps() -> None:
    with trace(max_bytes=100) as recorded:
        x = tv.tensor(np.ones((30, 10), np.float32), requires_grad=True)
        (x * 2).sum().backward()
    page = Page(page_of(recorded))
    assert page.document["ops"][0]["steps"] == [[], []]
    assert page.document["ops"][0]["check"] is None
    x_statistics = page.document["arrays"][page.document["values"][page.document["ops"][0]["in"][0]["v"]][1]][3]
    assert x_statistics[:3] == [1, 1, 1]
    assert x_statistics[5] == 0  # what was not kept is not NaN


def test_names_cannot_break_out_of_the_page() -> None:
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    with trace(names={"</script><b>": x}) as recorded:
        (x * x).sum().backward()
    text = page_of(recorded, {"title": "</title><script>alert(1)</script>"})
    assert "</script><b>" not in text
    assert "<script>alert" not in text
    assert Page(text).document["values"][0][0] == "</script><b>"


def test_nan_is_located_and_the_document_stays_json() -> None:
    x = tv.tensor([0.0, 1.0], requires_grad=True)
    with np.errstate(all="ignore"), trace() as recorded:
        F.log(F.sqrt(x)).sum().backward()
    page = Page(page_of(recorded))
    assert page.document["firstBad"] == {"op": recorded["log"].index, "dir": 0, "given": None}
    assert (
        page.document["arrays"][page.document["values"][page.document["ops"][0]["dout"][0]["v"]][1]][3][3] == "Infinity"
    )


def not_finite() -> Any:
    """Things that JSON has no word for: {name: function to trace}."""
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    huge = tv.tensor(np.array([1e200, 2e200]), requires_grad=True)
    broken = tv.nn.Linear(3, 2)
    broken.weight.data[0, 0] = np.nan
    empty = tv.tensor(np.zeros((0, 3)), requires_grad=True)
    return {
        "infinite number": lambda: F.where(np.array([True, False]), x, -np.inf).exp().sum().backward(),
        "huge": lambda: (huge * 1e-200).sum().backward(),
        "NaN weight": lambda: broken(np.ones((2, 3), np.float32)).sum().backward(),
        "empty": lambda: F.softmax(empty).sum().backward(),
    }


@pytest.mark.parametrize("name", ["infinite number", "huge", "NaN weight", "empty"])
def test_a_page_can_be_made_of_anything(name: str) -> None:
    with np.errstate(all="ignore"), trace() as recorded:
        not_finite()[name]()
    document = Page(page_of(recorded)).document
    assert len(document["ops"]) == len(recorded)
    if name == "NaN weight":
        assert document["firstBad"] == {"op": 0, "dir": 0, "given": "weight"}
        assert "the first NaN or infinity: linear, which was given it in weight" in recorded.text()


def test_nothing_makes_no_page() -> None:
    with trace() as recorded:
        pass
    with pytest.raises(tv.errors.TinyvitError, match="no operation ran"):
        page_of(recorded)


def test_what_is_put_into_a_page_is_not_filled_in_again() -> None:
    x = tv.tensor([1.0], requires_grad=True)
    with trace(names={"@DOCUMENT@": x}) as recorded:
        (x * x).backward()
    page = Page(page_of(recorded, {"title": "@SCRIPT@", "summary": "@BLOBS@ \udcff"}))
    assert page.text.count('id="trace"') == 1
    assert "<title>@SCRIPT@</title>" in page.text


def test_numbers_too_large_for_a_narrow_type_are_kept() -> None:
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    with trace() as recorded:
        (x * np.array([2**40 + 1, -5])).sum().backward()
    page = Page(page_of(recorded))
    assert page.value(page.document["ops"][0]["in"][1]["v"]).tolist() == [2**40 + 1, -5]


def test_a_rule_that_cannot_be_told_is_there_without_steps() -> None:
    op = Op.registry["exp"]
    right = op.forward
    try:
        op.forward = staticmethod(lambda xp, x: np.exp(x))  # type: ignore[method-assign]
        with trace() as recorded, tv.use_kernels("numpy"):
            F.exp(tv.tensor([1.0, 2.0], requires_grad=True)).sum().backward()
        document = Page(page_of(recorded)).document
        text = recorded.text("exp")
    finally:
        op.forward = right  # type: ignore[method-assign]
    assert document["ops"][0]["steps"][0] == []
    assert "cannot be told" in document["ops"][0]["untold"][0]
    assert document["ops"][0]["steps"][1]
    assert "cannot be told" in text


# Finding a planted fault ---------------------------------------------------------------------------------------------


def wrong_ones(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [op for op in document["ops"] if op["check"] and op["check"]["verdict"] == "wrong"]


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_planted_fault_is_found_by_the_checks_and_its_source_is_shown(name: str) -> None:
    recorded = study_operation(name, plant=name)
    (wrong,) = wrong_ones(Page(page_of(recorded)).document)
    assert wrong["op"] == name
    assert recorded.mistake == f"{wrong['key']}: {FAULTS[name].words}"
    lines = " ".join(line["s"] for line in wrong["lines"][1])
    assert " ".join(FAULTS[name].wrong.split())[:20].replace("(", "") in lines.replace("(", "")
    assert not wrong_ones(Page(page_of(study_operation(name))).document)


@pytest.mark.parametrize("name", ["attention", "linear", "add_layer_norm", "any"])
def test_in_a_model_one_rule_is_wrong_and_no_other(name: str) -> None:
    subject = study_run(plant=name)
    (wrong,) = wrong_ones(Page(page_of(subject.trace)).document)
    assert subject.trace.mistake.startswith(f"{wrong['key']}: ")
    assert name in (wrong["op"], "any")
    assert Op.registry[wrong["op"]] is not subject.trace[wrong["key"]].op
    verdicts = {check(b).verdict for b in study_run().trace.backwards}
    assert verdicts == {"agrees"}


def test_a_fault_that_would_not_show_is_refused() -> None:
    with pytest.raises(PlantError, match=r"a fault of softmax would not show here.*there is attention, .*linear"):
        place_for("softmax", study_run().trace)
    with pytest.raises(PlantError, match=r"of gelu would not show here.*there is softmax$"):
        study_operation("softmax", plant="gelu")
    assert place_for("any", study_operation("softmax")).op.name == "softmax"
    row = tv.tensor(np.ones((1, 3), np.float32), requires_grad=True)  # the mean of one row is its sum
    with tv.use_kernels("numpy"), trace() as recorded:
        tv.nn.Linear(3, 2)(row).sum().backward()
    with pytest.raises(PlantError, match="makes no difference"):
        place_for("linear", recorded)


# The command ---------------------------------------------------------------------------------------------------------


def run(*words: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(commands, ["study", *words], catch_exceptions=True)


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = run("--out", str(out))
    assert result.exit_code == 0, result.output
    assert "open it in a browser" in result.output
    assert Page(out.read_text("utf-8")).document["about"]["grid"] == [4, 4]
    assert not list(tmp_path.glob("*.tmp*"))


def test_the_command_takes_an_image(tmp_path: Path) -> None:
    from PIL import Image

    from tinyvit.data.digits import read_digits

    images, labels = read_digits("test")
    path = tmp_path / "digit.png"
    Image.fromarray(images[3, 0]).save(path)
    result = run("--image", str(path), "--out", str(tmp_path / "page.html"))
    assert result.exit_code == 0, result.output
    document = Page((tmp_path / "page.html").read_text("utf-8")).document
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    np.testing.assert_array_equal(page.value(document["about"]["pixels"]), images[3])
    assert f"against {labels[3]}, the model's own guess" in result.output
    assert "its own guess" in document["about"]["told"]
    other = str((labels[3] + 1) % 10)
    result = run("--image", str(path), "--label", other, "--out", str(tmp_path / "page.html"))
    document = Page((tmp_path / "page.html").read_text("utf-8")).document
    assert document["about"]["target"] == int(other)
    assert f"against {other}, as asked" in result.output
    probabilities = np.array(document["about"]["probabilities"])
    gradient = study_run("digits", path, other).trace["cross_entropy"].backward.outgoing[0].array[0]
    np.testing.assert_allclose(gradient, probabilities - np.eye(10)[int(other)], atol=1e-6)


def test_a_page_is_named_after_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("exp").exit_code == 0
    assert run("relu", "--plant", "relu").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study-exp.html", "study-relu-exercise.html"]


def test_the_command_prints_the_walk() -> None:
    result = run("softmax", "--text")
    assert result.exit_code == 0
    assert "y * (dy - xp.sum(dy * y, axis=ctx.axis, keepdims=True))" in result.output
    assert "numeric check: ok" in result.output
    assert run("softmax", "--text", "--plant", "softmax").output.count("numeric check: WRONG") == 1
    assert run("--text").output.count("check: ok") == 48


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "there is no run 'nothing'"),
        (["softmaxx"], "did you mean the operation softmax"),
        (["--label", "ten"], "there is no class 'ten'; the classes are 0, 1, 2"),
        (["softmax", "--plant", "attention"], "would not show here"),
        (["--plant", "nothing"], "no fault is known for 'nothing'"),
        (["--operation", "nothing"], "no operation of this trace has 'nothing'"),
        (["softmax", "--image", "a.png"], "takes no image"),
        (["softmax", "--out", "/no/such/folder/page.html"], "/no/such/folder/page.html cannot be written"),
    ],
)
def test_mistakes_are_told(words: list[str], message: str) -> None:
    result = run(*words)
    assert isinstance(result.exception, tv.errors.TinyvitError)
    assert message in str(result.exception)


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in str(run("softmax", "--out", str(tmp_path / "pipe")).exception)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    "how",
    [
        ("pool=cls", "patch_size=2", "register_tokens=1", "pos_embed=learned"),
        ("norm=post", "layer_scale=0.1", "stem=conv", "pool=first", "dropout=0.1", "depth=2"),
    ],
)
def test_any_run_can_be_studied(how: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    folder = training.train(tiny_recipe(*how, "epochs=1"), "tiny").folder
    subject = study_run(str(folder))
    page = Page(page_of(subject.trace, about(subject)))
    assert {op["check"]["verdict"] for op in page.document["ops"]} <= {"agrees", "unclear"}
    assert page.document["attention"]
    assert page.document["about"]["prefix"] == subject.trained.model.prefix
    tokens = page.document["about"]["grid"][0] ** 2 + subject.trained.model.prefix
    assert page.value(page.document["attention"][0]["p"]).shape[-1] == tokens
    assert len(page.document["tour"]) >= 4
    holds(page)


# Other ways to look --------------------------------------------------------------------------------------------------


def test_text_page_and_trace_agree(tmp_path: Path) -> None:
    x = tv.tensor(np.array([[1.0, 2.0, 4.0]]), requires_grad=True)
    with trace() as recorded:
        F.softmax(x)[0, 1].backward()
    recorded.save_html(tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    v = page.document["ops"][0]["dout"][0]["v"]
    assert page.value(v).tobytes() == recorded.gradients["x"].array.tobytes()
    shown = " ".join(f"{g:.4g}" for g in recorded.gradients["x"].array.ravel())
    assert shown in recorded.text("softmax")
    with pytest.raises(KeyError, match="softmax"):
        recorded.text("attention")


def test_the_graph_has_every_operation_and_edge() -> None:
    recording, page = digits()
    dot = recording.graph("dot")
    assert dot.count(" -> ") - dot.count("[style=dotted]") == len(page.document["edges"])
    assert all(json.dumps(e.key).strip('"') in dot for e in recording.entries)
    leaves = {id(v) for e in recording for v in e.inputs if isinstance(v, Value) and v.origin.kind == "leaf"}
    assert dot.count("shape=plaintext") == len(leaves)
    assert "image 1 x 1 x 8 x 8" in dot
    picture = recording.graph()
    assert picture.startswith("<svg")
    assert picture.count("<rect") == len(recording.entries)
    entry = recording["blocks.1.attn/attention"]
    norms = [v.statistics.norm for v in (entry.outputs[0], entry.backward.outgoing[0])]
    assert "1 x 4 x 16 x 16   |y| {:.3g}   |dx| {:.3g}".format(*norms) in picture
    assert recording._repr_html_().endswith(picture)
    with pytest.raises(ValueError, match="'svg' or 'dot'"):
        recording.graph("png")
