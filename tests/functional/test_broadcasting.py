"""Broadcasting, axes, indices and einsum on shapes drawn by hypothesis, against NumPy and finite differences."""

import contextlib
import string
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor

Shape = tuple[int, ...]

examples = settings(max_examples=40)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)
axes_shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)


@pytest.fixture(autouse=True, scope="module")
def plain() -> Iterator[None]:
    with tv.use_kernels("numpy"):
        yield


def drawn(shape: Shape, seed: int = 0) -> Tensor:
    """Values of both signs with distinct magnitudes, so that finite differences stay away from kinks."""
    rng = np.random.default_rng([seed, *shape])
    size = int(np.prod(shape))
    x = rng.permutation(np.linspace(0.3, 2.0, size) + 0.01 * seed) * rng.choice([-1, 1], size)
    return Tensor(x.reshape(shape), requires_grad=True)


def agrees(function: Callable[..., Any], reference: Callable[..., Any], *inputs: Tensor, **params: Any) -> None:
    """Assert that `function` gives NumPy's value, dtype and shape, and that finite differences confirm its gradient."""
    found, expected = function(*inputs, **params), reference(*(x.numpy() for x in inputs), **params)
    found, expected = (list(y) if isinstance(y, (tuple, list)) else [y] for y in (found, expected))
    for y, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(y.numpy(), np.asarray(e), rtol=1e-12, atol=1e-12, strict=True)
    tv.gradcheck(lambda *xs: function(*xs, **params), inputs, rtol=1e-5, atol=1e-6)


# Two operands ---------------------------------------------------------------------------------------------------------

BINARY = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide,
    "maximum": np.maximum, "minimum": np.minimum,
}  # fmt: skip


@examples
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3), st.sampled_from(sorted(BINARY)))
def test_two_operands_broadcast_as_in_numpy(both: hnp.BroadcastableShapes, name: str) -> None:
    x, y = drawn(both.input_shapes[0]), drawn(both.input_shapes[1], 1)
    agrees(getattr(F, name), BINARY[name], x, y)


@examples
@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3))
def test_where_broadcasts_all_three(all_three: hnp.BroadcastableShapes) -> None:
    c, x, y = (drawn(shape, i) for i, shape in enumerate(all_three.input_shapes))
    condition = c.numpy() > 0
    agrees(lambda a, b: F.where(condition, a, b), lambda a, b: np.where(condition, a, b), x, y)


@examples
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3))
def test_broadcast_to_and_sum_to_shape_are_adjoint(both: hnp.BroadcastableShapes) -> None:
    x = drawn(both.input_shapes[0])
    agrees(F.broadcast_to, np.broadcast_to, x, shape=both.result_shape)
    y = drawn(both.result_shape, 1)
    inner = (F.broadcast_to(x, both.result_shape) * y).sum().item()
    assert inner == pytest.approx((x * F.sum_to_shape(y, x.shape)).sum().item(), abs=1e-12)


@st.composite
def matrix_shapes(draw: st.DrawFn) -> tuple[Shape, Shape]:
    """Two shapes that `matmul` takes: vectors, matrices and stacks that broadcast."""
    n, k, m = draw(st.tuples(*[st.integers(1, 4)] * 3))
    stacks = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3)).input_shapes
    left = (k,) if draw(st.booleans()) else (*stacks[0], n, k)
    right = (k,) if draw(st.booleans()) else (*stacks[1], k, m)
    return left, right


@examples
@given(matrix_shapes())
def test_matmul_takes_vectors_and_stacks(both: tuple[Shape, Shape]) -> None:
    agrees(F.matmul, np.matmul, drawn(both[0]), drawn(both[1], 1))


@st.composite
def einsum_calls(draw: st.DrawFn) -> tuple[str, list[Shape]]:
    """A valid specification of one to three operands, with or without ellipsis and arrow, and their shapes."""
    letters = "abcde"
    sizes = dict(zip(letters, draw(st.tuples(*[st.integers(1, 3)] * 5)), strict=True))
    terms = draw(st.lists(st.permutations(letters).map(lambda p: "".join(p[:3])), min_size=1, max_size=3))
    terms = [t[: draw(st.integers(0, 3))] for t in terms]
    rest = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=2)) if draw(st.booleans()) else None
    operands = [tuple(sizes[c] for c in t) for t in terms]
    if rest is not None:
        terms = ["..." + t for t in terms]
        operands = [rest[draw(st.integers(0, len(rest))) :] + shape for shape in operands]  # the last axes are shared
    spec = ",".join(terms)
    if draw(st.booleans()):
        used = sorted(set(spec) & set(letters))
        kept = draw(st.permutations(used))[: draw(st.integers(0, len(used)))] if used else []
        spec += "->" + ("..." if rest is not None else "") + "".join(kept)
    return spec, operands


@settings(max_examples=100)
@example(("...a,...a->...a", [(2, 3, 2), (3, 2)]))
@example(("...a,...a", [(3, 2), (2, 3, 2)]))
@given(einsum_calls())
def test_einsum_agrees_with_numpy(call: tuple[str, list[Shape]]) -> None:
    spec, operands = call
    inputs = [drawn(shape, i) for i, shape in enumerate(operands)]
    agrees(lambda *xs: F.einsum(spec, *xs), lambda *xs: np.einsum(spec, *xs), *inputs)


LETTERS = st.sampled_from(["i", "j", "k", "...", ".", "-", ">", "->", " ", ",", "1", "\u00e9"])


@examples
@given(call=einsum_calls(), place=st.integers(0, 20), cut=st.integers(0, 3), text=st.lists(LETTERS, max_size=2))
@example(call=("ij->ij", [(2, 3)]), place=1, cut=0, text=["."])
@example(call=("i...->i...", [(2, 3)]), place=6, cut=3, text=[])
@example(call=("ij->ij", [(2, 3)]), place=6, cut=0, text=["->", "i"])
@example(call=("ij->ij", [(2, 3)]), place=3, cut=0, text=[" "])
def test_einsum_refuses_the_specs_that_numpy_refuses(
    call: tuple[str, list[Shape]], place: int, cut: int, text: list[str]
) -> None:
    spec, shapes = call
    spec = spec[:place] + "".join(text) + spec[place + cut :]
    inputs = [drawn(shape, i).numpy() for i, shape in enumerate(shapes)]
    try:
        expected = np.einsum(spec, *inputs)
    except ValueError:
        with pytest.raises(ValueError, match=r"^einsum: "):
            F.einsum(spec, *inputs)
        return
    # Two things that NumPy takes are refused: an index within one operand twice, and a length of 1 that is repeated.
    with contextlib.suppress(ValueError):
        np.testing.assert_allclose(F.einsum(spec, *inputs).numpy(), expected, atol=1e-12)


# One operand and axes -------------------------------------------------------------------------------------------------


@st.composite
def axes_of(draw: st.DrawFn, shape: Shape) -> int | tuple[int, ...] | None:
    kinds = [st.none()]
    if shape:
        kinds += [st.integers(-len(shape), len(shape) - 1), hnp.valid_tuple_axes(len(shape))]
    return draw(st.one_of(kinds))


REDUCTIONS = {"sum": np.sum, "mean": np.mean, "var": np.var, "max": np.max, "min": np.min}


@examples
@given(st.data(), axes_shapes, st.booleans(), st.sampled_from([*sorted(REDUCTIONS), "logsumexp"]))
def test_reductions_over_any_axes(data: st.DataObject, shape: Shape, keepdims: bool, name: str) -> None:
    axis = data.draw(axes_of(shape))
    reference = REDUCTIONS.get(name, lambda x, axis, keepdims: np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims)))
    agrees(getattr(F, name), reference, drawn(shape), axis=axis, keepdims=keepdims)


@examples
@given(st.data(), axes_shapes)
def test_operations_along_one_axis_agree_with_numpy(data: st.DataObject, shape: Shape) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = drawn(shape)
    agrees(F.cumsum, np.cumsum, x, axis=axis)
    agrees(F.softmax, lambda a, axis: np.exp(a) / np.exp(a).sum(axis=axis, keepdims=True), x, axis=axis)
    agrees(F.unbind, lambda a, axis: [np.take(a, i, axis) for i in range(a.shape[axis])], x, axis=axis)
    agrees(lambda a, axis: F.stack([a, 2 * a], axis), lambda a, axis: np.stack([a, 2 * a], axis), x, axis=axis)
    agrees(
        lambda a, b, axis: F.concatenate([a, b], axis), lambda a, b, axis: np.concatenate([a, b], axis),
        x, drawn(shape, 1), axis=axis,
    )  # fmt: skip
    cuts = data.draw(st.lists(st.integers(0, shape[axis] + 1), max_size=3).map(sorted))
    cuts = [i - shape[axis] if i < shape[axis] and data.draw(st.booleans()) else i for i in cuts]
    agrees(F.split, np.split, x, indices_or_sections=cuts, axis=axis)
    agrees(F.split, np.split, x, indices_or_sections=shape[axis], axis=axis)
    agrees(F.flip, np.flip, x, axis=data.draw(axes_of(shape)))


def test_cumsum_without_an_axis_flattens_its_input() -> None:
    agrees(F.cumsum, np.cumsum, drawn((2, 3)))


@examples
@given(st.data(), shapes)
def test_rearranging_elements_agrees_with_numpy(data: st.DataObject, shape: Shape) -> None:
    x = drawn(shape)
    order = data.draw(st.permutations(range(len(shape))))
    negative = [a - len(shape) if data.draw(st.booleans()) else a for a in order]
    agrees(F.transpose, np.transpose, x, axes=negative)
    agrees(lambda a: a.T, np.transpose, x)
    agrees(F.reshape, np.reshape, x, shape=data.draw(st.sampled_from([(-1,), (1, *shape), shape[::-1], (x.size, 1)])))
    widths = data.draw(st.lists(st.tuples(*[st.integers(0, 2)] * 2), min_size=len(shape), max_size=len(shape)))
    if shape:
        agrees(lambda a: F.pad(a, widths, 0.5), lambda a: np.pad(a, widths, constant_values=0.5), x)
        i, j = data.draw(st.tuples(*[st.integers(-len(shape), len(shape) - 1)] * 2))
        agrees(F.swapaxes, np.swapaxes, x, axis1=i, axis2=j)


# Indexing -------------------------------------------------------------------------------------------------------------


@examples
@given(st.data(), axes_shapes)
def test_indexing_by_slices_integers_and_new_axes(data: st.DataObject, shape: Shape) -> None:
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    agrees(lambda a: a[key], lambda a: a[key], drawn(shape))


@examples
@given(st.data(), axes_shapes)
def test_gradients_add_up_where_integer_indices_repeat(data: st.DataObject, shape: Shape) -> None:
    key = data.draw(hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2, max_side=4)))
    x = drawn(shape)
    agrees(lambda a: a[key], lambda a: a[key], x)
    as_tensors = tuple(tv.tensor(k) for k in key)
    np.testing.assert_array_equal(x[as_tensors].numpy(), x.numpy()[key])
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    indices = data.draw(st.lists(st.integers(-shape[axis], shape[axis] - 1), min_size=1, max_size=5))
    agrees(F.take, np.take, x, indices=indices, axis=axis)
    agrees(F.take, np.take, x, indices=[i % x.size for i in indices], axis=None)


@examples
@given(st.data(), axes_shapes)
def test_indexing_by_masks(data: st.DataObject, shape: Shape) -> None:
    mask = data.draw(hnp.arrays(np.bool_, shape[: data.draw(st.integers(1, len(shape)))]))
    agrees(lambda a: a[mask], lambda a: a[mask], drawn(shape))
    agrees(lambda a: a[tv.tensor(mask)], lambda a: a[mask], drawn(shape))


@examples
@given(st.data(), axes_shapes)
def test_indexing_by_arrays_and_slices_together(data: st.DataObject, shape: Shape) -> None:
    assume(len(shape) >= 2)
    rows = data.draw(st.lists(st.integers(-shape[0], shape[0] - 1), min_size=1, max_size=4))
    for key in [(rows, slice(None, None, -1)), (..., [0, 0, -1]), (rows, None, 0)]:
        agrees(lambda a, key=key: a[key], lambda a, key=key: a[key], drawn(shape))


@examples
@given(st.data(), axes_shapes)
def test_index_put_replaces_and_its_gradient_goes_to_the_value(data: st.DataObject, shape: Shape) -> None:
    key = data.draw(st.one_of(hnp.basic_indices(shape), hnp.arrays(np.bool_, shape).map(lambda m: (m,))))
    x = drawn(shape)
    target = np.shape(x.numpy()[key])
    value = drawn(data.draw(st.sampled_from([target, (1,) * len(target), ()])), 1)

    def put(a: np.ndarray, v: np.ndarray) -> np.ndarray:
        a = a.copy()
        a[key] = v
        return a

    agrees(lambda a, v: F.index_put(a, v, key), put, x, value)


def test_index_put_refuses_a_gradient_for_values_that_are_overwritten() -> None:
    x, value = drawn((4,)), drawn((2,), 1)
    np.testing.assert_array_equal(F.index_put(x, np.array([5.0, 6.0]), [1, 1]).numpy()[1], 6)
    with pytest.raises(ValueError, match="index_put: the index repeats"):
        F.index_put(x, value, [1, 1])


def test_letters_of_every_case_are_indices() -> None:
    spec = f"{string.ascii_uppercase[:2]},{string.ascii_uppercase[1:3]}->CA"
    agrees(lambda x, y: F.einsum(spec, x, y), lambda x, y: np.einsum(spec, x, y), drawn((2, 3)), drawn((3, 2), 1))
