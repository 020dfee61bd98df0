"""Programs: a model traced once, as a list of steps that runs without the interpreter and can be exported.

`freeze(model, *example)` gives a `Program`. README.md in this folder shows one.

Order: graph, stand_in, trace, merge, plain, fold, fuse, layout, compiled, text, lower, onnx_arrays, onnx_operations,
onnx_short, onnx, c_pieces, c_text, c_arrays, c_operations, c_source, wasm, web, program, serve, decode, rows,
step_trace.
"""

from .graph import ArrayFunction, Graph, Ref, Size, Step, Value
from .lower import ExportError
from .program import Program, freeze
from .rows import Replay
from .stand_in import TraceError
from .step_trace import StepTrace, undrawn

__all__ = [
    "ArrayFunction",
    "ExportError",
    "Graph",
    "Program",
    "Ref",
    "Replay",
    "Size",
    "Step",
    "StepTrace",
    "TraceError",
    "Value",
    "freeze",
    "undrawn",
]
