"""What the functions of `tinyvit.functional` promise beyond their formulas: corner cases and errors."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from oracles import ORACLES

import tinyvit as tv
import tinyvit.functional as F
from tinyvit import backend
from tinyvit.engine import Tensor
from tinyvit.functional import indexing

INF = np.inf


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    with tv.use_kernels("numpy"):
        yield


def normal(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.numpy() for t in tensors]


A, B = normal(3, 4), normal(3, 4, seed=1)
IMAGES, HEADS = normal(2, 3, 6, 6), (normal(2, 2, 3, 4), normal(2, 2, 5, 4, seed=1), normal(2, 2, 5, 4, seed=2))
WEIGHT, SHIFT = normal(4, seed=3), normal(4, seed=4)


# Corners: ties, infinities, empty masks -------------------------------------------------------------------------------


ROWS = [np.array([2, 0, 2]), np.array([[1], [1]], np.int32), np.array([-1, 2]), np.array([], int), np.array([2], "u1")]


@pytest.mark.parametrize("implementation", ["numpy", "auto"])
@pytest.mark.parametrize("ids", ROWS, ids=["repeated", "a table", "from the end", "none", "uint8"])
@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 2), (3, 0)])
def test_integer_indices_pick_the_rows_numpy_picks(
    implementation: str, ids: np.ndarray, shape: tuple[int, ...]
) -> None:
    with tv.use_kernels(implementation):
        x = normal(*shape)
        picked = x[ids]
        np.testing.assert_array_equal(picked.numpy(), x.numpy()[ids])
        weights = np.arange(1.0, 1 + picked.size).reshape(picked.shape)
        (found,) = tv.grad((picked * weights).sum(), x)
        expected = np.zeros(shape)
        np.add.at(expected, (ids,), weights)
        np.testing.assert_array_equal(found.numpy(), expected)
        with pytest.raises(IndexError, match="out of bounds"):
            x[np.array([3])]


def gradient_of(function: Callable[[Tensor], Tensor], x: Any) -> np.ndarray:
    x = tv.tensor(np.asarray(x, np.float64), requires_grad=True)
    return tv.grad(function(x).sum(), x)[0].numpy()


def test_ties_share_the_gradient_equally() -> None:
    row = [1.0, 3.0, 3.0, 3.0]
    np.testing.assert_array_equal(gradient_of(F.max, row), np.array([0, 1, 1, 1]) / 3)
    np.testing.assert_array_equal(gradient_of(lambda x: F.min(-x, axis=0), row), -np.array([0, 1, 1, 1]) / 3)
    np.testing.assert_array_equal(gradient_of(lambda x: F.maximum(x, 3.0), row), [0, 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(gradient_of(lambda x: F.minimum(3.0, x), row), [1, 0.5, 0.5, 0.5])
    image = [[[[1.0, 2.0], [2.0, 0.0]]]]
    np.testing.assert_array_equal(gradient_of(lambda x: F.max_pool2d(x, 2), image), [[[[0, 0.5], [0.5, 0]]]])


def test_at_kinks_the_gradient_is_the_documented_one() -> None:
    np.testing.assert_array_equal(gradient_of(F.relu, [-1.0, 0.0, 2.0]), [0, 0, 1])
    np.testing.assert_array_equal(gradient_of(F.abs, [-1.0, 0.0, 2.0]), [-1, 0, 1])
    np.testing.assert_array_equal(gradient_of(lambda x: F.clip(x, 0, 1), [-0.5, 0.0, 0.5, 1.0, 1.5]), [0, 1, 1, 1, 0])
    np.testing.assert_array_equal(gradient_of(lambda x: F.clip(x, max=1), [-9.0, 1.5]), [1, 0])


def test_powers_of_zero() -> None:
    np.testing.assert_array_equal(gradient_of(lambda x: x**2, [0.0, 3.0]), [0, 6])
    np.testing.assert_array_equal(gradient_of(lambda x: x**1, [0.0, 3.0]), [1, 1])
    np.testing.assert_array_equal(gradient_of(lambda x: x**0, [0.0, 3.0]), [0, 0])
    np.testing.assert_array_equal(gradient_of(lambda x: x ** np.zeros(2), [0.0, 3.0]), [0, 0])
    np.testing.assert_array_equal(
        gradient_of(lambda y: tv.tensor(np.array([0.0, 2.0])) ** y, [2.0, 0.0]), [0, np.log(2)]
    )


def test_a_power_that_is_0_beside_an_infinity_has_the_gradient_0() -> None:
    x, y = (
        tv.tensor(np.array(v), requires_grad=True) for v in ([0.7, -0.7, 1.3, INF, 2.0], [INF, INF, -INF, -0.5, 3.0])
    )
    dx, dy = tv.grad((x**y).sum(), [x, y])
    np.testing.assert_array_equal(dx.numpy(), [0, 0, 0, 0, 12])
    np.testing.assert_array_equal(dy.numpy(), [0, 0, 0, 0, 8 * np.log(2)])


def test_the_mixed_derivative_of_a_power_at_exponent_zero() -> None:
    x, y = tv.tensor(np.float64(2), requires_grad=True), tv.tensor(np.float64(0), requires_grad=True)
    (dx,) = tv.grad(x**y, x, create_graph=True)  # y x^(y-1)
    assert tv.grad(dx, y)[0].item() == 1 / 2


def test_nothing_overflows_at_large_arguments() -> None:
    x = np.array([-1e4, -800.0, 0.0, 800.0, 1e4])
    np.testing.assert_array_equal(F.sigmoid(x).numpy(), [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(F.softmax(x).numpy(), [0, 0, 0, 0, 1])
    np.testing.assert_allclose(F.log_softmax(x).numpy(), x - 1e4)
    assert F.logsumexp(x).item() == 1e4
    np.testing.assert_allclose(
        F.binary_cross_entropy_with_logits(tv.tensor(x), np.array([1, 0, 0, 1, 0]), "none").numpy(),
        [1e4, 0, np.log(2), 0, 1e4],
    )
    for function in (F.sigmoid, F.silu, F.softmax, F.log_softmax, F.gelu, lambda t: F.gelu(t, "tanh")):
        assert np.isfinite(gradient_of(function, x)).all()


@pytest.mark.parametrize(
    "function",
    [
        F.softmax,
        F.log_softmax,
        lambda x: F.logsumexp(x, axis=-1),
        lambda x: F.cross_entropy(x, np.zeros(len(x.data), int), reduction="none"),
        lambda x: F.layer_norm(x, tv.tensor(np.ones(5)), tv.tensor(np.ones(5))),
        lambda x: F.scaled_dot_product_attention(x, *[tv.tensor(np.eye(5))] * 2),
    ],
)
def test_a_row_is_computed_alike_however_large_the_others_are(function: Any) -> None:
    rows = np.random.default_rng(0).standard_normal((4, 5)) + np.array([[0.0], [1e4], [-1e4], [3.0]])
    alone = np.concatenate([function(tv.tensor(row[None])).numpy() for row in rows])
    np.testing.assert_allclose(function(tv.tensor(rows)).numpy(), alone, rtol=1e-12, atol=1e-300)


def test_logsumexp_of_infinities() -> None:
    x = np.array([[-INF, -INF], [-INF, 1.0], [INF, 1.0]])
    np.testing.assert_array_equal(F.logsumexp(x, axis=1).numpy(), [-INF, 1, INF])
    np.testing.assert_array_equal(gradient_of(lambda t: F.logsumexp(t, axis=1), x[:2]), [[0, 0], [0, 1]])


def test_nan_is_never_hidden() -> None:
    x = np.array([1.0, np.nan, 2.0])
    for function in (F.max, F.min, F.logsumexp, F.relu, F.softmax, F.clip, lambda t: F.maximum(t, 0), F.erf, F.sigmoid):
        y = function(x, 0, 1) if function is F.clip else function(x)
        assert np.isnan(y.numpy()).any()


def test_erf_keeps_float32_accuracy() -> None:
    x = np.linspace(-6, 6, 20_001, dtype=np.float32)
    exact = ORACLES["erf"](x)
    y = F.erf(x).numpy()
    assert y.dtype == np.float32
    assert np.abs(y - exact).max() <= 4 * np.finfo(np.float32).eps  # two polynomials by Horner's rule, and a division
    small = np.float32([0.0, 1e-30, -1e-10, 1e-4])
    np.testing.assert_allclose(F.erf(small).numpy(), ORACLES["erf"](small), rtol=3e-7)


def test_the_slope_of_erf_is_exact() -> None:
    x = np.linspace(-4, 4, 101)
    np.testing.assert_allclose(gradient_of(F.erf, x), 2 / np.sqrt(np.pi) * np.exp(-(x**2)), rtol=1e-14)


# Normalization --------------------------------------------------------------------------------------------------------


def test_layer_norm_far_from_zero_uses_two_passes() -> None:
    x = (1000 + np.random.default_rng(0).standard_normal((4, 64))).astype(np.float32)
    one, zero = np.ones(64, np.float32), np.zeros(64, np.float32)
    exact = ORACLES["layer_norm"](x.astype(np.float64), one, zero)
    assert np.abs(F.layer_norm(x, one, zero).numpy() - exact).max() < 1e-3  # E[x^2] - E[x]^2 is off by 0.1
    assert np.abs(F.var(x, axis=1).numpy() / x.astype(np.float64).var(axis=1) - 1).max() < 1e-3


def test_layer_norm_of_a_constant_row_is_the_bias() -> None:
    weight, bias = normal(5), normal(5, seed=1)
    np.testing.assert_array_equal(
        F.layer_norm(np.full((2, 5), 7.0), weight, bias).numpy(), np.stack([bias.numpy()] * 2)
    )


# Convolution and pooling ----------------------------------------------------------------------------------------------


def test_avg_pool_counts_its_padding_and_max_pool_does_not() -> None:
    x = np.full((1, 1, 2, 2), -4.0)
    np.testing.assert_array_equal(F.avg_pool2d(x, 2, 2, 1).numpy(), np.full((1, 1, 2, 2), -1.0))
    np.testing.assert_array_equal(F.max_pool2d(x, 2, 2, 1).numpy(), np.full((1, 1, 2, 2), -4.0))


@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
def test_the_stride_of_a_pool_is_its_window_by_default(pool: Callable[..., Tensor]) -> None:
    assert pool(np.zeros((1, 2, 7, 9)), (2, 3)).shape == (1, 2, 3, 3)


# Losses ---------------------------------------------------------------------------------------------------------------


def test_cross_entropy_averages_over_what_is_not_ignored() -> None:
    logits, ids = normal(2, 3, 4), np.array([[0, -1, 3], [-1, -1, 2]])
    rows = [(0, 0, 0), (0, 2, 3), (1, 2, 2)]
    log_p = F.log_softmax(logits).numpy()
    loss = F.cross_entropy(logits, ids, ignore_index=-1)
    assert loss.item() == pytest.approx(-np.mean([log_p[r] for r in rows]))
    (gradient,) = tv.grad(loss, logits)
    assert (gradient.numpy()[ids == -1] == 0).all()


def test_cross_entropy_of_a_batch_that_is_ignored_altogether_is_zero() -> None:
    logits = normal(2, 3)
    loss = F.cross_entropy(logits, [-100, -100])
    assert loss.item() == 0
    assert (tv.grad(loss, logits)[0].numpy() == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_ids_and_their_one_hot_probabilities_give_the_same_loss(smoothing: float, reduction: str) -> None:
    logits, ids = normal(2, 3, 4), np.array([[0, 1, 3], [2, 2, 2]], np.uint8)
    losses = [F.cross_entropy(logits, t, label_smoothing=smoothing, reduction=reduction) for t in (ids, np.eye(4)[ids])]
    np.testing.assert_allclose(*arrays(*losses), rtol=1e-14)
    one, other = (tv.grad(loss.sum(), logits)[0].numpy() for loss in losses)
    np.testing.assert_allclose(one, other, atol=1e-15)


def test_cross_entropy_of_an_impossible_class() -> None:
    logits = tv.tensor(np.array([[0.0, -INF, 1.0]]), requires_grad=True)
    assert F.cross_entropy(logits, [0]).item() == pytest.approx(np.log1p(np.e))
    assert F.cross_entropy(logits, [1]).item() == INF
    np.testing.assert_allclose(
        tv.grad(F.cross_entropy(logits, [0]), logits)[0].numpy(), [[-np.e / (1 + np.e), 0, np.e / (1 + np.e)]]
    )


def test_contrastive_loss_is_the_mean_of_both_directions() -> None:
    image, text = (Tensor(t.numpy() / np.linalg.norm(t.numpy(), axis=1, keepdims=True)) for t in (A, B))
    cosines = 3 * image.numpy() @ text.numpy().T
    rows, columns = (ORACLES["cross_entropy"](c, ids=np.arange(3)) for c in (cosines, cosines.T))
    assert F.contrastive_loss(image, text, 3.0).item() == pytest.approx((rows + columns) / 2)


# Errors name the function, the argument, its value and what is allowed ------------------------------------------------

attend = F.scaled_dot_product_attention
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: F.matmul(A, B), ValueError, r"matmul: x of shape \(3, 4\) has 4 columns, and y .* 3 rows"),
    (lambda: F.matmul(A, 2.0), ValueError, r"matmul: x has shape \(3, 4\) and y \(\)"),
    (lambda: F.linear(A, normal(4, 2)), ValueError, r"linear: x has shape \(3, 4\) and weight \(4, 2\)"),
    (lambda: F.linear(A, normal(2, 4), normal(3)), ValueError, r"linear: bias has shape \(3,\); it must be \(2,\)"),
    (lambda: F.conv2d(A, IMAGES), ValueError, "conv2d: x has shape"),
    (lambda: F.conv2d(IMAGES, normal(2, 3, 3, 3), stride=0), ValueError, "conv2d: stride is 0"),
    (lambda: F.conv2d(IMAGES, normal(2, 3, 9, 9)), ValueError, r"conv2d: a window of \(9, 9\) does not fit"),
    (lambda: F.conv2d(IMAGES, normal(2, 3, 3, 3), normal(3)), ValueError, r"conv2d: bias has shape \(3,\)"),
    (lambda: F.max_pool2d(IMAGES, 2, padding=2), ValueError, r"max_pool2d: padding \(2, 2\) is more than half"),
    (lambda: F.max_pool2d(IMAGES, 2, padding=(2, 0)), ValueError, r"max_pool2d: padding \(2, 0\) is more than half"),
    (lambda: F.max_pool2d(IMAGES, 2, padding=(0, 2)), ValueError, r"max_pool2d: padding \(0, 2\) is more than half"),
    (lambda: F.avg_pool2d(IMAGES, (2, 2, 2)), ValueError, r"avg_pool2d: kernel_size is \(2, 2, 2\)"),
    (lambda: F.einsum("ii->i", normal(3, 3)), ValueError, "einsum: term 'ii'"),
    (lambda: F.einsum("ij,jk->ik", A, B), ValueError, "einsum: index 'j'"),
    (lambda: F.einsum("ij->ij", A, B), ValueError, "1 terms for 2 operands"),
    (lambda: F.einsum("ij->ik", A), ValueError, "einsum: the result"),
    (lambda: F.transpose(A, (0, 0)), ValueError, r"transpose: axes \(0, 0\)"),
    (lambda: F.transpose(A, (2, 3)), ValueError, r"transpose: axes \(2, 3\)"),
    (lambda: F.take(A, [0], axis=2), ValueError, "axis 2 is out of bounds"),
    (lambda: F.unbind(A, 2), ValueError, "axis 2 is out of bounds"),
    (lambda: F.swapaxes(A, 0, 2), ValueError, "axis2 2 is out of bounds"),
    (lambda: F.split(A, 2, axis=0), ValueError, "split: an axis of length 3 cannot be cut into 2"),
    (lambda: F.split(A, [-1, 1], axis=1), ValueError, r"split: indices \(-1, 1\) are not in order"),
    (lambda: F.clip(A), ValueError, "clip: min and max are both None"),
    (lambda: F.gelu(A, "fast"), ValueError, "gelu: approximate is 'fast'"),
    (lambda: F.bias_gelu(A, normal(3)), ValueError, r"bias_gelu: x has shape \(3, 4\) and bias \(3,\)"),
    (lambda: F.layer_norm(A, WEIGHT, normal(3)), ValueError, r"layer_norm: .* bias \(3,\)"),
    (lambda: F.add_layer_norm(A, normal(2, 4), WEIGHT, SHIFT), ValueError, r"add_layer_norm: .* residual \(2, 4\)"),
    (lambda: F.embedding([0, 3], A), ValueError, r"embedding: ids go from 0 to 3; they must be in \[0, 3\)"),
    (lambda: F.embedding([-1], A), ValueError, "embedding: ids go from -1"),
    (lambda: F.embedding([0.5], A), TypeError, "embedding: ids have dtype float64"),
    (lambda: F.take_rows(A, [[0]]), ValueError, r"take_rows: x has shape \(3, 4\) and rows \(1, 1\) of int64"),
    (lambda: F.take_rows(IMAGES[0], [[0]]), ValueError, r"rows \(1, 1\) of int64; they must be \(B, N, C\) and"),
    (lambda: F.take_rows(IMAGES[0][:1], [[99]]), ValueError, "take_rows: rows go from 99 to 99"),
    (lambda: F.dropout(A, 1.5), ValueError, "p is 1.5"),
    (lambda: attend(A, B, B, dropout_p=-1), ValueError, "dropout_p is -1"),
    (lambda: attend(*HEADS[:2], normal(2, 2, 4, 4)), ValueError, r"attention: q has shape .* v \(2, 2, 4, 4\)"),
    (lambda: attend(*HEADS, np.ones((2, 2), bool)), ValueError, r"attn_mask has shape \(2, 2\)"),
    (lambda: attend(*HEADS, np.ones((3, 5), int)), TypeError, "attn_mask has dtype int64"),
    (lambda: F.cross_entropy(A, [0, 1, 4]), ValueError, r"cross_entropy: target go.*4.*\[0, 4\)"),
    (lambda: F.cross_entropy(A, [0, 1]), ValueError, r"cross_entropy: target has shape \(2,\)"),
    (lambda: F.cross_entropy(A, B, reduction="avg"), ValueError, "cross_entropy: reduction is 'avg'"),
    (lambda: F.cross_entropy(A, B, label_smoothing=1.0), ValueError, "label_smoothing is 1.0"),
    (lambda: F.mse_loss(A, normal(4)), ValueError, r"mse_loss: x has shape \(3, 4\) and target \(4,\)"),
    (lambda: F.contrastive_loss(A, normal(2, 4), 1.0), ValueError, "contrastive_loss: image"),
    (lambda: A["a"], TypeError, "index"),
    (lambda: A[1.5], TypeError, "index"),
    (lambda: F.exp("a"), TypeError, "exp: x is a str"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_state_the_received_value_and_what_is_allowed(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("join", [F.stack, F.concatenate])
def test_an_empty_list_cannot_be_joined(join):
    with pytest.raises(ValueError, match="tensors is empty"):
        join([])


def test_an_axis_cannot_be_split_into_zero_parts():
    with pytest.raises(ValueError, match="cannot be cut into 0 equal parts"):
        F.split(tv.tensor([1.0, 2.0]), 0)


def test_a_tensor_must_be_made_of_an_array():
    with pytest.raises(TypeError, match=r"not a str; tinyvit\.tensor\(data\) makes one"):
        tv.Tensor("hello")


# Sums over repeated indices, as they are computed on a GPU ------------------------------------------------------------

PLACES: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "rows": ((5, 3), (np.array([[0, 4, 4], [-1, 0, 2]]),)),
    "pairs": ((4, 3, 2), (np.array([[0], [-1]]), np.array([1, 1, -1]))),
    "columns": ((2, 6, 3), (slice(None), np.arange(50) % 6)),
    "apart": ((3, 5, 4), (np.array([0, 2, 2]), slice(1, 4, 2), np.array([1, 1, -3]))),
    "a mask": ((3, 4), (np.arange(12).reshape(3, 4) % 3 == 1,)),
    "a new axis": ((4, 2), (None, np.array([3, 3, 0]))),
    "one place": ((1, 2), (np.zeros(1001, int),)),
}


@pytest.mark.parametrize("name", PLACES)
def test_sums_by_sorting_equal_those_of_add_at(name: str) -> None:
    shape, where = PLACES[name]
    expected = np.zeros(shape)
    x = (
        np.random.default_rng(0).integers(-99, 99, expected[where].shape).astype(np.float64)
    )  # sums of integers are exact
    np.add.at(expected, where, x)
    np.testing.assert_array_equal(indexing._add_sorted(backend.NUMPY, x, where, shape), expected, strict=True)


def test_sums_by_sorting_are_as_exact_as_pairwise_sums() -> None:
    x = np.random.default_rng(0).uniform(1, 2, (4096, 1)).astype(np.float32)
    (found,) = indexing._add_sorted(backend.NUMPY, x, (np.full(4096, 2),), (3, 1))[2]
    assert abs(found / x.sum(dtype=np.float64) - 1) <= 12 * 2**-24
