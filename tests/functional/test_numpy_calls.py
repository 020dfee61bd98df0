"""NumPy's functions called on tensors: the gradient goes on, or the call is refused with what to use instead."""

import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from names import functions
from numpy.testing import overrides

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor


def leaf(*shape: int) -> Tensor:
    rng = np.random.default_rng(0)
    return Tensor(rng.uniform(0.5, 2.0, shape), requires_grad=True)


RECORDED: dict[str, Callable[[Any, Any], Any]] = {
    "concatenate": lambda x, np: np.concatenate([x, x], axis=1),
    "concatenate flat": lambda x, np: np.concatenate((x, x), axis=None),
    "stack": lambda x, np: np.stack([x, 2 * x], axis=-1),
    "where": lambda x, np: np.where(x > 1, x, 0.0),
    "clip": lambda x, np: np.clip(x, 0.75, 1.5),
    "clip by keywords": lambda x, np: np.clip(x, min=0.75, max=None),
    "reshape": lambda x, np: np.reshape(x, (3, -1)),
    "transpose": lambda x, np: np.transpose(x),
    "transpose axes": lambda x, np: np.transpose(x[None], (2, 0, 1)),
    "swapaxes": lambda x, np: np.swapaxes(x, 0, 1),
    "einsum": lambda x, np: np.einsum("ij,kj->ik", x, x),
    "pad": lambda x, np: np.pad(x, ((1, 0), (0, 2)), constant_values=2.0),
    "dot": lambda x, np: np.dot(x, x.T),
    "dot vectors": lambda x, np: np.dot(x[0], x[1]),
    "take": lambda x, np: np.take(x, [0, 2, 2], axis=1),
    "flip": lambda x, np: np.flip(x, axis=0),
    "broadcast_to": lambda x, np: np.broadcast_to(x, (4, 2, 3)),
    "split": lambda x, np: np.split(x, 3, axis=1)[1],
    "cumsum": lambda x, np: np.cumsum(x, axis=1),
    "sum": lambda x, np: np.sum(x, axis=0, keepdims=True),
    "mean": lambda x, np: np.mean(x),
    "max": lambda x, np: np.max(x, axis=1),
    "amax": lambda x, np: np.amax(x),
    "min": lambda x, np: np.min(x, axis=-1),
    "var": lambda x, np: np.var(x, axis=0, ddof=1),
    "std": lambda x, np: np.std(x, axis=1),
    "squeeze": lambda x, np: np.squeeze(x[:, None], axis=1),
    "expand_dims": lambda x, np: np.expand_dims(x, (0, 2)),
    "moveaxis": lambda x, np: np.moveaxis(x[None], 0, -1),
    "ravel": lambda x, np: np.ravel(x),
    "matrix_transpose": lambda x, np: np.matrix_transpose(x),
    "exp": lambda x, np: np.exp(x),
    "log": lambda x, np: np.log(x),
    "sqrt": lambda x, np: np.sqrt(x),
    "tanh": lambda x, np: np.tanh(x),
    "square": lambda x, np: np.square(x),
    "reciprocal": lambda x, np: np.reciprocal(x),
    "abs": lambda x, np: np.abs(x),
    "maximum": lambda x, np: np.maximum(x, 1.0),
    "matmul": lambda x, np: np.matmul(np.ones((2, 2)), x),
    "array + tensor": lambda x, np: np.ones((2, 3)) + x,
    "scalar * tensor": lambda x, np: np.float64(3) * x,
    "array / tensor": lambda x, np: np.ones((2, 3)) / x,
    "array @ tensor": lambda x, np: np.ones((4, 2)) @ x,
    "array ** tensor": lambda x, np: np.full((2, 3), 2.0) ** x,
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_function_that_f_has_is_recorded(name: str) -> None:
    x = leaf(2, 3)
    y = RECORDED[name](x, np)
    assert type(y) is Tensor
    expected = np.asarray(RECORDED[name](x.numpy(), np))
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-13)
    weights = np.random.default_rng(1).normal(size=expected.shape)
    (y * weights).sum().backward()
    step = 1e-6
    for place in np.ndindex(2, 3):
        moved = [x.numpy().copy(), x.numpy().copy()]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (float((np.asarray(RECORDED[name](m, np)) * weights).sum()) for m in moved)
        assert x.grad.numpy()[place] == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in functions() if isinstance(getattr(np, name, None), np.ufunc)])
def test_a_ufunc_whose_name_f_has_is_recorded(name: str) -> None:
    x = leaf(2, 2)
    try:
        y = getattr(np, name)(*[x] * getattr(np, name).nin)
    except TypeError as error:
        pytest.fail(f"NumPy's {name} is refused ({error}): add it to _UFUNCS in tinyvit/functional/numpy_calls.py")
    assert type(y) is Tensor
    np.testing.assert_array_equal(y.numpy(), getattr(F, name)(*[x] * getattr(np, name).nin).numpy())


def arguments(function: Any) -> list[tuple[Any, ...]]:
    """Return arguments with a tensor among them that many functions of NumPy take."""
    x = leaf(3, 3)
    joined = function.__name__ in ("block", "column_stack", "concatenate", "dstack", "hstack", "stack", "vstack")
    others = [(x,), (x, x), (x, 1), (x, 0, 1), (x, x, x), (x, 1, 2, 3), ("ij->i", x), (x, (9,)), (1, x)]
    return [([x, x],)] * joined + others


LEFT_OUT = (
    *("array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray", "require"),  # conversions
    *("arange", "empty", "eye", "full", "fromfunction", "identity", "ones", "tri", "zeros"),  # made of nothing
    *("fromfile", "genfromtxt", "loadtxt", "save", "savez", "savez_compressed", "savetxt", "printoptions"),  # files
)
FUNCTIONS = sorted(
    (f for f in overrides.get_overridable_numpy_array_functions() if f.__name__ not in LEFT_OUT),
    key=lambda f: (f.__module__, f.__name__),
)
IN_C = ("dot", "inner")  # functions of NumPy in C, which convert lists as `np.array` does


def assert_no_gradient_ends(function: Any, given: tuple[Any, ...]) -> None:
    """Call a function of NumPy, which may refuse its arguments; fail if a floating result has lost the gradient."""
    with np.errstate(all="ignore"):
        try:
            result = function(*given)
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
            return
    for part in result if isinstance(result, (list, tuple)) else [result]:
        if isinstance(part, np.ndarray) and part.dtype.kind == "f":
            assert function.__name__ in ("empty_like", "ones_like", "zeros_like", "full_like"), given
        elif isinstance(part, Tensor) and part.dtype.kind == "f":
            assert part.requires_grad, given


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_function_of_numpy_ends_a_gradient_silently(function: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    x = leaf(3, 3)
    lists = [([x, x],), ([x, x], [x, x]), ([x, x], 1), ([[x, x]], 0, 1), ([x, x], x), (1, [x, x])]
    for given in [*arguments(function), *(lists if function.__name__ not in IN_C else ())]:
        assert_no_gradient_ends(function, given)


def test_lists_of_tensors_are_converted_by_name_only() -> None:
    x = leaf(2, 2)
    np.testing.assert_array_equal(np.array([x, x]), np.stack([x.numpy()] * 2))
    np.testing.assert_array_equal([x], x.numpy()[None])
    assert np.asarray(x) is x.data
    assert np.allclose([x], [x])
    assert np.argmax([x, x]) == x.numpy().argmax()
    with pytest.raises(TypeError, match=r"np.linalg.inv of a list would end the gradient .* x.detach"):
        np.linalg.inv([x, x])
    with pytest.raises(TypeError, match=r"np.mean of a list would end .*: use F.mean of F.stack"):
        np.mean([x.sum(), x.sum()])
    assert np.linalg.inv([x.detach()]).shape == (1, 2, 2)
    with tv.no_grad():
        assert type(np.mean([x, x])) is np.float64


@pytest.mark.parametrize("ufunc", sorted(overrides.get_overridable_numpy_ufuncs(), key=lambda u: u.__name__))
def test_no_ufunc_of_numpy_ends_a_gradient_silently(ufunc: Any) -> None:
    x = leaf(3, 3)
    with np.errstate(all="ignore"):
        for call in (ufunc, ufunc.reduce, ufunc.accumulate, ufunc.outer, lambda *a: ufunc(*a, out=np.empty((3, 3)))):
            try:
                result = call(*[x] * (1 if call == ufunc.reduce or call == ufunc.accumulate else ufunc.nin))
            except (TypeError, ValueError, RuntimeError):
                continue
            assert type(result) is Tensor
            assert result.requires_grad or result.dtype.kind == "b" or ufunc is np.sign


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: np.vstack([x, x]), "np.vstack would end the gradient of a tensor: use F.concatenate"),
        (lambda x: np.linalg.norm(x), r"np.linalg.norm .* use F.sqrt\(F.sum\(x \* x\)\)"),
        (lambda x: np.add.reduce(x), "np.add.reduce .* use F.sum"),
        (lambda x: np.floor(x), "np.floor .* no such operation, or take x.detach"),
        (lambda x: np.exp(x, out=np.empty((2, 3))), "np.exp with out .* use F.exp"),
        (lambda x: np.sum(x, dtype=float), "np.sum of tensors: .* 'dtype'; use F.sum"),
        (lambda x: np.pad(x, 1, mode="edge"), "np.pad with mode='edge' .* use F.pad"),
        (lambda x: operator.iadd(np.ones((2, 3)), x), "np.add with out .* use F.add"),
    ],
)
def test_a_refusal_names_what_to_use(call: Callable[[Tensor], Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        call(leaf(2, 3))


@pytest.mark.parametrize("ufunc", sorted(overrides.get_overridable_numpy_ufuncs(), key=lambda ufunc: ufunc.__name__))
def test_a_function_that_a_refusal_names_exists(ufunc: np.ufunc) -> None:
    x = leaf(2, 2)
    with pytest.raises(TypeError, match=f"np.{ufunc.__name__} with out") as error:
        ufunc(*[x] * ufunc.nin, out=tuple(np.empty((2, 2)) for _ in range(ufunc.nout)))
    for named in re.findall(r"use F\.(\w+)", str(error.value)):
        assert named in F.__all__


def test_without_a_gradient_to_lose_functions_work_on_the_values() -> None:
    x = tv.tensor(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(np.vstack([x, x]), np.vstack([x.numpy()] * 2))
    np.testing.assert_array_equal(np.floor(x), np.floor(x.numpy()))
    assert np.linalg.norm(leaf(2, 3).detach()) > 0
    with tv.no_grad():
        assert type(np.vstack([leaf(2), leaf(2)])) is np.ndarray
    total = np.zeros((2, 3))
    total += x
    assert type(total) is np.ndarray
    np.testing.assert_array_equal(total, x.numpy())


def test_values_that_carry_no_gradient_are_given() -> None:
    x = leaf(2, 3)
    assert np.shape(x) == (2, 3)
    assert (np.ndim(x), np.size(x)) == (2, 6)
    assert np.allclose(x, x.numpy())
    assert np.argmax(x) == x.numpy().argmax()
    assert np.isfinite(x).numpy().all()
    assert (np.ones((2, 3)) < x).dtype == bool
    assert np.array_equal(np.nonzero(x > 1), np.where(x > 1))


def test_formats_comparisons_and_integers_of_one_element() -> None:
    x = tv.tensor(np.array([[1.23456]]))
    assert f"{x:.2f} {x.sum():8.3e}" == "1.23 1.235e+00"
    assert f"{leaf(2)}".startswith("tensor(")
    with pytest.raises(TypeError, match=r"shape \(2,\) cannot be formatted as '.2f'"):
        format(leaf(2), ".2f")
    with pytest.raises(ValueError, match=r"item: the tensor has shape \(2,\)"):
        leaf(2).item()
    assert list(range(3))[tv.tensor(np.array(1))] == 1
    with pytest.raises(TypeError, match="is no integer"):
        operator.index(leaf())
    assert (x == "a") is not True


INTEGERS = [int, np.int64, np.int8, np.uint16, lambda v: np.array(v), lambda v: np.array(v, np.int32)]
WITH_AXIS: list[Callable[..., Any]] = [
    *(F.sum, F.mean, F.max, F.min, F.var, F.logsumexp, F.softmax, F.log_softmax, F.cumsum, F.flip),
    lambda x, axis: F.unbind(x, axis)[0],
    lambda x, axis: F.split(x, axis + 2, axis)[0],
    lambda x, axis: F.swapaxes(x, 0, axis),
    lambda x, axis: F.concatenate([x, x], axis),
    lambda x, axis: F.stack([x, x], axis),
    lambda x, axis: F.take(x, [0, 1], axis),
    lambda x, axis: F.transpose(x, [axis, 0]),
    lambda x, axis: F.reshape(x, (axis, 6)),
    lambda x, axis: x[axis],
    lambda x, axis: x.reshape(axis + 2, -1),
    lambda x, axis: F.broadcast_to(x, (axis, 2, 3)),
    lambda x, axis: F.pad(x, axis),
    lambda x, axis: F.max_pool2d(x.reshape(1, 1, 2, 3), axis + 1, axis, axis),
    lambda x, axis: F.avg_pool2d(x.reshape(1, 1, 2, 3), axis, (axis, axis), axis),
    lambda x, axis: F.conv2d(x.reshape(1, 1, 2, 3), Tensor(np.ones((1, 1, 2, 2))), None, axis, axis),
    lambda x, axis: F.patches(x.reshape(1, 1, 2, 3), axis),
    lambda x, axis: F.var(x, 0, axis),
]


@pytest.mark.parametrize("number", INTEGERS[1:])
@pytest.mark.parametrize("function", WITH_AXIS)
def test_integers_of_numpy_are_taken_as_those_of_python(function: Callable[..., Any], number: Any) -> None:
    results = []
    for kind in (int, number):
        x = leaf(2, 3)
        y = function(x, kind(1))
        (y * y).sum().backward()
        results.append((y.numpy(), x.grad.numpy()))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("number", INTEGERS[1:])
def test_modules_take_integers_of_numpy(number: Any) -> None:
    n = number
    tv.models.ViT(n(8), n(2), n(10), n(16), n(1), n(2))
    tv.models.ViT((n(8), n(8)), (n(2), n(2)), 10, 16, 1, 2, stem="conv")
    tv.nn.Conv2d(n(1), n(2), n(3), stride=n(1), padding=n(1))(Tensor(np.ones((1, 1, 4, 4), np.float32)))
    tv.nn.MaxPool2d(n(2))(Tensor(np.ones((1, 1, 4, 4), np.float32)))
    tv.nn.Linear(n(2), n(3))
    tv.nn.Embedding(n(2), n(3))
    tv.nn.LayerNorm(n(4))


@pytest.mark.parametrize("dtype", [complex, object, "U3", "datetime64[s]"])
def test_arrays_that_hold_no_real_numbers_are_refused(dtype: Any) -> None:
    array = np.zeros(2, dtype)
    calls: list[Callable[[], Any]] = [
        lambda: tv.tensor(array), lambda: Tensor(array), lambda: leaf(2) + array, lambda: F.maximum(array, leaf(2)),
        lambda: F.mse_loss(leaf(2), array), lambda: F.matmul(leaf(1, 2), array),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match="real numbers"):
            call()
    with pytest.raises(TypeError, match="add: y is a complex"):
        leaf(2) + 1j
