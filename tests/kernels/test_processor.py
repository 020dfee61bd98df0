"""Kernels are compiled for the level of the processor that TINYVIT_CPU names; unusable levels are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tinyvit.kernels.cpu import processor

CODE = """
import numpy as np
import tinyvit as tv, tinyvit.functional as F
from tinyvit.kernels.cpu import processor
from tinyvit.kernels.linear import numba_cpu, microkernel

tv.use_kernels("numba")
x = tv.Tensor(np.eye(3, dtype=np.float32))
assert (F.linear(x, x).numpy() == x.numpy()).all()
(code,) = numba_cpu._forward_2.compiled.inspect_asm().values()
print(processor.level(), microkernel.ROWS[0], "zmm" in code, "ymm" in code)
"""


def linear_at(level: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    settings = {"TINYVIT_CPU": level, "NUMBA_DISABLE_JIT": "0", "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "error", "-c", CODE]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["avx2", "generic"])
def test_code_uses_no_wider_registers_than_the_level_has(level: str, tmp_path: Path) -> None:
    if level not in processor.usable():
        pytest.skip(f"this processor has no {level}")
    run = linear_at(level, tmp_path)
    assert run.stderr == ""
    assert run.stdout.split() == [level, "6", "False", str(level == "avx2")]


def test_an_empty_variable_names_no_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVIT_CPU", "")
    assert processor.level.__wrapped__() == processor.usable()[0]


def test_an_unknown_level_is_refused(tmp_path: Path) -> None:
    run = linear_at("sse9", tmp_path)
    assert run.returncode == 1
    known = "avx512_bf16, avx512, avx2, neon, generic"
    assert f"TINYVIT_CPU is 'sse9'; it must be one of {known}, and this processor has" in run.stderr
