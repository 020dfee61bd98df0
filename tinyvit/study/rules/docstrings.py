"""Formulas for the page: MathML and HTML from the docstrings of operations."""

import re
from html import escape

from .functions import function_of
from .mathml import identifier, is_gradient, math

_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*'?|\d+(?:\.\d+)?|\.\.\.|->|<=|>=|\s+|.")
_SIGNS = {"-": "−", "*": "·", "...": "…", "->": "→", "<=": "≤", ">=": "≥"}
_SYMBOLS = {"rstd", "scale", "xhat", "lse", "out", "weight", "bias", "logits", "eps", "columns", "ids"}  # not words


def docstring_parts(doc: str | None) -> tuple[str, str, str]:
    """The formula of forward, that of backward, and the remaining text of an operation's docstring.

    Backward's formula is in the first paragraph too, after eight spaces, or is a second paragraph without a full stop.
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
    """The formulas of a docstring, which are separated by two spaces, each on a line of its own."""
    return "".join(math(formula(part)) for part in re.split(r",  +", text) if part)


def formula(text: str) -> str:
    """MathML of a formula in a docstring: identifiers and signs become mathematics, words stay words."""
    tokens = _TOKEN.findall(text)
    out, end = "", 0
    while end < len(tokens):  # runs again only after a closing parenthesis that has no opening one
        part, end = _sequence(tokens, end)
        out += part + ("<mo>)</mo>" if end < len(tokens) else "")
        end += 1
    return out


def prose(text: str) -> str:
    """HTML of a text that contains formulas: runs of symbols and signs become mathematics, words stay words."""
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
        if token == "(" and depth <= 0 and _is_word(tokens[i + 1 : i + 3]):  # a remark, not mathematics
            if run:
                flush()
            out.append(token)
        elif (
            depth <= 0
            and token[0].isalpha()
            and not _is_symbol(token, tokens[i + 1 : i + 2])
            and token not in ("sum", "sqrt", "T")
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
    return bool(tokens) and len(tokens[0]) > 2 and tokens[0].isalpha() and not _is_symbol(tokens[0], tokens[1:])


def _is_symbol(token: str, following: list[str]) -> bool:
    """Whether a token is a symbol or a function rather than a word; `following` starts with the next token."""
    if token in ("a", "A", "I"):
        return False
    if len(token.rstrip("'")) == 1 or token in _SYMBOLS or "_" in token or is_gradient(token):
        return True
    return following[:1] == ["("] or function_of(token).is_word


def _sequence(tokens: list[str], start: int) -> tuple[str, int]:
    """Typeset tokens up to the parenthesis that closes this level; and its position."""
    parts: list[str] = []
    i = start
    while i < len(tokens) and tokens[i] != ")":
        token = tokens[i]
        if token.isspace():  # a space means a product; signs have spaces around them anyway
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
    if _is_symbol(token, tokens[i + 1 : i + 2]):
        return identifier(token.rstrip("'")) + ("<mo>′</mo>" if token.endswith("'") else ""), i + 1
    return f"<mtext>&#160;{escape(token)}&#160;</mtext>", i + 1
