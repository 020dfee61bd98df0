"""No launch has a larger grid than CUDA allows: calls of any size are refused, or launched within the limits.

The arrays of these tests have shapes, strides and addresses as large ones have, but no memory.
"""

import itertools
import math
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numba.cuda.dispatcher import CUDADispatcher
from tinyvit.kernels import lookup, registry
from tinyvit.kernels.adamw import cupy_raw as adamw
from tinyvit.kernels.average import cupy_raw as average
from tinyvit.kernels.cuda import device
from tinyvit.kernels.narrow import cupy_raw as narrow
from tinyvit.kernels.registry import KernelSpec, UpdateSpec

from tinyvit.backend import BFLOAT16

LIMITS = (2**31 - 1, 65_535, 65_535)  # the CUDA C++ programming guide, table of technical specifications
LARGEST = 2**31 - 4096  # what indices of int can count, with the steps that go past the end
EDGES = [65_535, 65_536, 65_537, 12 * 65_537, LARGEST, 2**31, 2**32 + 1]
FLOAT32 = np.dtype("float32")


class Large(np.ndarray):
    """An array on a device, without memory: its elements cannot be read."""

    data = property(lambda self: types.SimpleNamespace(ptr=4096))  # type: ignore[assignment]
    device = property(lambda self: types.SimpleNamespace(id=0))  # type: ignore[assignment]

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __mul__(self, other: Any) -> Any:
        return empty(self.shape, self.dtype)

    def astype(self, dtype: Any, **_: Any) -> Any:  # type: ignore[override]
        return empty(self.shape, dtype)

    def sum(self, axis: int) -> Any:  # type: ignore[override]
        return empty([n for i, n in enumerate(self.shape) if i != axis % self.ndim], self.dtype)


def empty(shape: Any, dtype: Any = FLOAT32) -> Large:
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    steps = [int(np.prod(shape[i + 1 :], dtype=object)) * dtype.itemsize for i in range(len(shape))]
    return np.lib.stride_tricks.as_strided(np.empty(1, dtype).view(Large), shape, steps, subok=True)


class Recording(device.Device):
    """Launches nothing; checks each grid."""

    def _start(self, kernel: Any, grid: Any, threads: int, arguments: Any, shared: int) -> None:
        check(grid)


grids: list[tuple[int, ...]] = []


def check(grid: Any) -> None:
    grid = (*(grid if isinstance(grid, tuple) else (grid,)), 1, 1)[:3]
    assert all(1 <= n <= most for n, most in zip(grid, LIMITS, strict=True)), grid
    grids.append(grid)


@pytest.fixture(autouse=True)
def _nothing_is_launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    library = types.ModuleType("large")
    like = {f"{name}_like": lambda x, dtype=None: empty(x.shape, dtype or x.dtype) for name in ("empty", "zeros")}
    vars(library).update(
        like, empty=empty, zeros=empty, ones=empty, broadcast_to=lambda x, shape: empty(shape, x.dtype)
    )
    vars(library).update(asarray=lambda x: x, ascontiguousarray=lambda x: empty(x.shape, x.dtype))
    monkeypatch.setitem(sys.modules, "large", library)
    monkeypatch.setattr(Large, "__module__", "large")
    monkeypatch.setattr(CUDADispatcher, "__getitem__", lambda _, given: check(given[0]) or no_launch)
    monkeypatch.setattr(device, "_why_no_compiler", lambda: None)
    device.DEVICES[0] = Recording(0, 90, 232_448)
    monkeypatch.setattr(device, "current_device", lambda: device.DEVICES[0])
    grids.clear()
    yield
    device.DEVICES.clear()


def no_launch(*_: Any) -> None:
    pass


def calls(operation: str, n: int) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Yield inputs and parameters of an operation in which one size after the other is `n`."""
    if operation == "attention":
        for shape in ((n, 1, 3, 16), (1, n, 300, 16), (1, 1, n, 16), (n,)):
            q = empty(shape if len(shape) == 4 else (n, 3, 8))
            yield [q, q, q, None], {"scale": 1.0}
        yield [empty((1, 1, 3, 8)), *[empty((1, 1, n, 8))] * 2, None], {"scale": 1.0}
        return
    if operation == "patches":
        yield [empty((n, 1, 4, 4))], {"size": (2, 2)}
        yield [empty((1, 1, 4, 2 * n))], {"size": (2, 2)}
        return
    for shape in ((n, 8), (3, n, 7), (8, n)):
        x, row = empty(shape), empty(shape[-1:])
        if operation == "cross_entropy":
            yield [x, None], {"ids": empty(shape[:-1], "int64")}
            yield [x, x], {"reduction": "none"}
        elif operation == "dropout":
            yield [x], {"p": 0.5, "seed": 0, "offset": 0}
        else:
            yield (
                {"layer_norm": [x, row, row], "add_layer_norm": [x, x, row, row], "bias_gelu": [x, row]}.get(
                    operation, [x, x] if operation == "add_narrow" else [x]
                ),
                {},
            )


def run(spec: KernelSpec, version: int, inputs: list[Any], params: dict[str, Any]) -> str | None:
    """Launch forward and backward of a call; return the reason why it is refused, if it is."""
    names = {"attention": ("q", "k", "v", "bias")}.get(spec.operation, ("x",))
    reason = lookup.refusal(spec, "cuda", FLOAT32, dict(zip(names, inputs, strict=False)), params)
    if reason:
        return reason
    kernel = lookup.Kernel(spec, version)
    try:
        returned = kernel.forward(*inputs, **params)
    except RuntimeError as error:
        return str(error)
    outputs = len(returned) - len(spec.residuals)
    given = dict(zip(("x", "residual", "weight", "bias"), inputs, strict=False))
    if spec.operation == "attention":
        given = dict(zip(names, inputs, strict=True)) | {"out": returned[0]}
    elif spec.operation != "add_layer_norm":
        given = dict(zip(("x", "bias" if spec.operation == "bias_gelu" else "weight"), inputs, strict=False))
    given |= {"logits": inputs[0], "target": inputs[-1], "out": returned[0], "sum": returned[0]}
    given |= dict(zip(spec.residuals, returned[outputs:], strict=True))
    needs = [x is not None for x in inputs]
    kernel.backward(*returned[:outputs], *(given[name] for name in spec.keeps), **params, needs=needs)
    return None


LAUNCHING = [
    spec
    for spec in registry.SPECS
    if spec.device == "cuda" and isinstance(spec, KernelSpec) and spec.operation != "linear"  # cuBLAS launches that
]
COUNT_ROWS = ("layer_norm", "add_layer_norm", "softmax", "cross_entropy", "bias_gelu")


@pytest.mark.parametrize("spec", LAUNCHING, ids=lambda spec: f"{spec.operation}-{spec.technology}")
def test_a_call_of_any_size_is_refused_or_launched_within_the_limits(spec: KernelSpec) -> None:
    for version, n in itertools.product(range(1, spec.versions + 1), EDGES):
        for inputs, params in calls(spec.operation, n):
            grids.clear()
            reason, shape = run(spec, version, inputs, params), inputs[0].shape
            assert bool(reason) != bool(grids), (version, shape)
            if spec.operation != "attention":
                counted = max(math.prod(shape[:-1]), shape[-1]) if spec.operation in COUNT_ROWS else 0
                assert (reason is not None) == (counted > LARGEST), (version, shape, reason)
                assert reason is None or str(shape) in reason


@pytest.mark.parametrize("spec", [s for s in LAUNCHING if s.operation == "attention"], ids=lambda spec: spec.technology)
def test_attention_is_refused_only_if_its_heads_do_not_fit_into_two_dimensions(spec: KernelSpec) -> None:
    for n, heads in itertools.product(EDGES, (1, 12)):
        q = empty((n, heads, 3, 8))
        total = n * heads
        fits = any(total % i == 0 and total // i <= LIMITS[1] for i in range(1, LIMITS[2] + 1))
        for version in range(1, spec.versions + 1):
            reason = run(spec, version, [q, q, q, None], {"scale": 1.0})
            assert (reason is None) == (fits and total <= LARGEST)
            assert reason is None or str(total) in reason or str(q.shape) in reason


@pytest.mark.parametrize("size", [1, 65_536 * 8192, 2**40])
def test_updates_of_all_parameters_are_launched_within_the_limits(size: int) -> None:
    flat, table, state = empty(size), empty((70_000, 5), "int64"), empty(8, "float64")
    groups = empty((1, 5), "float64")
    for version in adamw.VERSIONS:
        adamw.step(table, empty(70_000, "int64"), groups, state, flat, flat, decoupled=True, version=version)
    average.step(table, state, flat, version=1)
    narrow.step(table, empty(size, BFLOAT16), version=1)
    assert len(grids) == 3 * len(adamw.VERSIONS) + 3
    assert {spec.operation for spec in registry.SPECS if isinstance(spec, UpdateSpec) and spec.device == "cuda"} == {
        "adamw",
        "average",
        "narrow",
    }


@pytest.mark.parametrize("grid", [(2**31,), (1, 65_536), (1, 1, 65_536)])
def test_a_launch_that_does_not_fit_is_refused_with_the_numbers(grid: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match=rf"some_kernel needs a grid of \(.*{grid[-1]}.*, 65535\) .*'numpy'"):
        device.DEVICES[0].launch(device.Kernel("a.cu", "some_kernel"), grid, 32, [])
