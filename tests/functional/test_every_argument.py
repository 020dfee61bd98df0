"""Every argument of every function, given values of another kind: one error that names function, argument and value."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from corners import called_like_operations

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op, Tensor

NAN, INF, THING = float("nan"), float("inf"), object()
UNEVEN = [[1.0], [2.0, 3.0]]
NO_NUMBERS = ["a", b"x", THING, {}, [1.5, "a"], UNEVEN, np.full((2, 3), "a"), np.full((2, 3), 1j), int, lambda: 0]

# The kinds of arguments, and what is none of each.
KINDS: dict[str, list[Any]] = {
    "tensor": [None, *NO_NUMBERS],
    "tensor or None": NO_NUMBERS,
    "tensors": [None, "a", b"x", THING, {}, 5, [], [None], [THING], ["a"], int],
    "integer": ["a", b"x", THING, {}, 1.5, NAN, INF, "1", UNEVEN, [None], int, True, np.True_],
    "integers": ["a", b"x", THING, {}, 1.5, NAN, True, [True], [1.5], ["1"], [None], UNEVEN, int, np.array([0.5])],
    "ids": [None, "a", b"x", THING, {}, 1.5, [0.5], ["1"], [None], UNEVEN, int, np.array([1j]), np.array(["a"])],
    "number": [None, "a", b"x", THING, {}, [1.5, "a"], UNEVEN, 1j, int, np.array([1j, 2])],
    "finite": [None, "a", b"x", THING, {}, [], NAN, INF, -INF, "1", 1j, int],
    "positive": [None, "a", b"x", THING, {}, [], NAN, INF, -INF, -1, -1e-5, "1", 1j, int],
    "probability": [None, "a", b"x", THING, {}, [], NAN, INF, -1, -1e-5, 1.5, "1", 1j, int],
    "flag": [None, "a", b"x", THING, {}, [], NAN, 2, 1.5, -1, "True", np.ones(2), int],
    "text": [None, "a", b"x", THING, {}, [], NAN, 5, int, np.ones(2)],
    "dtype": [None, "float31", b"x", THING, {}, [], NAN, 5, np.ones(2, complex), "complex64", "U3", object],
    "device": [None, "a", b"x", THING, {}, [], NAN, 5, np.ones(2), int],
    "generator": ["a", b"x", THING, {}, [], NAN, 5, np.ones(2), int],
    "mask": ["a", b"x", THING, {}, UNEVEN, np.array([["a"] * 2] * 2), np.ones((2, 2), int), np.ones((2, 2), complex)],
    "condition": [None, "a", b"x", THING, {}, UNEVEN, np.array(["a", "b"]), int],
    "index": ["a", b"x", THING, {}, 1.5, NAN, [0.5], UNEVEN, np.array(["a"]), int],
}  # fmt: skip


def t(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).uniform(0.5, 1.5, shape), requires_grad=True)


Given = dict[str, tuple[str, Any]]


def tensors(**given: Tensor) -> Given:
    return {name: ("tensor", x) for name, x in given.items()}


X, ROW, IMAGE, IDS = t(2, 3), t(3), t(1, 1, 4, 4), np.array([0, 1])
ONE, TWO = tensors(x=X), tensors(x=X, y=X)
AXIS: Given = {"axis": ("integers", 0)}
KEPT: Given = {"keepdims": ("flag", False)}
REDUCTION: Given = {"reduction": ("text", "mean")}
EPS: Given = {"eps": ("positive", 1e-5), "narrow": ("flag", False)}
WINDOW: Given = {"kernel_size": ("integers", 2), "stride": ("integers", 2), "padding": ("integers", 0)}
COLUMNS: Given = {"kernel": ("integers", (2, 2)), "stride": ("integers", (1, 1)), "padding": ("integers", (0, 0))}
SHAPE: Given = {"shape": ("integers", (2, 3))}
STREAM: Given = {"p": ("probability", 0.5), "seed": ("integer", 1), "offset": ("integer", 0)}
DTYPE: Given = {"dtype": ("dtype", "float32")}
APPROXIMATE: Given = {"approximate": ("text", "none")}
BY_NAME = (AXIS, KEPT, REDUCTION, EPS, SHAPE, STREAM, DTYPE, APPROXIMATE)  # arguments whose names tell their kinds


def of_first_sample(name: str) -> Given | None:
    """The first sample of an operation, as a call of its function; None if the name of a parameter tells no kind."""
    op = Op.registry[name]
    sample, *others = op.samples()
    given: Given = {}
    for argument, x, *same in zip(op.inputs, sample.inputs, *(other.inputs for other in others), strict=True):
        kind = "tensor or None" if any(y is None for y in (x, *same)) else "tensor"
        given[argument] = (kind, x if x is None else Tensor(x, requires_grad=True))
    for argument in [*inspect.signature(op.forward).parameters][1 + len(op.inputs) :]:
        kinds = [row[argument][0] for row in BY_NAME if argument in row]
        if not kinds:
            return None
        given[argument] = (kinds[0], sample.params.get(argument, getattr(op, argument, None)))
    return given


# A right call of every function: the kind of each argument, and a value.
CALLS: dict[str, Given] = {
    **dict.fromkeys(("ones_like", "sign", "stop_gradient", "zeros_like"), ONE),
    **{name: tensors(x=IMAGE) | WINDOW for name in ("avg_pool2d", "max_pool2d")},
    "add_layer_norm": tensors(x=X, residual=X, weight=ROW, bias=ROW) | EPS,
    "add_rows": tensors(x=t(1, 2, 3)) | {"rows": ("ids", np.array([[1, 1]])), "count": ("integer", 2)},
    "cast": ONE | DTYPE,
    "clip": ONE | {"min": ("tensor or None", 0.1), "max": ("tensor or None", 0.9)},
    "col2im": tensors(x=t(1, 4, 4)) | {"shape": ("integers", (1, 1, 3, 3))} | COLUMNS,
    "concatenate": {"tensors": ("tensors", [X, X]), "axis": ("integer", 0)},
    "contrastive_loss": tensors(image=X, text=X) | {"logit_scale": ("number", 2.0)},
    "conv2d": tensors(x=IMAGE, weight=t(1, 1, 2, 2)) | {"bias": ("tensor or None", t(1)), "stride": ("integers", 1),
                                                        "padding": ("integers", 0)},
    "cross_entropy": tensors(logits=X) | {"target": ("ids", IDS), "ignore_index": ("integer", -100),
                                          "label_smoothing": ("probability", 0.1)} | REDUCTION,
    "dropout": ONE | {"p": ("probability", 0.5), "training": ("flag", True), "generator": ("generator", None)},
    "dropout_mask": SHAPE | STREAM | DTYPE,
    "embedding": {"ids": ("ids", IDS), "weight": ("tensor", X)},
    "generalized_iou": tensors(x=t(2, 4), y=t(2, 4)),
    "im2col": tensors(x=IMAGE) | COLUMNS | {"value": ("number", 0.0)},
    "index": ONE | {"key": ("index", 0)},
    "index_add": ONE | {"index": ("index", (np.array([1, 1]),)), "shape": ("integers", (4, 3))},
    "index_put": tensors(x=X, value=ROW) | {"index": ("index", 0)},
    "interpolate": tensors(x=IMAGE) | {"size": ("integers", 3)},
    "join_heads": {"parts": ("tensors", [t(1, 1, 2, 2)] * 2)},
    "layer_norm": tensors(x=X, weight=ROW, bias=ROW) | EPS,
    "pad": ONE | {"pad_width": ("ids", 1), "value": ("number", 0.0)},
    "patches": tensors(x=IMAGE) | {"size": ("integers", 2)},
    "pixel_shuffle": tensors(x=t(1, 4, 2, 1)) | {"upscale_factor": ("integer", 2)},
    "scaled_dot_product_attention": tensors(q=t(1, 1, 2, 3), k=t(1, 1, 2, 3), v=t(1, 1, 2, 3)) | {
        "attn_mask": ("mask", np.ones((2, 2), bool)), "dropout_p": ("probability", 0.1), "is_causal": ("flag", False),
        "scale": ("number", 0.5), "generator": ("generator", None)
    },
    "split": tensors(x=t(4)) | {"indices_or_sections": ("integers", 2), "axis": ("integer", 0)},
    "split_heads": tensors(x=t(1, 2, 6)) | {"heads": ("integer", 2), "parts": ("integer", 3)},
    "stack": {"tensors": ("tensors", [X, X]), "axis": ("integer", 0)},
    "swapaxes": ONE | {"axis1": ("integer", 0), "axis2": ("integer", 1)},
    "take": ONE | {"indices": ("ids", IDS), "axis": ("integer", 0)},
    "take_rows": tensors(x=t(1, 2, 3)) | {"rows": ("ids", np.array([[0, 1]]))},
    "to_device": ONE | {"device": ("device", "cpu")},
    "transpose": ONE | {"axes": ("integers", (1, 0))},
    "unbind": ONE | {"axis": ("integer", 0)},
    "var": ONE | AXIS | {"correction": ("finite", 0)} | KEPT,
    "where": {"condition": ("condition", np.ones((2, 3), bool))} | TWO,
    "zeros": SHAPE | DTYPE,
}  # fmt: skip
CALLS |= {
    name: given
    for name in called_like_operations()
    if name not in CALLS and (given := of_first_sample(name)) is not None
}
# None is a right value of an argument of another kind.
NONE_IS_RIGHT = {("scaled_dot_product_attention", "scale")}
# Errors that begin with another name: of the operation, or of the function that this one calls.
BEGINS: dict[str, tuple[str, ...]] = {
    "scaled_dot_product_attention": ("attention",), "index_put": ("index",), "swapaxes": ("transpose",),
    "pixel_shuffle": ("reshape",), "take": ("index", "embedding"), "to_device": ("device",),
}  # fmt: skip
# Arguments that errors call by another name, or by what their parts are.
CALLED = {"indices_or_sections": "split", "key": "index", "min": "lowest", "max": "highest", "tensors": "parts",
          "indices": "index", "pad_width": "width"}  # fmt: skip


def wrong_values(name: str) -> Iterator[tuple[str, Any]]:
    """The arguments of a function with each value of another kind; arrays in the shape of the right one."""
    for argument, (kind, right) in CALLS[name].items():
        for wrong in KINDS[kind]:
            if isinstance(wrong, np.ndarray) and isinstance(right, Tensor):
                wrong = np.resize(wrong, right.shape)
            if not (wrong is None and (name, argument) in NONE_IS_RIGHT):
                yield argument, wrong


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_of_every_function_is_in_the_table(name: str) -> None:
    assert CALLS[name].keys() == inspect.signature(getattr(F, name)).parameters.keys()


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_of_the_table_are_right(name: str) -> None:
    getattr(F, name)(**{argument: value for argument, (_, value) in CALLS[name].items()})


def check_refused(call: Callable[[], Any], name: str, argument: str) -> None:
    with np.errstate(all="ignore"), pytest.raises((TypeError, ValueError, IndexError)) as caught:
        pytest.fail(f"{name} takes a wrong value of {argument} and returns {call()}")
    text = str(caught.value)
    begins = text.partition(" ")[0].rstrip(":").removeprefix("basic_").removeprefix("advanced_")
    assert begins == name or begins in BEGINS.get(name, ()), text
    assert argument in text or CALLED.get(argument, argument) in text, text


@pytest.mark.parametrize("name", CALLS)
def test_a_value_of_another_kind_is_refused(name: str) -> None:
    right = {argument: value for argument, (_, value) in CALLS[name].items()}
    for argument, wrong in wrong_values(name):
        given = right | {argument: wrong}
        check_refused(partial(getattr(F, name), **given), name, argument)


@pytest.mark.parametrize("wrong", KINDS["tensor"])
def test_einsum_refuses_what_is_no_tensor(wrong: Any) -> None:
    check_refused(lambda: F.einsum("ij,jk", X, wrong), "einsum", "operand 1")
    check_refused(lambda: F.einsum(THING, X), "einsum", "spec")


def test_an_eps_of_zero_is_exact() -> None:
    x = np.array([[1.0, 2.0, 4.0]])
    y = F.layer_norm(Tensor(x), Tensor(np.ones(3)), Tensor(np.zeros(3)), eps=0)
    np.testing.assert_allclose(y.numpy(), (x - x.mean()) / x.std(), rtol=1e-14)
    with pytest.raises(ValueError, match="eps is -1"):
        tv.nn.LayerNorm(3, eps=-1)
