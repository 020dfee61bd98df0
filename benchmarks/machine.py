"""The machine, the versions and the commit of a run."""

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from tinyvit.kernels.cpu.quota import usable_processors

from .report.records import Machine

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
_PACKAGES = ("tinyvit", "numpy", "numba", "torch", "jax", "autograd", "scipy", "onnxruntime")
_SOURCES = (".py", ".cu", ".cuh", ".h", ".toml")
# Names that Linux gives to the instruction sets that matter, on x86 and on ARM.
_FEATURES = (
    *("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile"),
    *("asimd", "sve", "bf16"),
)
# Variables by which tinyvit, PyTorch, oneDNN and OpenBLAS use fewer instruction sets than the processor has.
LIMITS = ("TINYVIT_CPU", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE")


def describe_machine() -> Machine:
    """The processor, how much of it this process may use, its instruction sets, and how busy it is.

    An environment variable that forbids some of the instruction sets is listed after them.
    """
    information = _cpu_information()
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", information, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    limits = [f"{name}={value}" for name in LIMITS if (value := os.environ.get(name))]
    return Machine(
        device=_cpu_name(information),
        processors=usable_processors(),
        features=[*(name for name in _FEATURES if name in present), *limits],
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        system=platform.platform(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


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
    # A virtual machine may hide the model, and keep its numbers.
    return f"{name} family {found.get('cpu family')} model {found.get('model')}"


def describe_versions() -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_commit() -> str:
    """The commit of this checkout; "+" follows it if files other than results are changed; "unknown" without git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD").strip()
        changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+" if changes else commit


def describe_sources(folders: Iterable[str], root: Path = ROOT) -> str:
    """A hash of all sources in these folders of the checkout: what was found with other sources is out of date.

    Unlike the commit it needs no git, and notices changes that are not committed.
    """
    digest = hashlib.sha256()
    for folder in sorted(folders):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in _SOURCES and path.is_file():
                digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout
