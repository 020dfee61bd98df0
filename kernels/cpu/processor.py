"""Choose the vector instructions that kernels are compiled for: all that the processor has, or those TINYVIT_CPU names.

| level       | vector registers | what it needs                                             |
|-------------|------------------|-----------------------------------------------------------|
| avx512_bf16 | 32 of 64 bytes   | AVX-512 and its instructions for bfloat16                 |
| avx512      | 32 of 64 bytes   | AVX-512 F, BW, DQ and VL                                  |
| avx2        | 16 of 32 bytes   | AVX2 and fused multiply-add                               |
| neon        | 32 of 16 bytes   | a 64-bit ARM processor (aarch64); not tuned               |
| generic     | 16 of 16 bytes   | nothing: baseline x86-64, or another architecture         |

On a processor without instructions for bfloat16, kernels widen its elements to float32 when they read them.

`TINYVIT_CPU=avx2 python -m pytest tests/kernels` tests the kernels as another processor runs them. The cache holds the
code of each level separately. The variable must be set before the first kernel is loaded.
"""

import os
from functools import cache

from llvmlite import binding
from numba.core import config

_BFLOAT16, _AVX512 = "avx512bf16", ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
_NEEDED = {
    "avx512_bf16": (*_AVX512, _BFLOAT16),
    "avx512": _AVX512,
    "avx2": ("avx2", "fma"),
    "neon": (),
    "generic": (),
}
_TARGETS = {"avx2": "x86-64-v3", "generic": "x86-64"}  # what LLVM calls a processor of that level


def usable() -> list[str]:
    """Return the levels that this processor has, the best first."""
    features = binding.get_host_cpu_features() if os.environ.get("TINYVIT_CPU") else _features()
    missing = {name for name, needed in _NEEDED.items() if not all(features.get(f) for f in needed)}
    if not is_arm(binding.get_process_triple()):
        missing.add("neon")
    return [name for name in _NEEDED if name not in missing]


@cache
def level() -> str:
    """Return the level that kernels are compiled for: the one in TINYVIT_CPU, else the best that this processor has.

    Raises ValueError if TINYVIT_CPU is not a level, or is one that this processor does not have.
    """
    wanted = os.environ.get("TINYVIT_CPU") or usable()[0]
    if wanted not in usable():
        names, has = ", ".join(_NEEDED), ", ".join(usable())
        raise ValueError(f"TINYVIT_CPU is {wanted!r}; it must be one of {names}, and this processor has {has}")
    return wanted


def _features() -> dict[str, bool]:
    """Return the features that Numba compiles for."""
    if config.CPU_FEATURES is None:
        return binding.get_host_cpu_features()
    return {f[1:]: f.startswith("+") for f in config.CPU_FEATURES.split(",") if f}


@cache
def target() -> tuple[str, str]:
    """Return the name and features of the processor to compile for, as LLVM writes them, and set them in Numba."""
    if os.environ.get("TINYVIT_CPU") and level() in _TARGETS and _is_x86():
        os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = _TARGETS[level()], ""
        config.reload_config()
    elif level() == "avx512" and os.environ.get("TINYVIT_CPU"):
        fewer = {**binding.get_host_cpu_features(), _BFLOAT16: False}
        os.environ["NUMBA_CPU_FEATURES"] = ",".join(f"{'-+'[has]}{feature}" for feature, has in fewer.items())
        config.reload_config()
    features = config.CPU_FEATURES
    host = binding.get_host_cpu_features().flatten() if features is None else features
    return config.CPU_NAME or binding.get_host_cpu_name(), host


def has_bfloat16() -> bool:
    """Whether the level has instructions that round to bfloat16 and that sum products of bfloat16."""
    return level() == "avx512_bf16"


def fuses() -> bool:
    """Whether the level has fused multiply-add; without it LLVM would call a slow function of the C library."""
    return level() != "generic" or not _is_x86()


def is_arm(triple: str) -> bool:
    """Whether LLVM's name of a system is one of a 64-bit ARM processor, which always has NEON with multiply-adds."""
    return triple.partition("-")[0] in ("aarch64", "arm64")


def _is_x86() -> bool:
    return binding.get_process_triple().startswith("x86_64")
