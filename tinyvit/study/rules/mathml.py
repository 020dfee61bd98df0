"""Mathematics for the page: MathML from the source of a rule, and from the formula in an operation's docstring.

Browsers typeset MathML by themselves. What is typeset from a rule is its own syntax tree, so it says what runs.
"""

import ast
import re
from collections.abc import Callable
from html import escape
from typing import Any

# Names of which d<name> is the gradient with respect to <name>.
_DIFFERENTIABLE = {
    *("x", "y", "z", "q", "k", "v", "p", "s", "h", "g", "t", "u", "l", "b", "w", "S", "P", "W", "Y"),
    *("out", "loss", "weight", "bias", "logits", "target", "sum", "total", "columns", "windows", "value", "cols"),
    *("tied", "residual", "log_p"),
}
_GREEK = {"eps": "ε", "gamma": "γ", "pi": "π", "delta": "δ"}
_CONSTANTS = {
    "_SQRT_HALF": "<msqrt><mfrac><mn>1</mn><mn>2</mn></mfrac></msqrt>",
    "_SQRT_2_OVER_PI": "<msqrt><mfrac><mn>2</mn><mi>π</mi></mfrac></msqrt>",
    "_ONE_OVER_SQRT_2PI": "<mfrac><mn>1</mn><msqrt><mn>2</mn><mi>π</mi></msqrt></mfrac>",
    "_GELU_CUBIC": "<mn>0.044715</mn>",
}
_FUNCTIONS = {"exp", "log", "tanh", "sigmoid", "erf", "max", "min", "mean", "softmax", "log_softmax", "sign", "clip"}
_QUIET = {"stop_gradient", "asarray", "cast"}  # functions that are not worth showing
Resolver = Callable[[str], str | None]


def identifier(name: str) -> str:
    """A name as mathematics: dx, xhat, mean_gx, eps, weight."""
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if name in _GREEK:
        return f"<mi>{_GREEK[name]}</mi>"
    if name.startswith("d") and name[1:] in _DIFFERENTIABLE:
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


# From source --------------------------------------------------------------------------------------------------------


class Typesetter:
    """MathML of a rule's expressions.

    `axis_of(source)` gives the letters of the axes over which the call with this source text reduces, where known;
    `ran(source)` whether an expression was computed, to know which branch of a conditional was taken.
    """

    def __init__(
        self, axis_of: Resolver = lambda source: None, ran: Callable[[str], bool] = lambda source: True
    ) -> None:
        self._axis_of, self._ran = axis_of, ran

    def statement(self, node: ast.stmt, left: str) -> str:
        """`left` = value, for an assignment or a return; `left` is written if the statement names nothing."""
        if isinstance(node, ast.Assign):
            value = node.value
            if not isinstance(node.targets[0], ast.Tuple) or isinstance(value, ast.Call):
                return f"{self.expression(node.targets[0])}<mo>=</mo>{self.expression(value)}"
            pairs = zip(node.targets[0].elts, getattr(value, "elts", [value]), strict=False)
            return _comma(f"{self.expression(t)}<mo>=</mo>{self.expression(v)}" for t, v in pairs)
        result = node.value if isinstance(node, ast.Return | ast.Expr) else None
        if result is None:
            return f"<mtext>{escape(ast.unparse(node))}</mtext>"
        if isinstance(result, ast.Tuple) and len(names := left.split(", ")) == len(result.elts):
            named = [(n, v) for n, v in zip(names, result.elts, strict=True) if not isinstance(v, ast.Name)]
            return _comma(self._equation(n, v) for n, v in named)
        return self._equation(left, result)

    def _equation(self, left: str, value: ast.expr) -> str:
        return (f"{_comma(map(identifier, left.split(', ')))}<mo>=</mo>" if left else "") + self.expression(value)

    def expression(self, node: ast.expr) -> str:
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        return handler(node) if handler else f"<mtext>{escape(ast.unparse(node))}</mtext>"

    def _name(self, node: ast.Name) -> str:
        return identifier(node.id)

    def _constant(self, node: ast.Constant) -> str:
        return number(node.value)

    def _attribute(self, node: ast.Attribute) -> str:
        if isinstance(node.value, ast.Name) and node.value.id == "ctx":
            return identifier(node.attr)
        if isinstance(node.value, ast.Name) and node.value.id in ("np", "math", "xp"):
            return number(float("inf")) if node.attr == "inf" else identifier(node.attr)
        return f"<mtext>{escape(ast.unparse(node))}</mtext>"

    def _tuple(self, node: ast.Tuple) -> str:
        return _comma(self.expression(e) for e in node.elts)

    def _ifexp(self, node: ast.IfExp) -> str:
        taken = node.body if self._ran(ast.unparse(node.body)) else node.orelse
        return self.expression(taken)

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
        """The expression, in parentheses if it binds less than what is around it."""
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
        if re.fullmatch(r"(\.\.\.|None|:|, )+", index):  # axes of length 1 more
            return self.expression(node.value)
        return f"<msub><mrow>{self._grouped(node.value, 9)}</mrow><mtext>[{escape(index)}]</mtext></msub>"

    def _call(self, node: ast.Call) -> str:
        function = node.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "xp":
            return self._function(node, function.attr)
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "math":
            return _applied(function.attr, _comma(self.expression(a) for a in node.args))
        if isinstance(function, ast.Attribute) and function.attr in (*_QUIET, "astype", "copy"):
            return self.expression(function.value)
        if isinstance(function, ast.Name):
            rest = [a for a in node.args if not (isinstance(a, ast.Name) and a.id in ("xp", "ctx"))]
            return _applied(function.id.strip("_"), _comma(self.expression(a) for a in rest))
        return f"<mtext>{escape(ast.unparse(node))}</mtext>"

    def _function(self, node: ast.Call, name: str) -> str:
        arguments = [self.expression(a) for a in node.args]
        first = arguments[0] if arguments else ""
        if name == "matmul":
            return f'{self._grouped(node.args[0], 2)}<mspace width="0.25em"/>{self._grouped(node.args[1], 2)}'
        if name == "swapaxes":
            return f"<msup><mrow>{self._grouped(node.args[0], 4)}</mrow><mo>⊤</mo></msup>"
        if name in ("sum", "sum_to_shape", "mean", "max", "min", "cumsum"):
            letters = self._axis_of(ast.unparse(node)) or ""
            sign = "<mo>∑</mo>" if name in ("sum", "sum_to_shape") else f"<mi>{name}</mi>"
            head = f"<msub>{sign}<mtext>{escape(letters)}</mtext></msub>" if letters else sign
            if name in ("sum", "sum_to_shape"):
                return f"<mrow>{head}{self._grouped(node.args[0], 2)}</mrow>"
            return f"<mrow>{head}<mo>(</mo>{first}<mo>)</mo></mrow>"
        if name == "sqrt":
            return f"<msqrt><mrow>{first}</mrow></msqrt>"
        if name == "abs":
            return f"<mrow><mo>|</mo>{first}<mo>|</mo></mrow>"
        if name == "true_divide":
            return f"<mfrac><mrow>{first}</mrow><mrow>{arguments[1]}</mrow></mfrac>"
        if name == "where":
            rows = ((arguments[1], f"<mtext>where&#160;</mtext>{first}"), (arguments[2], "<mtext>elsewhere</mtext>"))
            cells = "".join(f"<mtr><mtd>{a}</mtd><mtd>{b}</mtd></mtr>" for a, b in rows)
            return f'<mrow><mo>{{</mo><mtable columnalign="left">{cells}</mtable></mrow>'
        if name == "zeros_like":
            return "<mn>0</mn>"
        if name == "ones_like":
            return "<mn>1</mn>"
        if name in _QUIET:
            return first
        return _applied(name, first if name not in ("maximum", "minimum") else _comma(arguments))


def _applied(name: str, arguments: str) -> str:
    return f"<mrow><mi>{escape(name.replace('_', ' '))}</mi><mo>(</mo>{arguments}<mo>)</mo></mrow>"


def _comma(parts: Any) -> str:
    return '<mo>,</mo><mspace width="0.5em"/>'.join(parts)


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


# From docstrings ----------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*'?|\d+(?:\.\d+)?|\.\.\.|->|<=|>=|\s+|.")
_SIGNS = {"-": "−", "*": "·", "...": "…", "->": "→", "<=": "≤", ">=": "≥"}
_SYMBOLS = {"rstd", "var", "scale", "xhat", "lse", "out", "weight", "bias", "logits", "gelu", "eps", "cols", "ids"}


def docstring_parts(doc: str | None) -> tuple[str, str, str]:
    """The formula of forward, that of backward, and what else an operation's docstring says.

    That of backward stands in the first paragraph too, after eight spaces, or is a second one without a full stop.
    """
    first, *more = (doc or "").strip().split("\n\n")
    forward, _, backward = first.partition("        ")
    if not backward and more and " = " in more[0] and not more[0].rstrip().endswith((".", ".)")):
        backward = more.pop(0)
    forward, backward = (re.sub(r",\s*\n\s*", ",  ", part) for part in (forward, backward))
    return _one_line(forward), _one_line(backward), " ".join(_one_line(part) for part in more)


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text).strip()


def formulas(text: str) -> str:
    """The formulas of a docstring, which two spaces part, each on a line of its own."""
    return "".join(math(formula(part)) for part in re.split(r",  +", text) if part)


def formula(text: str) -> str:
    """MathML of a formula as docstrings write it: identifiers and signs as mathematics, words as words."""
    tokens = _TOKEN.findall(text)
    out, end = "", 0
    while end < len(tokens):  # more than once only if a parenthesis is closed that was never opened
        part, end = _sequence(tokens, end)
        out += part + ("<mo>)</mo>" if end < len(tokens) else "")
        end += 1
    return out


def prose(text: str) -> str:
    """HTML of a text with formulas in it: runs of symbols and signs become mathematics, words stay words."""
    out: list[str] = []
    run: list[str] = []

    def flush() -> None:
        inner = "".join(run).strip()
        if re.search(r"[=^*]|\bd[A-Za-z]|_", inner) or (len(inner) == 1 and inner.isalpha() and inner not in "aAI"):
            space = " " if run[-1].isspace() else ""
            out.append(f"{math(formula(inner), block=False)}{space}")
        else:
            out.append(escape("".join(run)))
        run.clear()

    tokens = _TOKEN.findall(text)
    for i, token in enumerate(tokens):
        depth = run.count("(") - run.count(")")
        if token == "(" and depth <= 0 and _is_word(tokens[i + 1 : i + 2]):  # a remark, and no mathematics
            if run:
                flush()
            out.append(token)
        elif (
            depth <= 0
            and token[0].isalpha()
            and not _is_symbol(token)
            and token not in (*_FUNCTIONS, "sum", "sqrt", "T")
        ):
            if run:
                flush()
            out.append(escape(token))
        elif (depth <= 0 and token in (".", ",", ";", ":")) or (not run and token.isspace()):
            if run:
                flush()
            out.append(token)
        else:
            run.append(token)
    if run:
        flush()
    return "".join(out)


def _is_word(tokens: list[str]) -> bool:
    return bool(tokens) and len(tokens[0]) > 2 and tokens[0].isalpha() and not _is_symbol(tokens[0])


def _is_symbol(token: str) -> bool:
    if token in ("a", "A", "I"):
        return False
    if len(token.rstrip("'")) == 1 or token in _SYMBOLS or token in _FUNCTIONS or "_" in token:
        return True
    return token[0] == "d" and (token[1:] in _DIFFERENTIABLE or token[1:].split("_")[0] in _DIFFERENTIABLE)


def _sequence(tokens: list[str], start: int) -> tuple[str, int]:
    """Typeset tokens up to the closing parenthesis that belongs to this level."""
    parts: list[str] = []
    i = start
    while i < len(tokens) and tokens[i] != ")":
        token = tokens[i]
        if token.isspace():  # a product is written with a space; around signs there is one anyway
            follows = tokens[i + 1] if i + 1 < len(tokens) else ""
            if (
                parts
                and parts[-1].endswith(("</mi>", "</mrow>", "</msup>", "</msub>", "</mover>"))
                and (follows[:1].isalnum() or follows == "(")
            ):
                parts.append('<mspace width="0.2em"/>')
            i += 1
            continue
        if token == "^" and parts:
            raised, i = _atom(tokens, i + 1)
            parts[-1] = (
                f"<msup><mrow>{parts[-1]}</mrow><mrow>{raised.replace('<mi>T</mi>', '<mo>⊤</mo>')}</mrow></msup>"
            )
            continue
        if token == "sqrt" and i + 1 < len(tokens):
            inner, i = _atom(tokens, i + 1)
            parts.append(f"<msqrt><mrow>{inner}</mrow></msqrt>")
            continue
        atom, i = _atom(tokens, i)
        if atom:
            parts.append(atom)
    return "".join(parts), i


def _atom(tokens: list[str], i: int) -> tuple[str, int]:
    while i < len(tokens) and tokens[i].isspace():
        i += 1
    if i == len(tokens):
        return "", i
    token = tokens[i]
    if token == "(":
        inner, end = _sequence(tokens, i + 1)
        return f"<mrow><mo>(</mo>{inner}<mo>)</mo></mrow>", end + 1
    if token[0].isdigit():
        return f"<mn>{token}</mn>", i + 1
    if not token[0].isalpha():
        mark = escape(_SIGNS.get(token, token))
        return (f'<mo>{mark}</mo><mspace width="0.4em"/>' if token == "," else f"<mo>{mark}</mo>"), i + 1
    if token == "sum" and (i + 1 >= len(tokens) or tokens[i + 1] == "("):
        return "<mo>∑</mo>", i + 1
    if _is_symbol(token):
        return identifier(token.rstrip("'")) + ("<mo>′</mo>" if token.endswith("'") else ""), i + 1
    return f"<mtext>&#160;{escape(token)}&#160;</mtext>", i + 1
