"""Imports run one way: between rooms, and between the files of a room. `import tinyvit` loads nothing heavy.

All imports count, also those inside functions and those under TYPE_CHECKING.
"""

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import sources
from sources import FILES, PACKAGES, ROOT, imported, imported_files, parsed

# A room may import rooms of its own layer and of those before it. A package stands for everything in it.
LAYERS = [
    ("context", "errors", "kernels"),
    ("backend",),
    ("engine", "dispatch"),
    ("functional",),
    ("nn",),
    ("models", "optim", "data", "checkpoint", "recipe_keys", "recipe"),
    ("tasks", "program", "interop", "distributed"),
    ("study", "use", "run", "dense"),
    ("__init__",),
    ("cli", "info", "__main__"),
    ("benchmarks",),
]
KERNEL_PACKAGES = {"numpy", "numba", "llvmlite", "cupy", "cuda", "ml_dtypes"}
HEAVY = {"numba", "llvmlite", "cupy", "matplotlib", "rich", "PIL", "safetensors", "click"}
# Rooms that `import tinyvit` leaves alone until they are used.
LAZY = {"tasks", "program", "interop", "distributed", "study", "use", "run", "dense", "cli", "info", "__main__"}

# The packages whose docstring states the order of their files. Once stated, it stays.
ORDERED = {
    "benchmarks",
    "benchmarks.contenders",
    "benchmarks.cpu",
    "benchmarks.gpu",
    "benchmarks.report",
    "tinyvit.backend",
    "tinyvit.cli",
    "tinyvit.data",
    "tinyvit.distributed",
    "tinyvit.engine",
    "tinyvit.interop",
    "tinyvit.kernels",
    "tinyvit.kernels.attention",
    "tinyvit.kernels.cpu",
    "tinyvit.kernels.cuda",
    "tinyvit.kernels.layer_norm",
    "tinyvit.kernels.linear",
    "tinyvit.kernels.program",
    "tinyvit.models",
    "tinyvit.nn",
    "tinyvit.optim",
    "tinyvit.program",
    "tinyvit.run",
    "tinyvit.study",
    "tinyvit.study.check",
    "tinyvit.study.page",
    "tinyvit.study.record",
    "tinyvit.study.rules",
    "tinyvit.study.watch",
    "tinyvit.tasks",
    "tinyvit.tasks.metrics",
}

# Imports that still run the wrong way. Whoever removes one removes its line here.
STILL_UPWARD: set[tuple[str, str]] = set()
STILL_IN_A_CIRCLE: set[tuple[str, str]] = set()


def room(name: str) -> str:
    """The first part of a module's name after `tinyvit`, `__init__` for the package itself; or `benchmarks`."""
    first, *rest = name.split(".")
    return first if first == "benchmarks" else rest[0] if rest else "__init__"


def layer(name: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if room(name) in rooms)


# Between rooms --------------------------------------------------------------------------------------------------------


def test_every_room_has_its_layer() -> None:
    assert {room(name) for name in FILES} <= {name for rooms in LAYERS for name in rooms}


def test_imports_run_one_way() -> None:
    upward = {(name, other) for name in FILES for other in imported_files(name) if layer(other) > layer(name)}
    assert upward == set(STILL_UPWARD)


def circle(imports: dict[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_modules_import_each_other() -> None:
    imports = {name: {x for x in imported_files(name) if (name, x) not in STILL_UPWARD} for name in FILES}
    assert circle(imports) is None


def test_no_rooms_import_each_other() -> None:
    imports: dict[str, set[str]] = defaultdict(set)
    for name in FILES:
        for other in imported_files(name):
            if room(other) != room(name) and (name, other) not in STILL_UPWARD:
                imports[room(name)].add(room(other))
    assert circle(imports) is None


def packages_of(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_kernels_import_array_and_compiler_packages_only() -> None:
    for name in (name for name in FILES if name.startswith("tinyvit.kernels")):
        assert packages_of(imported(name) - FILES.keys()) <= KERNEL_PACKAGES | sys.stdlib_module_names, name
        assert all(other.startswith("tinyvit.kernels") for other in imported_files(name)), name


def test_only_the_backend_imports_cupy() -> None:
    for name in (name for name in FILES if name.startswith("tinyvit") and room(name) not in ("kernels", "backend")):
        assert "cupy" not in packages_of(imported(name)), name


def test_optimizers_data_and_checkpoints_need_tensors_at_most() -> None:
    for name in (name for name in FILES if room(name) in ("optim", "data", "checkpoint")):
        allowed = {room(name), "engine", "backend", "context", "dispatch", "errors"}
        assert {room(other) for other in imported_files(name)} <= allowed, name


def test_layers_and_models_are_made_of_operations_and_of_nothing_below_them() -> None:
    for name in (name for name in FILES if room(name) in ("nn", "models")):
        allowed = {"nn": {"functional", "nn"}, "models": {"functional", "nn", "models", "data"}}[room(name)]
        assert {room(other) for other in imported_files(name)} <= allowed, name
        operations = {other for other in imported_files(name) if room(other) == "functional"}
        assert operations <= {"tinyvit.functional", "tinyvit.functional.tensors"}, name
        assert packages_of(imported(name) - FILES.keys()) <= {"numpy", *sys.stdlib_module_names}, name


def test_the_package_imports_neither_tests_nor_benchmarks() -> None:
    for name in FILES:
        forbidden = {"tests"} if room(name) == "benchmarks" else {"tests", "benchmarks"}
        assert not packages_of(imported(name)) & forbidden, name


# Within a package -----------------------------------------------------------------------------------------------------


def stated_order(package: str) -> list[str] | None:
    """The files and packages that the last line of a package's docstring names: "Order: tensor, op, tape."."""
    found = re.search(r"^Order: ([\w, \n]+)\.\s*\Z", ast.get_docstring(parsed(FILES[package])) or "", re.MULTILINE)
    return re.split(r",\s*", found[1]) if found else None


def test_the_packages_that_state_their_order_are_known() -> None:
    """Whoever states the order of a package adds the package to ORDERED, so that the line cannot get lost."""
    assert {package for package in PACKAGES if stated_order(package)} == ORDERED


@pytest.mark.parametrize("package", sorted(ORDERED))
def test_a_package_lists_all_of_its_files_in_its_order(package: str) -> None:
    children = {name.removeprefix(f"{package}.") for name in FILES if name.startswith(f"{package}.")}
    stated, files = set(stated_order(package) or []), {child for child in children if "." not in child}
    assert not files - stated, f"add {files - stated} to the line `Order:` in the docstring of {package}"
    assert not stated - files, f"the line `Order:` in the docstring of {package} names {stated - files}"


@pytest.mark.parametrize("package", sorted(ORDERED))
def test_files_import_only_what_stands_before_them_in_the_order_of_their_package(package: str) -> None:
    assert not against_the_order(package)


def against_the_order(package: str) -> set[tuple[str, str]]:
    """The imports within a package that run against its order; what is in `__init__` itself comes last."""
    order = [*(stated_order(package) or []), ""]

    def place(name: str) -> int:
        return order.index(name.removeprefix(package).removeprefix(".").split(".")[0])

    inside = [name for name in FILES if name == package or name.startswith(f"{package}.")]
    return {
        (name, other) for name in inside for other in imported_files(name) & set(inside) if place(other) > place(name)
    }


def test_an_import_against_the_order_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {
        "planted": '"""A room.\n\nOrder: low,\nhigh.\n"""\nfrom .high import b',
        "planted.low": "from . import high",
        "planted.high": "def f():\n    from .low import a\n    from . import low",
    }
    for name, code in package.items():
        monkeypatch.setitem(FILES, name, tmp_path / f"{name}.py")
        FILES[name].write_text(code)
    monkeypatch.setattr(sources, "PACKAGES", [*PACKAGES, "planted"])
    assert stated_order("planted") == ["low", "high"]
    assert against_the_order("planted") == {("planted.low", "planted.high")}


# What `import tinyvit` loads ------------------------------------------------------------------------------------------


def test_importing_the_package_is_light() -> None:
    """The test counts modules, not seconds: how long the import takes is for a benchmark to measure."""
    code = "import json, sys, tinyvit; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout
    loaded = json.loads(output)
    assert not HEAVY & {name.split(".")[0] for name in loaded}
    assert not LAZY & {room(name) for name in loaded if name.split(".")[0] == "tinyvit"}
