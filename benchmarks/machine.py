"""Where and with what a run was made: processor, system, versions, commit."""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # of the checkout

_PACKAGES = ("numpy", "numba", "torch", "jax", "autograd", "scipy")
_FEATURES = (
    "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "sve", "bf16"
)  # fmt: skip


def describe_machine() -> dict[str, Any]:
    """The processor, how many of it this process may use, what it can do, and how busy it is."""
    information = _cpu_information()
    flags = set(re.findall(r"^(?:flags|Features)\s*: (.*)$", information, re.MULTILINE)[:1] or [""])
    present = set(" ".join(flags).split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(information),
        "processors": usable,
        "features": [name for name in _FEATURES if name in present],
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "system": platform.platform(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _cpu_information() -> str:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return ""


def _cpu_name(information: str) -> str:
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", information, re.MULTILINE))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    name = re.sub(r"\((R|TM)\)|@.*| (CPU|Processor)\b", "", found["model name"]).strip()
    if any(character.isdigit() for character in name):
        return name
    return f"{name} family {found.get('cpu family')} model {found.get('model')}"  # hidden by a virtual machine


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_commit() -> str:
    """The commit, with "+" after it if the tree has changes other than results; "unknown" without git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD").strip()
        changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+" if changes else commit


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout
