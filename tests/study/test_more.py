"""Fused beside plain, notebooks' pictures of tensors and modules, the typesetting of formulas."""

import ast
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op
from tinyvit.study import trace
from tinyvit.study.notebook import module_html, tensor_html
from tinyvit.study.page.fused import comparisons_of
from tinyvit.study.rules.mathml import Typesetter, docstring_parts, formulas, math, prose
from tinyvit.study.rules.statements import statements_of

RNG = np.random.default_rng(0)


# Fused beside plain --------------------------------------------------------------------------------------------------


def test_what_the_kernel_holds_after_each_tile_is_the_softmax_of_the_keys_seen() -> None:
    """The kernels run in another process, without being compiled."""
    x = tv.tensor(RNG.standard_normal((1, 2, 7, 4)), requires_grad=True)
    weight, bias = (tv.tensor(a, requires_grad=True) for a in RNG.standard_normal((2, 4)))
    with trace() as recorded:
        q, k = 2 * x, F.exp(x)
        F.scaled_dot_product_attention(q, k, F.layer_norm(x, weight, bias)).backward(RNG.standard_normal(x.shape))
        F.scaled_dot_product_attention(x, x, x, is_causal=True).sum().backward()
    attention, layer_norm = comparisons_of(recorded)
    assert attention["title"] == "attention: head 0, query 3"
    assert len(attention["rows"]) == 4
    scores = 0.5 * q.numpy()[0, 0, 3] @ k.numpy()[0, 0].T
    telescoped = 1.0
    for row, seen in zip(attention["rows"], (2, 4, 5, 7), strict=True):
        _, m, factor, *pairs = row
        assert row[0] == f"keys 0 to {seen - 1}"
        assert m == scores[:seen].max()
        assert pairs[3] == pytest.approx(np.log(np.exp(scores[:seen]).sum()))
        assert pairs[0::2] == pytest.approx(pairs[1::2], rel=1e-9)  # the kernel's and the formula's
        telescoped *= factor
    assert telescoped == pytest.approx(np.exp(attention["rows"][0][1] - m))
    for row in layer_norm["rows"]:
        assert row[1::2] == pytest.approx(row[2::2], rel=1e-9)
    for told in (attention, layer_norm):
        assert all(len(row) == len(told["columns"]) for row in told["rows"])
        difference = re.search(r"difference is (\S+) of", told["compare"][-1][2])
        assert difference
        assert float(difference[1]) < 1e-9


def test_what_has_no_kernel_is_not_compared() -> None:
    with trace() as recorded:
        F.exp(tv.tensor([1.0]))
    assert comparisons_of(recorded) == []


# In a notebook -------------------------------------------------------------------------------------------------------


class Balanced(HTMLParser):
    """Raises if tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (20, 30), (2, 0), (2, 3, 4, 5)])
def test_a_tensor_shows_its_numbers(shape: tuple[int, ...]) -> None:
    x = tv.tensor(RNG.standard_normal(shape), requires_grad=True)
    text = x._repr_html_()  # type: ignore[attr-defined]
    assert text == tensor_html(x)
    Balanced(text)
    assert str(list(shape)) in text
    if x.size:
        assert f"{x.numpy().ravel()[0]:.4g}" in text
    assert ("numbers in all" in text) == (x.size > 80)


def test_a_tensor_shows_where_it_came_from_and_what_is_wrong() -> None:
    x = tv.tensor([1.0, np.nan, np.inf], requires_grad=True)
    assert "requires a gradient" in tensor_html(x)
    assert "1 NaN, 1 infinite" in tensor_html(x)
    assert "made by multiply" in tensor_html(x * 2)
    assert "True" in tensor_html(x > 0)


def test_a_module_shows_its_parts_and_their_sizes() -> None:
    model = tv.models.ViT(image_size=4, patch_size=2, num_classes=3, dim=8, depth=2, heads=2)
    text = model._repr_html_()  # type: ignore[attr-defined]
    assert text == module_html(model)
    Balanced(text)
    assert f"{sum(p.size for p in model.parameters()):,} parameters" in text
    assert text.count("<b>Block</b>") == 2


# Mathematics ---------------------------------------------------------------------------------------------------------

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
    Balanced(prose(rest))


def test_formulas_stand_one_below_the_other_and_citations_are_words() -> None:
    forward, backward, rest = docstring_parts(Op.registry["layer_norm"].__doc__)
    assert formulas(forward).count("<math") == 3
    assert formulas(backward).count("<math") == 4
    assert prose(rest) == "(Ba, Kiros and Hinton, Layer normalization, 2016, equation 4.)"
    assert "<mi>remark" not in prose("dx = dy (remark on it)")
    assert docstring_parts(Op.registry["attention"].__doc__)[1].count(",  ") == 6


def test_code_that_only_keeps_types_and_axes_is_not_typeset() -> None:
    import ast

    shown = Typesetter().expression(ast.parse("0 + hot.astype(logits.dtype) * kept[..., None]", mode="eval").body)
    assert "".join(well_formed(f"<p>{shown}</p>").itertext()) == "0+hot\u2299kept"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_rule_becomes_well_formed_mathematics(name: str) -> None:
    from tinyvit.study.subject import study_operation

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
def test_parentheses_are_where_they_must_be(source: str, shown: str) -> None:
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
