"""Softmax cross-entropy in CUDA C++, against class ids or probabilities, forward and backward.

| version | what it changes, and gains                                                                            |
|---------|-------------------------------------------------------------------------------------------------------|
| v1      | one thread for each row, written like the formula                                                     |
| v2      | one warp for each row: neighbouring lanes read neighbouring columns                                   |

x (R, K); the leading axes are flattened into R. Forward keeps peak and total (R,) in float32, the classes, and the
divisor of the sum of losses, all on the device, so that nothing waits for the host.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

from ..cuda.device import CTYPES, Kernel, address, dense, device_of, library_of, rows_of

_SOURCE = "cross_entropy/cross_entropy.cu"
_WARPS, _THREADS, _SCRATCH = 4, 128, 4 * 32
_REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}


class _CrossEntropy(ctypes.Structure):
    _pointers = (
        "logits",
        "target",
        "classes",
        "loss",
        "peak",
        "total",
        "out",
        "divisor",
        "dloss",
        "dlogits",
        "dtarget",
    )
    _fields_ = (
        *((n, ctypes.c_void_p) for n in _pointers),
        *((n, ctypes.c_int) for n in ("rows", "columns")),
        ("ignored", ctypes.c_longlong),
        *((n, ctypes.c_float) for n in ("keep", "share")),
        ("reduction", ctypes.c_int),
    )


def _kernel(name: str, ctype: str) -> Kernel:
    return Kernel(_SOURCE, f"{name}<{ctype}>")


def kernels() -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel, and the most registers that it may use."""
    for ctype in CTYPES.values():
        yield _kernel("cross_entropy_reduce", ctype), 64
        for version in VERSIONS:
            yield _kernel(f"cross_entropy_forward_{version}", ctype), 64
            yield _kernel(f"cross_entropy_backward_{version}", ctype), 64


VERSIONS = {1: _THREADS, 2: _WARPS}  # rows of a block


def _launch(direction: str, version: int, logits: Any, given: _CrossEntropy) -> None:
    kernel = _kernel(f"cross_entropy_{direction}_{version}", CTYPES[logits.dtype.name])
    device_of(logits).launch(kernel, (-(-given.rows // VERSIONS[version]),), _THREADS, [given])


def _given(x: Any, target: Any, classes: Any, ignore_index: int, label_smoothing: float, reduction: str) -> Any:
    given = _CrossEntropy(logits=address(x), target=address(target), classes=address(classes))
    given.rows, given.columns = x.shape
    given.ignored, given.reduction = int(ignore_index), _REDUCTIONS[reduction]
    given.keep, given.share = 1 - label_smoothing, label_smoothing / x.shape[1]
    return given


def forward(logits, target, *, ids=None, ignore_index=-100, label_smoothing=0.0, reduction="mean", version):
    """logits (..., K), target (..., K) or ids (...) -> the loss, peak and total (R,), the ids (R,), divisor (1,)."""
    xp, x = library_of(logits), rows_of(logits)
    classes = None if ids is None else dense(xp.asarray(ids).reshape(-1).astype("int64"))
    t = None if target is None else rows_of(target)
    loss, peak, total = xp.empty((3, x.shape[0]), "float32")
    divisor = xp.ones(1, "float32")
    out = xp.empty(x.shape[0] if reduction == "none" else 1, x.dtype)
    given = _given(x, t, classes, ignore_index, label_smoothing, reduction)
    given.loss, given.peak, given.total, given.out, given.divisor = map(address, (loss, peak, total, out, divisor))
    _launch("forward", version, x, given)
    if reduction != "none":
        kernel = _kernel("cross_entropy_reduce", CTYPES[x.dtype.name])
        device_of(x).launch(kernel, (1,), 1024, [given], _SCRATCH)
    return out.reshape(logits.shape[:-1] if reduction == "none" else ()), peak, total, classes, divisor


def backward(
    dloss,
    logits,
    target,
    peak,
    total,
    classes,
    divisor,
    *,
    ids=None,
    ignore_index=-100,
    label_smoothing=0.0,
    reduction="mean",
    needs,
    version,
):
    """dloss, of the shape of the loss -> dlogits, dtarget (..., K)."""
    xp, x, upstream = library_of(logits), rows_of(logits), dense(dloss.reshape(-1))
    t = None if target is None else rows_of(target)
    dx, dtarget = xp.empty_like(x), xp.empty_like(x) if needs[1] else None
    given = _given(x, t, classes, ignore_index, label_smoothing, reduction)
    given.peak, given.total, given.divisor = map(address, (peak, total, divisor))
    given.dloss, given.dlogits, given.dtarget = map(address, (upstream, dx, dtarget))
    _launch("backward", version, x, given)
    return dx.reshape(logits.shape), dtarget.reshape(logits.shape) if needs[1] else None
