"""The file of a kernel, its table of versions and the registry agree."""

import importlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
from cases import STRATEGIES
from tinyvit.kernels import registry
from tinyvit.kernels.registry import KernelSpec

from tinyvit.dispatch import Implementation
from tinyvit.engine import Op

SPECS = [pytest.param(spec, id=f"{spec.operation}-{spec.technology}") for spec in registry.SPECS]


@pytest.mark.parametrize("spec", SPECS)
def test_the_table_at_the_top_lists_the_versions(spec: KernelSpec) -> None:
    module = importlib.import_module(spec.module)
    versions = list(range(1, spec.versions + 1))
    table = [int(n) for n in re.findall(r"^\| v(\d+) +\|", module.__doc__ or "", re.MULTILINE)]
    assert table == versions, f"the docstring of {spec.module} needs a table with rows | v1 | to | v{spec.versions} |"
    assert list(module.VERSIONS) == versions, f"VERSIONS of {spec.module} needs the numbers 1 to {spec.versions}"
    assert len(versions) <= 5


@pytest.mark.parametrize("spec", SPECS)
def test_a_kernel_is_tried_at_the_edges_of_its_chunks(spec: KernelSpec) -> None:
    if any(op.kernel == spec.operation for op in Op.registry.values()):
        advice = "with sizes around the kernel's CHUNK, which blocks.py makes small where kernels are not compiled"
        assert spec.operation in STRATEGIES, f"add {spec.operation} to STRATEGIES in tests/kernels/cases.py, {advice}"


@pytest.mark.parametrize("spec", SPECS)
def test_no_two_versions_are_the_same_function(spec: KernelSpec) -> None:
    versions = importlib.import_module(spec.module).VERSIONS.values()
    functions = [f for v in versions for f in (v if isinstance(v, tuple) else (v,))]
    assert len({id(f) for f in functions}) == len(functions)


def test_every_row_serves_an_operation_that_names_its_kernel() -> None:
    """Without the line `kernel = "name"` in its class, an operation would never be served."""
    steps = {"adamw", "clip", "average", "narrow"}  # kernels of optimizers
    named = {op.kernel for op in Op.registry.values()}
    assert not {spec.operation for spec in registry.SPECS} - named - steps, 'add `kernel = "..."` to the class'


def test_no_two_rows_serve_the_same_operation_by_the_same_technology() -> None:
    names = [(spec.operation, spec.technology) for spec in registry.SPECS]
    assert len(set(names)) == len(names)


def implementation(keeps: tuple[str, ...] = ()) -> Implementation:
    """A kernel of F.exp whose forward forgets the tuple around its output."""
    spec = KernelSpec("exp", "numba", "mine", frozenset({np.dtype(float)}), keeps=keeps)
    kernel = SimpleNamespace(spec=spec, version=1, forward=lambda x: x, backward=lambda dy, **_: dy)
    return Implementation(kernel, Op.registry["exp"])  # type: ignore[arg-type]


def test_a_kernel_that_keeps_what_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match="the kernel of exp keeps 'z', which is none of x, "):
        implementation(keeps=("x", "z"))


def test_a_kernel_that_returns_no_tuple_is_named() -> None:
    with pytest.raises(TypeError, match="forward of mine returned ndarray, not a tuple of the outputs"):
        implementation().forward([np.ones(3)], {}, np.dtype(float))
