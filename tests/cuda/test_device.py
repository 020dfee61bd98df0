"""Detection, launching and their errors, without a GPU."""

import builtins
import ctypes
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from emulator import EmulatedDevice
from fake_cupy import installed
from tinyvit.kernels import registry
from tinyvit.kernels.attention import cupy_raw as attention
from tinyvit.kernels.cuda import device
from tinyvit.kernels.cuda.compiler import CompilerMissing
from tinyvit.kernels.cuda.device import Kernel
from tinyvit.kernels.cuda.rows import add_parts, parts_of, spread
from tinyvit.kernels.linear import lt

import tinyvit as tv
import tinyvit.functional as F
from tinyvit import backend, info, kernels


@pytest.fixture
def _fresh() -> Iterator[None]:
    backend.gpu.cache_clear()
    yield
    backend.gpu.cache_clear()


class _Broken:
    def __getattr__(self, name: str) -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")


# Detection -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_fresh")
def test_without_cupy_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r"device 'cuda' is not usable: CuPy cannot be imported .* extra cuda12"):
        tv.tensor([1.0], device="cuda")


@pytest.mark.usefixtures("_fresh")
def test_an_installation_that_fails_to_import_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def failing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cupy":
            raise OSError("libnvrtc.so.13 is damaged")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(builtins, "__import__", failing)
    assert backend.gpu() == (None, backend.gpu()[1])
    assert "libnvrtc.so.13 is damaged" in backend.gpu()[1]


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    ("cupy", "says"),
    [
        (types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False)), "finds no device"),
        (types.SimpleNamespace(cuda=_Broken()), "does not compute (OSError: libcuda.so.1"),
        (
            types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: True), arange=lambda n: np.zeros(n)),
            "computes a wrong result",
        ),
    ],
)
def test_a_gpu_that_does_not_work_is_a_reason(monkeypatch: pytest.MonkeyPatch, cupy: Any, says: str) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    module, reason = backend.gpu()
    assert module is None
    assert says in reason


@pytest.mark.parametrize(
    ("arch", "library", "precision", "lost"),
    [
        (90, None, "bfloat16", []),
        (75, None, "float32", []),
        (75, None, "bfloat16", ["bfloat16 computed in float32"]),
        (
            70,
            "it is gone",
            "bfloat16",
            ["because it is gone; install", "none of the CUDA kernels, because"],
        ),
    ],
)
def test_what_a_gpu_lacks_is_said(
    arch: int, library: str | None, precision: str, lost: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed():
        monkeypatch.setattr(lt, "why_not", lambda: library)
        device.DEVICES[0] = device.Device(0, arch, 65_536)
        monkeypatch.setattr(device, "nvrtc_version", lambda: (13, 0))
        found = backend.shortcomings(precision)
        assert len(found) == len(lost)
        assert all(words in text for words, text in zip(lost, found, strict=True))
        if precision == "bfloat16":
            report = info.report()
            assert all(f"but {text}" in report for text in found)
        device.DEVICES.clear()


def test_missing_devices_are_refused() -> None:
    with installed():
        with pytest.raises(RuntimeError, match="device 'cuda:3' is not usable: the GPUs here have the numbers 0 to 1"):
            tv.set_default_device("cuda:3")
        for name in ("gpu", "cuda:", "cuda:x", "cuda:-1", 7):
            with pytest.raises(ValueError, match="it must be 'cpu', 'cuda', or a GPU by its number"):
                tv.set_default_device(name)  # type: ignore[arg-type]


def test_tensors_are_created_on_the_wanted_device() -> None:
    with installed():
        try:
            tv.set_default_device("cuda")
            x = tv.tensor([[1.0, 2.0]], requires_grad=True)
            assert (x.device, x.dtype) == ("cuda:0", np.float32)
            assert tv.tensor(x, device="cpu").device == "cpu"
            assert "1., 2." in repr(x)
        finally:
            tv.set_default_device("cpu")


def test_the_constants_of_a_model_move_with_it() -> None:
    with installed(), tv.use_kernels("numpy"):
        try:
            vision = tv.models.ViT(8, 4, 0, dim=16, depth=1, heads=2, in_channels=1, pos_embed="sincos2d")
            model = tv.models.Captioner(vision, tv.models.TextDecoder(9, 16, 1, 2)).to("cuda")
            assert model(np.zeros((1, 1, 8, 8), np.float32), np.array([[1, 5, 2]])).device == "cuda:0"
            assert model.to("cpu").vision.pos_embed.device == "cpu"
        finally:
            device.DEVICES.clear()


# Launching -----------------------------------------------------------------------------------------------------------


def test_the_limits_of_a_device_come_from_cupy() -> None:
    with installed() as cupy:
        try:
            assert device.device_of(cupy.zeros(3)) == device.Device(0, 90, 232_448)
        finally:
            device.DEVICES.clear()


def test_a_kernel_that_needs_too_much_shared_memory_is_refused_with_the_numbers() -> None:
    small = EmulatedDevice(arch=75, shared=65_536)
    with pytest.raises(RuntimeError, match=r"some_kernel needs 70000 bytes .* cuda:0 \(sm_75\) has 65536"):
        small.launch(Kernel("a.cu", "some_kernel"), (1,), 32, [ctypes.c_int(1)], 70_000)


def test_an_empty_grid_launches_nothing() -> None:
    EmulatedDevice().launch(Kernel("there is no such file", "kernel"), (0, 5), 32, [])


def test_bfloat16_is_refused_on_devices_without_products_of_it() -> None:
    with installed(), tv.use_kernels("cupy"):
        device.DEVICES[0] = EmulatedDevice(arch=75, shared=65_536)
        q = tv.tensor(np.ones((1, 1, 4, 8), np.float32), device="cuda").to("bfloat16")
        with pytest.raises(RuntimeError, match=r"bfloat16 needs compute capability 8.0, and the device has 7.5"):
            F.scaled_dot_product_attention(q, q, q)
        device.DEVICES.clear()


@pytest.mark.parametrize("implementation", ["cupy", "numpy"])
def test_kernels_called_directly_run_on_the_gpu_that_holds_their_inputs(implementation: str) -> None:
    class Watched(EmulatedDevice):
        def _start(self, *_: Any) -> None:
            started.append((self.number, sys.modules["cupy"].cuda.runtime.getDevice()))

    started: list[tuple[int, int]] = []
    with installed() as cupy:
        device.DEVICES.update({number: Watched(number=number) for number in (0, 1)})
        with cupy.cuda.Device(1):
            q, w = cupy.zeros((1, 1, 4, 8), "float32"), cupy.zeros(8, "float32")
        out, lse = kernels.attention_forward(q, q, q, implementation=implementation)
        made = [out, lse, *kernels.attention_backward(out, q, q, q, out, lse, implementation=implementation)[:3]]
        made += [kernels.attention_weights(q, q, lse)]
        y, mean, rstd = kernels.layer_norm_forward(q, w, w, implementation=implementation)
        made += [y, mean, rstd, *kernels.layer_norm_backward(y, q, w, mean, rstd, implementation=implementation)]
        assert {array.device.id for array in made} == {1}
        assert set(started) == ({(1, 1)} if implementation == "cupy" else set())
        assert cupy.cuda.runtime.getDevice() == 0
        device.DEVICES.clear()


@pytest.mark.parametrize("reason", ["compute capability 7.5, and the device has 7.0", "NVRTC, NVIDIA's compiler"])
def test_where_no_kernel_can_be_compiled_the_plain_rules_serve(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise CompilerMissing("NVRTC, NVIDIA's compiler, is not found")

    device._why_no_compiler.cache_clear()
    monkeypatch.setattr(device, "nvrtc_version", missing)
    with installed() as cupy:
        device.DEVICES[0] = device.Device(0, 70 if "7.0" in reason else 90, 65_536)
        x = tv.tensor(cupy.zeros((2, 3), "float32"), device="cuda", requires_grad=True)
        w = tv.tensor(cupy.ones(3, "float32"), device="cuda", requires_grad=True)
        with tv.use_kernels("auto"):
            (F.gelu(x) * w).sum().backward()  # layer norm would be left to its kernel in Python
            tv.optim.AdamW([w]).step()
        with tv.use_kernels("cupy"), pytest.raises(RuntimeError, match=reason):
            F.gelu(x)
        device.DEVICES.clear()
    device._why_no_compiler.cache_clear()


def test_head_sizes_that_differ_or_are_too_large_are_refused() -> None:
    with installed():
        device.DEVICES[0] = EmulatedDevice()
        q, v = (tv.tensor(np.ones((1, 1, 4, d), np.float32), device="cuda").data for d in (8, 300))
        assert "the head sizes are 8 and 300" in (attention.refuses({"q": q, "v": v}, {}) or "")
        device.DEVICES.clear()


@pytest.mark.parametrize("sizes", [(5, 7), (0, 7), (5, 0)])
@pytest.mark.parametrize("layer", [True, False])
def test_probabilities_of_attention_are_the_same_on_a_gpu_and_on_the_cpu(
    sizes: tuple[int, int], layer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((2, 3, n, 8)).astype(np.float32) for n in sizes)
    bias, mask = rng.standard_normal((3, *sizes)).astype(np.float32), rng.random((2, 1, *sizes)) < 0.6
    mask[0, 0, 3:4] = False  # this query sees no key
    lse = kernels.attention_forward(q, k, k, bias=bias, mask=mask, is_causal=True)[1]
    expected = kernels.attention_weights(q, k, lse, bias=bias, mask=mask, is_causal=True)
    with installed() as cupy:
        monkeypatch.setattr(lt, "why_not", lambda: None if layer else "it is missing")
        q, k, lse, bias, mask = map(cupy.asarray, (q, k, lse, bias, mask))
        found = kernels.attention_weights(q, k, lse, bias=bias, mask=mask, is_causal=True)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.get(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_plain_rules_called_directly_compute_16_bits_in_float32(dtype: str) -> None:
    q = np.random.default_rng(0).standard_normal((2, 3, 5, 8)).astype(np.float32)
    with installed():
        there = tv.tensor(q, device="cuda").to(dtype).data
        out, lse = kernels.attention_forward(there, there, there, implementation="numpy")
        narrow = out.astype(there.dtype)
        gradients = kernels.attention_backward(narrow, there, there, there, narrow, lse, implementation="numpy")
        y, *_ = kernels.layer_norm_forward(there, there[0, 0, 0], there[0, 0, 0], implementation="numpy")
    rounded = there.astype("float32").get()
    expected, lse = kernels.attention_forward(rounded, rounded, rounded, implementation="numpy")
    np.testing.assert_allclose(out.get(), expected, rtol=1e-5, atol=1e-6)
    given = narrow.astype("float32").get()
    slopes = kernels.attention_backward(given, rounded, rounded, rounded, given, lse, implementation="numpy")
    np.testing.assert_allclose(gradients[0].get(), slopes[0], rtol=1e-4, atol=1e-5)
    row = rounded[0, 0, 0]
    np.testing.assert_allclose(y.get(), kernels.layer_norm_forward(rounded, row, row, implementation="numpy")[0], 1e-5)


# Launch configurations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "itemsize", "expected"),
    [(64, 4, (4, 1)), (384, 4, (4, 3)), (768, 4, (4, 6)), (768, 2, (8, 3)), (1024, 2, (8, 4)), (1032, 2, None)],
)
def test_rows_use_as_few_registers_as_possible(columns: int, itemsize: int, expected: Any) -> None:
    assert spread(columns, itemsize, True) == expected
    assert spread(columns, itemsize, False) is None
    assert spread(columns + 1, itemsize, True) is None


def test_many_threads_share_the_sum_of_parts() -> None:
    """Each column would wait for 512 loads in a row if one thread added all parts."""

    class Watched(EmulatedDevice):
        def _start(self, kernel: Any, grid: Any, threads: int, arguments: Any, shared: int) -> None:
            launched.append((kernel.expression, grid, threads))

    launched: list[Any] = []
    with installed() as cupy:
        add_parts(Watched(), "s.cu", "float", cupy.zeros((512, 2, 768), "float32"), *cupy.zeros((2, 768), "float32"))
    assert launched == [("sum_parts<float>", (24, 2, 1), 512)]


def test_the_number_of_parts_depends_on_the_rows_only() -> None:
    assert [parts_of(n, 4) for n in (1, 16, 17, 50_432)] == [1, 1, 2, 512]


def test_the_registry_knows_the_device_of_a_kernel() -> None:
    assert {spec.technology: spec.device for spec in registry.SPECS} == {
        "numba": "cpu",
        "cupy": "cuda",
        "numba-cuda": "cuda",
    }


@pytest.mark.parametrize("operation", ["layer_norm", "add_layer_norm"])
def test_layer_norm_keeps_the_same_in_every_technology(operation: str) -> None:
    rows = [spec for spec in registry.SPECS if spec.operation == operation and isinstance(spec, registry.KernelSpec)]
    assert {spec.technology for spec in rows} == set(registry.TECHNOLOGIES)
    assert len({(spec.residuals, spec.keeps, spec.forward, spec.backward) for spec in rows}) == 1


def test_a_mask_that_is_copied_lives_until_the_kernels_are_launched() -> None:
    class Overwriting(EmulatedDevice):
        """Takes what memory is free and overwrites it, as other arrays may, before it launches a kernel."""

        def _start(self, *given: Any) -> None:
            others = [np.zeros(mask.shape[0] * 3 * mask[0].size, bool) for _ in range(200)]
            super()._start(*given)
            del others

    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 3, 2, 5, 8)).astype(np.float32)
    mask = rng.random((2, 1, 2, 5, 5)) < 0.6  # its three leading axes have no common stride
    mask[..., 0] = True
    results = []
    with installed():
        device.DEVICES[0] = Overwriting()
        for implementation in ("numpy", "cupy"):
            with tv.use_kernels(implementation):
                x = tv.tensor(q, device="cuda", requires_grad=True)
                out = F.scaled_dot_product_attention(x, x, x, attn_mask=tv.tensor(mask, device="cuda"))
                (out * out).sum().backward()
                results.append((out.numpy(), x.grad.numpy()))
        device.DEVICES.clear()
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
