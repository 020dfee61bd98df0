"""Fused beside plain, notebooks' pictures of tensors and modules, the typesetting of formulas."""

import ast
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.autograd import Op
from tinyvit.study import trace
from tinyvit.study.fused import attention_numbers, comparisons_of, layer_norm_numbers
from tinyvit.study.mathml import Typesetter, docstring_parts, formula, math, prose
from tinyvit.study.notebook import module_html, tensor_html
from tinyvit.study.statements import statements_of

RNG = np.random.default_rng(0)


# Fused beside plain --------------------------------------------------------------------------------------------------


def test_what_the_kernel_holds_after_each_tile_is_the_softmax_of_the_keys_seen() -> None:
    q, k, v, dout = RNG.standard_normal((4, 1, 2, 7, 4))
    tensors = [tv.tensor(x, requires_grad=True) for x in (q, k, v)]
    F.scaled_dot_product_attention(*tensors).backward(dout)
    gradients = {name: t.grad.numpy() for name, t in zip(("dq", "dk", "dv"), tensors, strict=True)}
    told = attention_numbers({"q": q, "k": k, "v": v, "scale": 0.5, "dout": dout, **gradients})
    assert len(told["rows"]) == 4
    factor = 1.0
    for _, m, share, held_sum, formula_sum, lse, formula_lse, out, formula_out in told["rows"]:
        assert held_sum == pytest.approx(formula_sum, rel=1e-9)
        assert lse == pytest.approx(formula_lse, rel=1e-9)
        assert out == pytest.approx(formula_out, rel=1e-9)
        assert np.log(formula_sum) + m == pytest.approx(formula_lse)
        factor *= share
    assert factor == pytest.approx(np.exp(told["rows"][0][1] - told["rows"][-1][1]))  # maxima telescope
    assert told["apart"] < 1e-9


def test_the_kernel_of_layer_norm_saves_mean_and_rstd() -> None:
    x, dout = RNG.standard_normal((2, 3, 5))
    weight, bias = RNG.standard_normal((2, 5))
    tensors = [tv.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    y = F.layer_norm(*tensors)
    y.backward(dout)
    gradients = {n: t.grad.numpy() for n, t in zip(("dx", "dweight", "dbias"), tensors, strict=True)}
    told = layer_norm_numbers({"x": x, "weight": weight, "bias": bias, "out": y.numpy(), "dout": dout, **gradients})
    for row in told["rows"]:
        for kernel, plain in zip(row[1::2], row[2::2], strict=True):
            assert kernel == pytest.approx(plain, rel=1e-9)
    assert told["apart"] < 1e-9


def test_a_trace_is_compared_in_another_process_without_compiling() -> None:
    x = tv.tensor(RNG.standard_normal((1, 2, 4, 4)), requires_grad=True)
    w = tv.tensor(np.ones(4), requires_grad=True)
    with trace() as recorded:
        F.scaled_dot_product_attention(x, x, F.layer_norm(x, w, w)).sum().backward()
        F.scaled_dot_product_attention(x, x, x, is_causal=True).sum().backward()
    found = comparisons_of(recorded)
    assert [f["title"] for f in found] == ["attention: head 0, query 2", "layer_norm"]
    assert all(len(row) == len(f["columns"]) for f in found for row in f["rows"])
    with trace() as nothing:
        F.exp(x)
    assert comparisons_of(nothing) == []


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
        shown = "".join(well_formed(math(formula(text))).itertext())
        for word in set(re.findall(r"[A-Za-z]{4,}", text)) - {"sqrt"}:
            assert word.removesuffix("hat") in shown, (word, text)
    Balanced(prose(rest))


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
