"""The arithmetic of a run: its device, kernels and versions, on which the last bits of its results depend.

A run that is resumed with something else still becomes a good model, and a run may have to move to another machine.
So a difference is not an error: a warning names it.
"""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import device_of, gpu, product_libraries
from ..dispatch import is_served
from ..errors import log
from ..functional.normalization import LayerNorm


def arithmetic_of(parameter: Any) -> dict[str, str]:
    """Return the device, kernels and versions that compute a model with this parameter, an array, by their names."""
    device = device_of(parameter).partition(":")[0]
    found = {"device": device, "kernels": "none", "tinyvit": _own_version(), "numpy": np.__version__}
    has_kernels = is_served(LayerNorm.kernel, np.dtype(np.float32), device)
    if device != "cpu":
        from ..kernels.cuda.device import device_of as gpu_of

        kernels = {"kernels": f"for sm_{gpu_of(parameter).arch}"} if has_kernels else {}
        return found | kernels | {"cupy": str(getattr(gpu()[0], "__version__", "unknown"))}
    found["BLAS"] = product_libraries()
    if has_kernels:
        import numba

        from ..kernels.cpu.processor import level

        found |= {"kernels": f"for {level()}", "numba": numba.__version__}
    return found


def _own_version() -> str:
    try:
        return metadata.version("tinyvit")
    except metadata.PackageNotFoundError:  # a folder on PYTHONPATH
        return "unknown"


def warn_of_other_arithmetic(path: Path, before: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Warn if the checkpoint `path` was computed by something else than what computes the run from now on."""
    differing = [name for name, value in now.items() if before.get(name, value) != value]
    if differing:
        changes = "; ".join(f"{name} {before[name]!s:.100} before, {now[name]} now" for name in differing)
        log.warning(
            "%s: the run continues with something else than before, so its last bits will not be those of a run that "
            "never stopped: %s%s",
            *(path, changes, _way_back(before, now) if "kernels" in differing else ""),
        )


def _way_back(before: Mapping[str, Any], now: Mapping[str, str]) -> str:
    """Return how to get the CPU's kernels of before."""
    wanted = str(before["kernels"]).removeprefix("for ")
    if {before.get("device"), now["device"]} != {"cpu"} or "none" in (wanted, now["kernels"]):
        return ""
    from ..kernels.cpu.processor import usable

    if wanted in usable():
        return f". To continue as before: TINYVIT_CPU={wanted}"
    return f". This processor cannot run kernels for {wanted:.40}"
