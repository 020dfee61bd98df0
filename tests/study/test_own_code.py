"""A trace of the user's own code has the user's names, plain sizes, and times of the operations alone."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_page import Page

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op
from tinyvit.study import Trace, trace
from tinyvit.study.page.write import page_of
from tinyvit.study.record import recorder
from tinyvit.study.rules.statements import statements_of

REGRESSION = """
import numpy as np
import tinyvit as tv
import tinyvit.functional as F

points = tv.tensor([[0.5, -1.0], [2.0, 0.0], [1.0, 1.0]])
labels = np.array([0, 3, 1])
weight = tv.tensor([[0.1, -0.2, 0.3, 0.0], [0.0, 0.5, 0.1, -0.4]], requires_grad=True)
offset = tv.tensor([0.0, 0.1, 0.0, 0.2], requires_grad=True)
with tv.study.trace() as trace:
    scores = points @ weight + offset
    loss = F.cross_entropy(scores, labels)
    loss.backward()
"""


def executed(source: str, path: Path) -> dict[str, Any]:
    """The global variables of a program that is a file, as `python FILE` would leave them."""
    path.write_text(source, "utf-8")
    found: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    exec(compile(source, str(path), "exec", dont_inherit=True), found)
    return found


@pytest.fixture
def regression(tmp_path: Path) -> Trace:
    return executed(REGRESSION, tmp_path / "regression.py")["trace"]


def test_arrays_and_gradients_have_the_names_of_variables(regression: Trace) -> None:
    matmul, add, loss = regression
    assert [v.title for v in matmul.inputs] == ["points", "weight"]
    assert [v.title for v in (*matmul.outputs, *add.outputs, *loss.outputs)] == [None, "scores", "loss"]
    assert [v and v.title for v in matmul.backward.outgoing] == [None, "dweight"]
    assert [v.title for v in add.backward.outgoing] == [None, "doffset"]
    assert loss.backward.outgoing[0].title == "dscores"
    assert loss.backward.incoming[0].title == "dloss"
    assert list(regression.gradients) == ["offset", "weight"]
    text = regression.text()
    assert "scores 3x4" in text
    assert "dweight 2x4" in text
    assert "x = points float32[3, 2]" in regression.text("matmul")


def test_operations_have_the_expressions_that_ran_them(regression: Trace) -> None:
    assert [e.expression for e in regression] == [
        "points @ weight",
        "points @ weight + offset",
        "F.cross_entropy(scores, labels)",
    ]
    assert [e.line for e in regression] == ["regression.py:11", "regression.py:11", "regression.py:12"]
    assert "regression.py:12: loss = F.cross_entropy(scores, labels)" in regression.text("cross_entropy")


def test_a_file_that_has_changed_gives_no_expressions(regression: Trace, tmp_path: Path) -> None:
    other = executed(REGRESSION, tmp_path / "other.py")["trace"]
    changed = REGRESSION.replace("points @ weight", "points * weight").replace("tensor([[0.5", "tensor([[0.6")
    (tmp_path / "other.py").write_text(changed + "# longer\n", "utf-8")
    assert [e.expression for e in other] == ["", "", ""]
    (tmp_path / "other.py").unlink()
    assert [e.expression for e in other] == ["", "", ""]


def test_an_array_with_two_names_has_none() -> None:
    with trace() as recorded:
        first = second = tv.tensor([1.0, 2.0], requires_grad=True)
        third = fourth = F.exp(first)
        F.sum(third).backward()
    assert [e.inputs[0].title for e in recorded] == [None, None]
    assert recorded["exp"].outputs[0].title is None
    assert first is second
    assert third is fourth


def test_a_variable_that_is_bound_again_is_numbered() -> None:
    with trace() as recorded:
        x = tv.tensor([1.0, 2.0])
        for _ in range(3):
            x = F.exp(x * 0.5)
    assert [e.outputs[0].title for e in recorded if e.op.name == "exp"] == ["x#2", "x#3", "x#4"]
    assert recorded[0].inputs[0].title == "x"


def test_names_are_those_of_the_innermost_function_and_layers_have_their_own() -> None:
    def layer(inner: tv.Tensor) -> tv.Tensor:
        hidden = F.exp(inner)
        return hidden + 1.0

    linear = tv.nn.Linear(2, 3)
    with trace(names={"given": (points := tv.tensor([[1.0, 2.0]]))}) as recorded:
        result = linear(layer(points))
    assert recorded["exp"].inputs[0].title == "given"
    assert [v.title for e in recorded for v in e.outputs] == ["hidden", None, "result"]
    assert [v.title for v in recorded["linear"].inputs] == [None, None, None]
    assert recorded["linear"].inputs[1].name == "weight"
    assert result.shape == (1, 3)


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("inside", [True, False])
def test_a_trace_keeps_no_array_alive(inside: bool) -> None:
    def body() -> None:
        x = tv.tensor(np.ones(3))
        y = F.exp(x)
        references.extend(map(weakref.ref, (x, y)))
        F.exp(y)
        if inside:
            del x, y
            gc.collect()
            alive.append([reference() is not None for reference in references])

    alive: list[list[bool]] = []
    references: list[Any] = []
    with trace() as recorded:
        body()
        gc.collect()
        alive.append([reference() is not None for reference in references])
    assert len(recorded) == 2
    assert alive == [[False, False]] * len(alive)


def test_local_variables_that_somebody_holds_are_left_alone() -> None:
    x = tv.tensor([1.0])
    held = locals()
    with trace():
        F.exp(x)
    assert held["x"] is x


def test_the_page_has_plain_sizes_and_names(regression: Trace) -> None:
    page = Page(page_of(regression))
    matmul, add, loss = page.document["ops"]
    inputs = [x for op in (matmul, add, loss) for x in op["in"] if x and "u" in x]
    letters = {x["u"]: page.document["values"][x["v"]][2] for x in inputs}
    assert letters == {"points": None, "weight": None, "offset": None, "scores": "?K"}  # the loss knows its classes
    assert matmul["dout"][1]["u"] == "dweight"
    assert "u" not in matmul["out"][0]
    assert [op["code"] for op in page.document["ops"]] == [e.expression for e in regression]


def test_letters_of_layers_are_not_those_of_other_code() -> None:
    model = tv.models.ViT(image_size=4, patch_size=2, num_classes=3, dim=8, depth=1, heads=2, in_channels=1)
    weight = tv.tensor(np.ones((3, 2), np.float32))
    with tv.use_kernels("numpy"), trace() as recorded:
        logits = model(np.ones((2, 1, 4, 4), np.float32))
        F.cross_entropy(logits, np.array([0, 1]))
        F.exp(logits @ weight)
        F.relu(np.ones((1, 2, 3, 4), np.float32))

    def axes(key: str) -> Any:
        return [x.axes for x in recorded[key].narration().inputs]

    assert axes("head/linear")[:2] == [("B", "C"), ("K", "C")]
    assert axes("cross_entropy") == [("B", "K")]
    assert axes("matmul") == [None, None]
    assert axes("exp") == [None]
    assert axes("relu") == [None]
    assert axes("blocks.0.norm1/layer_norm")[0] == ("B", "N", "C")


def test_an_operation_alone_has_plain_sizes() -> None:
    from tinyvit.study.subject import study_operation

    assert "B C" not in study_operation("softmax").text("softmax")
    entry = study_operation("linear")[0]
    assert [x.axes for x in entry.narration().inputs] == [("?", "C"), ("K", "C"), ("K",)]
    lines = statements_of(entry.op, entry.backward.narration(), ["dx", "dweight", "dbias"])
    assert any("∑</mo><mtext>0</mtext>" in line.mathml for line in lines)  # an axis without a letter has its number


def test_a_conditional_gradient_is_typeset_as_the_branch_that_ran(regression: Trace) -> None:
    entry = regression["matmul"]
    (line,) = statements_of(entry.op, entry.backward.narration(), ["dx", "dy"])
    assert "None" not in line.mathml
    assert "∑" not in line.mathml  # the shapes are equal, so nothing was summed
    assert "\u22a4" in line.mathml  # transposed


def counted(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> type[Op]:
    """An operation that notes in `calls` when its forward and its gradient rule run."""

    class Counted(Op):
        """y = 2 x        dx = 2 dy"""

        @staticmethod
        def forward(xp: Any, x: Any) -> Any:
            calls.append("forward")
            return 2 * x

        def backward(ctx: Any, xp: Any, dy: Any) -> Any:
            calls.append("backward")
            return (2 * dy,)

    monkeypatch.delitem(Op.registry, "counted")
    return Counted


def test_the_time_of_an_operation_is_without_its_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    op = counted(calls, monkeypatch)
    # A clock on which the first run in each direction takes 900 s, and any later one a second.
    monkeypatch.setattr(recorder.time, "perf_counter", lambda: len(calls) + 899.0 * len(set(calls)))
    monkeypatch.setattr(recorder, "_WARM", set())
    monkeypatch.setattr(recorder, "_kernel", lambda *_: "numba v1")
    x = tv.tensor([1.0], requires_grad=True)
    with trace() as recorded:
        for _ in range(2):
            op.apply(x).backward()
    assert [e.seconds for e in recorded] == [1.0, 1.0]
    assert [b.seconds for b in recorded.backwards] == [1.0, 1.0]
    assert calls == ["forward", "forward", "backward", "backward", "forward", "backward"]
    assert x.grad is not None
    assert x.grad.numpy().tolist() == [4.0]
    assert len(recorded) == len(recorded.backwards) == 2


def test_a_plain_rule_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    op = counted(calls, monkeypatch)
    with trace():
        op.apply(tv.tensor([1.0], requires_grad=True)).backward()
    assert calls == ["forward", "backward"]


def test_the_start_page_begins_at_the_loss(regression: Trace) -> None:
    tour = Page(page_of(regression)).document["tour"]
    assert [(p["op"], p["dir"], p["a"]) for p in tour] == [
        (2, 0, None),
        (2, 1, "dlogits"),
        (1, 1, "dy"),
        (0, 1, "dy"),
    ]
    assert tour[0]["title"] == "Start here: loss"
    assert tour[1]["text"].startswith("The slope of loss with respect to itself is 1.")
    assert [p["title"] for p in tour[2:]] == ["The gradient of offset", "The gradient of weight"]


def test_a_gradient_that_the_user_gave_is_not_called_one() -> None:
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    with trace() as recorded:
        y = F.exp(x)
        y.backward(np.array([1.0, 1.0], np.float32))
    tour = Page(page_of(recorded)).document["tour"]
    assert tour[0]["title"] == "Start here: y"
    assert tour[1]["text"].startswith("Backward began with a given gradient.")


def test_there_is_no_single_path_through_several_backwards() -> None:
    x = tv.tensor([1.0], requires_grad=True)
    with trace() as recorded:
        F.exp(x).backward()
        F.exp(x).backward()
    assert Page(page_of(recorded)).document["tour"] == []
    with trace() as recorded:
        F.exp(x)
    assert Page(page_of(recorded)).document["tour"] == []
