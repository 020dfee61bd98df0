"""Libraries that are not needed to use tinyvit: a test that wants one is skipped where it does not work."""

import importlib
import warnings
from typing import Any

import pytest


def peer(module: str, name: str = "") -> Any:
    """Import an optional library; if that fails, skip the test and say why.

    A library can be installed and still be broken, and then raises whatever it likes: PyTorch without its CUDA
    libraries an OSError, a library built for another NumPy a ValueError. Either way there is nothing to compare with.

    Parameters
    ----------
    module : what to import, such as "sklearn.datasets".
    name : what to call the library in the reason, if not by the module.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pytest turns warnings into errors, and those of a peer are not ours
            return importlib.import_module(module)
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        pytest.skip(f"needs {name or module}: {type(error).__name__}: {first_line}", allow_module_level=True)
