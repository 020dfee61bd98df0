"""The models of masks and boxes of `tinyvit.models` in PyTorch, whose weights have the same names, and their losses."""

import math
from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from ..cases import DenseShape
from ..inputs import LAYER_NORM_EPS, MODEL_EPS, NO_BOX
from .pytorch_text import CrossAttention
from .pytorch_vit import Attention, Mlp

IGNORED = 255  # the class of pixels that the loss leaves out
CLASS, DISTANCE, OVERLAP = 1.0, 5.0, 2.0  # weights of the parts of the loss, and of the costs
NONE_WEIGHT = 0.2  # of queries that are for no thing, in the cross-entropy
_TINY = 1e-12  # an area

# The models -----------------------------------------------------------------------------------------------------------


class LocalMlp(Mlp):
    """An MLP with a depthwise convolution of the patches between its linear maps."""

    def __init__(self, dim: int, hidden: int, grid: int) -> None:
        super().__init__(dim, hidden)
        self.dwconv, self.grid = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), grid

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x).transpose(1, 2).unflatten(2, (self.grid, self.grid))  # a view with the channels last
        return self.fc2(F.gelu(self.dwconv(y).flatten(2).transpose(1, 2)))


class Block(nn.Module):
    def __init__(self, shape: DenseShape) -> None:
        super().__init__()
        dim, hidden, grid = shape.dim, shape.mlp_dim, shape.image // shape.patch
        self.norm1, self.norm2 = (nn.LayerNorm(dim, MODEL_EPS) for _ in range(2))
        self.attn = Attention(dim, shape.heads)
        self.mlp = LocalMlp(dim, hidden, grid) if shape.mlp_layer == "local" else Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Stem(nn.Module):
    """Convolutions with ReLUs down to one pixel for each patch, then one linear map: (B, C, H, W) -> (B, N, dim)."""

    def __init__(self, shape: DenseShape) -> None:
        super().__init__()
        halvings, channels, layers = int(math.log2(shape.patch)), shape.channels, []
        for i in range(halvings):
            wider = shape.dim // 2 ** (halvings - i)
            layers += [nn.Conv2d(channels, wider, 3, 2, 1), nn.ReLU()]
            channels = wider
        self.stem, self.proj = nn.Sequential(*layers), nn.Conv2d(channels, shape.dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class Vision(nn.Module):
    """The features of all patches: (B, C, H, W) -> (B, N, dim)."""

    def __init__(self, shape: DenseShape) -> None:
        super().__init__()
        self.patch_embed = Stem(shape)
        self.register_buffer("pos_embed", sincos2d(shape.image // shape.patch, shape.dim), persistent=False)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.dim, MODEL_EPS)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.blocks(self.patch_embed(images) + self.pos_embed))


class LinearHead(nn.Module):
    """The logits of each pixel by a linear map of its patch: (B, N, dim) -> (B, H, W, classes)."""

    def __init__(self, shape: DenseShape) -> None:
        super().__init__()
        self.to_pixels = nn.Module()
        self.to_pixels.proj = nn.Linear(shape.dim, shape.patch**2 * shape.classes)
        self.grid, self.patch = shape.image // shape.patch, shape.patch

    def forward(self, features: Tensor) -> Tensor:
        n, p = self.grid, self.patch
        pixels = self.to_pixels.proj(features).view(len(features), n, n, p, p, -1).transpose(2, 3)
        return pixels.reshape(len(features), n * p, n * p, -1)


class Segmenter(nn.Module):
    def __init__(self, shape: DenseShape) -> None:
        super().__init__()
        self.vision, self.head = Vision(shape), LinearHead(shape)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.vision(images))


class DecoderBlock(nn.Module):
    """Queries see each other, and attend to the patches."""

    def __init__(self, shape: DenseShape) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(shape.dim, LAYER_NORM_EPS) for _ in range(3))
        self.attn, self.cross = Attention(shape.dim, shape.heads), CrossAttention(shape.dim, shape.heads)
        self.mlp = Mlp(shape.dim, shape.mlp_dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.cross(self.norm2(x), context)
        return x + self.mlp(self.norm3(x))


class BoxHead(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)

    def forward(self, x: Tensor, points: Tensor) -> Tensor:
        offsets = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
        return torch.cat([offsets[..., :2] + points, offsets[..., 2:]], -1).sigmoid()


class Detr(nn.Module):
    """The logits (B, Q, classes + 1) and the boxes (B, Q, 4), by centre and size, after each decoder block."""

    def __init__(self, shape: DenseShape) -> None:
        super().__init__()
        dim = shape.dim
        self.vision = Vision(shape)
        self.queries = nn.Parameter(torch.zeros(shape.queries, dim))
        self.points = nn.Parameter(torch.zeros(shape.queries, 2))
        self.decoder = nn.Module()
        self.decoder.blocks = nn.ModuleList(DecoderBlock(shape) for _ in range(shape.decoder))
        self.decoder.norm = nn.LayerNorm(dim)
        self.to_class, self.to_box = nn.Linear(dim, shape.classes + 1), BoxHead(dim)

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        context = self.vision(images) + self.vision.pos_embed
        x, outputs = self.queries.expand(len(images), -1, -1), []
        for block in self.decoder.blocks:
            x = block(x, context)
            read = self.decoder.norm(x)
            outputs.append((self.to_class(read), self.to_box(read, self.points)))
        return outputs


def sincos2d(side: int, dim: int) -> Tensor:
    """The positions of a square grid, row by row: half of the channels for the row, half for the column; (N, dim)."""
    angle = torch.arange(side)[:, None] / 10000.0 ** (torch.arange(0, dim // 2, 2, dtype=torch.float64) / (dim // 2))
    one = torch.stack([angle.sin(), angle.cos()], -1).reshape(side, dim // 2).float()
    return torch.cat([one.repeat_interleave(side, 0), one.repeat(side, 1)], 1)


# The losses -----------------------------------------------------------------------------------------------------------


def dense_loss(
    shape: DenseShape, inputs: dict[str, Tensor], compiled: Callable[[Any], Any]
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a model, and the function that computes its mean loss on the batch in `inputs`."""
    model: nn.Module = Detr(shape) if shape.queries else Segmenter(shape)
    call, images, labels = compiled(model), inputs["images"], inputs["labels"]
    if not shape.queries:
        return model, lambda: F.cross_entropy(call(images).flatten(0, -2), labels.flatten(), ignore_index=IGNORED)
    there = labels != NO_BOX
    sizes, classes, corners = there.sum(1).tolist(), labels[there], inputs["boxes"][there]

    def loss() -> Tensor:
        layers = call(images)
        return sum(loss_of_layer(*layer, sizes, classes, corners) for layer in layers) / len(layers)

    return model, loss


def loss_of_layer(logits: Tensor, boxes: Tensor, sizes: list[int], classes: Tensor, corners: Tensor) -> Tensor:
    """The loss after one decoder block, as in DETR: of all things in the batch, `sizes` of them in each image."""
    image, query, thing = match(logits, boxes, sizes, classes, corners)
    wanted = classes.new_full(logits.shape[:2], logits.shape[2] - 1)
    wanted[image, query] = classes[thing]
    weight = logits.new_ones(logits.shape[2])
    weight[-1] = NONE_WEIGHT
    class_loss = F.cross_entropy(logits.transpose(1, 2), wanted, weight)
    own, truth = boxes[image, query], corners[thing]
    distance = F.l1_loss(own, centres_of(truth), reduction="sum")
    overlap = (1 - generalized_iou(corners_of(own), truth)).sum()
    return CLASS * class_loss + (DISTANCE * distance + OVERLAP * overlap) / max(len(thing), 1)


@torch.no_grad()
def match(
    logits: Tensor, boxes: Tensor, sizes: list[int], classes: Tensor, corners: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Match the things of each image with queries; return the image, the query and the thing of each pair."""
    found = boxes.flatten(0, 1)
    likely = logits.softmax(-1).flatten(0, 1)[:, classes]
    distance = torch.cdist(found, centres_of(corners), p=1)
    overlap = generalized_iou(corners_of(found)[:, None], corners[None])
    costs = (-CLASS * likely + DISTANCE * distance - OVERLAP * overlap).view(*boxes.shape[:2], -1)
    pairs = [linear_sum_assignment(part[i]) for i, part in enumerate(costs.split(sizes, -1))]
    image = torch.cat([torch.full((len(query),), i) for i, (query, _) in enumerate(pairs)])
    query = torch.cat([torch.from_numpy(query) for query, _ in pairs])
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    thing = torch.cat([torch.from_numpy(own) + start for (_, own), start in zip(pairs, starts, strict=False)])
    return image, query, thing


def corners_of(boxes: Tensor) -> Tensor:
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def centres_of(corners: Tensor) -> Tensor:
    first, last = corners[..., :2], corners[..., 2:]
    return torch.cat([(first + last) / 2, last - first], -1)


def generalized_iou(x: Tensor, y: Tensor) -> Tensor:
    """The generalized intersection over union of boxes by their corners, which broadcast."""
    inner = (torch.minimum(x[..., 2:], y[..., 2:]) - torch.maximum(x[..., :2], y[..., :2])).clamp(min=0).prod(-1)
    union = (x[..., 2:] - x[..., :2]).prod(-1) + (y[..., 2:] - y[..., :2]).prod(-1) - inner
    around = (torch.maximum(x[..., 2:], y[..., 2:]) - torch.minimum(x[..., :2], y[..., :2])).prod(-1)
    return inner / union.clamp(min=_TINY) - (around - union) / around.clamp(min=_TINY)


# The optimizer --------------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """The steps of `tinyvit.optim.Muon` for matrices of `parts` matrices each.

    That of PyTorch orthogonalizes in bfloat16, and the packed weights of queries, keys and values as one matrix.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float = 0.95, steps: int = 5) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            m = group["momentum"]
            for p in group["params"]:
                kept = self.state[p].setdefault("momentum", torch.zeros_like(p))
                kept.lerp_(p.grad, 1 - m)
                parts = p.grad.lerp(kept, m).view(group["parts"], -1, p.shape[1])
                factor = 0.2 * math.sqrt(max(parts.shape[1:]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(orthogonalized(parts, group["steps"]).reshape(p.shape), alpha=group["lr"] * factor)


def orthogonalized(x: Tensor, steps: int) -> Tensor:
    """Bring the singular values of matrices near 1, by a Newton-Schulz iteration."""
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if is_tall else x
