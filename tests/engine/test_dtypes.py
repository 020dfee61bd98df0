"""Dtypes: which one a tensor gets, scalars that never promote, and dtypes that are never mixed."""

import operator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op, Tensor

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, np.float32), ([1.0, 2.0], np.float32), ([[1, 2.5]], np.float32), ([np.float64(2)], np.float32),
        (3, np.int64), ([1, 2], np.int64), (True, np.bool_), ([True, False], np.bool_),
        (np.float64(1.5), np.float64), (np.ones(2), np.float64), (np.ones(2, np.float16), np.float16),
        (np.ones(2, np.uint8), np.uint8), (np.ones(2, ml_dtypes.bfloat16), ml_dtypes.bfloat16),
    ],
)  # fmt: skip
def test_floats_become_float32_and_arrays_keep_their_dtype(data: Any, dtype: Any) -> None:
    x = tv.tensor(data)
    assert x.dtype == dtype
    assert x.shape == np.shape(data)
    assert tv.tensor(x).dtype == dtype
    assert tv.tensor(data, dtype="float64").dtype == np.float64


def test_arrays_and_tensors_are_copied() -> None:
    array = np.ones(3)
    x = tv.tensor(array)
    y = tv.tensor(x, requires_grad=True)
    assert not np.shares_memory(x.data, array)
    assert not np.shares_memory(y.data, x.data)
    assert y.requires_grad
    assert not x.requires_grad


@pytest.mark.parametrize("data", ["text", ["a"], [1j], np.array([None]), np.array(["2020"], "datetime64")])
def test_data_other_than_numbers_are_refused(data: Any) -> None:
    with pytest.raises(TypeError, match="dtype"):
        tv.tensor(data)


def test_none_in_the_place_of_an_array_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match=r"^exp: x is a NoneType; give a Tensor, an array or a real number$"):
        Op.registry["exp"].apply(None)


def test_only_floats_require_gradients() -> None:
    for data in ([1, 2], [True]):
        with pytest.raises(TypeError, match="requires_grad=True needs a floating dtype"):
            tv.tensor(data, requires_grad=True)


BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, F.maximum, F.minimum]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scalar", [2, 2.5, True, np.float64(2.5), np.float32(2.5), np.int64(2)])
def test_scalars_never_promote(dtype: Any, scalar: Any) -> None:
    x = tv.tensor(np.array([1.0, 2.0]).astype(dtype), requires_grad=True)
    for function in BINARY:
        for y in (function(x, scalar), function(scalar, x)):
            assert y.dtype == dtype
            assert tv.grad(y.sum(), x)[0].dtype == dtype
    assert F.where(x > 1, x, scalar).dtype == F.where(x > 1, scalar, x).dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("other", [np.array([1, 2]), np.array([True, True]), np.array(2)])
def test_integers_take_the_floating_dtype_of_the_other_operand(dtype: Any, other: np.ndarray) -> None:
    x = tv.tensor(np.ones(2, dtype), requires_grad=True)
    for function in BINARY:
        for y in (function(x, other), function(x, tv.tensor(other)), function(tv.tensor(other), x)):
            assert y.dtype == dtype
            assert tv.grad(y.sum(), x)[0].dtype == dtype


def test_integers_among_themselves_stay_integers_until_they_are_divided() -> None:
    x = tv.tensor([1, 2, 3])
    assert (
        (x + 1).dtype
        == (x * x).dtype
        == x.sum().dtype
        == x[1:].dtype
        == x.max().dtype
        == F.clip(x, 0, 2).dtype
        == np.int64
    )
    assert F.clip(x, max=2).dtype == np.int64
    assert (x / 2).dtype == x.mean().dtype == F.exp(x).dtype == (x + 0.5).dtype == F.softmax(x).dtype == np.float32


FLOATING_RESULTS = [
    *(F.exp, F.log, F.sqrt, F.tanh, F.sigmoid, F.erf, F.silu, F.gelu, lambda x: F.gelu(x, "tanh")),
    *(F.softmax, F.log_softmax, F.logsumexp, F.mean, F.var, lambda x: F.divide(x, 3)),
    lambda x: F.mse_loss(x, np.array([90, 0, 1], np.uint8)),
    lambda x: F.binary_cross_entropy_with_logits(x, np.array([0, 1, 0])),
    lambda x: F.cross_entropy(x, np.array(1)),
]


@pytest.mark.parametrize("function", FLOATING_RESULTS)
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int16, np.int64])
def test_integers_become_float32_where_the_result_is_floating(function: Any, dtype: Any) -> None:
    values = np.array([1, 80, 3]).astype(dtype)
    expected = function(tv.tensor(values.astype(np.float32))).numpy()
    for x in (tv.tensor(values), values):
        y = function(x)
        assert isinstance(y, Tensor)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [F.mse_loss, F.binary_cross_entropy_with_logits])
def test_integers_beside_a_floating_target_take_its_dtype(loss: Any) -> None:
    assert loss(tv.tensor([1, 2]), np.array([0.5, 1.0])).dtype == np.float64


@pytest.mark.parametrize("data", [[1, 2], [True, False]])
@pytest.mark.parametrize("training", [True, False])
def test_integers_cannot_be_dropped_out(data: Any, training: bool) -> None:
    x = tv.tensor(data)
    with pytest.raises(TypeError, match=rf"dropout: x is {x.dtype}; it must be floating"):
        F.dropout(x, 0.5, training)


def test_floating_dtypes_are_never_mixed() -> None:
    x, y = tv.tensor([1.0]), tv.tensor(np.ones(1))
    calls = [*BINARY, lambda a, b: F.where(np.array([True]), a, b), lambda a, b: F.concatenate([a, b]), F.mse_loss]
    for function in calls:
        for other in (y, y.numpy()):
            with pytest.raises(TypeError, match=r"float64.*float32.*\.to\('float32'\)"):
                function(x, other)
    with pytest.raises(TypeError, match="linear: weight is float64"):
        F.linear(x, tv.tensor(np.ones((1, 1))))
    assert (x + y.to(np.float32)).dtype == np.float32


def test_arrays_on_the_left_leave_the_operation_to_the_tensor() -> None:
    array, x = np.array([[1.0, 2.0], [3.0, 4.0]]), tv.tensor(np.ones((2, 2)), requires_grad=True)
    for function in (operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul):
        y = function(array, x)
        assert isinstance(y, Tensor)
        assert y.requires_grad
        np.testing.assert_array_equal(y.numpy(), function(array, x.numpy()))
    assert isinstance(np.float64(2) * x, Tensor)
    assert isinstance(array > x, Tensor)


def test_arguments_that_are_neither_arrays_nor_numbers_are_refused_by_name() -> None:
    x = tv.tensor([1.0])
    with pytest.raises(TypeError, match="add: y is a list; give a Tensor, an array or a real number"):
        F.add(x, [1.0])
    with pytest.raises(TypeError, match="multiply: y is a str"):
        x * "2"
    for axis in (None, 0):
        with pytest.raises(TypeError, match="x is a list; give a Tensor"):
            F.cumsum([1.0], axis)


def test_to_converts_with_a_gradient() -> None:
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    y = x.to("float64")
    assert y.dtype == np.float64
    assert y.to("cpu") is y
    (y * np.array([3.0, 4.0])).sum().backward()
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad.numpy(), [3, 4])
    assert not x.to("int64").requires_grad
    assert x.to(np.int32).dtype == np.int32
    with pytest.raises(TypeError, match="to: 'flaot32' is neither a device, such as 'cpu', nor a dtype"):
        x.to("flaot32")


def test_devices_are_named_in_errors() -> None:
    assert tv.tensor(1.0).device == "cpu"
    assert tv.tensor(1.0, device="cpu").device == "cpu"
    with pytest.raises(ValueError, match="'tpu'"):
        tv.tensor(1.0, device="tpu")
    with pytest.raises(ValueError, match="'tpu'"):
        tv.set_default_device("tpu")
    assert tv.tensor(1.0).device == "cpu"


def test_conversion_to_numpy_and_to_python_numbers() -> None:
    x = tv.tensor([[1.0, 2.0]], requires_grad=True)
    assert isinstance(x.numpy(), np.ndarray)
    assert np.asarray(x) is x.data
    assert np.array(x, dtype=np.float64).dtype == np.float64
    assert (len(x), x.size, x.ndim, x.shape) == (1, 2, 2, (1, 2))
    assert [float(x[0, 1]), int(x[0, 1]), x[0, 1].item(), bool(x[0, 0])] == [2.0, 2, 2.0, True]
    assert type(tv.tensor(True).item()) is bool
    with pytest.raises(TypeError, match="no axes"):
        len(tv.tensor(1.0))


def test_repr_shows_values_and_the_operation_that_computed_them() -> None:
    x = tv.tensor([1.0, 2.5], requires_grad=True)
    assert repr(x) == "tensor([1. , 2.5], requires_grad=True)"
    assert repr(x * 2) == "tensor([2., 5.], op=multiply)"
    assert repr(x.detach().to("float64")) == "tensor([1. , 2.5], dtype=float64)"
