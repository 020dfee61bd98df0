"""Single looks at a GPU, each a process of its own: `python -m benchmarks.gpu.looks NAME` prints what it finds.

machine   the GPU, the driver, the tools and the versions of libraries
products  cuBLASLt: whether it has an algorithm, the error, and the speed, for each dtype and epilogue
graph     the nodes of one captured training step, by kind
kernels   each kernel of a training step a few times, for a profiler
"""

import json
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np

from ..cases import VIT_S, ModelShape
from .cases import normal, training_step
from .clock import Clock
from .first_look import FOUND

_PACKAGES = ("numpy", "numba", "cupy-cuda12x", "cupy-cuda13x", "numba-cuda", "cuda-core", "nvidia-cublas", "torch")
_SHAPE = replace(VIT_S, batch=1024)
# Rows, inputs and outputs: the layers of `vit-s` at batch 1024, odd sizes, the classes of a head.
_SIZES = [(66_560, 384, 1536), (66_560, 1536, 384), (66_560, 384, 1152), (1021, 383, 515), (1024, 384, 10)]


def machine(found: Callable[[dict[str, Any]], None]) -> None:
    """The GPU, the driver, the tools and the versions of libraries."""
    from tinyvit.info import report

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    tools = {name: shutil.which(name) for name in ("git", "ncu", "nsys", "compute-sanitizer", "nvcc", "nvidia-smi")}
    gpus = ""
    if tools["nvidia-smi"]:
        gpus = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.strip()
    found({"system": platform.platform(), "gpus": gpus, "tools": tools, "versions": versions})
    print(report())


def products(found: Callable[[dict[str, Any]], None], clock: Any = None, sizes: Any = _SIZES) -> None:
    """cuBLASLt: whether it has an algorithm, the error, and the speed, for each dtype and epilogue."""
    from tinyvit.kernels.linear import cublaslt

    clock = clock or Clock()
    for dtype in ("float32", "float16", "bfloat16"):
        for rows, columns, outs in sizes:
            x, weight, bias = normal((rows, columns), dtype), normal((outs, columns), dtype), normal((outs,), dtype)
            y, dweight, db = normal((rows, outs), dtype), normal((outs, columns), dtype), normal((outs,), dtype)
            kinds = {
                "none": (x, weight.T, y, "none", None),
                "bias": (x, weight.T, y, "bias", bias),
                "bias_gradient": (y.T, x, dweight, "bias_gradient", db),
            }
            for name, (a, b, d, epilogue, of_bias) in kinds.items():
                line: dict[str, Any] = {"product": f"{rows} {columns} {outs}", "dtype": dtype, "epilogue": name}
                try:
                    line["algorithm"] = cublaslt.has_algorithm(a, b, d, epilogue, of_bias)
                    run = _product(cublaslt, a, b, d, epilogue, of_bias)
                    run()
                    line["error"] = _error(a, b, d, of_bias if epilogue == "bias" else None)
                    seconds = clock.seconds(run, False)
                    line["tflop_per_s"] = 2e-12 * rows * columns * outs / seconds
                    line["gb_per_s"] = 1e-9 * (a.nbytes + b.nbytes + d.nbytes) / seconds
                except Exception as error:  # one that fails does not stop the others
                    line["failed"] = f"{type(error).__name__}: {error}"
                found(line)


def _product(cublaslt: Any, a: Any, b: Any, d: Any, epilogue: str, bias: Any) -> Callable[[], Any]:
    return lambda: cublaslt.multiply(a, b, d, epilogue, bias)


def _error(a: Any, b: Any, d: Any, bias: Any) -> float:
    """The largest error in some rows of a product, relative to their largest value."""
    some = slice(None, None, max(1, a.shape[0] // 64))
    left, right, got = (np.asarray(x.get(), np.float64) for x in (a[some].copy(), b.copy(), d[some].copy()))
    expected = left @ right
    if bias is not None:
        expected += np.asarray(bias.get(), np.float64)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def graph(found: Callable[[dict[str, Any]], None], shape: ModelShape = _SHAPE) -> None:
    """The nodes of one captured training step, by kind."""
    step, batch = training_step(shape, "bfloat16")
    for _ in range(5):
        step(batch)
    found({"captured": step.is_captured, "reason": step.reason})
    nodes = re.findall(r'label="\{?\s*([^"]*)', step.described())
    names = Counter(_kind(node) for node in nodes)
    found({"nodes": len(nodes), "kinds": dict(names.most_common())})


def _kind(node: str) -> str:
    """The name of the function in the description of a node, without template arguments."""
    words = re.findall(r"[A-Za-z_][A-Za-z0-9_]{3,}", node)
    return " ".join(words[:2]) if words else node[:40]


def kernels(found: Callable[[dict[str, Any]], None]) -> None:
    """Each kernel of a training step a few times, for a profiler."""
    step, batch = training_step(_SHAPE, "bfloat16")
    step.reason = "a profiler sees the kernels one by one"
    for _ in range(3):
        loss = step(batch)
    found({"loss": loss.item()})


LOOKS = {look.__name__: look for look in (machine, products, graph, kernels)}

if __name__ == "__main__":
    LOOKS[sys.argv[1]](lambda line: print(f"{FOUND}{json.dumps(line)}", flush=True))
