"""Write a program as an ONNX file, and check the file: its form, and what onnxruntime computes from it."""

import importlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import atomic_write
from .graph import Graph, Ref, leaves
from .lower import ExportError, extent, lowered
from .onnx_arrays import OPSET, Onnx
from .onnx_operations import OnnxOperations
from .onnx_short import shorten

IR_VERSION = 8  # of ONNX 1.12, so that runtimes of that time read the file
TOLERANCE = 1e-5  # of the largest output; sums of other orders differ by less
INT8_TOLERANCE = 0.2  # 8-bit weights and activations change outputs by a few percent; a broken file by far more


@dataclass(frozen=True)
class Written:
    """An exported file.

    Attributes
    ----------
    size : in bytes.
    difference : the largest difference from the program's outputs, divided by their largest absolute value.
    agreement : the share of rows of the last axis, such as the logits of a pixel, with the largest number at the same
        place.
    rows : how many inputs were compared.
    """

    path: Path
    size: int
    difference: float
    agreement: float
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.path} ({self.size / 1000:,.0f} kB): on {self.rows} inputs the largest output is at the same place "
            f"in {self.agreement:.2%}, and the largest difference is {self.difference:.1e} of the largest output"
        )


def export_onnx(
    program: Any,
    path: str | Path,
    *examples: np.ndarray,
    names: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    int8: bool = False,
) -> Written:
    """Write `program` to `path`; see `Program.export_onnx`."""
    onnx, runtime = _library("onnx"), _library("onnxruntime")
    graph = program.graph
    given = list(examples) if examples else example_inputs(graph)
    model = onnx_model(onnx, graph, names, metadata or {})
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    if int8:
        data = _quantized(onnx, data)
    report = compared(program, _runner(runtime, data), given)
    check(report, INT8_TOLERANCE if int8 else TOLERANCE, path)
    atomic_write(Path(path), data)
    return Written(Path(path), len(data), *report)


def onnx_model(onnx: Any, graph: Graph, names: Sequence[str], metadata: Mapping[str, Any]) -> Any:
    """Return the protobuf message of a graph."""
    xp = Onnx(onnx)
    xp.operations = OnnxOperations(xp)
    inputs = []
    for number in graph.inputs:
        value = graph.values[number]
        inputs.append(xp.input(value.name, [extent(n, None) for n in value.shape], value.dtype))
    outputs = [xp.array(x) for x in lowered(graph, xp, inputs)]
    if not outputs:
        raise ExportError("export to ONNX: the program returns no array")
    chosen = [*names, *(f"output_{i}" if len(outputs) > 1 else "output" for i in range(len(names), len(outputs)))]
    for x, name in zip(outputs, chosen, strict=True):
        xp.name_output(x, name)

    def info(name: str, x: Any) -> Any:
        shape = [n if isinstance(n, int) else n.text(graph.letters) for n in x.shape]
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), shape)

    made = onnx.helper.make_graph(
        xp.nodes,
        "tinyvit",
        [info(x.name, x) for x in inputs],
        [info(name, x) for x, name in zip(outputs, chosen, strict=True)],
        xp.initializers,
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(made, producer_name="tinyvit", opset_imports=opsets, ir_version=IR_VERSION)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    return model


def example_inputs(graph: Graph, rows: int = 2, seed: int = 0) -> list[np.ndarray]:
    """Return random inputs: normal numbers, and ones in the place of whole numbers, such as ids."""
    rng = np.random.default_rng(seed)
    shapes = [
        [n if isinstance(n, int) else n.at((rows,) * len(n.per)) for n in graph.values[i].shape] for i in graph.inputs
    ]
    dtypes = [graph.values[i].dtype for i in graph.inputs]
    drawn = [rng.standard_normal(s) if d.kind == "f" else np.ones(s) for s, d in zip(shapes, dtypes, strict=True)]
    return [x.astype(d) for x, d in zip(drawn, dtypes, strict=True)]


def compared(program: Any, run: Any, inputs: Sequence[np.ndarray]) -> tuple[float, float, int]:
    """Return the relative difference of two ways to compute, the share of equal argmax, and the rows."""
    tree = program(*inputs)
    wanted = [x for x, leaf in zip(leaves(tree), leaves(program.graph.result), strict=True) if isinstance(leaf, Ref)]
    difference, agreement, rows = 0.0, 1.0, 0
    for x, y in zip(wanted, run(inputs), strict=True):
        if x.shape != y.shape:
            raise ExportError(f"export: an output of the file has the shape {y.shape}, that of the program {x.shape}")
        scale = np.abs(x).max(initial=0) or 1
        worst = np.abs(x.astype(np.float64) - y).max(initial=0)
        difference = max(difference, float(worst / scale)) if np.isfinite(worst) else np.inf
        if x.ndim:
            same = np.equal(x.argmax(-1), y.argmax(-1)) if x.size else np.ones(1)
            agreement, rows = min(agreement, float(same.mean())), max(rows, len(x))
    return difference, agreement, rows


def check(report: tuple[float, float, int], tolerance: float, path: Any) -> None:
    """Raise ExportError if a file does not compute what the program does."""
    if not report[0] <= tolerance:
        raise ExportError(
            f"{path} is not written: its outputs would differ from the model's by {report[0]:.1e} of the largest one, "
            f"and {tolerance:.0e} is allowed; export without --int8, or report a model for which that fails too"
        )


def _runner(runtime: Any, data: bytes) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def _quantized(onnx: Any, data: bytes) -> bytes:
    """Return a file with 8-bit weights, a scale for each output of a linear map, by onnxruntime's quantizer.

    The range is reduced to 7 bits, because products of 8-bit numbers overflow in the 16-bit sums of some processors.
    """
    quantization = _library("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "float.onnx"), os.path.join(folder, "int8.onnx")
        Path(source).write_bytes(data)
        advice = logging.getLogger().manager.disable
        logging.disable(logging.WARNING)  # it advises to run a tool of its own first, which has nothing to do here
        try:
            quantization.quantize_dynamic(source, target, per_channel=True, reduce_range=True)
        finally:
            logging.disable(advice)
        model = onnx.load(target)
    shorten(onnx, model)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"export to ONNX needs {name} ({error}); install it: pip install 'tinyvit[onnx]'") from error
