"""The inputs of a case, drawn from one seed, so that every contender gets the same bytes.

A process writes them to an .npz file and others read it. The operands of an operation come first, in its order, then
`dout`, the gradient of its output.
"""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .cases import AttentionShape, Case, DenseShape, LinearShape, ModelShape, RowShape, TextShape

Arrays = dict[str, np.ndarray]

LAYER_NORM_EPS = 1e-5
MODEL_EPS = 1e-6  # of the layer norms in a ViT, as in timm
DROPOUT_P = 0.1
PAD, FIRST_TOKEN = 0, 6  # token ids: of padding, and the first that has no special meaning
NO_BOX = -1  # the label of a place without a box
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05

_WITH_WEIGHT = ("linear", "layer_norm")
_WITH_BIAS = (*_WITH_WEIGHT, "bias_gelu", "bias_gelu_tanh")


def operands(inputs: Arrays) -> list[str]:
    """Names of the inputs that have gradients, in the order in which the operation takes them."""
    return [name for name in inputs if name not in ("labels", "dout")]


def make_inputs(case: Case) -> Arrays:
    """Draw the inputs of `case`. tinyvit is imported only where a model's initial weights are among them."""
    random = np.random.default_rng(zlib.crc32(case.shape.label.encode()))

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return random.normal(0, scale, shape).astype(np.float32)

    match case.shape:
        case AttentionShape(B=b, H=h, N=n, D=d):
            return {"qkv": normal(b, n, 3, h, d), "dout": normal(b, n, h, d)}
        case RowShape() as shape:
            return _row_inputs(case.operation, shape, normal, random)
        case LinearShape(R=r, K=k, N=n):
            return {"x": normal(r, k), "weight": normal(n, k, scale=0.05), "dout": normal(r, n)}
        case ModelShape() as shape if case.operation == "patches":
            images = normal(shape.batch, shape.channels, shape.image, shape.image)
            return {"x": images, "dout": normal(shape.batch, shape.patches, shape.channels * shape.patch**2)}
        case ModelShape() as shape:
            weights = _weights(shape)
            if case.operation == "adamw":
                gradients = {name.replace("weight", "grad", 1): normal(*w.shape) for name, w in weights.items()}
                return weights | gradients
            images = normal(shape.batch, shape.channels, shape.image, shape.image)
            return weights | {"images": images, "labels": random.integers(0, shape.classes, shape.batch)}
        case TextShape(batch=b, length=n) as shape:
            tokens = random.integers(FIRST_TOKEN, shape.vocabulary, (b, n + 1))
            labels = random.integers(0, shape.answers, b) if shape.answers else tokens[:, 1:]
            ids = tokens[:, :-1].copy()
            if shape.answers:  # every other question is shorter
                ids[::2, -3:] = PAD
            images = normal(b, shape.channels, shape.image, shape.image)
            return _weights(shape) | {"images": images, "ids": ids, "labels": labels}
        case DenseShape() as shape:
            images = normal(shape.batch, shape.channels, shape.image, shape.image)
            return _weights(shape) | {"images": images} | _truth(shape, random)
    raise TypeError(f"no inputs are known for the shape {case.shape!r}")


def _row_inputs(
    operation: str, shape: RowShape, normal: Callable[..., np.ndarray], random: np.random.Generator
) -> Arrays:
    out = 4 * shape.C if operation == "linear" else shape.C
    inputs = {"x": normal(shape.R, shape.C)}
    if operation in _WITH_WEIGHT:
        inputs["weight"] = normal(out, shape.C, scale=0.05) if operation == "linear" else 1 + normal(out, scale=0.1)
    if operation in _WITH_BIAS:
        inputs["bias"] = normal(out, scale=0.1)
    if operation == "cross_entropy":
        return inputs | {"labels": random.integers(0, shape.C, shape.R), "dout": np.ones((), np.float32)}
    return inputs | {"dout": normal(shape.R, out)}


def _truth(shape: DenseShape, random: np.random.Generator) -> Arrays:
    """Draw the class of every pixel; or boxes by their corners, and the class of each, `NO_BOX` where there is none."""
    if not shape.queries:
        return {"labels": random.integers(0, shape.classes, (shape.batch, shape.image, shape.image))}
    size = random.uniform(0.1, 0.4, (shape.batch, shape.things, 2))
    first = random.uniform(0, 1 - size)
    labels = random.integers(0, shape.classes, (shape.batch, shape.things))
    labels[np.arange(shape.things) >= random.integers(2, shape.things + 1, (shape.batch, 1))] = NO_BOX
    return {"labels": labels, "boxes": np.concatenate([first, first + size], axis=-1).astype(np.float32)}


def _weights(shape: ModelShape | TextShape | DenseShape) -> Arrays:
    from .models import build_model

    return {f"weight.{name}": array for name, array in build_model(shape).state_dict().items()}


def weights_of(inputs: Arrays) -> Arrays:
    """The weights among the inputs of a model, by their names in the model."""
    return {name.removeprefix("weight."): array for name, array in inputs.items() if name.startswith("weight.")}


def load_inputs(case: Case, path: Path) -> Arrays:
    """Read the inputs that `make_inputs` drew; the packed qkv of attention becomes views q, k and v, (B, H, N, D)."""
    with np.load(path) as file:
        inputs = dict(file)
    if "qkv" not in inputs:
        return inputs
    q, k, v = inputs["qkv"].transpose(2, 0, 3, 1, 4)
    return {"q": q, "k": k, "v": v, "dout": inputs["dout"].transpose(0, 2, 1, 3)}
