"""Formulas of the page: MathML from docstrings and from the source of rules."""

import ast
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op
from tinyvit.study import trace
from tinyvit.study.rules.docstrings import docstring_parts, formulas, prose
from tinyvit.study.rules.mathml import Typesetter, identifier, is_gradient, math
from tinyvit.study.rules.statements import statements_of
from tinyvit.study.subject import study_operation

RNG = np.random.default_rng(0)
FAMILIES = sorted(n for n, op in Op.registry.items() if op.__module__.startswith("tinyvit."))


def well_formed(mathml: str) -> ElementTree.Element:
    return ElementTree.fromstring(mathml.replace("&#160;", " "))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_docstring_becomes_well_formed_mathematics(name: str) -> None:
    forward, backward, rest = docstring_parts(Op.registry[name].__doc__)
    for text in (forward, backward):
        shown = "".join(well_formed(f"<div>{formulas(text)}</div>").itertext())
        for word in set(re.findall(r"[A-Za-z]{4,}", text)) - {"sqrt"}:
            assert word.removesuffix("hat") in shown, (word, text)
    well_formed(f"<div>{prose(rest)}</div>")


def test_each_formula_has_its_own_line_and_citations_are_words() -> None:
    forward, backward, rest = docstring_parts(Op.registry["layer_norm"].__doc__)
    assert formulas(forward).count("<math") == 3
    assert formulas(backward).count("<math") == 4
    assert prose(rest) == "(Ba, Kiros and Hinton, Layer normalization, 2016, equation 4.)"
    assert "<mi>remark" not in prose("dx = dy (remark on it)")
    assert docstring_parts(Op.registry["attention"].__doc__)[1].count(",  ") == 6


def test_code_that_only_changes_types_and_axes_is_not_typeset() -> None:
    shown = Typesetter().expression(ast.parse("0 + hot.astype(logits.dtype) * kept[..., None]", mode="eval").body)
    assert "".join(well_formed(f"<p>{shown}</p>").itertext()) == "0+hot\u2299kept"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_rule_becomes_well_formed_mathematics(name: str) -> None:
    for entry in study_operation(name):
        for narration in (entry.narration(), *([entry.backward.narration()] if entry.backward else [])):
            for statement in statements_of(entry.op, narration, ["y"]):
                well_formed(statement.mathml)


def typeset(source: str) -> str:
    return "".join(well_formed(math(Typesetter().expression(ast.parse(source, mode="eval").body))).itertext())


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("p * (dp - r)", "p⊙(dp\u2212r)"),
        ("a - (b - c)", "a\u2212(b\u2212c)"),
        ("a - b - c", "a\u2212b\u2212c"),
        ("a * b + c", "a⊙b+c"),
        ("2 * x", "2·x"),
        ("-(a + b)", "\u2212(a+b)"),
        ("(a + b) ** 2", "(a+b)2"),
        ("ctx.scale * xp.matmul(ds, k)", "scale·dsk"),
        ("xp.matmul(q + b, xp.swapaxes(k, -1, -2))", "(q+b)k\u22a4"),
        ("xp.sum(a + b, axis=-1)", "∑(a+b)"),
        ("xhat", "x^"),
    ],
)
def test_parentheses_are_written_where_needed(source: str, shown: str) -> None:
    assert typeset(source) == shown


def test_the_axes_of_a_sum_have_their_letters() -> None:
    op = Op.registry["attention"]
    with trace() as recorded:
        x = tv.tensor(RNG.standard_normal((1, 2, 3, 4)), requires_grad=True)
        F.scaled_dot_product_attention(x, x, x).sum().backward()
    entry = recorded["attention"]
    assert entry.op is op
    lines = statements_of(op, entry.backward.narration(), ["dq", "dk", "dv", "dbias"])
    r = next(line for line in lines if line.source.startswith("r = "))
    assert r.comment == "p = softmax(s)"
    assert "∑</mo><mtext>D</mtext>" in r.mathml


def test_constants_are_typeset_from_their_definitions() -> None:
    lines = [line for entry in study_operation("gelu") for line in statements_of(entry.op, entry.narration(), ["y"])]
    assert any("<msqrt><mrow><mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn>" in line.mathml for line in lines)
    assert not any("SQRT" in line.mathml for line in lines)


@pytest.mark.parametrize("name", ["dx", "dweight", "dlogits", "dloss", "dcolumns", "dwindows", "dh", "dW"])
def test_gradients_have_an_upright_d(name: str) -> None:
    assert is_gradient(name)
    assert 'mathvariant="normal">d</mi>' in identifier(name)


@pytest.mark.parametrize("name", ["dtype", "divisor", "do", "dropout", "d", "down", "x"])
def test_other_names_are_not_taken_for_gradients(name: str) -> None:
    assert not is_gradient(name)
