"""Mixed precision: which operations run in the narrow dtype, which stay in float32, and how losses are scaled."""

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tiers import quick_first

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op, Tensor

NARROW = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
RNG = np.random.default_rng(0)


def normal(*shape: int, requires_grad: bool = False) -> Tensor:
    return Tensor(RNG.standard_normal(shape).astype(np.float32), requires_grad)


@pytest.mark.parametrize("name", NARROW)
def test_gemms_attention_and_gelu_compute_in_the_dtype_and_all_else_in_float32(name: str) -> None:
    x, w, b = normal(4, 8), normal(8, 8), normal(8)
    q = normal(1, 2, 3, 4)
    with tv.autocast(name):
        narrow = [x @ w, F.linear(x, w, b), F.gelu(x), F.bias_gelu(x, b), F.scaled_dot_product_attention(q, q, q)]
        h = F.linear(x, w, b)
        wide = [F.layer_norm(h, b, b), F.softmax(h), F.cross_entropy(h, np.zeros(4, int)), x + h, h.sum(), h.exp()]
    assert {y.dtype for y in narrow} == {NARROW[name]}
    assert {y.dtype for y in wide} == {np.dtype(np.float32)}
    assert F.linear(x, w, b).dtype == np.float32  # the block has ended


def test_float64_and_integers_are_left_alone() -> None:
    x, ids = Tensor(np.ones((2, 2))), np.array([1, 0])
    with tv.autocast("bfloat16"):
        assert (x @ x).dtype == np.float64
        assert F.embedding(ids, x).dtype == np.float64
        assert (Tensor(ids) + 1).dtype == np.int64


@pytest.mark.parametrize("name", NARROW)
def test_gradients_are_float32_and_near_those_of_float32(name: str) -> None:
    model = tv.models.ViT(8, 4, 5, dim=16, depth=2, heads=2, in_channels=1)
    images, labels = RNG.standard_normal((6, 1, 8, 8)).astype(np.float32), np.arange(6) % 5

    def gradients(dtype: str) -> list[np.ndarray]:
        for p in model.parameters():
            p.grad = None
        with tv.autocast(dtype):
            F.cross_entropy(model(images), labels).backward()
        return [p.grad.numpy() for p in model.parameters()]

    exact, found = gradients("float32"), gradients(name)
    assert {g.dtype for g in found} == {np.dtype(np.float32)}
    a, b = (np.concatenate([g.ravel() for g in gs]).astype(float) for gs in (exact, found))
    # About 20 products follow one another, and each rounds its inputs and its result.
    unit = float(ml_dtypes.finfo(NARROW[name]).eps)
    assert np.linalg.norm(a - b) < 20 * unit * np.linalg.norm(a)
    assert not np.array_equal(a, b)


@pytest.mark.slow  # compiles every kernel for bfloat16
def test_gradients_by_the_bfloat16_kernels_point_in_the_same_direction() -> None:
    tv.manual_seed(0)
    model = tv.models.ViT(12, 4, 10, dim=64, depth=3, heads=4, in_channels=1)
    images, labels = RNG.standard_normal((32, 1, 12, 12)).astype(np.float32), np.arange(32) % 10
    gradients = []
    for dtype in ("float32", "bfloat16"):
        with tv.use_kernels("auto"), tv.autocast(dtype):
            loss = F.cross_entropy(model(images), labels)
        found = tv.grad(loss, list(model.parameters()))
        assert {g.dtype for g in found} == {np.dtype(np.float32)}
        gradients.append(np.concatenate([g.numpy().ravel() for g in found]).astype(float))
    a, b = gradients
    assert a @ b >= 0.9999 * np.linalg.norm(a) * np.linalg.norm(b)
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("kernels", quick_first(["numpy", "auto"]))
def test_parameters_stay_float32_beside_bfloat16(kernels: str) -> None:
    x, w, b = normal(9, 8, requires_grad=True), normal(5, 8, requires_grad=True), normal(5, requires_grad=True)
    narrow = [Tensor(t.to("bfloat16").numpy(), True) for t in (x, w, b)]
    with tv.use_kernels(kernels):
        with tv.autocast("bfloat16"):
            y = F.linear(x, w, b)
        same = F.linear(*narrow)
        upstream = normal(9, 5).to("bfloat16")
        found = tv.grad(y, [x, w, b], upstream)
        rounded = tv.grad(same, narrow, upstream)
    assert y.dtype == NARROW["bfloat16"]
    assert {g.dtype for g in found} == {np.dtype(np.float32)}
    for t, e in zip((y, *found), (same, *rounded), strict=True):  # the expected b and gradients are rounded
        scale = np.abs(e.numpy().astype(float)).max()
        np.testing.assert_allclose(t.numpy().astype(float), e.numpy().astype(float), rtol=0, atol=2e-2 * scale)
    assert (found[1].to("bfloat16").numpy() != found[1].numpy()).any()  # dW was not rounded


def test_gradients_of_gradients_flow_through_bfloat16() -> None:
    x, w = normal(6, 4, requires_grad=True), normal(3, 4, requires_grad=True)

    def second(dtype: str) -> np.ndarray:
        with tv.autocast(dtype):
            y = F.linear(x, w).to("float32")
        (dx,) = tv.grad((y * y).sum(), [x], create_graph=True)
        return tv.grad((dx * dx).sum(), [w])[0].numpy()

    exact, found = second("float32"), second("bfloat16")
    assert found.dtype == np.float32
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


def test_only_bfloat16_may_be_combined_with_float32_parameters() -> None:
    for dtype in ("float16", "float64"):
        with pytest.raises(TypeError, match="dtypes are never mixed"):
            F.linear(normal(3, 4).to(dtype), normal(2, 4))
        with pytest.raises(TypeError, match="dtypes are never mixed"):
            F.linear(normal(3, 4).to("bfloat16"), normal(2, 4).to(dtype))
    with pytest.raises(TypeError, match="dtypes are never mixed"):
        F.matmul(normal(3, 4).to("bfloat16"), normal(4, 2))


@pytest.mark.parametrize("kernels", quick_first(["numpy", "auto"]))
def test_a_narrow_layer_norm_gives_bfloat16_and_keeps_the_residual_sum_in_float32(kernels: str) -> None:
    x, branch, w, b = (normal(*shape, requires_grad=True) for shape in ((5, 8), (5, 8), (8,), (8,)))
    upstream = normal(5, 8).to("bfloat16")

    def results(narrow: bool) -> list[Tensor]:
        with tv.use_kernels(kernels), tv.autocast("bfloat16"):
            total, y = F.add_layer_norm(x, branch, w, b, narrow=narrow)
            alone = F.layer_norm(x, w, b, narrow=narrow)
            assert total.dtype == np.float32
            y, alone = (t if narrow else t.to("bfloat16") for t in (y, alone))
        grads = tv.grad([total, y, alone], [x, branch, w, b], [total.detach(), upstream, upstream])
        return [total, y, alone, *grads]

    for found, expected in zip(results(True), results(False), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.numpy().astype(np.float32), expected.numpy().astype(np.float32))


@pytest.mark.parametrize("kernels", quick_first(["numpy", "auto"]))
def test_adding_a_bfloat16_branch_to_a_float32_residual_equals_widening_it_first(kernels: str) -> None:
    x, branch, w, b = (normal(*shape, requires_grad=True) for shape in ((5, 8), (5, 8), (8,), (8,)))
    branch = Tensor(branch.numpy().astype(NARROW["bfloat16"]), True)
    upstream = [normal(5, 8), normal(5, 8)]

    def results(before: Callable[[Tensor], Tensor]) -> list[Tensor]:
        with tv.use_kernels(kernels), tv.autocast("bfloat16"):
            outputs = F.add_layer_norm(x, before(branch), w, b)
        return [*outputs, *tv.grad(outputs, [x, branch, w, b], upstream)]

    found = results(lambda branch: branch)
    assert [t.dtype.name for t in found] == ["float32"] * 3 + ["bfloat16"] + ["float32"] * 2
    for one, expected in zip(found, results(lambda branch: branch.to("float32")), strict=True):
        np.testing.assert_array_equal(one.numpy().astype(np.float32), expected.numpy().astype(np.float32))


@pytest.mark.parametrize("kernels", quick_first(["numpy", "auto"]))
def test_a_sum_of_float32_and_bfloat16_is_that_of_the_widened(kernels: str) -> None:
    x, wide = normal(5, 8, requires_grad=True), normal(5, 8)
    y = Tensor(wide.numpy().astype(NARROW["bfloat16"]), True)
    upstream = normal(5, 8)
    with tv.use_kernels(kernels):
        with tv.autocast("bfloat16"):
            z, both_narrow = x + y, y + y
        dx, dy = tv.grad(z, [x, y], [upstream])
    assert (z.dtype, dx.dtype, dy.dtype, both_narrow.dtype) == (np.float32, np.float32, y.dtype, y.dtype)
    np.testing.assert_array_equal(z.numpy(), x.numpy() + y.numpy().astype(np.float32))
    np.testing.assert_array_equal(dx.numpy(), upstream.numpy())
    np.testing.assert_array_equal(dy.numpy(), upstream.numpy().astype(y.dtype))
    with pytest.raises(TypeError, match="dtypes are never mixed"):
        x + y


@pytest.mark.parametrize("kernels", quick_first(["numpy", "auto"]))
def test_a_model_in_bfloat16_runs_under_autocast(kernels: str) -> None:
    model = tv.models.ViT(8, 4, 5, dim=16, depth=2, heads=2, in_channels=1).to("bfloat16")
    images = RNG.standard_normal((2, 1, 8, 8)).astype(np.float32)
    with tv.use_kernels(kernels), tv.autocast("bfloat16"):
        logits = model(images)
        (logits * logits).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == NARROW["bfloat16"] for p in model.parameters())


@pytest.mark.parametrize("kernels", quick_first(["numpy", "auto"]))
def test_the_gradient_of_a_bias_has_its_dtype(kernels: str) -> None:
    x, weight = (Tensor(normal(4, 3).numpy().astype(NARROW["bfloat16"]), True) for _ in range(2))
    bias = normal(4, requires_grad=True)
    with tv.use_kernels(kernels):
        y = F.linear(x, weight, bias)
        (gradient,) = tv.grad(y, [bias], [Tensor(np.ones(y.shape, y.dtype))])
    assert gradient.dtype == np.float32


def test_inputs_that_must_not_be_narrow_are_refused() -> None:
    x, w, b = normal(5, 8), normal(8), normal(8)
    narrow = Tensor(x.numpy().astype(NARROW["bfloat16"]))
    for call in (
        lambda: F.linear(x, narrow),
        lambda: F.add_layer_norm(narrow, x, w, b),
        lambda: F.add_layer_norm(x, x, narrow[0], b),
    ):
        with tv.use_kernels("auto"), pytest.raises(TypeError, match="dtypes are never mixed"):
            call()


def test_nothing_is_narrowed_outside_of_autocast_or_in_float64() -> None:
    x = normal(5, 8)
    assert F.layer_norm(x, normal(8), normal(8), narrow=True).dtype == np.float32
    wide = [t.to("float64") for t in (x, normal(8), normal(8))]
    with tv.autocast("bfloat16"):
        assert F.layer_norm(*wide, narrow=True).dtype == np.float64
    with tv.autocast("float16"):
        assert F.layer_norm(x, normal(8), normal(8), narrow=True).dtype == np.float32


@pytest.mark.parametrize("name", NARROW)
def test_a_plain_rule_in_16_bits_rounds_its_results_only(name: str) -> None:
    for op in Op.registry.values():
        for sample in itertools.islice(op.samples(), 1):
            if "dtype" in sample.params:
                continue
            narrow = [None if x is None else x.astype(NARROW[name]) for x in sample.inputs]

            def run(arrays: Any, op: Any = op, sample: Any = sample) -> list[np.ndarray]:
                xs = [x if x is None else Tensor(x, True) for x in arrays]
                out = op.apply(*xs, **sample.params)
                outs = [y for y in (out if isinstance(out, tuple) else (out,)) if y.requires_grad]
                ones = [Tensor(np.ones(y.shape, y.dtype)) for y in outs]
                grads = tv.grad(outs, [x for x in xs if x is not None], ones, allow_unused=True)
                return [t.data for t in (*outs, *grads) if t is not None]

            wide = run([None if x is None else x.astype(np.float32) for x in narrow])
            for y, e in zip(run(narrow), wide, strict=True):
                assert y.dtype == NARROW[name], op.name
                # Backward sees rounded outputs, so its result may differ by more than its own rounding.
                scale = float(ml_dtypes.finfo(NARROW[name]).eps) * max(1.0, float(np.abs(e).max(initial=0)))
                np.testing.assert_allclose(y.astype(np.float32), e, rtol=0, atol=2 * scale, err_msg=op.name)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be one of float32, float16, bfloat16"):
        tv.autocast("int8")
