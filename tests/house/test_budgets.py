"""Size budgets: files stay under 400 lines and functions under 60, so that each can be read in one sitting.

A file or function may be longer where it is one thing and would read worse in pieces. It then stands in a list below,
with the reason, and leaves the list as soon as it fits.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sources import ROOT, parsed

FILE_LINES, FUNCTION_LINES = 400, 60
FOLDERS, SUFFIXES = ("tinyvit", "kernels", "benchmarks", "tests"), {".py", ".cu", ".cuh", ".h", ".js"}

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "kernels/attention/numba_cuda.py:_tiled": "numba.cuda compiles one function; its device functions share no arrays",
    "kernels/cpu/threads.py:_serve": "one loop, whose states refer to each other",
    "kernels/cpu/threads.py:codegen": "the same loop",
    "kernels/layer_norm/numba_cuda.py:_in_registers": "the kernels of one choice of sizes, which they close over",
}

# What is too long today and is about to be shortened. Whoever shortens one removes its line.
STILL_LONG_FILES: set[str] = set()
STILL_LONG_FUNCTIONS: set[str] = set()


@cache
def source_files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]


def functions_in(path: Path) -> Iterator[tuple[str, int]]:
    """The functions of a file and the number of lines each takes; of CUDA and JavaScript the outermost ones."""
    if path.suffix == ".py":
        nodes: list[ast.AST] = [parsed(path)]  # statements only: there is no function in an expression
        while nodes:
            node = nodes.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1
            for block in ("body", "orelse", "finalbody", "handlers", "cases"):
                nodes += getattr(node, block, ())
    else:
        yield from outermost_functions(path.read_text("utf-8"))


def outermost_functions(text: str) -> Iterator[tuple[str, int]]:
    """In formatted code an outermost function begins in the first column, and so does the brace that closes it."""
    first: tuple[int, str] | None = None
    for number, line in enumerate(text.splitlines()):
        if re.match(r"[\w(]", line):
            first = first or (number, "")
            if line.endswith((";", "}")) or re.match(
                r'(template <.*> )?(namespace|struct|enum|class|extern "C" {)', line
            ):
                first = None
            elif named := re.search(r"(?!__launch_bounds__)\b([\w$]+)(<\w+>)?(\(| = )", line):
                first = first[0], named[1]  # the name may stand below a line `template <...>`
        elif line.startswith("}") and first is not None:
            yield first[1], number - first[0] + 1
            first = None


def too_long_functions() -> set[str]:
    return {
        f"{path.relative_to(ROOT)}:{name}"
        for path in source_files()
        for name, lines in functions_in(path)
        if lines >= FUNCTION_LINES
    }


def test_files_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in source_files()}
    long = {name for name, count in lines.items() if count >= FILE_LINES}
    assert long - LONG_FILES.keys() == STILL_LONG_FILES, f"a file must be under {FILE_LINES} lines, or give a reason"
    assert LONG_FILES.keys() <= long, "these files fit now: remove them from LONG_FILES"


def test_functions_are_short() -> None:
    long = too_long_functions()
    assert long - LONG_FUNCTIONS.keys() == STILL_LONG_FUNCTIONS, f"a function must be under {FUNCTION_LINES} lines"
    assert LONG_FUNCTIONS.keys() <= long, "these functions fit now: remove them from LONG_FUNCTIONS"


CODE = """\
const LIMIT = 3;
const short = (x) => x;
template <typename T>
DEVICE void add(T* a,
                int n) {
  if (n) {
    a[0] = n;
  }
}

function view(a) {
#pragma unroll
  return a;
}
struct Head {
  int rows;
};
const make = (x) => {
  return x;
};
"""


def test_functions_of_cuda_and_javascript_are_measured_by_their_layout() -> None:
    assert list(outermost_functions(CODE)) == [("add", 7), ("view", 4), ("make", 3)]
