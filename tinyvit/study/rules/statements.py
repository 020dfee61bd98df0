"""The lines of a rule that ran: its statements in order, typeset, with the steps that each is made of."""

import ast
import functools
import linecache
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...engine import Op
from .links import arrays_of, link_of
from .mathml import Typesetter, math
from .narrate import Narration, Step


@dataclass
class Statement:
    """One statement of a rule: its source, the comment above it, where it is, its MathML, and its steps' numbers."""

    source: str
    comment: str
    place: str
    mathml: str
    steps: list[int] = field(default_factory=list)


def statements_of(op: type[Op], narration: Narration, results: Sequence[str]) -> list[Statement]:
    """The statements that computed the steps of a narrated rule of `op`; `results` are names for what it returns."""
    steps = narration.steps
    letters = {_normal(step.source): _letters(step) for step in steps}
    typesetter = Typesetter(lambda source: letters.get(source), lambda source: source in letters)
    found: list[Statement] = []
    nodes: list[ast.stmt] = []
    for k, step in enumerate(steps):
        node, owner = _statement_at(step.file, step.line)
        if not nodes or node is not nodes[-1]:
            last = _last_of(steps, k, node)
            returns = isinstance(node, ast.Return) and owner == op.__name__
            left = ", ".join(results) if returns else last.name or ""
            found.append(
                Statement(
                    source=ast.unparse(node),
                    comment=_comment_above(step.file, node.lineno),
                    place=f"{Path(step.file).parent.name}/{Path(step.file).name}:{node.lineno}",
                    mathml=math(typesetter.statement(node, left)),
                )
            )
            nodes.append(node)
        found[-1].steps.append(k)
    return found


def _last_of(steps: Sequence[Step], k: int, node: ast.stmt) -> Step:
    """The last of the steps from `k` on that the same statement computes."""
    while k + 1 < len(steps) and _statement_at(steps[k + 1].file, steps[k + 1].line)[0] is node:
        k += 1
    return steps[k]


@functools.cache
def _normal(source: str) -> str:
    """Source text as `ast` writes it, so that line breaks and quotes make no difference."""
    try:
        return ast.unparse(ast.parse(source, mode="eval").body)
    except SyntaxError:
        return source


def _letters(step: Step) -> str:
    """The letters of the axes that a step reduces over; their numbers where they have none."""
    link = link_of(step)
    arrays = arrays_of(step)
    if link.kind != "reduce" or not arrays:
        return ""
    axes = arrays[0].axes
    return "".join(axes[a] if axes else str(a) for a in link.axes)


@functools.cache
def _tree(file: str) -> ast.Module:
    return ast.parse("".join(linecache.getlines(file)))


@functools.cache
def _statement_at(file: str, line: int) -> tuple[ast.stmt, str]:
    """The innermost statement at a line, and the name of the class that it is in."""
    within: ast.AST = _tree(file)
    found, owner = None, ""
    while True:  # go down to what spans the line
        parts = [n for n in ast.walk(within) if isinstance(n, ast.stmt) and n is not within]
        spanning = [n for n in parts if n.lineno <= line <= (n.end_lineno or 0)]
        if not spanning:
            break
        found = within = max(spanning, key=lambda n: (n.end_lineno or 0) - n.lineno)
        owner = found.name if isinstance(found, ast.ClassDef) else owner
    return (found or ast.parse("pass").body[0]), owner


def _comment_above(file: str, line: int) -> str:
    text = linecache.getline(file, line - 1).strip()
    return text.removeprefix("# ") if text.startswith("#") else ""
