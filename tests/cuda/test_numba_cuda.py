"""The kernels in numba.cuda without a GPU: they run in the simulator, and compile to PTX for every architecture."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from peers import peer

HERE = Path(__file__).resolve().parent
SIMULATED = HERE / "simulated_trials.py"

# Compiles all kernels for all architectures, in one process without the simulator, and prints the first error.
COMPILE = """
from types import SimpleNamespace
from numba import bool_, cuda, float32, types, uint64
from tinyvit.kernels.attention import numba_cuda as attention
from tinyvit.kernels.layer_norm import numba_cuda as layer_norm

four, three, two, one = (types.Array(float32, n, "A") for n in (4, 3, 2, 1))
mask = types.Array(bool_, 4, "A")
how = types.Tuple((bool_, bool_, bool_, float32, uint64, float32, uint64, uint64))
inputs = (four, four, four, four, mask)
rows = (two, two, one, one, two, two, one, one)
kernels = [
    (attention._forward_1, (*inputs, four, three, how)),
    (attention._anchors, (four, four, four, mask, three, three, three, how)),
    (attention._dq_1, (*inputs, three, three, three, four, four, four, how)),
    (attention._dkv_1, (*inputs, three, three, three, four, four, four, how)),
    (attention._tiled(64)[0], (*inputs, four, three, how)),
    (attention._tiled(64)[1], (*inputs, three, three, three, four, four, four, four, four, bool_, how)),
    (layer_norm._forward_1, (*rows, float32, bool_)),
    (layer_norm._dx_1, (two, two, two, one, one, one, two, bool_)),
    (layer_norm._dweight_1, (two, two, one, one, three)),
    (layer_norm._in_registers(8)[0], (*rows, float32, bool_)),
    (layer_norm._in_registers(8)[1], (two, two, two, one, one, one, two, three, bool_)),
]
from numba.cuda import compiler, dispatcher  # functions that kernels call ask for the current device
for capability in {capabilities}:
    for module in (compiler, dispatcher):
        module.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    for kernel, signature in kernels:
        ptx, _ = cuda.compile_ptx(kernel.py_func, signature, cc=capability)
        assert ".entry" in ptx, kernel
print("compiled")
"""


def python(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    settings = {k: v for k, v in os.environ.items() if k != "NUMBA_DISABLE_JIT"} | environment
    return subprocess.run([sys.executable, *arguments], env=settings, capture_output=True, text=True)


def compiled(capabilities: list[tuple[int, int]]) -> None:
    found = python("-c", COMPILE.replace("{capabilities}", str(capabilities)))
    if "NVVM" in found.stderr and "not" in found.stderr:
        pytest.skip("needs NVVM, NVIDIA's compiler for Numba")
    assert found.stdout.strip() == "compiled", found.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["attention", "layer_norm"])
def test_the_simulator_agrees_with_the_plain_rules(part: str) -> None:
    command = ["-m", "pytest", str(SIMULATED), "-q", "-x", "-p", "no:cacheprovider", "-k", part]
    found = python(*command, NUMBA_ENABLE_CUDASIM="1")
    assert found.returncode == 0, found.stdout[-3000:]


@pytest.mark.slow
def test_every_kernel_compiles_to_ptx_for_every_architecture() -> None:
    peer("numba_cuda", "numba-cuda")
    compiled([(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
