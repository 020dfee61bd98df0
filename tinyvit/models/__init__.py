"""Models, made of `tinyvit.nn`."""

from .vit import ViT

__all__ = ["ViT"]
