"""Tests of runs by several processes; they share the stand-in for CuPy with the tests of the CUDA kernels."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cuda"))
