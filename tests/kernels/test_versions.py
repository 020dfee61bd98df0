"""The file of a kernel, its table of versions and the registry agree."""

import importlib
import re

import pytest
from tinyvit.kernels import registry
from tinyvit.kernels.registry import KernelSpec

SPECS = [pytest.param(spec, id=f"{spec.operation}-{spec.technology}") for spec in registry.SPECS]


@pytest.mark.parametrize("spec", SPECS)
def test_the_table_at_the_top_lists_the_versions(spec: KernelSpec) -> None:
    module = importlib.import_module(spec.module)
    versions = list(range(1, spec.versions + 1))
    assert [int(n) for n in re.findall(r"^\| v(\d+) +\|", module.__doc__ or "", re.MULTILINE)] == versions
    assert list(module.VERSIONS) == versions
    assert len(versions) <= 5


@pytest.mark.parametrize("spec", SPECS)
def test_no_two_versions_are_the_same_function(spec: KernelSpec) -> None:
    versions = importlib.import_module(spec.module).VERSIONS.values()
    functions = [f for v in versions for f in (v if isinstance(v, tuple) else (v,))]
    assert len({id(f) for f in functions}) == len(functions)


def test_no_two_rows_serve_the_same_operation_by_the_same_technology() -> None:
    names = [(spec.operation, spec.technology) for spec in registry.SPECS]
    assert len(set(names)) == len(names)
