"""How well boxes agree. A box is (left, top, right, bottom), with left <= right and top <= bottom."""

from typing import Any

from ..engine import Tensor
from .arguments import as_operand
from .constants import as_floating
from .indexing import index
from .selection import maximum, minimum

_TINY = 1e-12  # the least divisor, so that two boxes without area have IoU 0


def generalized_iou(x: Any, y: Any) -> Tensor:
    """Return the generalized intersection over union of boxes: x (..., 4), y (..., 4), broadcast -> (...), in (-1, 1].

    With the intersection I and the union U of two boxes, and the smallest box that holds both, of area E, it is
    I / U - (E - U) / E (Rezatofighi et al., Generalized intersection over union, 2019, algorithm 1). Unlike I / U it
    has a gradient where the boxes do not meet. ValueError if the last axis has other than four elements.
    """
    boxes = [as_operand("generalized_iou", name, box) for name, box in (("x", x), ("y", y))]
    if any(box.shape[-1:] != (4,) for box in boxes):
        raise ValueError(f"generalized_iou: x has shape {boxes[0].shape} and y {boxes[1].shape}; both must be (..., 4)")
    (x1, x2), (y1, y2) = (
        (index(box, (..., slice(0, 2))), index(box, (..., slice(2, 4)))) for box in as_floating(*boxes)
    )  # corners: upper left and lower right, (..., 2)
    intersection = _area(maximum(minimum(x2, y2) - maximum(x1, y1), 0.0))
    union = _area(x2 - x1) + _area(y2 - y1) - intersection
    around = _area(maximum(x2, y2) - minimum(x1, y1))
    return intersection / maximum(union, _TINY) - (around - union) / maximum(around, _TINY)


def _area(size: Tensor) -> Tensor:
    """Return width times height: (..., 2) -> (...)."""
    return index(size, (..., 0)) * index(size, (..., 1))
