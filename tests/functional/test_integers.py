"""Integers and booleans in every function of arrays: alone, among themselves, and beside floating numbers.

A function that NumPy has too gives integers where NumPy's gives them, and the same ones; one that only moves elements
keeps them. Every other result is floating, and is compared with the oracle at float64: sums and products of small
integers must not wrap around on the way.
"""

import inspect
from typing import Any

import numpy as np
import pytest
from in_numpy import IN_NUMPY
from test_every_argument import CALLS

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.backend import BFLOAT16
from tinyvit.engine import Tensor
from tinyvit.functional.constants import as_floating

INTEGERS = ["int8", "uint8", "bool", "int64"]
FLOATING = [np.dtype("float32"), np.dtype("float64"), BFLOAT16]
MOVES = {"index_put", "join_heads"}  # functions without arithmetic that NumPy does not have


def right_call(name: str) -> list[Any]:
    """The arguments of a call from `CALLS`, those left out that need not be given and are no arrays."""
    if name == "einsum":
        return ["ij,kj,j->ik", *(Tensor(np.zeros(shape)) for shape in ((2, 3), (4, 3), (3,)))]
    if name == "contrastive_loss":  # whose scale may be a number or a tensor
        return [*(value for kind, value in CALLS[name].values() if kind == "tensor"), Tensor(np.zeros(()))]
    given = [value for _, value in CALLS[name].values()]
    if name in ("clip", "split_heads"):  # these need arguments whose defaults cannot all be left
        return given
    parameters = inspect.signature(getattr(F, name)).parameters.values()
    needed = [p.default is p.empty or is_or_holds_tensors(x) for p, x in zip(parameters, given, strict=True)]
    return given[: max((i + 1 for i, is_needed in enumerate(needed) if is_needed), default=0)]


def is_or_holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list) and all(isinstance(x, Tensor) for x in value))


def filled(value: Any, arrays: Any) -> Any:
    """An argument with the next of `arrays` in the place of each tensor."""
    if isinstance(value, list):
        return [filled(x, arrays) for x in value]
    return next(arrays) if isinstance(value, Tensor) else value


def tensors_of(arguments: list[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in arguments:
        found += [x for x in (value if isinstance(value, list) else [value]) if isinstance(x, Tensor)]
    return found


ONE = [name for name in CALLS if len(tensors_of(right_call(name))) == 1]
SEVERAL = [name for name in [*CALLS, "einsum"] if len(tensors_of(right_call(name))) > 1]


def integers(name: str, kind: str) -> list[np.ndarray]:
    """Numbers in order, as those of a box are, whose sums and products leave 8 bits; powers stay below 2^63."""
    rng = np.random.default_rng(3)
    shapes = [x.shape for x in tensors_of(right_call(name))]
    if name == "power":
        return [rng.integers(low, 9, shape).astype(kind) for low, shape in zip((5, 3), shapes, strict=True)]
    if name == "exp":  # of 89 and more it is beyond float32
        return [rng.integers(0, 9, shape).astype(kind) for shape in shapes]
    drawn = (np.asarray(rng.integers(0 if kind == "bool" else 70, 127, shape)) for shape in shapes)
    return [(np.sort(x) if x.ndim else x).astype(kind) for x in drawn]


def outcome(namespace: Any, name: str, arrays: list[Any]) -> list[Any]:
    with np.errstate(all="ignore"):
        found = getattr(namespace, name)(*filled(right_call(name), iter(arrays)))
    return list(found) if isinstance(found, tuple | list) else [found]


def assert_close(found: list[Tensor], arrays: list[np.ndarray], name: str, dtype: Any) -> None:
    """Compare with the oracle. The inputs are small integers, which every dtype holds exactly."""
    expected = outcome(IN_NUMPY, name, [x.astype(np.float64) for x in arrays])
    tolerance = {2: 2.0**-5, 4: 2.0**-18, 8: 2.0**-40}[np.dtype(dtype).itemsize]
    for y, e in zip(found, expected, strict=True):
        assert y.dtype == dtype, f"{name} gives {y.dtype}: its inputs have to go through as_floating"
        scale = max(1.0, float(np.abs(e).max(initial=0)))
        np.testing.assert_allclose(y.numpy().astype(np.float64), e, tolerance, tolerance * scale)


@pytest.fixture(autouse=True)
def _plain() -> Any:
    with tv.use_kernels("numpy"):
        yield


def test_the_table_is_of_all_functions_of_several_arrays() -> None:
    assert {"add", "linear", "layer_norm", "concatenate", "mse_loss", "generalized_iou", "einsum"} <= set(SEVERAL)


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", ONE)
def test_integers_alone(name: str, kind: str) -> None:
    """What stays integers is what the oracle finds at float64, or NumPy's function of the name: no sum wraps around."""
    arrays = integers(name, kind)
    if name == "dropout" or (kind == "bool" and name in ("negative", "sign")):
        with pytest.raises(TypeError, match=f"^{name}: "):
            outcome(F, name, [Tensor(arrays[0])])
        return
    found = outcome(F, name, [Tensor(arrays[0])])
    if any(y.dtype.kind == "f" for y in found):
        assert_close(found, arrays, name, np.float32)
        return
    is_in_numpy = hasattr(np, name)
    expected = outcome(np if is_in_numpy else IN_NUMPY, name, arrays if is_in_numpy else [arrays[0].astype(float)])
    for y, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(y.numpy(), e, strict=is_in_numpy)


def test_the_table_is_of_all_functions_of_one_array() -> None:
    assert {"index_add", "add_rows", "col2im", "sum", "sum_to_shape", "gelu", "clip", "avg_pool2d"} <= set(ONE)


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("are_tensors", [True, False])
def test_integers_among_themselves(name: str, kind: str, are_tensors: bool) -> None:
    arrays = integers(name, kind)
    given = [Tensor(x) for x in arrays] if are_tensors else [Tensor(arrays[0]), *arrays[1:]]
    try:
        expected = outcome(IN_NUMPY if name in MOVES else np, name, arrays)
    except AttributeError:  # NumPy does not have it
        expected = [np.zeros(0)]
    except TypeError:  # NumPy refuses it: a difference of booleans
        with pytest.raises(TypeError, match=f"^{name}: "):
            outcome(F, name, given)
        return
    if expected[0].dtype.kind in "iub":
        for y, e in zip(outcome(F, name, given), expected, strict=True):
            np.testing.assert_array_equal(y.numpy(), e, strict=True)
    else:  # NumPy computes small integers in float16
        assert_close(outcome(F, name, given), arrays, name, np.float32)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", SEVERAL)
def test_integers_beside_a_floating_array_take_its_dtype(name: str, kind: str, dtype: Any) -> None:
    arrays = integers(name, kind)
    for i in range(len(arrays)):
        given = [Tensor(x.astype(dtype), requires_grad=True) if i == j else Tensor(x) for j, x in enumerate(arrays)]
        found = outcome(F, name, given)
        assert_close(found, arrays, name, dtype)
        with np.errstate(all="ignore"):
            assert tv.grad(found, given[i], [np.ones(y.shape, dtype) for y in found])[0].dtype == dtype


@pytest.mark.parametrize("scalar", [np.float64(2.5), np.int64(2), 2.5, 2, True])
@pytest.mark.parametrize("kind", INTEGERS)
def test_scalars_take_the_dtype_of_the_arrays_and_never_decide_it(scalar: Any, kind: str) -> None:
    x = Tensor(np.array([1, 100], "int8").astype(kind))
    inputs = as_floating(scalar, x, None)
    assert inputs[0].dtype == inputs[1].dtype == np.float32
    assert inputs[0].numpy() == scalar
    assert inputs[2] is None
    for dtype in FLOATING:
        given = scalar, Tensor(np.ones(2, dtype)), x
        for found in (as_floating(*given), as_floating(*given[::-1])):
            assert [y.dtype for y in found] == [dtype] * 3


@pytest.mark.parametrize("value", [None, 1.0, 2, "a", Tensor(np.ones(2)), np.ones(2, "float32")])
def test_what_is_floating_or_alone_is_left_alone(value: Any) -> None:
    assert as_floating(value) is value
    assert as_floating(value, None) == (value, None)
