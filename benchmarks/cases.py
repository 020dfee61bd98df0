"""What is measured: named shapes of Vision Transformers, and the suites made of them.

B batch, N tokens, H heads, D head size, C channels of the model, R rows (all leading axes flattened); of a linear map,
K inputs and N outputs.
"""

from dataclasses import dataclass

# Shapes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionShape:
    """q, k and v are (B, H, N, D), views of one packed (B, N, 3, H, D)."""

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
    """x is (R, C)."""

    name: str
    R: int
    C: int

    @property
    def label(self) -> str:
        return f"{self.name} {self.R}x{self.C}"


@dataclass(frozen=True)
class LinearShape:
    """x is (R, K), the weight (N, K)."""

    name: str
    R: int
    K: int
    N: int

    @property
    def label(self) -> str:
        return f"{self.name} {self.R}x{self.K}x{self.N}"


class _OfImages:
    """What the shapes of models of square images have in common."""

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
class ModelShape(_OfImages):
    """A ViT with a class token on square images; everything not named here is the default of `tinyvit.models.ViT`."""

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
class TextShape(_OfImages):
    """A model of square colour images and of texts of `words` words.

    With `answers`, one Transformer of `depth` blocks over patches and words; else a ViT and a decoder of `depth` each.
    """

    name: str
    image: int
    patch: int
    dim: int
    depth: int
    heads: int
    words: int
    vocabulary: int
    batch: int
    answers: int = 0
    channels: int = 3


Shape = AttentionShape | RowShape | LinearShape | ModelShape | TextShape

# The models that this project trains, then published ones: B and H such that a call takes milliseconds on two cores.
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

TOKENS = (  # the rows and channels of a layer norm in these models
    RowShape("mnist-s", R=64 * 17, C=64),
    RowShape("vit-s", R=128 * 65, C=192),
    RowShape("vit-b/16", R=16 * 197, C=768),
    RowShape("vit-h/14", R=4 * 257, C=1280),
)
HIDDEN = (  # the same between the two layers of the MLP
    RowShape("mnist-s", R=64 * 17, C=256),
    RowShape("vit-s", R=128 * 65, C=768),
)
SCORES = (  # attention weights of one layer, a row for each query
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
    for name, k, n in (("qkv", 1, 3), ("proj", 1, 1), ("fc1", 1, 4), ("fc2", 4, 1))
)
TEXTS = (  # easy-VQA's questions, and captions of scenes
    TextShape("vqa", image=64, patch=8, dim=64, depth=3, heads=4, words=11, vocabulary=33, batch=128, answers=13),
    TextShape("caption", image=48, patch=8, dim=64, depth=2, heads=4, words=20, vocabulary=60, batch=64),
)
SINGLE = tuple(ModelShape(**{**vars(model), "batch": 1}) for model in MODELS)


# Cases and suites ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One row group of the table: an operation on a shape, in one direction.

    `direction` is "forward", "backward", or "step" for what has no gradient of its own (train, inference, adamw).
    `calls` is how often it is called before its outputs are verified: more than once for what keeps a state.
    """

    suite: str
    operation: str
    shape: Shape
    direction: str
    calls: int = 1

    @property
    def model(self) -> ModelShape:
        """The shape, of a case about a whole model or its images."""
        assert isinstance(self.shape, ModelShape), self.id
        return self.shape

    @property
    def id(self) -> str:
        return f"{self.suite}/{self.operation}/{self.shape.label}/{self.direction}"

    @property
    def label(self) -> str:
        named = [] if self.operation == self.suite else [self.operation.replace("_", " ")]
        return " ".join([*named, self.shape.label, *([] if self.direction == "step" else [self.direction])])


@dataclass(frozen=True)
class Suite:
    """Cases that are run together.

    `budget` is the time for one contender on one case, in seconds. `quick` names the shapes of a quick run. With
    `fresh`, every case gets new processes, so that their peak memory is that of the case.
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
            "whole training steps of digits-s, mnist-s and vit-s with AdamW",
            tuple(Case("train", "train", model, "step", calls=3) for model in MODELS),
            budget=20.0,
            quick=("digits-s",),
            fresh=True,
        ),
        Suite(
            "text",
            "whole training steps of models of images and texts: answers to questions, captions",
            tuple(Case("text", "train", shape, "step", calls=3) for shape in TEXTS),
            budget=20.0,
            quick=("caption",),
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
    """The case of this `id`; KeyError if there is none."""
    cases = {case.id: case for suite in SUITES.values() for case in suite.cases}
    return cases[id]


def select_cases(suite: Suite, names: tuple[str, ...]) -> tuple[Case, ...]:
    """The cases whose shape has one of these names or labels, all if there are none; ValueError for an unknown one."""
    known = {name for case in suite.cases for name in (case.shape.name, case.shape.label)}
    unknown = [name for name in names if name not in known]
    if unknown:
        short = dict.fromkeys(case.shape.name for case in suite.cases)
        raise ValueError(f"{suite.name} has no shape {', '.join(unknown)}; it has {', '.join(short)}")
    return tuple(case for case in suite.cases if not names or {case.shape.name, case.shape.label} & set(names))
