"""Corners of shape of every function on the device: values and gradients are those of the host, or both refuse.

`test_emulated.py` and `test_gpu.py` run this file.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from corners import CORNERS
from kernel_trials import ON_GPU
from tinyvit.kernels import registry
from tinyvit.kernels.cuda import device

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor

if not ON_GPU:
    from emulator import EmulatedDevice
    from fake_cupy import installed

# The emulator does not run what numba.cuda compiles. Rows are left out, rather than modules hidden: why a module could
# not be imported is remembered for the rest of the process.
EMULATED = tuple(spec for spec in registry.SPECS if spec.technology != "numba-cuda")

# Functions whose constants, targets and a mask that is added, must be on the device: arrays of the host are refused.
ON_ONE_DEVICE = ("binary_cross_entropy_with_logits", "cross_entropy", "mse_loss", "scaled_dot_product_attention")


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if ON_GPU:
        yield
        return
    monkeypatch.setattr(registry, "SPECS", EMULATED)
    with installed():
        device.DEVICES[0] = EmulatedDevice()
        yield
        device.DEVICES.clear()


def results(call: Any, arrays: list[np.ndarray], where: str) -> list[np.ndarray]:
    """Return the outputs of a call, and the gradients of its inputs."""
    with tv.use_kernels("auto" if where == "cuda" else "numpy"), np.errstate(all="ignore"):
        leaves = [tv.tensor(x, device=where, requires_grad=True) for x in arrays]
        outputs = call(F, *leaves)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        used = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
        found = [y.numpy() for y in outputs if isinstance(y, Tensor)]
        if used and leaves:
            ones = [tv.tensor(np.ones(y.shape, np.float32), device=where) for y in used]
            grads = tv.grad(used, leaves, ones, allow_unused=True)
            found += [np.zeros(x.shape) if g is None else g.numpy() for g, x in zip(grads, arrays, strict=True)]
        return found


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # of NumPy, beneath the stand-in for CuPy
@pytest.mark.parametrize("name", sorted(CORNERS))
def test_corners_of_shape_on_the_device(name: str) -> None:
    rng = np.random.default_rng(7)
    for number, (call, shapes) in enumerate(CORNERS[name]):
        arrays = [np.array(rng.uniform(0.4, 1.6, s), np.float32) for s in shapes]
        try:
            expected = results(call, arrays, "cpu")
            for x, y in zip(results(call, arrays, "cuda"), expected, strict=True):
                assert x.shape == y.shape
                np.testing.assert_allclose(x, y, 2e-5, 2e-6)
        except Exception as error:
            if name in ON_ONE_DEVICE and "move them to one device" in str(error):
                continue
            error.add_note(f"corner {number} of F.{name}: shapes {shapes}")
            raise
