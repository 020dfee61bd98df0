"""The layer over cuBLASLt: strides, transposes, batches and epilogues, on a stand-in that is column-major as well."""

import ctypes
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import fake_cublaslt
import ml_dtypes
import numpy as np
import pytest
from emulator import EmulatedDevice
from fake_cupy import installed, ndarray
from tinyvit.kernels.cuda import device
from tinyvit.kernels.linear import cublaslt, lt

import tinyvit as tv
from tinyvit import backend

REAL_LIBRARY = lt.library  # tests put a stand-in into its place
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
    y, narrow = cublaslt.forward(ndarray(x), ndarray(w), ndarray(b) if bias else None, version=1)
    assert_is(y, wide[0] @ wide[1].T + bias * wide[2])
    dx, dw, db = cublaslt.backward(ndarray(dy), ndarray(x), ndarray(w), narrow, needs=(True, True, bias), version=1)
    assert_is(dx, wide[3] @ wide[1])
    assert_is(dw, np.einsum("bro,bri->oi", wide[3], wide[0]))
    assert (db is None) != bias
    if bias:
        assert_is(db, wide[3].sum(axis=(0, 1)))


@pytest.fixture
def _knowing(known: str) -> Iterator[None]:
    """Let cuBLASLt have algorithms only for epilogues up to this one."""
    largest = ctypes.c_int.in_dll(fake_cublaslt.compiled(), "largest_epilogue")
    before, largest.value = largest.value, lt.EPILOGUES.get(known, 0)
    yield
    largest.value = before


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


@pytest.mark.parametrize("offset", range(1, 8))
@pytest.mark.parametrize("dtype", [DTYPES[0], *DTYPES[2:]], ids=str)
def test_biases_and_their_gradients_may_have_any_alignment(dtype: np.dtype, offset: int) -> None:
    """cuBLASLt reads them 16 bytes at a time; the stand-in refuses others."""
    x, w, b, dy = (normal(*s, dtype=dtype) for s in ((5, 8), (16, 8), (32,), (5, 16)))
    bias = ndarray(b)[offset : offset + 16]
    y, _ = cublaslt.forward(ndarray(x), ndarray(w), bias, version=1)
    assert_is(y, x.astype(float) @ w.astype(float).T + b[offset : offset + 16].astype(float))
    dw, around = ndarray(np.zeros((16, 8), dtype)), ndarray(np.zeros(32, dtype))
    cublaslt.multiply(ndarray(dy).T, ndarray(x), dw, "bias_gradient", around[offset : offset + 16])
    expected = np.zeros(32)
    expected[offset : offset + 16] = dy.astype(float).sum(axis=0)
    assert_is(around, expected)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_products_of_16_bits_may_have_a_result_in_float32(dtype: np.dtype) -> None:
    x, y, db = normal(300, 4, dtype=dtype), normal(300, 5, dtype=dtype), ndarray(np.zeros(4, np.float32))
    d = ndarray(np.zeros((4, 5), np.float32))
    cublaslt.multiply(ndarray(x).T, ndarray(y), d, "bias_gradient", db)
    np.testing.assert_allclose(d.get(), x.astype(float).T @ y.astype(float), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(db.get(), x.astype(float).sum(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("known", ["bias_gradient", "none"])
@pytest.mark.usefixtures("_knowing")
def test_the_gradients_of_weights_in_float32_are_not_rounded_to_bfloat16() -> None:
    x, dy = normal(300, 4, dtype=DTYPES[3]), normal(300, 5, dtype=DTYPES[3])
    w, b = normal(5, 4), normal(5)
    y, narrow = cublaslt.forward(ndarray(x), ndarray(w), ndarray(b), version=1)
    assert (y.dtype, narrow.dtype) == (DTYPES[3], DTYPES[3])
    rounded = [a.astype(DTYPES[3]).astype(float) for a in (w, b)]
    assert_is(y, x.astype(float) @ rounded[0].T + rounded[1])
    needs = (True, True, True)
    dx, dw, db = cublaslt.backward(ndarray(dy), ndarray(x), ndarray(w), narrow, needs=needs, version=1)
    assert_is(dx, dy.astype(float) @ rounded[0])
    assert dw.dtype == db.dtype == np.float32
    np.testing.assert_allclose(dw.get(), dy.astype(float).T @ x.astype(float), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(db.get(), dy.astype(float).sum(axis=0), rtol=1e-4, atol=1e-4)
    (*_, only) = cublaslt.backward(ndarray(dy), ndarray(x), ndarray(w), narrow, needs=(False, False, True), version=1)
    np.testing.assert_allclose(only.get(), dy.astype(float).sum(axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("needs", [(False, False, True), (False, True, True), (True, True, True)])
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_the_gradient_of_a_bias_of_16_bits_is_summed_in_float32(dtype: np.dtype, needs: tuple[bool, ...]) -> None:
    x, dy, w = normal(4000, 2, dtype=dtype), 1 + normal(4000, 3, dtype=dtype), normal(3, 2, dtype=dtype)
    given = map(ndarray, (dy.astype(dtype), x, w, w))
    (*_, db) = cublaslt.backward(*given, needs=needs, version=1)
    assert db.dtype == dtype
    exact, rounding = dy.astype(dtype).astype(float).sum(axis=0), float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(db.get().astype(float), exact, rtol=rounding)


@pytest.mark.parametrize("dtypes", [(0, 3, 0), (2, 3, 2), (0, 0, 2), (0, 0, 3), (2, 2, 1)])
def test_operands_of_several_dtypes_are_refused(dtypes: tuple[int, int, int]) -> None:
    a, b, d = (ndarray(normal(2, 2, dtype=DTYPES[i])) for i in dtypes)
    with pytest.raises(TypeError, match=r"operands of .* for .*; they must be equal, but for a result in float32"):
        cublaslt.product_of(a, b, d)


def test_bfloat16_is_left_to_float32_on_devices_without_products_of_it() -> None:
    device.DEVICES[0] = EmulatedDevice(arch=75, shared=65_536)
    x = {"x": ndarray(normal(2, 2, dtype=DTYPES[3]))}
    assert "bfloat16 needs compute capability 8.0, and the device has 7.5" in (cublaslt.refuses(x, {}) or "")
    assert cublaslt.refuses({"x": ndarray(normal(2, 2))}, {}) is None


# The stand-in, and the real library -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"REDUCTION_SCHEME_MASK": 7}, "parts of sums may be added up in 16 bits"),
        ({"BIAS_POINTER": 0}, "the alignment of the bias is not known yet"),
    ],
)
def test_the_stand_in_notices_what_the_real_library_would_pass_over(change: dict[str, int], complaint: str) -> None:
    library = lt.library()
    attributes = {"EPILOGUE": lt.EPILOGUES["bias"], "BIAS_POINTER": 256}
    wishes = {"MAX_WORKSPACE_BYTES": 256, "REDUCTION_SCHEME_MASK": 2}
    described = library.description(
        lt.COMPUTE_FLOAT32, lt.FLOAT32, **{k: change.get(k, v) for k, v in attributes.items()}
    )
    layouts = (library.layout(lt.FLOAT32, 4, 4, 4),) * 4
    wishes = {k: change.get(k, v) for k, v in wishes.items()}
    assert library.algorithm(library.create(), described, layouts, **wishes) is None
    assert fake_cublaslt.compiled().last_complaint().decode() == complaint


def test_without_the_library_the_reason_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(lt.Unavailable, match=r"cuBLASLt is not found \(ModuleNotFoundError: .*pathfinder"):
        REAL_LIBRARY.__wrapped__()


def test_the_real_library_accepts_every_attribute_in_its_size() -> None:
    """All of this works without a GPU: only handles and products need one."""
    try:
        library = REAL_LIBRARY()
    except lt.Unavailable as reason:
        pytest.skip(f"needs cuBLASLt: {reason}")
    for compute, scale in ((lt.COMPUTE_FLOAT32, 0), (lt.COMPUTE_TF32, 0), (lt.COMPUTE_FLOAT64, 1)):
        library.description(compute, scale, **dict.fromkeys(lt.DESCRIPTION, 16))
    for dtype in (lt.FLOAT32, lt.FLOAT64, lt.FLOAT16, lt.BFLOAT16):
        library.layout(dtype, 8, 8, 8, **dict.fromkeys(lt.LAYOUT, 16))
    library.preference(**dict.fromkeys(lt.PREFERENCE, 2))


def test_the_numbers_are_those_of_the_header() -> None:
    """NVIDIA's wheel of cuBLAS has the header."""
    distributions = [d for d in metadata.distributions() if (d.name or "").startswith("nvidia-cublas")]
    files = [file for d in distributions for file in d.files or () if file.name == "cublasLt.h"]
    if not files:
        pytest.skip("needs cublasLt.h, of the wheel nvidia-cublas")
    text = Path(str(files[0].locate())).read_text("utf-8")
    numbers = {n: v.strip() for n, v in re.findall(r"^\s+CUBLASLT_(\w+) = ([^,]+),", text, re.MULTILINE)}

    def number(name: str) -> int:
        parts = [part.strip().removeprefix("CUBLASLT_") for part in numbers[name].strip("()").split("|")]
        return sum(int(part, 0) if part[0].isdigit() else number(part) for part in parts)

    for prefix, known in (
        ("MATMUL_DESC", lt.DESCRIPTION),
        ("MATRIX_LAYOUT", lt.LAYOUT),
        ("MATMUL_PREF", lt.PREFERENCE),
    ):
        for name, (found, _) in known.items():
            assert number(f"{prefix}_{name}") == found, name
    assert number("REDUCTION_SCHEME_COMPUTE_TYPE") == lt.REDUCE_IN_COMPUTE_TYPE
    called = {"none": "DEFAULT", "bias_gradient": "BGRADB"}
    for name, found in lt.EPILOGUES.items():
        assert number(f"EPILOGUE_{called.get(name, name.upper())}") == found, name
    assert re.search(r"typedef struct \{\s+uint64_t data\[8\];\s+\} cublasLtMatmulAlgo_t;", text)
