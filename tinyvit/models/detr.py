"""Detection: learned queries look at an image, and each names one thing and its box, or none.

(Carion et al., End-to-end object detection with Transformers, 2020.)
"""

import math
from typing import Any

import numpy as np

from .. import functional as F
from ..functional.tensors import Tensor
from ..nn import Linear, Module, Parameter, TransformerDecoder, init
from ..nn.patches import sincos2d
from .segmenter import patch_features
from .vit import ViT

Outputs = tuple[Tensor, Tensor]  # logits (B, Q, num_classes + 1), the last of "none"; boxes (B, Q, 4)


class Detr(Module):
    """Images (B, C, H, W) to a class and a box for each of Q queries.

    The boxes are (centre x, centre y, width, height) in units of the sides of the image. The queries go through decoder
    blocks, in which they see each other and attend to the patches of `vision`; the positions of the patches are added
    to their features again. A query's centre is predicted as an offset from its own learned point, in logits (Zhu et
    al., Deformable DETR, 2021, appendix A.3); the points begin on a grid.

    Parameters
    ----------
    vision : ViT with num_classes=0
    queries : the number of things that can be found in an image.
    depth : decoder blocks.
    """

    def __init__(
        self,
        vision: ViT,
        num_classes: int,
        queries: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int | None = None,
        norm: str = "pre",
        dropout: float = 0.0,
    ) -> None:
        init.check_sizes("Detr", num_classes=num_classes, queries=queries, dim=dim, depth=depth)
        self.vision = vision
        self.positions = Tensor(sincos2d(vision.patch_embed.grid, dim)[None])
        self.queries = Parameter(init.trunc_normal((queries, dim), 1.0))
        self.points = Parameter(_grid_of_points(queries))
        self.decoder = TransformerDecoder(dim, depth, heads, mlp_dim, norm=norm, dropout=dropout, causal=False)
        self.to_class = Linear(dim, num_classes + 1)
        self.to_box = BoxHead(dim)

    def stacked_layers(self, images: Any) -> Outputs:
        """Return the classes and boxes after each of the L decoder blocks, one block after the other: (L B, Q, ...).

        The same heads read all blocks, at once; all of them are trained.
        """
        return self._read(F.concatenate(self._decoded(images), axis=0))

    def layers(self, images: Any) -> list[Outputs]:
        """Return the same as a list, with one entry for each decoder block."""
        return by_layer(*self.stacked_layers(images), len(self.decoder.blocks))

    def forward(self, images: Any) -> Outputs:
        """Return the classes and boxes after the last block."""
        return self._read(self._decoded(images)[-1])

    def _decoded(self, images: Any) -> list[Tensor]:
        """Return the queries after each decoder block."""
        features = patch_features(self.vision, images)
        context = features + self.positions.to(features.dtype)
        x = self.queries.broadcast_to(context.shape[0], *self.queries.shape)
        decoded = []
        for block in self.decoder.blocks:
            x = block(x, context)
            decoded.append(x)
        return decoded

    def _read(self, x: Tensor) -> Outputs:
        read = self.decoder.norm(x)
        return self.to_class(read), self.to_box(read, self.points)


def by_layer(logits: Tensor, boxes: Tensor, count: int) -> list[Outputs]:
    """Divide the stacked classes and boxes of `count` decoder blocks."""
    size = logits.shape[0] // count
    return [(logits[i : i + size], boxes[i : i + size]) for i in range(0, count * size, size)]


class BoxHead(Module):
    """Features of queries (B, Q, dim) and their points (Q, 2), in logits -> boxes (B, Q, 4), by two hidden layers."""

    def __init__(self, dim: int) -> None:
        init.check_sizes("BoxHead", dim=dim)
        self.fc1, self.fc2, self.fc3 = Linear(dim, dim), Linear(dim, dim), Linear(dim, 4)

    def forward(self, x: Tensor, points: Tensor) -> Tensor:
        offsets = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
        centres = offsets[..., :2] + points
        return F.sigmoid(F.concatenate([centres, offsets[..., 2:]], axis=-1))


def corners_of(boxes: Tensor) -> Tensor:
    """Return boxes (..., 4), given by centre and size, as (left, top, right, bottom)."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return F.concatenate([centre - half, centre + half], axis=-1)


def _grid_of_points(count: int) -> np.ndarray:
    """Return points x, y on a grid over the image, row by row, in logits: (count, 2) float32."""
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    places = np.arange(count)
    shares = np.stack([(places % across + 0.5) / across, (places // across + 0.5) / down], axis=1)
    return np.log(shares / (1 - shares)).astype(np.float32)
