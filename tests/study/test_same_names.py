"""One array has one name in the formula, the forward pass, the gradient rule, the text and the page."""

from pathlib import Path

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op
from tinyvit.study.page.document import document_of
from tinyvit.study.rules.docstrings import docstring_parts
from tinyvit.study.rules.narrate import gradient_names, output_names
from tinyvit.study.subject import study_operation

CARD = Path(tv.__file__).parent / "study/page/assets/card.js"


@pytest.mark.parametrize("name", sorted(Op.registry))
def test_an_output_has_the_name_that_the_formula_and_its_gradient_give_it(name: str) -> None:
    op = Op.registry[name]
    names = output_names(op, len(op.outputs))
    assert [f"d{own}" for own in names] == gradient_names(op, len(op.outputs))
    assert not set(names) & set(op.inputs)
    assert len(set(names)) == len(names)
    formula = docstring_parts(op.__doc__)[0]
    assert all(own in formula for own in names), formula


@pytest.mark.parametrize("name", ["softmax", "exp", "attention", "max", "log_softmax", "power", "mse_loss"])
def test_text_and_page_call_an_array_by_one_name_in_both_directions(name: str) -> None:
    recorded = study_operation(name)
    text, document = recorded.text(name), document_of(recorded)
    assert "its name there" not in text
    for entry, op in zip(recorded.entries, document.ops, strict=True):
        assert [x["n"] for x in op["out"]] == [v.name for v in entry.outputs]
        assert [f"d{x['n']}" for x in op["out"]] == [x["n"] for x in op["din"]]
        assert set(entry.saved) <= {x["n"] for x in (*op["in"], *op["out"]) if x} | {"lse", "mean", "rstd"}


def own_trace() -> tv.study.Trace:
    with tv.study.trace() as recorded:
        x = tv.tensor(np.random.default_rng(0).normal(size=(2, 5)), requires_grad=True)
        h = F.gelu(x)
        h = h * 2 + x
        F.cross_entropy(h, np.array([0, 3])).backward()
    return recorded


def test_no_two_arrays_of_a_line_have_one_name() -> None:
    rows = [line for line in str(own_trace().text()).splitlines() if "check: " in line]
    for row in rows:
        names = [part.rpartition(" ")[0] for part in row.split("check:")[0].split(maxsplit=2)[2].strip().split(", ")]
        assert len(set(names)) == len(names), row


def test_an_input_says_whose_output_it_is_where_no_variable_has_it() -> None:
    text = own_trace().text("add")
    assert "   x = z of multiply float64[2, 5]" in text
    assert "   y = x float64[2, 5]" in text


@pytest.mark.parametrize("kernels", ["numpy", "auto"])
def test_text_and_page_use_the_same_words(kernels: str) -> None:
    with tv.use_kernels(kernels):
        recorded = own_trace()
    text, document, card = recorded.text(""), document_of(recorded), CARD.read_text("utf-8")
    assert all(f"   {op['by']}" in text for op in document.ops)
    assert "o.by" in card
    for head in ("gradient", "rule, float64", "finite difference"):
        assert f'"{head}"' in card
        assert head in text
    numbered = [op["key"] for op in document.ops if any("x#2 is" in line for side in op["says"] for line in side)]
    assert numbered == ["add", "cross_entropy"], "those that write or read h#2"
    assert "x#2 is the second array" in text
