"""The CUDA kernels against the plain rules, in every version and dtype, on the emulator or on a GPU.

pytest does not collect this file: `test_emulated.py` runs it in a process of its own, where arrays and device are
stand-ins, and `test_gpu.py` runs it on a GPU.
"""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import cases
import draws
import emulator
import fake_cupy
import ml_dtypes
import numpy as np
import pytest
from hidden import hidden_keys
from hypothesis import strategies as st
from layouts import packed, shifted, uploaded
from test_kernels import OPERATIONS, drawn_trial
from tinyvit.kernels import registry
from tinyvit.kernels.add_narrow import cupy_raw as add_narrow
from tinyvit.kernels.attention import cupy_raw as attention
from tinyvit.kernels.attention import launches
from tinyvit.kernels.cuda import device
from trial import Trial, unmodified

import tinyvit as tv
from tinyvit import backend
from tinyvit.engine import Op, Tensor

ON_GPU = os.environ.get("TINYVIT_TRIALS") == "gpu"
SCHEDULES = [0] if ON_GPU else [0, 1, 7]
DTYPES = {
    name: np.dtype(t) for name, t in zip(device.CTYPES, (np.float32, np.float16, ml_dtypes.bfloat16), strict=True)
}
SERVED = {spec.operation: spec.dtypes for spec in registry.SPECS if spec.technology == "cupy"}
VERSIONS = [
    pytest.param(OPERATIONS[spec.operation], f"cupy:v{version}", id=f"{spec.operation}-v{version}")
    for spec in registry.SPECS
    if spec.technology == "cupy" and spec.operation in OPERATIONS
    for version in range(1, spec.versions + 1)
]
VERSIONS_OF_ATTENTION = range(1, max(attention.VERSIONS) + 1)
every_version = pytest.mark.parametrize(("op", "choice"), VERSIONS)
# Head sizes; planted faults are tried on few of them, because a kernel is compiled for each.
DEPTHS = [int(d) for d in os.environ.get("TINYVIT_DEPTHS", "1 3 8 15 16 17 24 32 33 64 64 65 128 136 256").split()]
EXAMPLES = int(os.environ.get("TINYVIT_EXAMPLES", "12"))
DEVICE = emulator.EmulatedDevice()


@pytest.fixture(autouse=True, scope="module")
def on_the_device() -> Iterator[None]:
    if ON_GPU:
        if "TINYVIT_SANITIZE" in os.environ:  # one allocation for each array shows the sanitizer its bounds
            backend.gpu()[0].cuda.set_allocator(None)
        yield
        return
    with fake_cupy.installed():
        device.DEVICES[0] = DEVICE
        yield
        device.DEVICES.clear()


class DeviceTrial(Trial):
    """A trial whose kernels run on the device; the results to compare with are computed on the host."""

    def _run(self, choice: str, inputs: Sequence[Any], upstream: Sequence[Any], exact: bool = False) -> list[Any]:
        if not choice.startswith("cupy"):
            return super()._run(choice, inputs, upstream, exact)
        there = [[x if x is None else on_device(x) for x in arrays] for arrays in (inputs, upstream)]
        params = {name: on_device(x) if isinstance(x, np.ndarray) else x for name, x in self.case.params.items()}
        moved = Trial(self.op, replace(self.case, params=params), self.needs, self.upstream)
        with untouched(there):
            found = moved._run(choice, *there)
        return [backend.to_host(y) for y in found]


_MEMORY: dict[int, Any] = {}  # of arrays on a GPU, by their addresses: the bytes of which they are views


@contextmanager
def untouched(groups: Sequence[Sequence[Any]]) -> Iterator[None]:
    """Fail if the memory of any of these arrays on the device, or around them, is different afterwards."""
    given = [x for arrays in groups for x in arrays if x is not None]
    if not ON_GPU:
        with unmodified([x._host for x in given]):
            yield
        return
    memory = [_MEMORY.pop(x.data.ptr) for x in given if x.data.ptr in _MEMORY]
    before = [m.get() for m in memory]
    yield
    for m, expected in zip(memory, before, strict=True):
        np.testing.assert_array_equal(m.get(), expected)


def on_device(array: Any) -> Any:
    """Return `array` on the device, in its layout. The stand-in shares its memory."""
    backend.devices.gpu_in_use = True
    if not ON_GPU:
        return fake_cupy.ndarray(array)
    there, memory = uploaded(array, backend.gpu()[0])
    _MEMORY[there.data.ptr] = memory
    return there


# Sizes around the edges of tiles, but small enough for the CPU.
cases.PRODUCTS, cases.ELEMENTS = 150_000, 6_000
cases.CHUNKS = [0, *draws.around(1, 4, 16, 32)[1:], 129]
cases.LANES = [*draws.around(1, 8, 32)[1:], 40, 64, 127, 128, 136, 200, 256, 264, 384, 512, 768, 1024, 1040]
del draws.LAYOUTS["unaligned"]  # GPUs cannot read unaligned elements
draws.LAYOUTS |= {"packed": packed, "shifted": shifted}
draws.LAYOUTS |= {f"dense {i}": draws.LAYOUTS["dense"] for i in range(6)}  # the last versions serve only dense arrays


@st.composite
def attention_shape(draw: Any) -> tuple[tuple[int, ...], int, int, int]:
    """Leading axes, queries, keys and head size, on and around the edges of the tiles."""
    lead = draw(st.sampled_from([(1, 1), (1, 2), (2, 3), (2,), ()]))
    edges = [*draws.around(1, 8, 16, 32, 64, 80), 97, 128, 130, 145, 197, 271, 272, 273]
    queries = draw(st.sampled_from([0, *edges[1:-6]]))
    keys = queries if queries and draw(st.booleans()) else draw(st.sampled_from(edges[1:]))
    most = cases.PRODUCTS / max(math.prod(lead), 1) / max(queries * keys, 1)
    return lead, queries, keys, draws.size(draw, DEPTHS, most)


cases.attention_shape = attention_shape


def trial_of(data: st.DataObject, op: type[Op], dtype: str) -> DeviceTrial:
    with np.errstate(all="ignore"):
        drawn = drawn_trial(data, op, DTYPES[dtype])
    trial = DeviceTrial(drawn.op, drawn.case, drawn.needs, drawn.upstream)
    return trial if dtype == "float32" else _small(trial)


def _small(trial: DeviceTrial) -> DeviceTrial:
    """Return the trial with values that stay finite in 16 bits, so that the plain rule can be compared with."""

    def tamed(x: Any) -> Any:
        if x is None or x.dtype.kind in "iub":
            return x
        hidden = np.isneginf(x) & (trial.op.name == "attention")
        with np.errstate(invalid="ignore"):
            y = np.array(np.clip(np.nan_to_num(x.astype(np.float32), nan=0, posinf=1, neginf=-1), -8, 8), x.dtype)
        y[hidden] = -np.inf
        return y

    # These kernels keep the logarithm in float32, so it has no rounding error of 16 bits.
    case = replace(trial.case, inputs=tuple(tamed(x) for x in trial.case.inputs), logarithm=0.0)
    return DeviceTrial(trial.op, case, trial.needs, [tamed(x) for x in trial.upstream])


@every_version
@pytest.mark.parametrize("dtype", DTYPES)
@draws.on_drawn(EXAMPLES)
def test_a_kernel_is_as_exact_as_the_plain_rule(op: type[Op], choice: str, dtype: str, data: st.DataObject) -> None:
    if DTYPES[dtype] not in SERVED[op.kernel or ""]:
        pytest.skip("the inputs are float32, or one of them is")
    DEVICE.schedule = data.draw(st.sampled_from(SCHEDULES))
    trial_of(data, op, dtype).check(choice)


@every_version
@draws.on_drawn(6)
def test_any_order_of_warps_gives_the_same_bits(op: type[Op], choice: str, data: st.DataObject) -> None:
    trial = trial_of(data, op, "bfloat16" if DTYPES["bfloat16"] in SERVED[op.kernel or ""] else "float32")
    results = []
    for schedule in (*SCHEDULES, 0):
        DEVICE.schedule = schedule
        results.append([y.tobytes() for y in trial.run(choice)])
    assert all(found == results[0] for found in results)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("columns", "weight_needs"), [(3, True), (3, False), (0, True)])
def test_a_gradient_of_a_bias_is_summed_in_float32(dtype: str, columns: int, weight_needs: bool) -> None:
    arrays = [np.ones(shape, DTYPES[dtype]) for shape in ((4096, columns), (2, columns), (2,), (4096, 2))]
    case = cases.Case(tuple(arrays[:3]), {})
    trial = DeviceTrial(OPERATIONS["linear"], case, (False, weight_needs, True), arrays[3:])
    assert trial.run("cupy:v1")[-1].tolist() == [4096, 4096]  # 257 is no number of bfloat16, and 2049 none of float16


def test_long_sequences_run_through_both_halves_of_the_double_buffer() -> None:
    rng, op = np.random.default_rng(0), OPERATIONS["attention"]
    q = rng.standard_normal((1, 1, 70, 16)).astype(np.float16)
    k, v = rng.standard_normal((2, 1, 1, 333, 16)).astype(np.float16)
    for params in ({}, {"is_causal": True}, {"dropout_p": 0.3, "seed": 5, "offset": 2}):
        case = cases.Case((q, k, v, None), {"scale": 0.25, **params})
        for choice in ("cupy:v2", "cupy:v3", "cupy:v5"):
            for DEVICE.schedule in SCHEDULES:
                DeviceTrial(op, case, (True, True, True, False), (q,)).check(choice)


@pytest.mark.parametrize(("version", "dtype"), [(2, "float32"), *((v, "float16") for v in VERSIONS_OF_ATTENTION)])
@draws.on_drawn(8)
def test_a_hidden_key_may_give_nan_but_no_other_number(version: int, dtype: str, data: st.DataObject) -> None:
    DEVICE.schedule = data.draw(st.sampled_from(SCHEDULES))
    hidden = data.draw(hidden_keys(DTYPES[dtype], (1, 8, 16, 64, 80), (16,)))

    def run(case: cases.Case, upstream: Any) -> list[Any]:
        return DeviceTrial(OPERATIONS["attention"], case, (True, True, True, False), upstream).run(f"cupy:v{version}")

    hidden.check(run)


@pytest.mark.parametrize("version", [version for version in VERSIONS_OF_ATTENTION if version > 1])
def test_keys_that_no_query_sees_have_no_gradient(version: int) -> None:
    """With a causal mask and more keys than queries, whole blocks of keys meet no query."""
    rng, op = np.random.default_rng(0), OPERATIONS["attention"]
    for queries, keys, depth in ((40, 150, 16), (5, 33, 24), (1, 200, 17)):
        q, dout = rng.standard_normal((2, 1, 2, queries, depth)).astype(np.float16)
        k, v = rng.standard_normal((2, 1, 2, keys, depth)).astype(np.float16)
        case = cases.Case((q, k, v, None), {"scale": 0.25, "is_causal": True})
        trial = DeviceTrial(op, case, (True, True, True, False), (dout,))
        for DEVICE.schedule in SCHEDULES:
            trial.check(f"cupy:v{version}")
            for gradient in trial.run(f"cupy:v{version}")[2:4]:
                assert not gradient[..., queries:, :].any()


@draws.on_drawn(EXAMPLES)
def test_short_sequences_are_served_by_the_versions_for_them(data: st.DataObject) -> None:
    DEVICE.schedule = data.draw(st.sampled_from(SCHEDULES))
    b, h = data.draw(st.sampled_from([(1, 2), (2, 3)]))
    depth = data.draw(st.sampled_from([d for d in DEPTHS if d < 65]))
    queries = data.draw(st.sampled_from([1, 15, 16, 17, 20, 31, 33, 64, 65, 130]))
    keys = data.draw(st.sampled_from([queries, queries, 1, 16, 33, 80, 81, 96, 97, 128, 272]))
    layouts = [data.draw(st.sampled_from(["dense", "dense", "part"])) for _ in range(4)]
    shapes = [(b, h, n, depth) for n in (queries, keys, keys, queries)]
    q, k, v, dout = (
        data.draw(draws.arrays(shape, np.float16, layout, ("none",)))
        for shape, layout in zip(shapes, layouts, strict=True)
    )
    case, version = cases.Case((q, k, v, None), {"scale": depth**-0.5}), data.draw(st.sampled_from([4, 5]))
    DeviceTrial(OPERATIONS["attention"], case, (True, True, True, False), (dout,)).check(f"cupy:v{version}")


@pytest.mark.parametrize("keys", [49, 65, 97, 112, 128])
@pytest.mark.parametrize("version", [4, 5])
def test_the_last_tile_may_have_any_size(version: int, keys: int) -> None:
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 1, 2, keys, 24)).astype(np.float16)
    case = cases.Case((q, k, v, None), {"scale": 0.25})
    DeviceTrial(OPERATIONS["attention"], case, (True, True, True, False), (dout,)).check(f"cupy:v{version}")


@pytest.mark.parametrize("depth", [24, 19])  # with rows of 48 bytes, which are aligned to 16, and of 38, which are not
@pytest.mark.parametrize("version", VERSIONS_OF_ATTENTION)
def test_a_call_may_have_a_mask_and_a_bias_and_dropout(version: int, depth: int) -> None:
    rng = np.random.default_rng(0)
    q, dout = rng.standard_normal((2, 1, 2, 70, depth)).astype(np.float16)
    k, v = rng.standard_normal((2, 1, 2, 149, depth)).astype(np.float16)
    bias, mask = rng.standard_normal((2, 70, 149)).astype(np.float16), rng.random((70, 149)) < 0.7
    for is_causal in (False, True):
        params = {"scale": 0.25, "mask": mask, "is_causal": is_causal, "dropout_p": 0.3, "seed": 5, "offset": 2}
        case = cases.Case((q, k, v, bias), params)
        DeviceTrial(OPERATIONS["attention"], case, (True,) * 4, (dout,)).check(f"cupy:v{version}")


@pytest.mark.parametrize("version", VERSIONS_OF_ATTENTION)
def test_scores_of_different_tiles_may_differ_by_hundreds(version: int) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 150, 24)).astype(np.float16)
    q[...], k[:, :, 0] = 8, 8  # the score of the first key is 384, and those of the others are about 10
    case = cases.Case((q, k, v, None), {"scale": 0.25})
    DeviceTrial(OPERATIONS["attention"], case, (True, True, True, False), (v,)).check(f"cupy:v{version}")


@pytest.mark.parametrize("scale", [-0.25, 0.0])
@pytest.mark.parametrize("version", VERSIONS_OF_ATTENTION)
def test_a_scale_need_not_be_positive(version: int, scale: float) -> None:
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 1, 2, 35, 16)).astype(np.float16)
    case = cases.Case((q, k, v, None), {"scale": scale})
    DeviceTrial(OPERATIONS["attention"], case, (True, True, True, False), (dout,)).check(f"cupy:v{version}")


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize(("queries", "keys"), [(150, 150), (20, 100)])
@pytest.mark.parametrize("how", ["plain", "causal", "biased"])
def test_no_copy_is_used_before_it_has_landed(version: int, queries: int, keys: int, how: str) -> None:
    """The emulator finds every race, so each kernel that copies asynchronously needs to run only once."""
    DEVICE.schedule, rng = 0, np.random.default_rng(0)
    q, dout = rng.standard_normal((2, 1, 1, queries, 32)).astype(np.float16)
    k, v = rng.standard_normal((2, 1, 1, keys, 32)).astype(np.float16)
    bias = np.full((queries, keys), 100, np.float16) if how == "biased" else None  # lse is large
    case = cases.Case((q, k, v, bias), {"scale": 0.25, "is_causal": how == "causal"})
    DeviceTrial(OPERATIONS["attention"], case, (True, True, True, bias is not None), (dout,)).check(f"cupy:v{version}")


@pytest.mark.parametrize("choice", [f"cupy:v{version}" for version in (1, 2, 3, 5)])
def test_masks_and_biases_may_have_any_strides(choice: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 2, n, 16)).astype(np.float16) for n in (19, 33, 33))
    bias = rng.standard_normal((33, 2, 19, 2)).astype(np.float16).transpose(1, 3, 2, 0)  # keys first in memory
    mask = np.repeat(rng.random((19, 2, 66)) < 0.7, 2, axis=1)[:, :2, ::2].transpose(1, 0, 2)  # queries first
    mask[:, np.arange(19), np.arange(19)] = True
    case = cases.Case((q, k, v, bias), {"scale": 0.25, "mask": mask})
    DeviceTrial(OPERATIONS["attention"], case, (True,) * 4, (q,)).check(choice)


@pytest.mark.parametrize("choice", [f"cupy:v{version}" for version in (1, 2, 3, 5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@draws.on_drawn(4)
def test_a_number_added_to_all_scores_of_a_query_changes_nothing(choice: str, dtype: str, data: st.DataObject) -> None:
    """Padding by a large number adds it to all keys of a query; with q = 0 no score is rounded."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    k, v, dout = (rng.standard_normal((1, 2, n, 16)).astype(DTYPES[dtype]) for n in (33, 33, 19))
    added = np.zeros((19, 33), DTYPES[dtype])
    added[1::2] = data.draw(st.sampled_from([-1e9, -3e4, 40, 1e9]))

    def results(bias: Any) -> list[Any]:
        case = cases.Case((np.zeros_like(dout), k, v, bias), {"scale": 0.25})
        return DeviceTrial(OPERATIONS["attention"], case, (True,) * 4, (dout,)).run(choice)

    for found, expected in zip(results(added), results(np.zeros_like(added)), strict=True):
        tolerance = (1e-5 if dtype == "float32" else 1e-2) * np.abs(expected).astype(float).max()
        np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)])
def test_sums_read_runs_of_four_only_where_all_arrays_are_aligned(dtype: np.dtype) -> None:
    """The emulator would read unaligned runs too; a GPU would not."""
    x, y = np.arange(16, dtype=np.float32), np.arange(16).astype(dtype)
    DEVICE.launched.clear()
    for before_x, before_y in itertools.product((0, 1, 2, 4), repeat=2):
        for size in (7, 8):
            z, kind = add_narrow.forward(
                on_device(x)[before_x : before_x + size], on_device(y)[before_y : before_y + size], version=1
            )
            expected = x[before_x : before_x + size] + y[before_y : before_y + size].astype(np.float32)
            np.testing.assert_array_equal(backend.to_host(z), expected)
            assert kind == dtype
            if not ON_GPU:
                aligned = size == 8 and before_x % 4 == before_y % 4 == 0
                assert DEVICE.launched[-1].expression.endswith(", 4>" if aligned else ", 1>")


@pytest.mark.parametrize("needs", [(True, True), (True, False)])
def test_the_gradients_of_a_sum_have_the_dtypes_of_its_inputs(needs: tuple[bool, bool]) -> None:
    dz, narrow = on_device(np.linspace(-1, 1, 9, dtype=np.float32)), np.dtype(ml_dtypes.bfloat16)
    dx, dy = add_narrow.backward(dz, narrow, needs=needs, version=1)
    assert dx.dtype == np.float32
    assert (dy is None) if not needs[1] else (dy.dtype == narrow)


def test_heads_may_take_two_dimensions_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "MOST", 3)
    q, dout = np.random.default_rng(0).standard_normal((2, 3, 2, 17, 16)).astype(np.float16)
    case = cases.Case((q, q + 1, q - 1, None), {"scale": 0.25})
    for version in (1, 2, 3, 5):
        DeviceTrial(OPERATIONS["attention"], case, (True, True, True, False), (dout,)).check(f"cupy:v{version}")


def test_dropout_draws_the_same_bits_everywhere() -> None:
    x = np.ones((7, 33), np.float32)
    with tv.use_kernels("numpy"):
        expected = OPERATIONS["dropout"].apply(Tensor(x), p=0.3, seed=2**40 + 1, offset=3).numpy()
    for choice in ("cupy:v1", "cupy:v2"):
        with tv.use_kernels(choice):
            found = OPERATIONS["dropout"].apply(Tensor(on_device(x)), p=0.3, seed=2**40 + 1, offset=3)
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("choice", ["gelu cupy:v1", "bias_gelu cupy:v1", "bias_gelu cupy:v2"])
def test_gelu_of_large_and_infinite_numbers_has_its_limits_and_keeps_nan(choice: str, approximate: str) -> None:
    name, choice = choice.split()
    x = np.array([[math.inf, -math.inf, math.nan, 3e38, -3e38, 1e20, -1e20, 40, -40]], np.float32)
    inputs, ones = (x, np.zeros_like(x[0]))[: 1 + (name == "bias_gelu")], np.ones_like(x)
    case = cases.Case(inputs, {"approximate": approximate})
    y, dx, *_ = DeviceTrial(OPERATIONS[name], case, (True,) * len(inputs), (ones,)).run(choice)
    np.testing.assert_array_equal(y, np.where(np.isnan(x), x, np.maximum(x, 0)))
    np.testing.assert_array_equal(dx, np.where(np.isnan(x), x, x > 0))
