"""The study page without a browser: the contents of its document."""

import re
from typing import Any

import numpy as np
import pytest
from peers import peer
from study_page import Page, digits, holds
from tiers import quick_first

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.data import normalize
from tinyvit.engine import Op
from tinyvit.run.folder import load_data
from tinyvit.study import trace
from tinyvit.study.check.differences import check
from tinyvit.study.check.faults import PlantError, place_for, plantable
from tinyvit.study.page import pack
from tinyvit.study.page.write import page_of
from tinyvit.study.record.records import Recording
from tinyvit.study.record.values import Value
from tinyvit.study.subject import about, study_operation, study_run


def references(recording: Recording, page: Page) -> Any:
    """Each value of a trace with its number on the page."""
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


def test_the_default_page_is_small_and_loads_nothing() -> None:
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
    """Every gradient has the seed among its ancestors: steps and sums lead there without a gap."""
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


def test_the_result_of_a_fused_kernel_is_shown_beside_that_of_the_rule() -> None:
    x = tv.tensor(np.random.default_rng(0).standard_normal((3, 8), np.float32), requires_grad=True)
    peer("numba")
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


def test_a_page_reports_arrays_beyond_its_budget() -> None:
    with trace() as recorded:
        x = tv.tensor(np.ones((1300, 1000), np.float32), requires_grad=True)
        (x * 2).sum().backward()
    page = Page(page_of(recorded))
    left_out = [row for row in page.document["arrays"] if row[1] is None]
    assert left_out
    assert left_out[0][3][:3] == [1, 1, 1]  # smallest, largest, mean
    assert any("left out" in fact[0] for fact in page.document["facts"])


def test_operations_whose_arrays_were_not_stored_have_no_steps() -> None:
    with trace(max_bytes=100) as recorded:
        x = tv.tensor(np.ones((30, 10), np.float32), requires_grad=True)
        (x * 2).sum().backward()
    page = Page(page_of(recorded))
    assert page.document["ops"][0]["steps"] == [[], []]
    assert page.document["ops"][0]["check"] is None
    x_statistics = page.document["arrays"][page.document["values"][page.document["ops"][0]["in"][0]["v"]][1]][3]
    assert x_statistics[:3] == [1, 1, 1]
    assert x_statistics[5] == 0  # an array that was not stored is not taken for NaN


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
    """Computations with values that JSON cannot express: {name: function to trace}."""
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
def test_any_values_can_be_on_a_page(name: str) -> None:
    with np.errstate(all="ignore"), trace() as recorded:
        not_finite()[name]()
    document = Page(page_of(recorded)).document
    assert len(document["ops"]) == len(recorded)
    if name == "NaN weight":
        assert document["firstBad"] == {"op": 0, "dir": 0, "given": "weight"}
        assert "first NaN or infinity: linear, whose input weight contains it" in recorded.text()


def test_an_empty_trace_has_no_page() -> None:
    with trace() as recorded:
        pass
    with pytest.raises(tv.errors.TinyvitError, match="no operation ran"):
        page_of(recorded)


def test_marks_within_contents_are_not_replaced() -> None:
    x = tv.tensor([1.0], requires_grad=True)
    with trace(names={"@DOCUMENT@": x}) as recorded:
        (x * x).backward()
    page = Page(page_of(recorded, {"title": "@SCRIPT@", "summary": "@BLOBS@ \udcff"}))
    assert page.text.count('id="trace"') == 1
    assert "<title>@SCRIPT@</title>" in page.text


def test_integers_beyond_32_bits_keep_their_values() -> None:
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    with trace() as recorded:
        (x * np.array([2**40 + 1, -5])).sum().backward()
    page = Page(page_of(recorded))
    assert page.value(page.document["ops"][0]["in"][1]["v"]).tolist() == [2**40 + 1, -5]


def test_a_rule_that_cannot_be_narrated_has_no_steps() -> None:
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
    assert "cannot be narrated" in document["ops"][0]["unexplained"][0]
    assert document["ops"][0]["steps"][1]
    assert "cannot be narrated" in text


# Finding a planted fault ---------------------------------------------------------------------------------------------


def wrong_ones(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [op for op in document["ops"] if op["check"] and op["check"]["verdict"] == "wrong"]


@pytest.mark.parametrize("name", plantable())
def test_the_checks_find_a_planted_fault_and_the_page_shows_its_source(name: str) -> None:
    recorded = study_operation(name, plant=name)
    (wrong,) = wrong_ones(Page(page_of(recorded)).document)
    assert wrong["op"] == name
    assert recorded.mistake == f"{wrong['key']}: {Op.registry[name].fault.mistake}"
    lines = " ".join(line["s"] for line in wrong["lines"][1])
    assert " ".join(Op.registry[name].fault.wrong.split())[:20].replace("(", "") in lines.replace("(", "")
    assert not wrong_ones(Page(page_of(study_operation(name))).document)


@pytest.mark.parametrize("name", quick_first(["attention", "linear", "layer_norm", "any"]))
def test_a_fault_makes_exactly_one_rule_of_a_model_wrong(name: str) -> None:
    subject = study_run(plant=name)
    (wrong,) = wrong_ones(Page(page_of(subject.trace)).document)
    assert subject.trace.mistake.startswith(f"{wrong['key']}: ")
    assert name in (wrong["op"], "any")
    assert Op.registry[wrong["op"]] is not subject.trace[wrong["key"]].op


def test_without_a_fault_every_rule_of_a_model_agrees_even_after_one_was_planted() -> None:
    study_run(plant="any")
    verdicts = {check(b).verdict for b in study_run().trace.backwards}
    assert verdicts == {"agrees"}


def test_a_fault_that_would_not_show_is_refused() -> None:
    with pytest.raises(PlantError, match=r"a fault of softmax would not show here.*available: .*attention, .*linear"):
        place_for("softmax", study_run().trace)
    with pytest.raises(PlantError, match=r"of gelu would not show here.*available: softmax$"):
        study_operation("softmax", plant="gelu")
    assert place_for("any", study_operation("softmax")).op.name == "softmax"
    row = tv.tensor(np.ones((1, 3), np.float32), requires_grad=True)  # the mean of one row is its sum
    with tv.use_kernels("numpy"), trace() as recorded:
        tv.nn.Linear(3, 2)(row).sum().backward()
    with pytest.raises(PlantError, match="makes no difference"):
        place_for("linear", recorded)


# The whole pass ------------------------------------------------------------------------------------------------------


def test_times_memory_and_norms_are_those_of_the_trace() -> None:
    recording, page = digits()
    for entry, op in zip(recording.entries, page.document["ops"], strict=True):
        assert op["ms"] == [1e3 * entry.seconds, 1e3 * entry.backward.seconds]
        assert op["held"] == [recording.held[entry.index], entry.backward.held]
    assert max(recording.held) > 0
    for row in page.document["layers"]:
        np.testing.assert_allclose(row["gradient"], np.linalg.norm(recording.gradients[row["name"]].array), rtol=1e-5)


def test_the_facts_count_each_verdict() -> None:
    x = tv.tensor(np.array([0.0, 0.0]), requires_grad=True)
    with trace() as recorded, tv.use_kernels("numpy"):
        F.relu(x).sum().backward()  # at its kink, where the check proves nothing
    facts = dict(Page(page_of(recorded)).document["facts"])
    assert facts["checks"].startswith("1 rule agrees, 0 wrong, 1 unclear; ")


def test_arrays_of_the_highest_rank_are_left_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "MAX_VALUES", 1000)
    packer = pack.Packer()
    least, most = packer.add(np.zeros(600), rank=3), packer.add(np.ones(600), rank=0)
    packer.blobs()
    assert packer.entries[least][1] is None
    assert packer.entries[most][1] == 0
    assert packer.left_out == 1


def test_the_default_image_is_the_one_the_model_is_least_sure_of() -> None:
    subject = study_run()
    tests = load_data(subject.trained.recipe, "test").images[:500]
    with tv.no_grad(), tv.use_kernels("numpy"):
        logits = subject.model(normalize(tests, subject.trained.data.mean, subject.trained.data.std))
        p = np.sort(F.softmax(logits).numpy(), axis=1)
    shown = np.sort(subject.probabilities)
    # One image and 500 are summed in another order in float32.
    assert shown[-1] - shown[-2] == pytest.approx(float((p[:, -1] - p[:, -2]).min()), abs=1e-5)
    best = int(subject.probabilities.argmax())
    assert f"says {subject.classes[best]} ({100 * subject.probabilities[best]:.0f} %)" in about(subject)["summary"]
