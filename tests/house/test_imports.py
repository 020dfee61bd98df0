"""Imports run one way, and `import tinyvit` loads nothing heavy: read from the sources with `ast`, and tried."""

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each module may import its own layer and those before it. A package stands for all that is in it.
LAYERS = [
    ("context", "errors", "kernels"),
    ("backend",),
    ("engine", "dispatch"),
    ("functional",),
    ("nn",),
    ("models", "optim", "data", "checkpoint"),
    ("autocast",),
    ("tasks", "run", "study", "use"),
    ("__init__",),
    ("cli", "info", "__main__"),
]
KERNEL_PACKAGES = {"numpy", "numba", "llvmlite", "cupy", "nvmath", "cuda", "ml_dtypes"}
HEAVY = {"numba", "llvmlite", "cupy", "matplotlib", "rich", "PIL", "safetensors", "click"}


def module_name(path: Path) -> str:
    """The name a file is imported under; the folder kernels/ is `tinyvit.kernels`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("tinyvit", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for folder in ("tinyvit", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))}


class WithoutTypeChecking(ast.NodeTransformer):
    """Leaves out what is imported for annotations only."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def imported(name: str) -> set[str]:
    """Every module that a file imports, at its top or within a function; of this package, the file that is meant."""
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(WithoutTypeChecking().visit(ast.parse(FILES[name].read_text("utf-8")))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            deeper = {f"{base}.{alias.name}" for alias in node.names}
            found |= (deeper & FILES.keys()) | ({base} if deeper - FILES.keys() else set())
    return found


def layer(name: str) -> int:
    part = name.split(".")[1] if "." in name else "__init__"
    return next(i for i, names in enumerate(LAYERS) if part in names)


def test_every_module_has_its_layer() -> None:
    known = {part for names in LAYERS for part in names}
    assert {name.split(".")[1] for name in FILES if "." in name} <= known


@pytest.mark.parametrize("name", FILES)
def test_imports_run_one_way(name: str) -> None:
    upward = {other for other in imported(name) & FILES.keys() if layer(other) > layer(name)}
    assert not upward


def test_there_are_no_cycles() -> None:
    try:
        TopologicalSorter({name: imported(name) & FILES.keys() for name in FILES}).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {error.args[1]}")


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("tinyvit.kernels")])
def test_kernels_import_array_and_compiler_packages_only(name: str) -> None:
    foreign = {other for other in imported(name) if other not in FILES}
    assert {other.split(".")[0] for other in foreign} <= KERNEL_PACKAGES | sys.stdlib_module_names
    assert all(other.startswith("tinyvit.kernels") for other in imported(name) & FILES.keys())


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("tinyvit.kernels")])
def test_only_the_backend_imports_cupy(name: str) -> None:
    assert name.startswith("tinyvit.backend") or "cupy" not in {other.split(".")[0] for other in imported(name)}


@pytest.mark.parametrize("name", [n for n in FILES if n.split(".")[1:2] in (["optim"], ["data"], ["checkpoint"])])
def test_optimizers_data_and_checkpoints_need_tensors_at_most(name: str) -> None:
    own = ".".join(name.split(".")[:2])
    allowed = ("tinyvit.engine", "tinyvit.backend", "tinyvit.dispatch", "tinyvit.errors", "tinyvit.kernels")
    foreign = {other for other in imported(name) & FILES.keys() if not other.startswith(own)}
    assert not {other for other in foreign if not other.startswith(allowed)}


@pytest.mark.parametrize("name", FILES)
def test_nothing_imports_tests_or_benchmarks(name: str) -> None:
    assert not {other.split(".")[0] for other in imported(name)} & {"tests", "benchmarks"}


def test_importing_the_package_is_light() -> None:
    code = (
        "import json, sys, time; start = time.perf_counter(); import tinyvit;"
        "print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))"
    )
    seconds = []
    for _ in range(3):
        output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout
        elapsed, modules = json.loads(output)
        assert not HEAVY & {m.split(".")[0] for m in modules}
        assert not [m for m in modules if m.startswith("tinyvit.study")]
        seconds.append(elapsed)
    assert min(seconds) < 1.5
