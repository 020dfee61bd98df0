"""The functions of `tinyvit.kernels`, which call kernels on arrays, without the tape: their options and checks."""

from typing import Any

import numpy as np
import pytest
from draws import Array
from tinyvit.kernels import (
    attention_backward,
    attention_forward,
    attention_weights,
    layer_norm_backward,
    layer_norm_forward,
)

import tinyvit as tv
from tinyvit.functional.attention import Attention

every_implementation = pytest.mark.parametrize(
    "implementation", ["numpy", *(pytest.param(name, marks=pytest.mark.slow) for name in ("auto", "numba", "numba:v1"))]
)
B, H, N, S, D, E = 2, 3, 5, 7, 4, 6
LENGTHS = np.array([3, 7])


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def heads() -> tuple[Array, Array, Array]:
    return normal(B, H, N, D), normal(B, H, S, D), normal(B, H, S, E)


MASK = normal(B, 1, N, S) > -0.5
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.9},
    "bias": {"bias": normal(H, N, S)},
    "mask": {"mask": MASK},
    "lengths": {"key_lengths": LENGTHS},
    "lengths and mask": {"key_lengths": LENGTHS, "mask": MASK},
    "causal": {"is_causal": True, "scale": 0.4},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def scores(q: Array, k: Array, *, bias: Any = 0.0, mask: Any = True, **options: Any) -> Array:
    """Return scale q k^T + bias; -inf where a query may not see a key."""
    seen = np.broadcast_to(mask, (B, H, N, S)).copy()
    if "key_lengths" in options:
        for b, length in enumerate(options["key_lengths"]):
            seen[b, :, :, length:] = False
    if options.get("is_causal"):
        seen &= np.tri(N, S, dtype=bool)
    return np.where(seen, options.get("scale", 1 / np.sqrt(D)) * (q @ k.transpose(0, 1, 3, 2)) + bias, -np.inf)


def probabilities(s: Array) -> Array:
    e = np.where(np.isfinite(s), np.exp(s), 0)
    return e / np.maximum(e.sum(-1, keepdims=True), 1e-300)


@every_implementation
@every_option
def test_attention_is_a_weighted_mean_of_values(options: dict[str, Any], implementation: str) -> None:
    q, k, v = heads()
    s = scores(q, k, **options)
    out, lse = attention_forward(q, k, v, **options, implementation=implementation)
    np.testing.assert_allclose(out, probabilities(s) @ v, atol=1e-12)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(lse, np.log(np.exp(s).sum(-1)), atol=1e-12)
    np.testing.assert_allclose(attention_weights(q, k, lse, **options), probabilities(s), atol=1e-12)


@every_implementation
@every_option
def test_the_gradients_of_attention_agree_with_finite_differences(options: dict[str, Any], implementation: str) -> None:
    arrays = dict(zip("qkv", heads(), strict=True)) | {key: options[key] for key in ("bias",) if key in options}
    fixed = {key: value for key, value in options.items() if key != "bias"}
    chosen = {**fixed, "implementation": implementation}
    out, lse = attention_forward(**arrays, **chosen)
    dout, step = normal(*out.shape), 1e-5
    found = attention_backward(dout, **arrays, **chosen, out=out, lse=lse)
    assert (found[3] is None) == ("bias" not in options)
    for (name, x), gradient in zip(arrays.items(), found, strict=False):
        direction = normal(*x.shape, seed=1)
        ends = [attention_forward(**arrays | {name: x + sign * step * direction}, **chosen)[0] for sign in (1, -1)]
        slope = np.sum(dout * (ends[0] - ends[1])) / (2 * step)
        assert gradient.shape == x.shape
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-6, atol=1e-8, err_msg=name)


@every_implementation
def test_gradients_of_attention_are_written_to_out_grads(implementation: str) -> None:
    packed = normal(B, N, 3, H, D)
    q, k, v = packed.transpose(2, 0, 3, 1, 4)
    out, lse = attention_forward(q, k, v, implementation=implementation)
    expected = attention_backward(normal(*out.shape), q, k, v, out, lse, implementation=implementation)[:3]
    target = np.full_like(packed, np.nan)
    views = tuple(target.transpose(2, 0, 3, 1, 4))
    arguments = (normal(*out.shape), q, k, v, out, lse)
    found = attention_backward(*arguments, out_grads=views, implementation=implementation)
    assert all(x is view for x, view in zip(found, views, strict=False))
    np.testing.assert_array_equal(target.transpose(2, 0, 3, 1, 4), expected)


@pytest.mark.slow
def test_dropout_of_attention_is_drawn_from_its_stream() -> None:
    streams = [{"dropout_p": 0.5, "seed": seed, "offset": offset} for seed, offset in ((1, 0), (2, 0), (1, 1))]
    by_kernel = [attention_forward(*heads(), **stream, implementation="numba") for stream in streams]
    for (out, _), stream in zip(by_kernel, streams, strict=True):
        with tv.use_kernels("numpy"):
            recorded = Attention.apply(*heads(), None, scale=D**-0.5, **stream)
        np.testing.assert_allclose(out, recorded.numpy(), atol=1e-12)
    assert len({out.tobytes() for out, _ in by_kernel}) == 3


@every_implementation
@pytest.mark.parametrize("has_residual", [False, True])
def test_layer_norm_and_its_gradients_follow_the_formula(has_residual: bool, implementation: str) -> None:
    x, residual, weight, bias = normal(3, 5, 8), normal(3, 5, 8) + 1, normal(8), normal(8) * 2
    options: dict[str, Any] = {"eps": 0.1, "implementation": implementation}

    def outputs(x: Array, weight: Array, bias: Array) -> tuple[Array, ...]:
        return layer_norm_forward(x, weight, bias, **options, residual=residual if has_residual else None)

    *total, y, mean, rstd = outputs(x, weight, bias)
    summed = x + residual if has_residual else x
    if has_residual:
        np.testing.assert_allclose(total[0], summed, rtol=1e-13)
    deviation = summed - summed.mean(-1, keepdims=True)
    np.testing.assert_allclose(mean, summed.mean(-1), atol=1e-13)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(np.mean(deviation**2, -1) + 0.1), rtol=1e-12)
    np.testing.assert_allclose(y, deviation * rstd[..., None] * weight + bias, atol=1e-12)

    dy, step = normal(3, 5, 8) - 0.3, 1e-5
    found = layer_norm_backward(dy, summed, weight, mean, rstd, **options)
    given = [x, weight, bias]
    for i, gradient in enumerate(found):
        direction = normal(*given[i].shape, seed=1)
        ends = [
            outputs(*(a + sign * step * direction if i == j else a for j, a in enumerate(given))) for sign in (1, -1)
        ]
        slope = np.sum(dy * (ends[0][-3] - ends[1][-3])) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-6, atol=1e-8)


Q, K, V = heads()
HALVES = tuple(x.astype("e") for x in (Q, K, V))
ROW, COLUMN, SINGLE = np.ones((2, 3)), np.ones(3), np.ones(3, "f")
WRONG: list[tuple[type[Exception], str, Any, tuple[Any, ...], dict[str, Any]]] = [
    (ValueError, "q has shape", attention_forward, (Q[0], K, V), {}),
    (ValueError, "v \\(2, 3, 5, 6\\)", attention_forward, (Q, K, V[:, :, :5]), {}),
    (ValueError, "q has shape", attention_forward, (Q[..., :2], K, V), {}),
    (TypeError, "float64, float32, float64", attention_forward, (Q, K.astype("f"), V), {}),
    (
        TypeError,
        "bias are float64, .*, float32",
        attention_forward,
        (Q, K, V),
        {"bias": SINGLE},
    ),
    (ValueError, "bias has shape \\(3,\\)", attention_forward, (Q, K, V), {"bias": COLUMN}),
    (ValueError, "bias has shape", attention_forward, (Q, K, V), {"bias": normal(2, B, H, N, S)}),
    (ValueError, "mask has shape \\(3,\\)", attention_weights, (Q, K, Q[..., 0]), {"mask": COLUMN > 0}),
    (TypeError, "mask has dtype float64", attention_forward, (Q, K, V), {"mask": np.ones(S)}),
    (ValueError, "key_lengths has shape \\(3,\\)", attention_forward, (Q, K, V), {"key_lengths": [1, 2, 3]}),
    (ValueError, "dropout_p is 1.5", attention_forward, (Q, K, V), {"dropout_p": 1.5}),
    (ValueError, "seed is -1", attention_forward, (Q, K, V), {"seed": -1}),
    (ValueError, "offset is 9223372036854775808", attention_forward, (Q, K, V), {"offset": 2**63}),
    (ValueError, "dout has shape", attention_backward, (Q, Q, K, V, Q, Q[..., 0]), {}),
    (ValueError, "lse has shape", attention_backward, (Q @ normal(D, E), Q, K, V, Q @ normal(D, E), Q), {}),
    (ValueError, "implementation is 'fast'", attention_forward, (Q, K, V), {"implementation": "fast"}),
    (ValueError, "implementation is 'numba:vx'", attention_forward, (Q, K, V), {"implementation": "numba:vx"}),
    (
        RuntimeError,
        "the inputs are float16, and numba computes in bfloat16, float32, float64",
        attention_forward,
        tuple(x.astype("e") for x in heads()),
        {"implementation": "numba"},
    ),
    (ValueError, "weight \\(2,\\)", layer_norm_forward, (ROW, COLUMN[:2], COLUMN[:2]), {}),
    (TypeError, "weight float32", layer_norm_forward, (ROW, SINGLE, COLUMN), {}),
    (ValueError, "residual has shape \\(2, 2\\)", layer_norm_forward, (ROW, COLUMN, COLUMN), {"residual": ROW[:, :2]}),
    (ValueError, "mean \\(3,\\)", layer_norm_backward, (ROW, ROW, COLUMN, COLUMN, COLUMN), {}),
]


@pytest.mark.parametrize(("error", "says", "function", "arguments", "options"), WRONG)
def test_wrong_arguments_are_refused(error: Any, says: str, function: Any, arguments: Any, options: Any) -> None:
    with pytest.raises(error, match=says):
        function(*arguments, **options)


@pytest.mark.parametrize("keys", [16, 400])  # in one block, and in several
@pytest.mark.parametrize("far", [-1e9, -1e4, 1e6, np.finfo(np.float32).min])
def test_probabilities_are_exact_where_all_scores_are_large(far: float, keys: int) -> None:
    """A large negative bias for padding gives such scores, in a sample that is all padding: its weights are equal."""
    q, k, v = (normal(1, 1, n, D).astype(np.float32) for n in (3, keys, keys))
    q[...] = 0
    bias = np.full((1, 1, 1, keys), far, np.float32)
    out, lse = attention_forward(q, k, v, bias=bias)
    np.testing.assert_allclose(attention_weights(q, k, lse, bias=bias), 1 / keys, rtol=1e-5)
    dout = normal(1, 1, 3, D, seed=1).astype(np.float32)
    for implementation in ("numba", "numba:v1"):
        *_, dv, _ = attention_backward(dout, q, k, v, out, lse, bias=bias, implementation=implementation)
        expected = np.broadcast_to(dout.sum(axis=2, keepdims=True) / keys, dv.shape)
        np.testing.assert_allclose(dv, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_saved_arrays_that_do_not_fit_are_refused() -> None:
    q, k, v = heads()
    out, lse = attention_forward(q, k, v)
    with pytest.raises(ValueError, match=r"attention_backward: out has shape \(2, 3, 1, 6\)"):
        attention_backward(out, q, k, v, out[:, :, :1], lse)
    with pytest.raises(TypeError, match="attention_backward: dout is float32 and q float64"):
        attention_backward(out.astype(np.float32), q, k, v, out, lse)
    with pytest.raises(ValueError, match="attention_weights: lse has shape"):
        attention_weights(q, k, lse[:1])
    with pytest.raises(ValueError, match="D must be at least 1"):
        attention_forward(q[..., :0], k[..., :0], v)


@pytest.mark.slow
def test_the_saved_logarithm_may_have_any_layout() -> None:
    q, k, v = heads()
    out, lse = attention_forward(q, k, v)
    other = np.asfortranarray(lse)
    other.flags.writeable = False
    expected, found = (attention_backward(out, q, k, v, out, x)[:3] for x in (lse, other))
    for e, f in zip(expected, found, strict=True):
        np.testing.assert_array_equal(e, f)
    np.testing.assert_array_equal(attention_weights(q, k, other), attention_weights(q, k, lse))


@pytest.mark.slow
def test_the_bias_of_a_linear_map_without_inputs_has_a_gradient() -> None:
    x, w, b = (tv.Tensor(a, requires_grad=True) for a in (np.zeros((5, 0)), np.zeros((40, 0)), np.zeros(40)))
    with tv.use_kernels("numba"):
        tv.functional.linear(x, w, b).sum().backward()
    np.testing.assert_array_equal(b.grad.numpy(), np.full(40, 5.0))


@pytest.mark.slow
def test_out_grads_must_be_like_the_inputs() -> None:
    q, k, v = heads()
    out, lse = attention_forward(q, k, v)
    targets = tuple(np.full_like(x, np.nan) for x in (q, k, v))
    returned = attention_backward(out, q, k, v, out, lse, out_grads=targets)
    for target, given, expected in zip(targets, returned, attention_backward(out, q, k, v, out, lse), strict=False):
        assert given is target
        np.testing.assert_array_equal(target, expected)
    for wrong, says in ((targets[:2], "2 entries"), ((q[:1], k, v), "of q"), ((q, k.astype("f"), v), "of k")):
        with pytest.raises(ValueError, match=f"out_grads has {says}|{says} in out_grads"):
            attention_backward(out, q, k, v, out, lse, out_grads=wrong)
