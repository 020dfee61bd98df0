"""CuPy has all functions that we use. It can be imported without a GPU."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import peer
from tinyvit.kernels.cuda.compiler import KERNELS

import tinyvit as tv
from tinyvit.backend import Namespace

cupy = peer("cupy", "CuPy, of the extra cuda12 or cuda13")
RULES = sorted(Path(tv.__file__).parent.joinpath("functional").glob("*.py"))
LAUNCHERS = sorted(path for path in KERNELS.rglob("*.py") if path.name in ("cupy_raw.py", "cublaslt.py"))


def used_in(path: Path) -> Iterator[str]:
    """Yield the names N of all xp.N in a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("xp", "lib"):
            yield node.attr


@pytest.mark.parametrize("path", [*RULES, *LAUNCHERS], ids=lambda path: "/".join(path.parts[-2:]))
def test_cupy_has_every_function_that_is_used(path: Path) -> None:
    known = Namespace.extras.keys() | {"cuda"}
    assert [name for name in used_in(path) if name not in known and not hasattr(cupy, name)] == []


def test_used_functions_are_found() -> None:
    assert {"exp", "where", "empty"} <= {name for path in (*RULES, *LAUNCHERS) for name in used_in(path)}


def test_cupy_has_what_launching_and_capturing_use() -> None:
    cuda, driver = cupy.cuda, cupy.cuda.driver
    assert hasattr(cuda.runtime, "cudaDevAttrMaxSharedMemoryPerBlockOptin")
    for part, names in (
        (driver, ("launchKernel", "moduleLoadData", "moduleGetFunction", "funcSetAttribute")),
        (cuda.Stream, ("begin_capture", "end_capture", "is_capturing", "record", "wait_event")),
        (cuda.Graph, ("launch",)),
        (cuda.MemoryPool, ("malloc", "free_all_blocks")),
        (cuda.Device, ("use", "compute_capability", "attributes")),
        (cupy, ("get_default_memory_pool",)),
    ):
        assert [name for name in names if not hasattr(part, name)] == []
