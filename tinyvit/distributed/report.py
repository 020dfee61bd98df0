"""What `tinyvit info` says about MPI."""

import subprocess
import sys
from collections.abc import Iterator

# A process of its own: MPI can be started once, and may end the process where it cannot work.
_QUESTIONS = """
import ctypes, sys
import mpi4py
from mpi4py import MPI
library = " ".join(MPI.Get_library_version().replace(chr(0), "").splitlines()[0].split())
print(f"{library}, by mpi4py {mpi4py.__version__}")
with open("/proc/self/maps") as maps:
    path = next(line.split(None, 5)[5].strip() for line in maps if "/libmpi" in line)
print("yes" if ctypes.CDLL(path).MPIX_Query_cuda_support() else "no")  # MPICH and Open MPI have this function
"""


def describe_mpi() -> Iterator[tuple[str, str]]:
    """Yield what is known of MPI on this machine, as names and values."""
    try:
        asked = subprocess.run([sys.executable, "-P", "-c", _QUESTIONS], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        yield "MPI", f"no: {error}"
        return
    if not asked.stdout:
        reason = asked.stderr.strip().partition("\n")[0]
        for line in asked.stderr.splitlines():
            if line.startswith(("ModuleNotFoundError", "ImportError", "RuntimeError")):
                reason = line
        yield "MPI", f"no: {reason or 'it does not start'}; get it with: pip install 'tinyvit[mpi]'"
        return
    library, *support = asked.stdout.splitlines()
    yield "MPI", library
    yield "CUDA-aware", f"{support[0] if support else 'unknown'}; gradients on GPUs are added by NCCL"
