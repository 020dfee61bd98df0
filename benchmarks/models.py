"""The models of tinyvit that the shapes in `cases.py` describe."""

from typing import Any

import tinyvit as tv

from .cases import DenseShape, ModelShape, TextShape


def build_model(shape: ModelShape | TextShape | DenseShape) -> Any:
    """Build the model of this shape. Its initial weights are always the same."""
    tv.manual_seed(0)
    if isinstance(shape, TextShape):
        return _text_model(shape)
    if isinstance(shape, DenseShape):
        return _dense_model(shape)
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


def _dense_model(shape: DenseShape) -> Any:
    models, (dim, heads, hidden) = tv.models, (shape.dim, shape.heads, shape.mlp_dim)
    vision = models.ViT(
        shape.image, shape.patch, 0, dim, shape.depth, heads, hidden, shape.channels, pool="first",
        pos_embed="sincos2d", stem="conv", mlp_layer=shape.mlp_layer,
    )  # fmt: skip
    tv.nn.initialize_conv(vision.patch_embed.stem)
    if shape.queries:
        return models.Detr(vision, shape.classes, shape.queries, dim, shape.decoder, heads, hidden)
    return models.Segmenter(vision, models.LinearHead(vision.patch_embed, dim, shape.classes))
