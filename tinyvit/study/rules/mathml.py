"""Formulas for the page: MathML from the source of a rule.

Browsers typeset MathML themselves. A rule's formula is written from its own syntax tree, so it shows what runs.
"""

import ast
import functools
import re
from collections.abc import Callable
from html import escape
from typing import Any

from ...engine import Op
from .functions import Call, applied, function_of, in_row, only_argument, sigma

_GREEK = {"eps": "ε", "gamma": "γ", "pi": "π", "delta": "δ"}


def is_gradient(name: str) -> bool:
    """Whether a name is that of a gradient: "dx", "dweight", "dcolumns", but not "dtype" or "do"."""
    known = _names(len(Op.registry))
    return name[:1] == "d" and (name in known or name[1:] in known or (len(name) == 2 and name != "do"))


@functools.cache
def _names(count: int) -> frozenset[str]:
    """The names of all inputs, outputs and variables of the gradient rules of the `count` operations."""
    rules = [op.backward.__code__ for op in Op.registry.values()]
    found = {name for op in Op.registry.values() for name in (*op.inputs, *op.outputs)}
    found |= {name for rule in rules for name in rule.co_varnames if name[:1] != "d"}
    return frozenset(found | {name for rule in rules for name in rule.co_varnames[2 : rule.co_argcount]})


def identifier(name: str) -> str:
    """MathML of a name: dx, xhat, mean_gx, eps, weight."""
    if name in _GREEK:
        return f"<mi>{_GREEK[name]}</mi>"
    if is_gradient(name):
        return f'<mrow><mi mathvariant="normal">d</mi>{identifier(name[1:])}</mrow>'
    if name.endswith("hat") and len(name) > 3:
        return f'<mover accent="true">{identifier(name[:-3])}<mo>^</mo></mover>'
    if name == "log_p":
        return '<mrow><mi>log</mi><mspace width="0.17em"/><mi>p</mi></mrow>'
    match = re.fullmatch(r"([A-Za-z]+)_(\w+)", name)
    if match and len(match[2]) < 4:
        return f"<msub>{identifier(match[1])}{identifier(match[2])}</msub>"
    return f"<mi>{escape(name.replace('_', ' '))}</mi>"


def number(value: Any) -> str:
    text = repr(value)
    if text in ("inf", "-inf"):
        return text.replace("inf", "<mi>∞</mi>").replace("-", "<mo>−</mo>")
    if isinstance(value, float) and len(text) > 9:
        text = f"{value:.6g}…"
    return f"<mn>{escape(text)}</mn>"


def math(content: str, block: bool = True) -> str:
    return f"<math{' display=' + chr(34) + 'block' + chr(34) if block else ''}><mrow>{content}</mrow></math>"


class Typesetter:
    """Writes the expressions of a rule as MathML.

    Parameters
    ----------
    axes_of : gives the letters of the axes over which the call with this source text reduces; None if unknown.
    was_computed : whether the expression with this source text ran, to choose the branch of a conditional.
    definition_of : the expression that defines a constant of the rule's module; None for any other name.
    """

    def __init__(
        self,
        axes_of: Callable[[str], str | None] = lambda source: None,
        was_computed: Callable[[str], bool] = lambda source: True,
        definition_of: Callable[[str], ast.expr | None] = lambda name: None,
    ) -> None:
        self._axes_of, self._was_computed, self._definition_of = axes_of, was_computed, definition_of

    def statement(self, node: ast.stmt, left: str) -> str:
        """`left` = value, for an assignment or a return; an assignment has names of its own to write on the left."""
        if isinstance(node, ast.Assign):
            value = node.value
            if not isinstance(node.targets[0], ast.Tuple) or isinstance(value, ast.Call):
                return f"{self.expression(node.targets[0])}<mo>=</mo>{self.expression(value)}"
            pairs = zip(node.targets[0].elts, getattr(value, "elts", [value]), strict=False)
            return in_row(f"{self.expression(t)}<mo>=</mo>{self.expression(v)}" for t, v in pairs)
        result = node.value if isinstance(node, ast.Return | ast.Expr) else None
        if result is None:
            return f"<mtext>{escape(ast.unparse(node))}</mtext>"
        if isinstance(result, ast.Tuple) and len(names := left.split(", ")) == len(result.elts):
            named = [(n, v) for n, v in zip(names, result.elts, strict=True) if not isinstance(v, ast.Name)]
            return in_row(self._equation(n, v) for n, v in named)
        return self._equation(left, result)

    def _equation(self, left: str, value: ast.expr) -> str:
        return (f"{in_row(map(identifier, left.split(', ')))}<mo>=</mo>" if left else "") + self.expression(value)

    def expression(self, node: ast.expr) -> str:
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        return handler(node) if handler else f"<mtext>{escape(ast.unparse(node))}</mtext>"

    def _name(self, node: ast.Name) -> str:
        definition = self._definition_of(node.id)
        return identifier(node.id) if definition is None else self._grouped(definition, 2)

    def _constant(self, node: ast.Constant) -> str:
        return number(node.value)

    def _attribute(self, node: ast.Attribute) -> str:
        if isinstance(node.value, ast.Name) and node.value.id == "ctx":
            return identifier(node.attr)
        if isinstance(node.value, ast.Name) and node.value.id in ("np", "math", "xp"):
            return number(float("inf")) if node.attr == "inf" else identifier(node.attr)
        return f"<mtext>{escape(ast.unparse(node))}</mtext>"

    def _tuple(self, node: ast.Tuple) -> str:
        return in_row(self.expression(e) for e in node.elts)

    def _ifexp(self, node: ast.IfExp) -> str:
        """The branch that ran. A call that left its argument unchanged is no step, so parts of a branch count too."""
        whole = [branch for branch in (node.body, node.orelse) if self._was_computed(ast.unparse(branch))]
        parts = [part for part in ast.walk(node.body) if isinstance(part, ast.expr)]
        in_body = any(self._was_computed(ast.unparse(part)) for part in parts)
        return self.expression(whole[0] if whole else node.body if in_body else node.orelse)

    def _unaryop(self, node: ast.UnaryOp) -> str:
        sign = {ast.USub: "−", ast.Invert: "¬", ast.Not: "¬"}.get(type(node.op), "")
        return f"<mo>{sign}</mo>{self._grouped(node.operand, 3)}"

    def _binop(self, node: ast.BinOp) -> str:
        left, right = node.left, node.right
        if isinstance(node.op, ast.Div):
            return f"<mfrac><mrow>{self.expression(left)}</mrow><mrow>{self.expression(right)}</mrow></mfrac>"
        if isinstance(node.op, ast.Pow):
            return f"<msup><mrow>{self._grouped(left, 4)}</mrow><mrow>{self.expression(right)}</mrow></msup>"
        if isinstance(node.op, ast.Mult):
            sign = "·" if _is_number(left) or _is_number(right) else "⊙"
            return f"{self._grouped(left, 2)}<mo>{sign}</mo>{self._grouped(right, 3)}"
        sign = {ast.Add: "+", ast.Sub: "−", ast.BitAnd: "∧", ast.BitOr: "∨"}.get(type(node.op), "")
        return f"{self._grouped(left, 1)}<mo>{sign}</mo>{self._grouped(right, 2 if sign == '−' else 1)}"

    def _grouped(self, node: ast.expr, binding: int) -> str:
        """The expression, in parentheses if it binds less strongly than `binding`."""
        own = 9
        if isinstance(node, ast.BinOp):
            own = {ast.Add: 1, ast.Sub: 1, ast.Mult: 2, ast.Pow: 4}.get(type(node.op), 9)
        elif isinstance(node, ast.UnaryOp):
            own = 2
        elif isinstance(node, ast.Compare | ast.IfExp):
            own = 0
        inner = self.expression(node)
        return f"<mrow><mo>(</mo>{inner}<mo>)</mo></mrow>" if own < binding else inner

    def _compare(self, node: ast.Compare) -> str:
        signs = {ast.Eq: "=", ast.NotEq: "≠", ast.Lt: "&lt;", ast.LtE: "≤", ast.Gt: "&gt;", ast.GtE: "≥"}
        parts = [self._grouped(node.left, 1)]
        for op, right in zip(node.ops, node.comparators, strict=True):
            parts.append(f"<mo>{signs.get(type(op), '?')}</mo>{self._grouped(right, 1)}")
        return "".join(parts)

    def _subscript(self, node: ast.Subscript) -> str:
        index = ast.unparse(node.slice).strip("()")
        if re.fullmatch(r"(\.\.\.|None|:|, )+", index):  # only adds axes of length 1
            return self.expression(node.value)
        return f"<msub><mrow>{self._grouped(node.value, 9)}</mrow><mtext>[{escape(index)}]</mtext></msub>"

    def _call(self, node: ast.Call) -> str:
        function = node.func
        if isinstance(function, ast.Attribute):
            owner = function.value
            if isinstance(owner, ast.Name) and owner.id in ("xp", "math"):
                return self._function(node, function.attr)
            if function_of(function.attr).mathml is only_argument:  # a method, such as x.astype(dtype)
                return self.expression(owner)
        if isinstance(function, ast.Name):
            rest = [a for a in node.args if not (isinstance(a, ast.Name) and a.id in ("xp", "ctx"))]
            return applied(function.id.strip("_"), in_row(self.expression(a) for a in rest))
        return f"<mtext>{escape(ast.unparse(node))}</mtext>"

    def _function(self, node: ast.Call, name: str) -> str:
        source, mathml = ast.unparse(node), function_of(name).mathml
        if mathml is sigma and not self._was_computed(source):  # the shape was right already: there was no sum
            mathml = only_argument
        return mathml(Call(name, node.args, self._grouped, self._axes_of(source) or ""))


def _is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        return node.id in ("scale", "eps") or node.id.startswith("_")
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "ctx"
    if isinstance(node, ast.BinOp):
        return _is_number(node.left) and _is_number(node.right)
    return isinstance(node, ast.UnaryOp) and _is_number(node.operand)
