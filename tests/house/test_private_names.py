"""Nobody reads another file's private names: what a file needs of another one has a public name there."""

import ast

import pytest
from sources import ROOT, parsed

# Names with an underscore that are public all the same: of namedtuples, of the standard library, of IPython.
PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_exit", "_getframe", "_repr_html_"}

# Libraries whose public interface lacks something that is needed.
OF_LIBRARIES = {
    "kernels/cpu/bfloat16.py": "_insert",  # llvmlite: an instruction that its builder has no method for
    "kernels/cpu/compiler.py": "_cache",  # Numba: where compiled functions are kept
    "kernels/cpu/inlining.py": "_get_module_for_linking _reload_init",  # Numba: linking of functions compiled apart
    "kernels/cpu/threads.py": "_getvalue",  # Numba: the fields of a struct in generated code
    "kernels/cpu/vector_loops.py": "_getvalue",
    "kernels/program/places.py": "_getvalue",
    "tests/mutants/forked.py": "_run_exitfuncs",  # atexit: a process of multiprocessing leaves them out
}

# What still reads another file's private names, and which. Whoever removes one removes it here.
STILL_READ = {
    "tests/cuda/kernel_trials.py": "_host",
    "tests/cuda/task_trials.py": "_replay",
    "tests/cuda/test_device.py": "_why_no_compiler",
    "tests/cuda/training_trials.py": "_add_rows",
    "tests/functional/test_functional.py": "_add_sorted",
    "tests/kernels/test_threads.py": "_SHARES _team _workers",
}
FILES = [path for name in ("tinyvit", "kernels", "benchmarks", "tests") for path in sorted((ROOT / name).rglob("*.py"))]


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.startswith("__") and name not in PUBLIC


def defined(tree: ast.AST) -> set[str]:
    """Every name that a file defines somewhere: functions, classes, variables, attributes of self, and slots."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            names |= {item.value for item in ast.walk(node.value) if isinstance(item, ast.Constant)}
    return names


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def read_of_others(tree: ast.AST) -> set[str]:
    """The private names that a file reads and does not define itself."""
    own, found = defined(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not is_self(node.value):
            found |= {node.attr} - own
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return {name for name in found if is_private(name)}


def test_private_names_are_read_in_their_own_file_only() -> None:
    for path in FILES:
        known = [exceptions.get(str(path.relative_to(ROOT)), "") for exceptions in (OF_LIBRARIES, STILL_READ)]
        assert read_of_others(parsed(path)) == {name for names in known for name in names.split()}, path


def test_exceptions_are_made_for_files_that_exist() -> None:
    assert {*OF_LIBRARIES, *STILL_READ} <= {str(path.relative_to(ROOT)) for path in FILES}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from .tape import _walk, Op", {"_walk"}),
        ("tensor._op", {"_op"}),
        ("a.b._c._d = 1", {"_c", "_d"}),
        ("self._op; cls._op", set()),
        ("def _op(): ...\nmodule._op", set()),
        ("class A:\n    def __init__(self): self._x = 1\ndef f(a): return a._x", set()),
        ("class A:\n    __slots__ = ('_x', 'y')\ndef f(a): return a._x", set()),
        ("point._replace(x=1); x.__dict__; _ = 3; from os import _exit", set()),
    ],
)
def test_what_counts_as_another_files_private_name(code: str, found: set[str]) -> None:
    assert read_of_others(ast.parse(code)) == found
