"""PyTorch on the CPU: eager or through torch.compile, in float32 or bfloat16."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._functorch import config as functorch
from torch.nn import functional as F

from ..cases import Case, DenseShape, TextShape
from ..inputs import DROPOUT_P, LAYER_NORM_EPS, LEARNING_RATE, WEIGHT_DECAY, Arrays, operands, weights_of
from .base import Contender, Task
from .pytorch_text import text_model
from .pytorch_vit import ViT, patches

OPERATIONS = {
    "attention": F.scaled_dot_product_attention,
    "layer_norm": lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, LAYER_NORM_EPS),
    "linear": F.linear,
    "bias_gelu": lambda x, bias: F.gelu(x + bias),
    "bias_gelu_tanh": lambda x, bias: F.gelu(x + bias, approximate="tanh"),
    "softmax": lambda x: F.softmax(x, dim=-1),
    "cross_entropy": F.cross_entropy,
    "dropout": lambda x: F.dropout(x, DROPOUT_P),
}


class PyTorch(Contender):
    """The option may contain "compile" and "bf16": bfloat16 inputs for single operations, autocast for models."""

    def __init__(self, option: str) -> None:
        super().__init__(option)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.manual_seed(0)
        self.half, self.compiles = "bf16" in option, "compile" in option
        self.dtype = "bfloat16" if self.half else "float32"
        if self.compiles:
            functorch.donated_buffer = False  # backward can then run more than once

    def _compiled(self, function: Any) -> Any:
        return torch.compile(function) if self.compiles else function

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.half else contextlib.nullcontext()

    def _operation(self, case: Case, inputs: Arrays) -> tuple[Any, dict[str, torch.Tensor], list[torch.Tensor]]:
        """The function, its differentiable operands by name, and all its arguments."""
        dtype = torch.bfloat16 if self.half else torch.float32
        tensors = {name: torch.from_numpy(inputs[name]).to(dtype).requires_grad_() for name in operands(inputs)}
        constants = [torch.from_numpy(inputs["labels"])] if "labels" in inputs else []
        if case.operation == "patches":
            patch = case.model.patch
            return self._compiled(lambda x: patches(x, patch)), tensors, [*tensors.values()]
        return self._compiled(OPERATIONS[case.operation]), tensors, [*tensors.values(), *constants]

    def forward(self, case: Case, inputs: Arrays) -> Task:
        operation, _, arguments = self._operation(case, inputs)
        return Task(lambda: operation(*arguments), lambda out: {"out": _array(out)})

    def backward(self, case: Case, inputs: Arrays) -> Task:
        operation, operands, arguments = self._operation(case, inputs)
        out = operation(*arguments)
        dout = torch.from_numpy(inputs["dout"]).to(out.dtype)

        def run() -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(out, list(operands.values()), dout, retain_graph=True)

        return Task(run, lambda grads: {f"d{name}": _array(g) for name, g in zip(operands, grads, strict=True)})

    def product(self, case: Case, inputs: Arrays) -> Task:
        dtype = torch.bfloat16 if self.half else torch.float32
        x, weight, dout = (torch.from_numpy(inputs[name]).to(dtype) for name in ("x", "weight", "dout"))
        products = {"y": lambda: F.linear(x, weight), "dx": lambda: dout @ weight, "dw": lambda: dout.T @ x}
        return Task(products[case.operation], lambda out: {"out": _array(out)})

    def adamw(self, case: Case, inputs: Arrays) -> Task:
        weights = {name: torch.from_numpy(array.copy()) for name, array in weights_of(inputs).items()}
        for name, tensor in weights.items():
            tensor.requires_grad_().grad = torch.from_numpy(inputs[f"grad.{name}"])
        optimizer = _optimizer(weights.values())
        step = self._compiled(optimizer.step)
        return Task(step, lambda _: {name: _array(tensor) for name, tensor in weights.items()})

    def train(self, case: Case, inputs: Arrays) -> Task:
        model, loss_of = self.with_loss(case, inputs)
        optimizers = _optimizers(case, model)

        def run() -> float:
            with self._autocast():
                loss = loss_of()
            model.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            return loss.item()

        return Task(run, lambda loss: {"loss": np.asarray(loss)})

    def with_loss(self, case: Case, inputs: Arrays) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
        """A model with the weights that are given, and the function that computes the loss of the batch."""
        names = [name for name in ("images", "ids", "labels", "boxes") if name in inputs]
        given = {name: torch.from_numpy(inputs[name]) for name in names}
        if isinstance(case.shape, DenseShape):
            from .pytorch_dense import dense_loss  # this imports SciPy

            model, loss_of = dense_loss(case.shape, given, self._compiled)
            return _with_weights(model, inputs), loss_of
        model, labels = _model(case, inputs), given.pop("labels").flatten()
        return model, self._compiled(lambda: F.cross_entropy(model(*given.values()).flatten(0, -2), labels))

    def inference(self, case: Case, inputs: Arrays) -> Task:
        model = self._compiled(_model(case, inputs).eval())
        images = torch.from_numpy(inputs["images"])

        def run() -> torch.Tensor:
            with torch.inference_mode(), self._autocast():
                return model(images)

        return Task(run, lambda logits: {"out": _array(logits)})


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy()


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)


def _optimizers(case: Case, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW; or Muon for the matrices of blocks and AdamW for all else, in the groups of tinyvit's `muon_groups`."""
    if not isinstance(case.shape, DenseShape) or case.shape.optimizer != "muon":
        return [_optimizer(model.parameters())]
    from .pytorch_dense import Muon

    named = dict(model.named_parameters())
    hidden = [name for name, p in named.items() if p.ndim == 2 and ".blocks." in name]
    parts = {name: 3 if ".qkv." in name else 2 if ".kv." in name else 1 for name in hidden}
    groups = [
        {"params": [named[name] for name in hidden if parts[name] == n], "parts": n, "weight_decay": WEIGHT_DECAY}
        for n in sorted(set(parts.values()))
    ]
    others = [
        {"params": [p for name, p in named.items() if name not in parts and (p.ndim > 1) == decays],
         "weight_decay": WEIGHT_DECAY if decays else 0.0}
        for decays in (True, False)
    ]  # fmt: skip
    return [Muon(groups, LEARNING_RATE), torch.optim.AdamW(others, LEARNING_RATE, fused=True)]


def _model(case: Case, inputs: Arrays) -> torch.nn.Module:
    model = text_model(case.shape) if isinstance(case.shape, TextShape) else ViT(case.model)
    return _with_weights(model, inputs)


def _with_weights(model: torch.nn.Module, inputs: Arrays) -> torch.nn.Module:
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights_of(inputs).items()})
    return model
