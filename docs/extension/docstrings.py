"""Our docstrings as reStructuredText: they are plain text with `code` in backticks, with sections as NumPy has them."""

import re
from collections.abc import Iterator
from inspect import cleandoc
from typing import Any

_CODE = re.compile(r"(`[^`]*`)")
_MARKUP = re.compile(r"[*|\\]|(?<=\w)_(?=\W|$)")  # what reStructuredText would take as markup
_OPERATIONS = {"scaled_dot_product_attention": "attention"}  # the operations of functions that have another name


def as_rst(lines: list[str]) -> list[str]:
    """Return a docstring as reStructuredText in which no sign but a backtick is markup.

    Blocks that are indented after an empty line are formulas or code, and are kept as they are. The entries of a
    section (Parameters, Raises ...), `name : description`, become a list.
    """
    out: list[str] = []
    section = ""
    for i, line in enumerate(lines):
        before = lines[i - 1] if i else ""
        after = lines[i + 1] if i + 1 < len(lines) else ""
        if re.fullmatch(r"-{3,}", line) and section:
            continue
        if re.fullmatch(r"[A-Z]\w*", line) and re.fullmatch(r"-{3,}", after):
            section = line
            out += ["", f"**{line}**", ""]
        elif section and line and not line.startswith(" "):
            if not before and " : " not in line and section in ("Parameters", "Attributes"):
                section = ""  # a paragraph after the section
                out.append(_escaped(line))
            else:
                out.append("- " + _entry(line))
        elif section and line:
            out.append("  " + _escaped(line.strip()))
        else:
            if line.startswith("    ") and not before.strip():
                out += ["::", ""]
            out.append(line if line.startswith("    ") else _escaped(line))
    return out


def _entry(line: str) -> str:
    names, colon, text = line.partition(" : ")
    return f"`{names}`: {_escaped(text)}" if colon else _escaped(line)


def _escaped(line: str) -> str:
    parts = _CODE.split(line)
    return "".join(part if i % 2 else _MARKUP.sub(r"\\\g<0>", part) for i, part in enumerate(parts))


def _separated(line: str) -> Iterator[str]:
    """The parts of a line, with a separator between code and a letter that follows it at once: `Block`s."""
    parts = _CODE.split(line)
    for i, part in enumerate(parts):
        yield part
        if i % 2 and re.match(r"\w", parts[i + 1]):
            yield "\\ "


def _formula_of(name: str) -> list[str]:
    """Return the formula and the gradient of a function of `tinyvit.functional`: the docstring of its operation."""
    from tinyvit.engine import Op

    module, _, function = name.rpartition(".")
    op = Op.registry.get(_OPERATIONS.get(function, function)) if module == "tinyvit.functional" else None
    return cleandoc(op.__doc__).splitlines() if op is not None and op.__doc__ else []


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    formula = _formula_of(name)
    lines[:] = ["".join(_separated(line)) for line in as_rst(lines)]
    if formula:
        lines += ["", "The operation and its gradient::", "", *(f"    {line}" for line in formula), ""]


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
