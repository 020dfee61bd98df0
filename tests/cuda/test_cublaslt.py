"""The layer over cuBLASLt: strides, transposes, batches and epilogues, on a stand-in that is column-major as well."""

from collections.abc import Iterator

import fake_cublaslt
import ml_dtypes
import numpy as np
import pytest
from emulator import EmulatedDevice
from fake_cupy import installed, ndarray
from peers import peer
from tinyvit.kernels.cuda import device
from tinyvit.kernels.linear import cublaslt

import tinyvit as tv
from tinyvit import backend

RNG = np.random.default_rng(0)
DTYPES = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with installed():
        device.DEVICES[0] = EmulatedDevice()
        yield
        device.DEVICES.clear()


def normal(*shape: int, dtype: np.dtype = DTYPES[0]) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def assert_is(found: ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    tolerance = 4 * float(ml_dtypes.finfo(found.dtype).eps)
    np.testing.assert_allclose(found.get().astype(float), expected, rtol=tolerance, atol=8 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((3, 4), (4, 5)),
        ((1, 4), (4, 1)),
        ((2, 3, 4), (2, 4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 1, 3, 4), (3, 4, 2)),
        ((0, 3, 4), (4, 2)),
    ],
)
def test_matmul_broadcasts_as_numpy_does(x: tuple[int, ...], y: tuple[int, ...], dtype: np.dtype) -> None:
    a, b = normal(*x, dtype=dtype), normal(*y, dtype=dtype)
    assert_is(cublaslt.matmul(ndarray(a), ndarray(b)), a.astype(float) @ b.astype(float))


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_used_for_float32_only_and_only_if_allowed(allowed: bool) -> None:
    tv.allow_tf32(allowed)
    try:
        for dtype in DTYPES:
            x, y = ndarray(normal(4, 4, dtype=dtype)), ndarray(normal(4, 4, dtype=dtype))
            product = cublaslt.product_of(x, y, x)
            assert product is not None
            assert product.tf32 == (allowed and dtype == np.float32)
    finally:
        tv.allow_tf32(False)


def test_strided_operands_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = normal(2, 5, 3, 4, 8)  # (B, N, 3, H, D), as the qkv projection returns it
    q, k, v = packed.transpose(2, 0, 3, 1, 4)[:, 0]  # one image: there is one stride between heads
    monkeypatch.setattr(np, "ascontiguousarray", None)
    scores = cublaslt.matmul(ndarray(q), ndarray(k.swapaxes(-1, -2)))
    assert_is(scores, q.astype(float) @ k.swapaxes(-1, -2))
    assert_is(cublaslt.matmul(scores, ndarray(v)), scores.get().astype(float) @ v)


def test_algorithms_are_chosen_for_the_alignment_of_the_operands() -> None:
    x = ndarray(normal(64, 65))
    (a, b), d = (x[:8, 1:9], x[8:16, 3:11]), ndarray(normal(8, 8))
    product = cublaslt.product_of(a, b, d)
    assert product is not None
    for found, array in zip(product.alignment, (a, b, d), strict=True):
        assert array.data.ptr % found == 0
        assert found == 256 or array.data.ptr % (2 * found)


def test_operands_without_a_single_stride_are_copied() -> None:
    packed = normal(2, 5, 3, 4, 8)
    q, k, _ = packed.transpose(2, 0, 3, 1, 4)
    assert_is(cublaslt.matmul(ndarray(q), ndarray(k.swapaxes(-1, -2))), q.astype(float) @ k.swapaxes(-1, -2))
    x = normal(3, 8)[:, ::2]
    assert_is(cublaslt.matmul(ndarray(x), ndarray(x.T)), x.astype(float) @ x.T)


@pytest.mark.parametrize("dtype", [DTYPES[0], *DTYPES[2:]], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_linear_map_and_its_gradients(dtype: np.dtype, bias: bool) -> None:
    x, w, b, dy = (normal(*s, dtype=dtype) for s in ((2, 5, 3), (4, 3), (4,), (2, 5, 4)))
    wide = [a.astype(float) for a in (x, w, b, dy)]
    (y,) = cublaslt.forward(ndarray(x), ndarray(w), ndarray(b) if bias else None, version=1)
    assert_is(y, wide[0] @ wide[1].T + bias * wide[2])
    dx, dw, db = cublaslt.backward(ndarray(dy), ndarray(x), ndarray(w), needs=(True, True, bias), version=1)
    assert_is(dx, wide[3] @ wide[1])
    assert_is(dw, np.einsum("bro,bri->oi", wide[3], wide[0]))
    assert (db is None) != bias
    if bias:
        assert_is(db, wide[3].sum(axis=(0, 1)))


@pytest.fixture
def _knowing(monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    """Let cuBLASLt have algorithms only for epilogues up to this one."""
    choose = fake_cublaslt.matmul_algo_get_heuristic

    def heuristic(handle: int, description: int, *rest: int) -> None:
        if fake_cublaslt._objects[description]["EPILOGUE"] > cublaslt.EPILOGUES.get(known, 0):
            raise fake_cublaslt.cuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")
        choose(handle, description, *rest)

    monkeypatch.setattr(cublaslt.library(), "matmul_algo_get_heuristic", heuristic)


@pytest.mark.usefixtures("_knowing")
@pytest.mark.parametrize("known", ["bias", "none"])
@pytest.mark.parametrize("dtype", [DTYPES[0], *DTYPES[2:]], ids=str)
def test_a_bias_for_which_there_is_no_algorithm_is_added_separately(dtype: np.dtype) -> None:
    test_the_linear_map_and_its_gradients(dtype, True)


@pytest.mark.usefixtures("_knowing")
@pytest.mark.parametrize("known", ["nothing"])
def test_a_product_without_any_algorithm_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"knows no algorithm for Product\(m=3, n=5, k=4.*does without it"):
        cublaslt.matmul(ndarray(normal(3, 4)), ndarray(normal(4, 5)))


def test_a_vector_on_the_left_is_a_row() -> None:
    x, y = normal(3), normal(3, 4)
    assert_is(backend.arrays.matmul(backend.NUMPY, ndarray(x), ndarray(y)), x.astype(float) @ y)


def test_gelu_in_the_epilogue_and_its_slope() -> None:
    x, w, b, dy = normal(6, 3), normal(8, 3), normal(8), normal(6, 5)
    h, slope_of = x @ w.T + b, fake_cublaslt._gelu
    y, aux = ndarray(np.full((6, 8), np.nan, np.float32)), ndarray(np.full((6, 8), np.nan, np.float32))
    cublaslt._multiply(ndarray(x), ndarray(w).T, y, "gelu_aux_bias", ndarray(b), aux)
    assert_is(aux, h)
    assert_is(y, slope_of(h)[0])
    w2, dh, db = normal(5, 8), ndarray(np.full((6, 8), np.nan, np.float32)), ndarray(np.full(8, np.nan, np.float32))
    cublaslt._multiply(ndarray(dy), ndarray(w2), dh, "dgelu_bias_gradient", db, aux)
    expected = (dy @ w2) * slope_of(h)[1]
    assert_is(dh, expected)
    assert_is(db, expected.sum(axis=0))


def test_the_numbers_of_the_epilogues_are_those_of_the_bindings() -> None:
    real = peer("nvmath.bindings.cublasLt", "nvmath-python").Epilogue
    names = {"none": "DEFAULT", "gelu_aux_bias": "GELU_AUX_BIAS", "dgelu_bias_gradient": "DGELU_BGRAD"}
    for name, number in cublaslt.EPILOGUES.items():
        assert real[names.get(name, {"bias_gradient": "BGRADB"}.get(name, name.upper()))] == number


def test_operands_of_several_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="operands of float32 and bfloat16 for float32; they must be equal"):
        cublaslt.matmul(ndarray(normal(2, 3)), ndarray(normal(3, 2, dtype=DTYPES[3])))
