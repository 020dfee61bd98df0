"""Python on a pretended device: `pretended_python.py -P -m MODULE ARGUMENTS` runs a module, as `python` would on a GPU.

Kernels and products do nothing, so what checks values fails, and times mean nothing; but every line of a program for a
GPU runs.
"""

import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "kernels"), str(HERE.parent / "support")]

import numpy as np  # noqa: E402
import pretended  # noqa: E402

pretended.installed()

import cupy  # noqa: E402  (after the device is installed)
import fake_cublaslt  # noqa: E402
from tinyvit.kernels.cuda import device  # noqa: E402
from tinyvit.kernels.linear import lt  # noqa: E402

from tinyvit import backend  # noqa: E402


class NoProducts(lt.Library):
    """cuBLASLt without its products: it accepts or refuses a call, and computes nothing."""

    def multiply(self, *arguments: Any) -> None:
        return None


def main() -> None:
    """Run the module that the arguments name."""
    arguments = [word for word in sys.argv[1:] if word != "-P"]
    assert arguments.pop(0) == "-m", "only modules can be run"
    with mock.patch.object(cupy, "arange", np.arange):  # the device is asked to compute 1 + 2 + 3
        assert backend.gpu() == (cupy, None)
    library = NoProducts(fake_cublaslt.compiled())
    with (
        mock.patch.object(device, "compile_cubin", pretended.named),
        mock.patch.object(lt, "library", return_value=library),
        mock.patch.object(lt, "why_not", return_value=None),
    ):
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
