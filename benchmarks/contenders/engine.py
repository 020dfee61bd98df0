"""tinyvit as users call it: tensors, the tape, and the kernels that `use_kernels` selects.

With "numpy" it is the plain path, which in float64 is also the reference.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.backend import keep_freed_memory
from tinyvit.engine import Tensor
from tinyvit.run.captured_cpu import CapturedGradients

from ..cases import Case
from ..inputs import DROPOUT_P, LAYER_NORM_EPS, LEARNING_RATE, WEIGHT_DECAY, Arrays, operands, weights_of
from ..models import build_model
from ..steps import batch_of, loss_of, new_optimizer
from .base import Contender, Task

OPERATIONS = {
    "attention": F.scaled_dot_product_attention,
    "layer_norm": lambda x, weight, bias: F.layer_norm(x, weight, bias, LAYER_NORM_EPS),
    "linear": F.linear,
    "bias_gelu": F.bias_gelu,
    "bias_gelu_tanh": lambda x, bias: F.bias_gelu(x, bias, approximate="tanh"),
    "softmax": F.softmax,
    "cross_entropy": F.cross_entropy,
    "dropout": lambda x: F.dropout(x, DROPOUT_P),
}


class Engine(Contender):
    """The option is a name for `tinyvit.use_kernels`, or "bf16": bfloat16 inputs to operations, models in autocast."""

    def __init__(self, option: str) -> None:
        super().__init__(option)
        self.dtype = "bfloat16" if option == "bf16" else "float32"
        tv.use_kernels("auto" if option == "bf16" else option)

    def _autocast(self) -> tv.autocast:
        return tv.autocast(self.dtype)

    def forward(self, case: Case, inputs: Arrays) -> Task:
        operation, _, arguments = self._operation(case, inputs)
        return Task(lambda: operation(*arguments), lambda out: {"out": _array(out)})

    def backward(self, case: Case, inputs: Arrays) -> Task:
        operation, operands, arguments = self._operation(case, inputs)
        out = operation(*arguments)
        dout = Tensor(inputs["dout"].astype(out.dtype, copy=False))

        def run() -> tuple[Any, ...]:
            return tv.grad(out, list(operands.values()), dout, retain_graph=True)

        return Task(run, lambda grads: {f"d{n}": _array(g) for n, g in zip(operands, grads, strict=True)})

    def _operation(self, case: Case, inputs: Arrays) -> tuple[Any, dict[str, Tensor], list[Any]]:
        """The function, its differentiable operands by name, and all its arguments."""
        given = {name: inputs[name] for name in operands(inputs)}
        if self.dtype == "bfloat16":
            given = {name: array.astype(self.dtype) for name, array in given.items()}
        tensors = {name: Tensor(array, requires_grad=True) for name, array in given.items()}
        constants = [inputs["labels"]] if "labels" in inputs else []
        if case.operation == "patches":
            patch = case.model.patch
            return lambda x: F.patches(x, patch), tensors, [*tensors.values()]
        return OPERATIONS[case.operation], tensors, [*tensors.values(), *constants]

    def product(self, case: Case, inputs: Arrays) -> Task:
        narrow = self.dtype == "bfloat16"
        arrays = {name: array.astype(self.dtype) if narrow else array for name, array in inputs.items()}
        x, weight = (Tensor(arrays[name], case.operation == d) for name, d in (("x", "dx"), ("weight", "dw")))
        y = F.linear(x, weight)
        if case.operation == "y":
            return Task(lambda: F.linear(x, weight), lambda out: {"out": _array(out)})
        wanted, dout = x if case.operation == "dx" else weight, Tensor(arrays["dout"])
        return Task(lambda: tv.grad(y, wanted, dout, retain_graph=True), lambda grads: {"out": _array(grads[0])})

    def adamw(self, case: Case, inputs: Arrays) -> Task:
        weights = {name: Tensor(array.copy(), requires_grad=True) for name, array in weights_of(inputs).items()}
        for name, tensor in weights.items():
            tensor.grad = Tensor(inputs[f"grad.{name}"].reshape(tensor.shape))
        optimizer = tv.optim.AdamW(weights.values(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        return Task(optimizer.step, lambda _: {name: tensor.numpy() for name, tensor in weights.items()})

    def train(self, case: Case, inputs: Arrays) -> Task:
        keep_freed_memory()  # as `tinyvit train` does
        model = self._model(case, inputs)
        optimizer = new_optimizer(case.shape, model)
        gradients = self._gradients(loss_of(case.shape, model), batch_of(inputs), list(model.parameters()))

        def run() -> float:
            optimizer.zero_grad()
            loss = gradients()
            optimizer.step()
            return loss

        return Task(run, lambda loss: {"loss": np.asarray(loss)})

    def _gradients(self, loss_of: Any, batch: tuple[Any, ...], parameters: list[Tensor]) -> Callable[[], float]:
        """Return the function that gives parameters the gradients of the loss of a batch, and returns the loss."""

        def run() -> float:
            with self._autocast():
                loss = loss_of(*batch)
            loss.backward()
            return loss.item()

        return run

    def inference(self, case: Case, inputs: Arrays) -> Task:
        model, images = self._model(case, inputs).eval(), inputs["images"]

        def run() -> Any:
            with tv.no_grad(), self._autocast():
                return model(images)

        return Task(run, lambda logits: {"out": _array(logits)})

    @staticmethod
    def _model(case: Case, inputs: Arrays) -> Any:
        model = build_model(case.shape)
        model.to(inputs["images"].dtype.name)
        model.load_state_dict(weights_of(inputs))
        return model


class Recorded(Engine):
    """Training steps whose gradients are computed from a record, as `tinyvit train` does where that is possible."""

    def _gradients(self, loss_of: Any, batch: tuple[Any, ...], parameters: list[Tensor]) -> Callable[[], float]:
        def losses(*arrays: Any) -> tuple[Tensor, Tensor]:
            with self._autocast():
                loss = loss_of(*arrays)
            return loss, loss

        captured = CapturedGradients(losses, parameters)
        while not captured.is_captured and captured.reason is None:  # the first steps are counted, then one is recorded
            captured(batch, len(batch[0]))

        def run() -> float:
            loss = captured(batch, len(batch[0]))
            if loss is None:
                raise RuntimeError(f"steps are not recorded: {captured.reason}")
            return loss

        return run


class Frozen(Engine):
    """A model as a program of `tinyvit.freeze`, made before the time is taken."""

    def inference(self, case: Case, inputs: Arrays) -> Task:
        images = inputs["images"]
        program = tv.freeze(self._model(case, inputs).eval(), images)
        return Task(lambda: program(images), lambda logits: {"out": logits})


def _array(tensor: Tensor) -> np.ndarray:
    """The values as an array; those of bfloat16 in float32, in which NumPy can compare them."""
    return tensor.numpy() if tensor.dtype.kind == "f" else tensor.numpy().astype(np.float32)
