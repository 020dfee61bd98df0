"""Without Numba every operation runs its plain rule: models, commands and runs work, and say so where one looks.

`python -m pytest -p tests.support.without_numba tests/engine` runs other tests in that way.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from sources import ROOT

BLOCKED = "import sys; sys.path.insert(0, sys.argv[1]); import tests.support.without_numba; "


def run(code: str, folder: Path) -> str:
    """What a Python program prints that finds neither Numba nor llvmlite."""
    done = subprocess.run([sys.executable, "-c", BLOCKED + code, str(ROOT)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_is_trained_by_the_plain_rules(tmp_path: Path) -> None:
    code = """
import numpy as np, tinyvit as tv, tinyvit.functional as F
model = tv.models.ViT(8, 2, 10, dim=8, depth=1, heads=2, in_channels=1)
optimizer = tv.optim.AdamW(model.parameters(), lr=1e-2)
images, labels = np.ones((4, 1, 8, 8), np.float32), np.arange(4)
for precision in ("float32", "bfloat16"):
    losses = []
    for _ in range(3):
        with tv.autocast(precision):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0], losses
try:
    with tv.use_kernels("numba"):
        F.softmax(images)
except RuntimeError as error:
    print(error)
"""
    assert "softmax.numba_cpu cannot be imported" in run(code, tmp_path)


@pytest.mark.slow
def test_commands_work_and_info_gives_the_reason(tmp_path: Path) -> None:
    command = "sys.argv[1:] = {}; from tinyvit.cli import main; main()"
    shown = run(command.format(["info"]), tmp_path)
    assert "none, since Numba cannot be imported" in shown
    assert shown.count("plain NumPy rule") > 10
    trained = run(command.format(["train", "--set", "epochs=1", "--set", "limit=64", "--out", "run"]), tmp_path)
    assert "test accuracy" in trained
    assert "test images" in run(command.format(["evaluate", "run"]), tmp_path)


@pytest.mark.slow
def test_the_kernels_for_cupy_need_no_numba(tmp_path: Path) -> None:
    """Every row of the table can be asked about a call, and those for CuPy are loaded."""
    code = """
sys.path[:0] = [sys.argv[1] + "/tests/cuda"]
import numpy as np, tinyvit as tv, tinyvit.functional as F
from fake_cupy import installed
from tinyvit.engine import Op
from tinyvit.kernels import lookup, registry
from tinyvit.kernels.cuda.device import DEVICES
from emulator import EmulatedDevice

float32 = np.dtype("float32")
samples = {op.kernel: (op, next(iter(op.samples()))) for op in Op.registry.values() if op.kernel}
DEVICES[0] = EmulatedDevice()
with installed() as cupy:
    for spec in registry.SPECS:
        inputs, params = {}, {}
        if spec.operation in samples:
            op, given = samples[spec.operation]
            arrays = [cupy.asarray(x.astype("float32")) if isinstance(x, np.ndarray) else x for x in given.inputs]
            inputs, params = dict(zip(op.inputs, arrays)), given.params
        reason = lookup.refusal(spec, spec.device, float32, inputs, params)
        if spec.technology == "cupy":
            assert reason is None, (spec, reason)
            lookup.Kernel(spec, spec.versions)
        else:
            assert f"{spec.module} cannot be imported" in reason, (spec, reason)
    too_deep = tv.tensor(np.ones((1, 1, 2, 300), np.float32), device="cuda", requires_grad=True)
    with tv.use_kernels("auto"):
        F.scaled_dot_product_attention(too_deep, too_deep, too_deep).sum().backward()
    assert too_deep.grad.shape == too_deep.shape
print("loaded")
"""
    assert run(code, tmp_path) == "loaded\n"
