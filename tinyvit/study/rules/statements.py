"""The statements of a rule that ran, in order and typeset, each with its steps."""

import ast
import functools
import linecache
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...engine import Op
from .axes import UNKNOWN
from .functions import function_of
from .mathml import Typesetter, math
from .steps import Narration, Step


@dataclass
class Statement:
    """One statement of a rule.

    `source`, the `comment` above it, its `place` ("functional/linalg.py:48"), its MathML, and its steps' numbers.
    """

    source: str
    comment: str
    place: str
    mathml: str
    steps: list[int] = field(default_factory=list)


def statements_of(op: type[Op], narration: Narration, results: Sequence[str]) -> list[Statement]:
    """The statements that computed the steps of a narrated rule of `op`; `results` names the values it returns."""
    steps = narration.steps
    letters = {_normal(step.source): _reduced_letters(step) for step in steps}
    found: list[Statement] = []
    nodes: list[ast.stmt] = []
    for k, step in enumerate(steps):
        node, owner = _statement_at(step.file, step.line)
        if not nodes or node is not nodes[-1]:
            returns = isinstance(node, ast.Return) and owner == op.__name__
            left = ", ".join(results) if returns else _last_of(steps, k, node).name or ""
            typesetter = Typesetter(letters.get, letters.__contains__, _constants(step.file).get)
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
    """The last of the steps, from `k` on, that the same statement computes."""
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


def _reduced_letters(step: Step) -> str:
    """The letters of the axes that a step reduces over, or their numbers where the letters are unknown."""
    if not step.arrays:
        return ""
    link = function_of(step.function).link(step)
    axes = step.arrays[0].axes
    if link.kind != "reduce":
        return ""
    return "".join(axes[a] if axes and axes[a] != UNKNOWN else str(a) for a in link.axes)


@functools.cache
def _tree(file: str) -> ast.Module:
    return ast.parse("".join(linecache.getlines(file)))


@functools.cache
def _constants(file: str) -> dict[str, ast.expr]:
    """The private constants of a module, such as _SQRT_HALF, with the expressions that define them."""
    assigned = [node for node in _tree(file).body if isinstance(node, ast.Assign)]
    return {
        target.id: node.value
        for node in assigned
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.startswith("_") and target.id.isupper()
    }


@functools.cache
def _statement_at(file: str, line: int) -> tuple[ast.stmt, str]:
    """The innermost statement at a line, and the name of the class that contains it."""
    within: ast.AST = _tree(file)
    found, owner = None, ""
    while True:
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
