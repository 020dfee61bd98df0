"""The models of tinyvit that the shapes in `cases.py` describe."""

from typing import Any

import tinyvit as tv

from .cases import ModelShape, TextShape


def build_model(shape: ModelShape | TextShape) -> Any:
    """Build the model of this shape. Its initial weights are always the same."""
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
        return models.Captioner(vision, models.TextDecoder(shape.vocabulary, *size, max_length=shape.length))
    text = models.TextEmbedding(shape.vocabulary, shape.dim, shape.length)
    return models.VQA(vision, text, models.JointFusion(*size), shape.dim, shape.answers)
