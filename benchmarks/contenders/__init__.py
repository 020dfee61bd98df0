"""The contenders: a table here, and a file for each library.

A contender joins in two places: a class in a file of this folder, and a row here.

Order: base, engine, unfused, kernels, handwritten, own_code, user, functional_vit, hips_autograd, jax_jit,
pytorch_vit, pytorch_text, pytorch_dense, pytorch, onnx_runtime.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..cases import Case, meant


def _always(case: Case) -> bool:
    return True


def _in(*suites: str) -> Callable[[Case], bool]:
    return lambda case: case.suite in suites


def _not_in(*suites: str) -> Callable[[Case], bool]:
    return lambda case: case.suite not in suites


def _records(case: Case) -> bool:
    """Whether steps can be recorded: things are matched with queries by values that a step computes."""
    return case.suite == "dense" and not getattr(case.shape, "queries", 0)


@dataclass(frozen=True)
class Spec:
    """One contender.

    Attributes
    ----------
    factory : "module:class"; the module is imported in the contender's own process only.
    option : the argument of the class.
    needs : the library that it cannot do without; "" if there is none.
    serves : whether it takes part in a case.
    environment : variables that its process gets.
    """

    name: str
    factory: str
    option: str = ""
    needs: str = ""
    serves: Callable[[Case], bool] = _always
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> str | None:
        """The reason why its process need not even start; None if its library is installed.

        An installed library may still be broken, which only its import in the contender's process shows.
        """
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return None


_HERE = "benchmarks.contenders"
_TORCH = f"{_HERE}.pytorch:PyTorch"
_JAX = f"{_HERE}.jax_jit:Jax"

OURS = (
    Spec("tinyvit", f"{_HERE}.engine:Engine", "auto"),
    Spec("tinyvit-bf16", f"{_HERE}.engine:Engine", "bf16", serves=_in("train", "dense", "inference", "gemm")),
    Spec("tinyvit-recorded", f"{_HERE}.engine:Recorded", "auto", "numba", _records),
    Spec("tinyvit-numba", f"{_HERE}.kernels:Kernels", "numba", "numba", _in("attention", "layer_norm")),
    Spec("tinyvit-program", f"{_HERE}.engine:Frozen", "auto", serves=_in("inference")),
)
PEERS = (
    Spec("handwritten", f"{_HERE}.handwritten:Handwritten", "", "numba", _in("train", "inference")),
    Spec("numpy", f"{_HERE}.engine:Engine", "numpy"),
    Spec("tinyvit-numpy", f"{_HERE}.kernels:Kernels", "numpy", serves=_in("attention", "layer_norm")),
    Spec("torch", _TORCH, "", "torch"),
    Spec("torch-compile", _TORCH, "compile", "torch", _not_in("gemm", "dense")),
    Spec("torch-bf16", _TORCH, "bf16", "torch", _in("attention", "train", "text", "dense", "inference", "gemm")),
    Spec("torch-bf16-compile", _TORCH, "bf16 compile", "torch", _in("train", "inference")),
    Spec("jax", _JAX, "", "jax", _not_in("gemm", "text", "dense")),
    Spec("jax-bf16", _JAX, "bf16", "jax", _in("train", "inference")),
    Spec("onnxruntime", f"{_HERE}.onnx_runtime:OnnxRuntime", "", "onnxruntime", _in("inference")),
    Spec("onnxruntime-int8", f"{_HERE}.onnx_runtime:OnnxRuntime", "int8", "onnxruntime", _in("inference")),
    Spec(
        "autograd",
        f"{_HERE}.hips_autograd:HipsAutograd",
        needs="autograd",
        serves=lambda case: case.suite in ("train", "inference") and case.shape.name == "digits-s",
    ),
)
BASELINES = ("torch", "numpy")  # the first that takes part is the default baseline


def select_contenders(
    peers: tuple[str, ...] | None, kernels: tuple[str, ...], without: tuple[str, ...] = ()
) -> list[Spec]:
    """Select our contenders, ours without these fusions, peers by name (all if None), and kernels "module:function".

    A peer "tinyvit-X" that is not in the table calls our kernels with implementation X: "tinyvit-numba:v1".
    """
    known = {spec.name: spec for spec in PEERS}
    chosen = [*OURS, *(_without(fusion, spec) for spec in OURS[:2] for fusion in without)]
    for name in known if peers is None else peers:
        if name in known:
            chosen.append(known[name])
        elif name.startswith("tinyvit-"):
            implementation = name.removeprefix("tinyvit-")
            chosen.append(Spec(name, f"{_HERE}.kernels:Kernels", implementation, serves=_in("attention", "layer_norm")))
        else:
            raise ValueError(
                f"there is no peer {name!r}{meant(name, known)}; available: {', '.join(known)}, and "
                "tinyvit-IMPLEMENTATION"
            )
    for place in kernels:
        file, _, function = place.rpartition(":")
        chosen.append(Spec(f"{Path(file).stem}:{function}", f"{_HERE}.user:UserKernel", place))
    names = [spec.name for spec in chosen]
    if len(set(names)) < len(names):
        raise ValueError(f"two contenders have the same name: {', '.join(names)}")
    return chosen


def _without(fusion: str, engine: Spec) -> Spec:
    """The engine without one fusion."""
    from .unfused import FUSIONS  # this imports tinyvit, which the processes of other contenders do without

    if fusion not in FUSIONS:
        near = meant(fusion, FUSIONS)
        raise ValueError(f"there is no fusion {fusion!r}{near}; available: {', '.join(FUSIONS)}")
    name, option = f"{engine.name} without {fusion}", f"{engine.option} {fusion}"
    return replace(engine, name=name, factory=f"{_HERE}.unfused:Unfused", option=option)
