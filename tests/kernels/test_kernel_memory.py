"""Memory of a training step: memory in use is never handed out again, and freed memory serves the next step."""

import os
import subprocess
import sys

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor


def model_and_data() -> tuple[tv.models.ViT, Tensor, np.ndarray]:
    tv.manual_seed(0)
    rng = np.random.default_rng(0)
    model = tv.models.ViT(16, 4, 10, 32, 2, 2, in_channels=1, dropout=0.1)
    return model, Tensor(rng.standard_normal((8, 1, 16, 16)).astype("f")), rng.integers(0, 10, 8)


def test_arrays_in_use_keep_their_values() -> None:
    model, images, labels = model_and_data()
    optimizer = tv.optim.AdamW(model.parameters())
    held: list[tuple[np.ndarray, bytes]] = []
    with tv.use_kernels("numba"):
        for _ in range(6):
            logits = model(images)
            logits.retain_grad()
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            arrays = [logits.data, loss.data, logits.grad.data, *(p.grad.data for p in model.parameters())]
            optimizer.step()
            held += [(a, a.tobytes()) for a in arrays]
    assert [a.tobytes() for a, _ in held] == [before for _, before in held]


STEPS = """
import resource
import numpy as np
import tinyvit as tv, tinyvit.functional as F
tv.backend.keep_freed_memory()
model = tv.models.ViT(28, 7, 10, 64, 4, 4, in_channels=1)
optimizer = tv.optim.AdamW(model.parameters())
images, labels = tv.Tensor(np.ones((64, 1, 28, 28), "f")), np.zeros(64, int)
def step():
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


@pytest.mark.slow
def test_later_training_steps_need_no_fresh_pages() -> None:
    run = subprocess.run([sys.executable, "-c", STEPS], env=os.environ, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 10
