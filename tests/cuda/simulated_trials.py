"""The kernels in numba.cuda, run by its simulator, against the plain rules.

`test_numba_cuda.py` runs this file in a process of its own, where NUMBA_ENABLE_CUDASIM=1 is set before the import of
Numba.
"""

from typing import Any

import numpy as np
import pytest
from numba.cuda.simulator.cudadrv import devicearray
from tinyvit.kernels import registry
from tinyvit.kernels.attention import launches
from tinyvit.kernels.attention import numba_cuda as attention
from tinyvit.kernels.layer_norm import numba_cuda as layer_norm


@pytest.fixture(autouse=True)
def _views_of_any_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the simulator work on views in place. It would refuse some that a kernel on a GPU accepts."""

    def shared(array: Any, **_: Any) -> tuple[Any, bool]:
        known = isinstance(array, devicearray.FakeCUDAArray)
        return (array if known else devicearray.FakeCUDAArray(np.asarray(array))), False

    monkeypatch.setattr(devicearray, "auto_device", shared)


RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def assert_near(found: Any, expected: Any) -> None:
    """Compare arrays up to a few roundings of float32."""
    for y, e in zip(found, expected, strict=True):
        assert (y is None) == (e is None)
        if e is not None:
            assert y.shape == e.shape
            np.testing.assert_allclose(y, e, rtol=2e-5, atol=5e-6)


def widened(arrays: Any) -> list[Any]:
    return [x.astype(np.float64) if x is not None and x.dtype == np.float32 else x for x in arrays]


@pytest.mark.parametrize("version", attention.VERSIONS)
@pytest.mark.parametrize(
    ("shape", "extras"),
    [
        ((1, 2, 5, 5, 3), {}),
        ((2, 1, 17, 33, 16), {"bias": True}),
        ((1, 1, 18, 18, 20), {"is_causal": True, "mask": True}),
        ((1, 1, 5, 9, 4), {"bias": True, "padding": -1e9}),
        ((1, 2, 16, 15, 17), {"dropout_p": 0.4, "seed": 2**40 + 3, "offset": 5}),
    ],
)
def test_attention(version: int, shape: tuple[int, ...], extras: dict[str, Any]) -> None:
    b, h, n, s, d = shape
    packed = normal(b, n, 3, h, d).transpose(2, 0, 3, 1, 4)
    q, k, v = packed if n == s else (normal(b, h, n, d), normal(b, h, s, d), normal(b, h, s, d))
    bias = normal(h, n, s) if extras.get("bias") else None
    if "padding" in extras:
        bias[:, ::2], q[:, :, ::2] = extras["padding"], 0  # the padding of all keys; with q = 0 no score is rounded
    params = {key: value for key, value in extras.items() if key not in ("bias", "mask", "padding")} | {"scale": 0.3}
    if extras.get("mask"):
        params["mask"] = RNG.random((b, 1, n, s)) < 0.6
        params["mask"][0, 0, 3] = False  # this query sees no key
    params = {"mask": None, "is_causal": False, "dropout_p": 0.0, "seed": 0, "offset": 0} | params
    plain = registry.PLAIN["attention"]
    needs, dout = (True, True, True, bias is not None), normal(b, h, n, d)
    with np.errstate(divide="ignore"):
        out, lse = plain.forward(*widened((q, k, v, bias)), **params)
    names = ("q", "k", "v", "bias")
    kept = dict(zip(names, widened((q, k, v, bias)), strict=True)) | {"out": out}
    gradients = plain.backward(widened((dout,)), kept, needs, params)
    found = attention.forward(q, k, v, bias, **params, version=version)
    assert_near(found, (out, lse))
    assert_near(attention.backward(dout, q, k, v, bias, *found, needs=needs, **params, version=version), gradients)


@pytest.mark.parametrize("version", attention.VERSIONS)
def test_heads_of_attention_may_take_two_dimensions_of_the_grid(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "MOST", 3)
    test_attention(version, (3, 2, 3, 3, 4), {"bias": True})


@pytest.mark.parametrize("version", layer_norm.VERSIONS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (2, 3, 130), (9, 7)])
@pytest.mark.parametrize("add", [False, True])
def test_layer_norm(version: int, shape: tuple[int, ...], add: bool) -> None:
    x, residual, dy, dsum = (normal(*shape) for _ in range(4))
    weight, bias = normal(shape[-1]), normal(shape[-1])
    name = "add_layer_norm" if add else "layer_norm"
    plain = registry.PLAIN[name]
    inputs = (x, residual, weight, bias) if add else (x, weight, bias)
    run, run_back = (
        (layer_norm.add_forward, layer_norm.add_backward) if add else (layer_norm.forward, layer_norm.backward)
    )
    expected = plain.forward(*widened(inputs), eps=1e-3)
    found = run(*inputs, eps=1e-3, version=version)
    assert_near(found[:4], expected)
    needs = (True,) * len(inputs)
    kept = (found[0] if add else x, weight, *found[2 if add else 1 :])
    exact = {"sum" if add else "x": expected[0] if add else x, "weight": weight}
    upstream = (dsum, dy) if add else (dy,)
    exact = dict(zip(exact, widened(tuple(exact.values())), strict=True))
    gradients = plain.backward(widened(upstream), exact, needs, {"eps": 1e-3})
    assert_near(run_back(*upstream, *kept, eps=1e-3, needs=needs, version=version), gradients)


def test_a_branch_of_16_bits_gets_its_gradient_in_its_dtype() -> None:
    x, dy, weight = normal(5, 33), normal(5, 33), normal(33)
    *found, kind = layer_norm.add_forward(x, x.astype(np.float16), weight, weight, version=2)
    for upstream in ((None, dy), (dy, None)):
        kept = (found[0], weight, *found[2:], kind)
        dx, dbranch, *_ = layer_norm.add_backward(*upstream, *kept, needs=(True,) * 4, version=2)
        assert (dx.dtype, dbranch.dtype) == (np.float32, np.float16)
        np.testing.assert_array_equal(dbranch, dx.astype(np.float16))


def test_fresh_memory_is_never_read() -> None:
    """The results are the same if `empty` returns memory full of NaN."""
    q = normal(1, 1, 5, 4)
    first, second = (attention.forward(q, q, q, None, scale=0.5, version=2)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
