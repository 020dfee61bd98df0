"""tinyvit's general engine: tensors, the tape, and whatever serves the operations under `use_kernels`.

With "numpy" it is the plain path, which at float64 is also the reference.
"""

from typing import Any

import numpy as np

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.autograd import Tensor
from tinyvit.backend import keep_freed_memory

from ..cases import Case, ModelShape, TextShape
from ..inputs import DROPOUT_P, LAYER_NORM_EPS, LEARNING_RATE, WEIGHT_DECAY, Arrays, operands, weights_of
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


def build_model(shape: ModelShape | TextShape) -> Any:
    """The model of this shape; its initial weights are the same every time."""
    tv.manual_seed(0)
    if isinstance(shape, TextShape):
        return _text_model(shape)
    return tv.models.ViT(
        shape.image, shape.patch, shape.classes, shape.dim, shape.depth, shape.heads, in_channels=shape.channels
    )


def _text_model(shape: TextShape) -> Any:
    models, size = tv.models, (shape.dim, shape.depth, shape.heads)
    depth = 0 if shape.answers else shape.depth
    vision = models.ViT(shape.image, shape.patch, 0, shape.dim, depth, shape.heads, pool="first")
    if not shape.answers:
        return models.Captioner(vision, models.TextDecoder(shape.vocabulary, *size, max_length=shape.words))
    words = models.TextEmbedding(shape.vocabulary, shape.dim, shape.words)
    return models.VQA(vision, words, models.JointFusion(*size), shape.dim, shape.answers)


class Engine(Contender):
    """option : a name for `tinyvit.use_kernels`."""

    def __init__(self, option: str) -> None:
        super().__init__(option)
        tv.use_kernels(option)

    def forward(self, case: Case, inputs: Arrays) -> Task:
        operation, _, arguments = self._operation(case, inputs)
        return Task(lambda: operation(*arguments), lambda out: {"out": out.numpy()})

    def backward(self, case: Case, inputs: Arrays) -> Task:
        operation, operands, arguments = self._operation(case, inputs)
        out, dout = operation(*arguments), inputs["dout"]

        def run() -> tuple[Any, ...]:
            return tv.grad(out, list(operands.values()), dout, retain_graph=True)

        return Task(run, lambda grads: {f"d{n}": g.numpy() for n, g in zip(operands, grads, strict=True)})

    @staticmethod
    def _operation(case: Case, inputs: Arrays) -> tuple[Any, dict[str, Tensor], list[Any]]:
        """The function, its differentiable operands by name, and all of its arguments."""
        tensors = {name: Tensor(inputs[name], requires_grad=True) for name in operands(inputs)}
        constants = [inputs["labels"]] if "labels" in inputs else []
        if case.operation == "patches":
            patch = case.model.patch
            return lambda x: F.patches(x, patch), tensors, [*tensors.values()]
        return OPERATIONS[case.operation], tensors, [*tensors.values(), *constants]

    def adamw(self, case: Case, inputs: Arrays) -> Task:
        weights = {name: Tensor(array.copy(), requires_grad=True) for name, array in weights_of(inputs).items()}
        for name, tensor in weights.items():
            tensor.grad = Tensor(inputs[f"grad.{name}"].reshape(tensor.shape))
        optimizer = tv.optim.AdamW(weights.values(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        return Task(optimizer.step, lambda _: {name: tensor.numpy() for name, tensor in weights.items()})

    def train(self, case: Case, inputs: Arrays) -> Task:
        keep_freed_memory()  # as `tinyvit train` does
        model = self._model(case, inputs)
        optimizer = tv.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        seen, labels = [inputs[name] for name in ("images", "words") if name in inputs], inputs["labels"]

        def run() -> float:
            loss = F.cross_entropy(model(*seen), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return Task(run, lambda loss: {"loss": np.asarray(loss)})

    def inference(self, case: Case, inputs: Arrays) -> Task:
        model, images = self._model(case, inputs).eval(), inputs["images"]

        def run() -> Any:
            with tv.no_grad():
                return model(images)

        return Task(run, lambda logits: {"out": logits.numpy()})

    @staticmethod
    def _model(case: Case, inputs: Arrays) -> Any:
        model = build_model(case.shape)
        model.to(inputs["images"].dtype.name)
        model.load_state_dict(weights_of(inputs))
        return model
