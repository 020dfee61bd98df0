"""What a training step of tinyvit computes on a case: the loss of a batch, and the optimizer of its shape."""

from collections.abc import Callable
from typing import Any

import numpy as np

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.data import Batch
from tinyvit.recipe import load_recipe
from tinyvit.tasks import task_of

from .cases import DenseShape, Shape
from .inputs import LEARNING_RATE, WEIGHT_DECAY, Arrays


def batch_of(inputs: Arrays) -> tuple[Any, ...]:
    """Return the arrays of the batch among the inputs of a model, in the order in which a loss takes them."""
    return tuple(inputs[name] for name in ("images", "labels", "ids", "boxes") if name in inputs)


def loss_of(shape: Shape, model: Any) -> Callable[..., Any]:
    """Return the function that computes the mean loss of `model` on the arrays of a batch."""
    if not isinstance(shape, DenseShape):
        return lambda images, labels, *ids: F.cross_entropy(model(images, *ids), labels)
    task = task_of(load_recipe("detect" if shape.queries else "segment"))
    count = np.float32(shape.batch)
    return lambda images, labels, *boxes: task.loss(model, Batch(images, labels, 0, drawn=boxes)) / count


def new_optimizer(shape: Shape, model: Any) -> Any:
    """Return the optimizer of a training step: AdamW, or Muon where the shape says so."""
    if isinstance(shape, DenseShape) and shape.optimizer == "muon":
        return tv.optim.Muon(tv.optim.muon_groups(model.named_parameters(), WEIGHT_DECAY), LEARNING_RATE)
    return tv.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
