"""The one table of fused kernels: which implementation serves which operation, on what, and what it keeps.

A kernel is added in two places: its module, and a row here. The module offers two functions,

    forward(*inputs, version, **params)                     -> (*outputs, *residuals)
    backward(*gradients, *kept, needs, version, **params)   -> the gradients of the inputs, in the operation's order

Inputs, outputs and parameters are those of the operation. `kept` are the inputs, outputs and residuals named in the
row, `needs` says of each input whether its gradient is wanted; None is given for one that is not. `version` is a
number of the table at the top of the module, 1 the simplest, the last the fastest.
"""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import ml_dtypes
import numpy as np

from .interrupts import import_whole

TECHNOLOGIES = ("numba", "cupy", "numba-cuda")


Refusal = Callable[[Mapping[str, Any], Mapping[str, Any]], "str | None"]


@dataclass(frozen=True)
class _Row:
    """A row of the table.

    Parameters
    ----------
    operation : str
        The name that an operation gives as its `kernel`, or an optimizer as its `update`; or "clip".
    technology : str
        One of `TECHNOLOGIES`.
    module : str
        The module of the kernel; imported on first use.
    dtypes : frozenset of numpy.dtype
        The floating dtypes it computes in.
    versions : int
        How many versions there are.
    refuses : callable, optional
        `refuses(inputs, params)` gives the reason why it cannot serve these, or None.
    is_slower : callable, optional
        `is_slower()` gives the reason why the plain rule is faster on this machine, or None. "auto" takes that then.
    loses : callable, optional
        `loses(inputs)` gives the reason why the plain rule was measured to be faster for these inputs, or None. "auto"
        takes that then.
    is_compiled : bool
        Whether it is CUDA C++, which must be compiled for the GPU on this machine.
    is_optional : bool
        Whether the plain rule serves the calls that this kernel cannot serve even where its technology was chosen by
        name. This is set for sums, which are too cheap for a user to choose a technology for.
    """

    operation: str
    technology: str
    module: str
    dtypes: frozenset[Any]
    _: KW_ONLY
    versions: int = 1
    refuses: Refusal | None = None
    is_slower: Callable[[], str | None] | None = None
    loses: Callable[[Mapping[str, Any]], str | None] | None = None
    is_compiled: bool = False
    is_optional: bool = False

    @property
    def device(self) -> str:
        """The kind of device it computes on: "cpu" or "cuda"."""
        return "cpu" if self.technology == "numba" else "cuda"

    def __post_init__(self) -> None:
        if self.technology not in TECHNOLOGIES:
            raise ValueError(f"{self.operation}: technology is {self.technology!r}; it must be one of {TECHNOLOGIES}")
        if self.versions < 1:
            raise ValueError(f"{self.operation}: versions is {self.versions}; there must be at least one")
        unknown = [d for d in self.dtypes if not isinstance(d, np.dtype)]
        if unknown or not self.dtypes:
            raise ValueError(f"{self.operation}: dtypes is {set(self.dtypes)}; it must be a set of numpy.dtype")


@dataclass(frozen=True)
class KernelSpec(_Row):
    """An implementation of an operation, forward and backward.

    Parameters
    ----------
    residuals : tuple of str
        Names of what forward returns after the outputs: what it computed and backward needs again.
    keeps : tuple of str
        Names of the inputs, outputs and residuals that backward is given.
    forward, backward : str
        Names of the module's functions. A parameter takes an array that backward returns as its `.grad`, without a
        copy. So nothing else may hold that array, except that backward may return a gradient that it was given.
    """

    residuals: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    _: KW_ONLY
    forward: str = "forward"
    backward: str = "backward"


@dataclass(frozen=True)
class UpdateSpec(_Row):
    """An implementation of an optimizer's step, or of a part of it, which is not on the tape.

    Parameters
    ----------
    step : str
        Name of the module's function; its arguments are stated in the module.
    """

    _: KW_ONLY
    step: str = "step"


Spec = KernelSpec | UpdateSpec

# The plain rules under a kernel's signature, by operation, for direct calls; `tinyvit.functional` puts them here. They
# have `forward(*inputs, **params)`, and `backward(incoming, kept, needs, params)` with what was kept by name.
PLAIN: dict[str, Any] = {}

_HERE = __package__
_CPU = frozenset({np.dtype(np.float32), np.dtype(np.float64)})
_SINGLE = frozenset({np.dtype(np.float32)})
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_GPU = frozenset({np.dtype(np.float32), np.dtype(np.float16), _BFLOAT16})


def _numba(operation: str, folder: str, dtypes: frozenset[Any] = _CPU, **settings: Any) -> KernelSpec:
    return KernelSpec(operation, "numba", f"{_HERE}.{folder}.numba_cpu", dtypes, **settings)


def _cupy(operation: str, folder: str, **settings: Any) -> KernelSpec:
    return KernelSpec(operation, "cupy", f"{_HERE}.{folder}.cupy_raw", _GPU, is_compiled=True, **settings)


def _numba_cuda(operation: str, folder: str, **settings: Any) -> KernelSpec:
    return KernelSpec(operation, "numba-cuda", f"{_HERE}.{folder}.numba_cuda", _SINGLE, versions=2, **settings)


def _refused_by(module: str) -> Refusal:
    """The function `refuses` of a module, imported when it is first asked."""

    def refuses(inputs: Mapping[str, Any], params: Mapping[str, Any]) -> str | None:
        found: str | None = import_whole(module).refuses(inputs, params)
        return found

    return refuses


def _blas_is_faster() -> str | None:
    """Why NumPy had better multiply matrices: without wide vectors OpenBLAS does it faster than our tiles."""
    try:
        level = import_whole(f"{_HERE}.cpu.processor").level()
    except ImportError:
        return None  # without Numba the kernel itself cannot be imported either, and that is the reason to give
    if level == "neon":
        return "the tiles for NEON have not been measured, and OpenBLAS has"
    return "OpenBLAS is faster without AVX2" if level == "generic" else None


def _was_slower(inputs: Mapping[str, Any]) -> str | None:
    """Why OpenBLAS makes these products, if `tinyvit info --tune` found it faster."""
    reason: str | None = import_whole(f"{_HERE}.linear.choice").loses(inputs)
    return reason


SPECS: tuple[Spec, ...] = (
    _numba(
        "attention",
        "attention",
        _CPU | {_BFLOAT16},
        residuals=("lse",),
        keeps=("q", "k", "v", "bias", "out", "lse"),
        versions=2,
    ),
    _numba(
        "linear",
        "linear",
        _CPU | {_BFLOAT16},
        keeps=("x", "weight"),
        versions=2,
        is_slower=_blas_is_faster,
        loses=_was_slower,
    ),
    _numba("layer_norm", "layer_norm", residuals=("mean", "rstd"), keeps=("x", "weight", "mean", "rstd"), versions=2),
    _numba(
        "add_layer_norm",
        "layer_norm",
        residuals=("mean", "rstd", "branch_dtype"),
        keeps=("sum", "weight", "mean", "rstd", "branch_dtype"),
        versions=2,
        forward="add_forward",
        backward="add_backward",
    ),
    _numba("gelu", "gelu", _CPU | {_BFLOAT16}, keeps=("x",)),
    _numba("bias_gelu", "bias_gelu", _CPU | {_BFLOAT16}, keeps=("x", "bias"), versions=2),
    _numba(
        "cross_entropy",
        "cross_entropy",
        residuals=("peak", "total", "classes"),
        keeps=("logits", "target", "peak", "total", "classes"),
        versions=2,
    ),
    _numba("softmax", "softmax", keeps=("out",), versions=2),
    _numba("dropout", "dropout", versions=2),
    _numba("conv2d", "conv2d", keeps=("x", "weight"), versions=2),
    _numba("depthwise_conv", "depthwise_conv", keeps=("x", "weight")),
    _numba("max_pool2d", "max_pool2d", _CPU | {_BFLOAT16}, keeps=("x", "out"), versions=2),
    _numba("embedding", "embedding", _CPU | {_BFLOAT16}, residuals=("shape",), keeps=("shape",), versions=2),
    _numba("cast", "cast", _CPU | _GPU),
    _numba(
        "add",
        "add_narrow",
        residuals=("shapes",),
        keeps=("shapes",),
        forward="sum_forward",
        backward="sum_backward",
        is_optional=True,
    ),
    _numba("add_narrow", "add_narrow", residuals=("y_dtype",), keeps=("y_dtype",)),
    _numba("patches", "patches", residuals=("shape",), keeps=("shape",), versions=2),
    UpdateSpec("adamw", "numba", f"{_HERE}.adamw.numba_cpu", _CPU, versions=2),
    UpdateSpec("clip", "numba", f"{_HERE}.clip.numba_cpu", _SINGLE, step="clip"),
    _cupy(
        "attention",
        "attention",
        residuals=("lse",),
        keeps=("q", "k", "v", "bias", "out", "lse"),
        versions=5,
        refuses=_refused_by(f"{_HERE}.attention.cupy_raw"),
    ),
    _cupy("layer_norm", "layer_norm", residuals=("mean", "rstd"), keeps=("x", "weight", "mean", "rstd"), versions=2),
    _cupy(
        "add_layer_norm",
        "layer_norm",
        residuals=("mean", "rstd", "branch_dtype"),
        keeps=("sum", "weight", "mean", "rstd", "branch_dtype"),
        versions=2,
        forward="add_forward",
        backward="add_backward",
    ),
    KernelSpec(
        "linear",
        "cupy",
        f"{_HERE}.linear.cublaslt",
        _GPU,
        residuals=("narrow",),
        keeps=("x", "weight", "narrow"),
        refuses=_refused_by(f"{_HERE}.linear.cublaslt"),
    ),
    KernelSpec(
        "add_narrow",
        "cupy",
        f"{_HERE}.add_narrow.cupy_raw",
        _SINGLE,
        residuals=("y_dtype",),
        keeps=("y_dtype",),
        is_compiled=True,
    ),
    _cupy("gelu", "gelu", keeps=("x",)),
    _cupy("bias_gelu", "bias_gelu", keeps=("x", "bias"), versions=2),
    _cupy(
        "cross_entropy",
        "cross_entropy",
        residuals=("peak", "total", "classes", "divisor"),
        keeps=("logits", "target", "peak", "total", "classes", "divisor"),
        versions=2,
    ),
    _cupy("softmax", "softmax", keeps=("out",), versions=2),
    _cupy("dropout", "dropout", versions=2),
    _cupy("patches", "patches", residuals=("shape",), keeps=("shape",), versions=2),
    _numba_cuda(
        "attention",
        "attention",
        residuals=("lse",),
        keeps=("q", "k", "v", "bias", "out", "lse"),
        refuses=_refused_by(f"{_HERE}.attention.numba_cuda"),
    ),
    _numba_cuda("layer_norm", "layer_norm", residuals=("mean", "rstd"), keeps=("x", "weight", "mean", "rstd")),
    _numba_cuda(
        "add_layer_norm",
        "layer_norm",
        residuals=("mean", "rstd", "branch_dtype"),
        keeps=("sum", "weight", "mean", "rstd", "branch_dtype"),
        forward="add_forward",
        backward="add_backward",
    ),
    UpdateSpec("adamw", "cupy", f"{_HERE}.adamw.cupy_raw", _SINGLE, versions=2, is_compiled=True),
    UpdateSpec("narrow", "cupy", f"{_HERE}.narrow.cupy_raw", _SINGLE, is_compiled=True),
    UpdateSpec("average", "cupy", f"{_HERE}.average.cupy_raw", _SINGLE, is_compiled=True),
)
