"""Named shapes of Vision Transformers, the cases made of them, and the suites.

B batch, N tokens, H heads, D head size, C channels of the model, R rows (all leading axes flattened). A linear map has
K inputs and N outputs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# Shapes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionShape:
    """Self-attention: q, k and v are (B, H, N, D), views of one packed (B, N, 3, H, D)."""

    name: str
    B: int
    H: int
    N: int
    D: int

    @property
    def label(self) -> str:
        return f"{self.name} n{self.N} d{self.D}"


@dataclass(frozen=True)
class RowShape:
    """An operation on rows: x is (R, C)."""

    name: str
    R: int
    C: int

    @property
    def label(self) -> str:
        return f"{self.name} {self.R}x{self.C}"


@dataclass(frozen=True)
class LinearShape:
    """A linear map: x is (R, K), the weight (N, K)."""

    name: str
    R: int
    K: int
    N: int

    @property
    def label(self) -> str:
        return f"{self.name} {self.R}x{self.K}x{self.N}"


class _ImageModelShape:
    """Base of the shapes of models that read square images."""

    name: str
    image: int
    patch: int
    batch: int

    @property
    def label(self) -> str:
        return f"{self.name} b{self.batch}"

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2


@dataclass(frozen=True)
class ModelShape(_ImageModelShape):
    """A ViT with a class token; whatever has no field here is the default of `tinyvit.models.ViT`."""

    name: str
    image: int
    channels: int
    patch: int
    dim: int
    depth: int
    heads: int
    batch: int
    classes: int = 10

    @property
    def N(self) -> int:
        return self.patches + 1


@dataclass(frozen=True)
class TextShape(_ImageModelShape):
    """A model of colour images and texts of `length` tokens.

    With `answers` it classifies: one Transformer of `depth` blocks over patches and tokens. Without, it
    writes: a ViT and a decoder of `depth` blocks each.
    """

    name: str
    image: int
    patch: int
    dim: int
    depth: int
    heads: int
    length: int
    vocabulary: int
    batch: int
    answers: int = 0
    channels: int = 3


@dataclass(frozen=True)
class DenseShape(_ImageModelShape):
    """A model of masks or boxes, as the recipe of the same name builds it.

    With `queries` it finds that many things in an image, by `decoder` blocks; without, it names the class of every
    pixel, by a linear map of each patch. `classes` are those of the data, the background of masks included. The ViT
    has a convolutional stem and no class token. `mlp_layer` and `optimizer` are keys of the recipe.
    """

    name: str
    image: int
    channels: int
    patch: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    classes: int
    batch: int
    things: int  # the most in an image
    queries: int = 0
    decoder: int = 0
    mlp_layer: str = "mlp"
    optimizer: str = "adamw"


Shape = AttentionShape | RowShape | LinearShape | ModelShape | TextShape | DenseShape

# First the models that this project trains, then published ones. B and H make a call take milliseconds on two cores.
ATTENTION = (
    AttentionShape("digits-s", B=64, H=2, N=17, D=16),
    AttentionShape("mnist-s", B=64, H=4, N=17, D=16),
    AttentionShape("vit-b/32", B=8, H=12, N=50, D=64),
    AttentionShape("cifar-s", B=64, H=4, N=65, D=32),
    AttentionShape("vit-s", B=128, H=3, N=65, D=64),
    AttentionShape("deit-ti", B=16, H=3, N=197, D=64),
    AttentionShape("vit-b/16", B=4, H=12, N=197, D=64),
    AttentionShape("vit-l/14", B=2, H=16, N=257, D=64),
    AttentionShape("vit-h/14", B=2, H=16, N=257, D=80),
    AttentionShape("long", B=1, H=6, N=1024, D=64),
)

TOKENS = (  # of the layer norms in these models
    RowShape("mnist-s", R=64 * 17, C=64),
    RowShape("vit-s", R=128 * 65, C=192),
    RowShape("vit-b/16", R=16 * 197, C=768),
    RowShape("vit-h/14", R=4 * 257, C=1280),
)
HIDDEN = (  # between the two linear maps of an MLP
    RowShape("mnist-s", R=64 * 17, C=256),
    RowShape("vit-s", R=128 * 65, C=768),
)
SCORES = (  # of the attention scores of one layer, a row for each query
    RowShape("vit-s", R=128 * 3 * 65, C=65),
    RowShape("long", R=6 * 1024, C=1024),
)
LOGITS = (
    RowShape("vit-s", R=128, C=10),
    RowShape("imagenet", R=1024, C=1000),
)

MODELS = (
    ModelShape("digits-s", image=8, channels=1, patch=2, dim=32, depth=2, heads=2, batch=64),
    ModelShape("mnist-s", image=28, channels=1, patch=7, dim=64, depth=4, heads=4, batch=64),
    ModelShape("vit-s", image=32, channels=3, patch=4, dim=192, depth=6, heads=3, batch=128),
)
VIT_S = MODELS[-1]
LINEAR = tuple(  # the linear maps in a block of the larger two
    LinearShape(f"{model.name}-{name}", model.batch * model.N, k * model.dim, n * model.dim)
    for model in MODELS[1:]
    for name, k, n in (("qkv", 1, 3), ("proj", 1, 1), ("fc1", 1, 4), ("fc2", 4, 1))  # K and N in units of dim
)
TEXTS = (  # easy-VQA questions, and captions of generated scenes
    TextShape("vqa", image=64, patch=8, dim=64, depth=3, heads=4, length=11, vocabulary=33, batch=128, answers=13),
    TextShape("caption", image=48, patch=8, dim=64, depth=2, heads=4, length=20, vocabulary=60, batch=64),
)
_SCENES = {"image": 48, "channels": 3, "patch": 8, "dim": 96, "depth": 3, "heads": 4, "mlp_dim": 192, "batch": 64}
_CANVAS = {"image": 64, "channels": 1, "patch": 8, "depth": 4, "heads": 4, "batch": 64, "things": 4}
_CANVAS |= {"mlp_layer": "local", "optimizer": "muon"}
_DETECTS = {"queries": 10, "decoder": 2}
DENSE = (
    DenseShape("segment", classes=4, things=4, **_SCENES),
    DenseShape("segment-canvas", classes=11, dim=128, mlp_dim=256, **_CANVAS),
    DenseShape("detect", classes=3, things=4, **_SCENES, **_DETECTS),
    DenseShape("detect-canvas", classes=10, dim=96, mlp_dim=192, **_CANVAS, **_DETECTS),
)
SINGLE = tuple(ModelShape(**{**vars(model), "batch": 1}) for model in MODELS)


# Cases and suites ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An operation on a shape, in one direction.

    `direction` is "forward", "backward", or "step" where there is no separate backward pass (train, inference, adamw).
    `calls` is the number of calls before the outputs are verified: more than 1 where each call changes a state.
    """

    suite: str
    operation: str
    shape: Shape
    direction: str
    calls: int = 1

    @property
    def model(self) -> ModelShape:
        """The shape of a case that is about a ViT or its images."""
        assert isinstance(self.shape, ModelShape), self.id
        return self.shape

    @property
    def id(self) -> str:
        return f"{self.suite}/{self.operation}/{self.shape.label}/{self.direction}"

    @property
    def name(self) -> str:
        """The operation, unless the suite is named after it, and the label of the shape."""
        label = self.shape.label
        return label if self.operation == self.suite else f"{self.operation.replace('_', ' ')} {label}"

    @property
    def label(self) -> str:
        return self.name if self.direction == "step" else f"{self.name} {self.direction}"


@dataclass(frozen=True)
class Suite:
    """Cases that run together.

    `budget` is the time for one contender on one case, in seconds. `quick` names the shapes of a quick run. With
    `fresh`, every case gets new processes, so that the peak memory of a process belongs to one case.
    """

    name: str
    about: str
    cases: tuple[Case, ...]
    budget: float
    quick: tuple[str, ...]
    fresh: bool = False


def _both_ways(suite: str, operation: str, shapes: tuple[Shape, ...]) -> list[Case]:
    return [Case(suite, operation, shape, direction) for shape in shapes for direction in ("forward", "backward")]


_OPS = [
    *_both_ways("ops", "linear", TOKENS[:2]),
    *_both_ways("ops", "bias_gelu", HIDDEN),
    *_both_ways("ops", "bias_gelu_tanh", HIDDEN),
    *_both_ways("ops", "softmax", SCORES),
    *_both_ways("ops", "cross_entropy", LOGITS),
    *_both_ways("ops", "dropout", HIDDEN),
    *_both_ways("ops", "patches", MODELS[1:]),
    *(Case("ops", "adamw", model, "step", calls=3) for model in MODELS[1:]),
]

_PRODUCTS = ("y", "dx", "dw")  # x W^T, dy W, dy^T x

SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "attention",
            "softmax attention of ViT shapes, forward and backward",
            tuple(_both_ways("attention", "attention", ATTENTION)),
            budget=1.0,
            quick=("mnist-s", "vit-s"),
        ),
        Suite(
            "layer_norm",
            "layer norm over the channels, forward and backward",
            tuple(_both_ways("layer_norm", "layer_norm", TOKENS)),
            budget=1.0,
            quick=("mnist-s", "vit-s"),
        ),
        Suite(
            "ops",
            "the other operations: linear, bias + GELU, softmax, cross-entropy, dropout, patches, AdamW",
            tuple(_OPS),
            budget=0.5,
            quick=("mnist-s", "imagenet"),
        ),
        Suite(
            "gemm",
            "the matrix products of a linear map: y = x W^T, dx = dy W, dW = dy^T x",
            tuple(Case("gemm", product, shape, "step") for shape in LINEAR for product in _PRODUCTS),
            budget=0.5,
            quick=("mnist-s-fc1",),
        ),
        Suite(
            "train",
            "training steps of digits-s, mnist-s and vit-s with AdamW",
            tuple(Case("train", "train", model, "step", calls=3) for model in MODELS),
            budget=20.0,
            quick=("digits-s",),
            fresh=True,
        ),
        Suite(
            "text",
            "training steps of models of images and texts: answers to questions, captions",
            tuple(Case("text", "train", shape, "step", calls=3) for shape in TEXTS),
            budget=20.0,
            quick=("caption",),
            fresh=True,
        ),
        Suite(
            "dense",
            "training steps of the recipes of masks and boxes, with the optimizer of each",
            tuple(Case("dense", "train", shape, "step", calls=3) for shape in DENSE),
            budget=20.0,
            quick=("segment",),
            fresh=True,
        ),
        Suite(
            "inference",
            "the same models forward only, one image at a time, and vit-s in batches",
            tuple(Case("inference", "inference", model, "step") for model in (*SINGLE, VIT_S)),
            budget=2.0,
            quick=("digits-s",),
            fresh=True,
        ),
    )
}


def find_case(id: str) -> Case:
    """The case with this `id`; KeyError if there is none."""
    cases = {case.id: case for suite in SUITES.values() for case in suite.cases}
    return cases[id]


def select_cases(suite: Suite, names: tuple[str, ...]) -> tuple[Case, ...]:
    """The cases whose shape has one of these names or labels; all if `names` is empty; ValueError if one is unknown."""
    known = {name for case in suite.cases for name in (case.shape.name, case.shape.label)}
    unknown = [name for name in names if name not in known]
    if unknown:
        short = dict.fromkeys(case.shape.name for case in suite.cases)
        named = ", ".join(f"{name}{meant(name, short)}" for name in unknown)
        raise ValueError(f"{suite.name} has no shape {named}; available: {', '.join(short)}")
    return tuple(case for case in suite.cases if not names or {case.shape.name, case.shape.label} & set(names))


def meant(name: str, known: Iterable[str]) -> str:
    """Return a question about the known name that an unknown one may stand for, for an error message."""
    from tinyvit.backend.words import did_you_mean  # the processes of other contenders do without tinyvit

    return did_you_mean(name, known)
