"""What `tv.grad`, `backward` and hooks cannot take is refused with the name of the argument."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyvit as tv
from tinyvit.engine import Tensor

WRONG = st.one_of(
    st.text(max_size=3), st.binary(max_size=2), st.complex_numbers(), st.floats(), st.booleans(), st.builds(object),
    st.dictionaries(st.text(), st.none(), max_size=2), st.lists(st.text(min_size=1), min_size=1, max_size=2),
    st.sampled_from([np.array([1j, 2j]), np.array(["a", "b"]), np.array([None, 1]), [[1.0], [1.0, 2.0]], [1.0, None]]),
)  # fmt: skip
CALLS: dict[str, Callable[[Tensor, Tensor, Any], Any]] = {
    "outputs": lambda x, y, wrong: tv.grad(wrong, x),
    "inputs": lambda x, y, wrong: tv.grad(y, wrong),
    "grad_outputs": lambda x, y, wrong: tv.grad(y, x, grad_outputs=wrong),
    "grad_outputs[0]": lambda x, y, wrong: tv.grad(y, x, grad_outputs=[wrong]),
    "gradient": lambda x, y, wrong: y.backward(wrong),
    "hook": lambda x, y, wrong: y.register_hook(wrong),
    "fn(*inputs)": lambda x, y, wrong: tv.gradcheck(lambda x: wrong, [x]),
}


@settings(max_examples=25)
@given(wrong=WRONG)
@pytest.mark.parametrize("argument", CALLS)
@pytest.mark.filterwarnings("error")
def test_an_argument_of_a_wrong_type_is_refused_by_name(argument: str, wrong: Any) -> None:
    x = tv.tensor(np.array([1.0, 2.0]), requires_grad=True)
    with pytest.raises((TypeError, ValueError)) as error:
        CALLS[argument](x, x * x, wrong)
    assert argument in str(error.value)


def test_an_array_in_place_of_a_tensor_is_shown_by_its_shape() -> None:
    x = tv.tensor(np.ones(2), requires_grad=True)
    with pytest.raises(
        TypeError, match=r"^grad: inputs is or holds an array of shape \(2,\); give a Tensor or a sequence of Tensors"
    ):
        tv.grad(x.sum(), [x, np.ones(2)])


@pytest.mark.parametrize("gradient", [[1.0, 2.0], (1, 2), np.array([1, 2]), np.array([1.0, 2.0], np.float32)])
def test_gradients_may_be_arrays_and_lists_of_numbers(gradient: Any) -> None:
    for given_as in (gradient, [gradient]):
        x = tv.tensor(np.array([1.0, 2.0]), requires_grad=True)
        if given_as is gradient:
            (x * x).backward(gradient)
            found = x.grad
        else:
            (found,) = tv.grad(x * x, x, grad_outputs=given_as)
        np.testing.assert_array_equal(found.numpy(), [2, 8])


@pytest.mark.parametrize("dtype", [None, "float32", "int64", "bool"])
@pytest.mark.parametrize("data", ["1", 1j, np.array([1j]), ["1", "2"], [1, None], {}])
def test_a_tensor_is_made_of_real_numbers_in_every_dtype(data: Any, dtype: str | None) -> None:
    with pytest.raises(TypeError, match=r"data has dtype .*; a tensor holds real numbers, integers or booleans"):
        tv.tensor(data, dtype)
