"""onnxruntime, on the file that tinyvit exports: float32, or 8-bit weights and activations."""

import os
import tempfile
from pathlib import Path

import onnxruntime

import tinyvit as tv

from ..cases import Case
from ..inputs import Arrays, weights_of
from ..models import build_model
from .base import Contender, Task


class OnnxRuntime(Contender):
    """The option "int8" quantizes the model."""

    def __init__(self, option: str) -> None:
        super().__init__(option)
        self.dtype = option or "float32"

    def inference(self, case: Case, inputs: Arrays) -> Task:
        model = build_model(case.shape)
        model.load_state_dict(weights_of(inputs))
        images = inputs["images"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            tv.freeze(model.eval(), images).export_onnx(path, images, int8=self.option == "int8")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
            session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        given = {session.get_inputs()[0].name: images}
        return Task(lambda: session.run(None, given), lambda outputs: {"out": outputs[0]})
