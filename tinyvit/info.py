"""The report that `tinyvit info` prints: versions, devices, threads, data, and the implementation of each operation."""

import os
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any

import numpy as np

from . import __version__, dispatch
from .backend import check_device, shortcomings
from .data import dataset_names
from .data.sources import SOURCES, find
from .distributed.report import describe_mpi
from .engine import Op
from .errors import DataError
from .kernels import lookup, registry
from .kernels.interrupts import import_whole
from .kernels.linear import choice
from .optim import Adam

_PACKAGES = (
    *("numpy", "numba", "llvmlite", "ml_dtypes", "safetensors", "rich", "Pillow", "matplotlib", "threadpoolctl"),
    *("click", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cublas", "nvidia-cublas-cu12", "numba-cuda"),
)


def report() -> str:
    """Return the report as text."""
    sections: dict[str, Iterable[tuple[str, ...]]] = {
        "versions": _versions(),
        "devices": _devices(),
        "threads": _threads(),
        "several processes": describe_mpi(),
        "data": ((name, _place_of(name)) for name in dataset_names()),
        f"operations that have kernels, and what serves them (use_kernels: {dispatch.current_choice()})": _operations(),
    }
    return "\n\n".join(f"{title}\n{_table(list(rows))}" for title, rows in sections.items())


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("".join(f"  {text:{width}}" for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _versions() -> Iterator[tuple[str, str]]:
    yield "tinyvit", __version__
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"


def _devices() -> Iterator[tuple[str, str]]:
    for device in ("cpu", "cuda"):
        try:
            check_device(device)
        except RuntimeError as reason:
            yield device, f"no: {reason}"
            continue
        yield device, "yes"
        for lost in shortcomings("bfloat16") if device == "cuda" else ():
            yield "", f"but {lost}"


def _threads() -> Iterator[tuple[str, str]]:
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    from .kernels.cpu import quota

    share = f"; a quota of its control group keeps {quota.quota():g} busy" if quota.quota() < float("inf") else ""
    yield "processors", f"{quota.usable_processors()} of {os.cpu_count()}{share}"
    yield from _kernels()
    for pool in threadpool_info():
        name = " ".join(str(part) for part in (pool["internal_api"], pool["version"]) if part)
        kernels = f", kernels for {pool['architecture']}" if "architecture" in pool else ""
        yield pool["user_api"], f"{name}, {pool['num_threads']} threads{kernels}; for operations without a kernel"


def _kernels() -> Iterator[tuple[str, str]]:
    """Yield what our own kernels on the CPU use: vectors, products, threads, and the folder of compiled code."""
    try:
        import_whole(f"{registry.__package__}.cpu.compiler")  # refuses wrong settings of Numba
        from .kernels import cache
        from .kernels.cpu import compiler, processor, threads
    except ImportError as error:
        yield "kernels", f"none, since Numba cannot be imported ({error}); every operation runs its plain NumPy rule"
        return
    if not compiler.is_compiling():
        yield "kernels", "run as Python, very slowly, because NUMBA_DISABLE_JIT is set"
        return
    set_by = "set by TINYVIT_THREADS" if os.environ.get("TINYVIT_THREADS") else "set TINYVIT_THREADS to change it"
    chosen_by = "set by TINYVIT_CPU" if os.environ.get("TINYVIT_CPU") else "the best level of this processor"
    yield "vectors", f"{processor.level()} ({chosen_by})"
    yield "products", _PRODUCTS[processor.level()]
    yield from _tuned()
    yield "kernels", f"{threads.thread_count()} threads ({set_by})"
    folder = cache.cache_folder()
    if cache.can_keep():
        yield "compiled", f"kept in {folder}"
        return
    rest = f"what is not yet in {folder}" if cache.can_read() else "anew"
    yield "compiled", f"{rest}, in each process, because {folder} cannot be written; NUMBA_CACHE_DIR can name another"


def _tuned() -> Iterator[tuple[str, str]]:
    """Yield the shapes of linear maps that were measured here, and what makes their products."""
    timings = choice.kept()
    if not timings:
        yield "", "not compared with OpenBLAS; `tinyvit info --tune RECIPE` does that"
    for timing in timings:
        rows, k, n = timing.shape
        speed = f"{timing.tiles * 1e3:.3g} ms by tiles, {timing.blas * 1e3:.3g} ms by OpenBLAS"
        chosen = "OpenBLAS" if timing.prefers_blas else "tiles"
        yield "", f"{rows} x {k} to {n}, forward and backward: {speed}; {chosen} make{'s' * (chosen != 'tiles')} them"


# How matrices are multiplied on the CPU, by the level of `kernels.cpu.processor`.
_PRODUCTS = {
    "avx512_bf16": "tiles of 14 x 32; bfloat16 in pairs, because this processor adds up their products",
    "avx512": "tiles of 14 x 32; bfloat16 widened to float32, because AVX512_BF16 is missing or switched off",
    "avx2": "tiles of 6 x 16; bfloat16 widened to float32, because AVX512_BF16 is missing or switched off",
    "neon": "OpenBLAS, because tiles of 8 x 8 for NEON have not been measured; bfloat16 as float32",
    "generic": "OpenBLAS, which is faster than tiles of 6 x 8 without AVX2; bfloat16 as float32",
}


def _place_of(dataset: str) -> str:
    if dataset not in SOURCES:
        return "comes with the package"
    try:
        folder = find(dataset)
    except DataError as error:
        return str(error)
    return str(folder) if folder else f"not found; get it with: tinyvit data fetch {dataset}"


def _operations() -> Iterator[tuple[str, str, str]]:
    """Yield each operation that has kernels, what serves it for float32 on the CPU, and why other kernels do not."""
    questions: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [(Adam.update, Adam.update, {}, {})]
    for op in Op.registry.values():
        if op.kernel is not None:
            sample = next(iter(op.samples()))
            arrays = [x.astype(np.float32) if isinstance(x, np.ndarray) else x for x in sample.inputs]
            questions.append((op.name, op.kernel, dict(zip(op.inputs, arrays, strict=False)), sample.params))
    choice = dispatch.current_choice()
    for name, operation, inputs, params in questions:
        question = ("cpu", np.dtype(np.float32), inputs, params)
        try:
            kernel = lookup.find(operation, "cpu", choice, *question[1:])
        except RuntimeError as error:
            yield name, "none", str(error)
            continue
        rows = [spec for spec in registry.SPECS if spec.operation == operation and spec.device == "cpu"]
        if kernel:
            yield name, f"{kernel.spec.technology} kernel, version {kernel.version} of {kernel.spec.versions}", ""
        elif choice == "numpy" or not rows:
            yield name, "plain NumPy rule", "" if rows else "no kernel is registered"
        else:
            yield name, "plain NumPy rule", "; ".join(_refusal(spec, *question) for spec in rows)


def _refusal(spec: registry.Spec, *question: Any) -> str:
    """Return the reason why a kernel does not serve an operation."""
    slower = spec.is_slower() if spec.is_slower and dispatch.current_choice() == "auto" else None
    return lookup.refusal(spec, *question) or slower or "it is not of the chosen technology"
