"""Models are their formulas: every module in them is called, and what is traced is what is trained."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiers import quick_first

import tinyvit as tv
import tinyvit.functional as F
from tinyvit import nn
from tinyvit.data.tokenizer import CLS, MASK, PAD, START
from tinyvit.engine import Op, Tensor
from tinyvit.models import (
    VQA,
    Captioner,
    ConvEncoder,
    CrossFusion,
    EncoderDecoder,
    JointFusion,
    MaskedModel,
    ProductFusion,
    TextDecoder,
    TextEmbedding,
    TextEncoder,
    TwoTowers,
    ViT,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 2, 8, 8))
PIXELS = RNG.standard_normal((3, 2, 16, 16))
VIDEOS = RNG.standard_normal((3, 2, 2, 8, 8))
TEXTS = np.array([[CLS, 6, 7, 8], [CLS, 9, MASK, PAD], [CLS, 8, PAD, PAD]])
CAPTIONS = np.array([[START, 6, 7], [START, 8, PAD], [START, 9, 9]])
ORDER = np.array([[2, 0, 3, 1], [1, 3, 2, 0], [0, 1, 2, 3]])


def vit(classes: int = 3, depth: int = 2, size: Any = 8, patch: Any = 4, **options: Any) -> ViT:
    return ViT(size, patch, classes, 8, depth, 2, 6, in_channels=2, **options)


def text() -> TextEncoder:
    return TextEncoder(12, 8, 1, 2, 6, max_length=6)


def patches() -> ViT:
    return vit(0, 1, pool="first")


# Models of every kind, and what they are called with.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "vit cls": (vit, (IMAGES,)),
    "vit mean": (lambda: vit(pool="mean", register_tokens=1, layer_scale=0.5), (IMAGES,)),
    "vit post": (lambda: vit(norm="post", pool="first", dropout=0.1, drop_path=0.1), (IMAGES,)),
    "vit conv": (lambda: vit(stem="conv"), (IMAGES,)),
    "vit video": (lambda: vit(size=(2, 8, 8), patch=(1, 4, 4)), (VIDEOS,)),
    "vqa cnn": (lambda: VQA(ConvEncoder((16, 16), 2, 8, 2), text(), ProductFusion(8), 8, 3), (PIXELS, TEXTS)),
    "vqa cross": (lambda: VQA(patches(), text(), CrossFusion(8, 2, 2, 6), 8, 3), (IMAGES, TEXTS)),
    "vqa joint": (lambda: VQA(vit(0, 0), TextEmbedding(12, 8, 6), JointFusion(8, 2, 2, 6), 8, 3), (IMAGES, TEXTS)),
    "captioner": (lambda: Captioner(patches(), TextDecoder(12, 8, 1, 2, tied=False)), (IMAGES, CAPTIONS)),
    "two towers": (lambda: TwoTowers(patches(), text(), 8), (IMAGES, TEXTS)),
    "masked": (lambda: MaskedModel(patches(), text(), 8, 2, 12), (IMAGES, ORDER, 2, TEXTS)),
    "texts post": (lambda: EncoderDecoder(12, 8, 1, 2, 6), (TEXTS, CAPTIONS)),
    "texts pre": (lambda: EncoderDecoder(12, 8, 1, 2, 6, norm="pre", tied=False), (TEXTS, CAPTIONS)),
}


def made(name: str, dtype: str = "float64") -> tuple[nn.Module, tuple[Any, ...]]:
    """A model with weights large enough for every part to matter, and its inputs."""
    tv.manual_seed(0)
    build, inputs = MODELS[name]
    model, rng = build().to(dtype).eval(), np.random.default_rng(1)
    for p in model.parameters():
        p.assign(p.numpy() + 0.3 * rng.standard_normal(p.shape))
    return model, tuple(x.astype(dtype) if getattr(x, "dtype", None) == np.float64 else x for x in inputs)


def loss_of(outputs: Any) -> Tensor:
    """A number that depends on every output, and on no two elements of one in the same way."""
    total = Tensor(np.zeros((), outputs[0].dtype if isinstance(outputs, tuple) else outputs.dtype))
    for y in outputs if isinstance(outputs, tuple) else (outputs,):
        weights = np.random.default_rng(2).standard_normal(y.shape).astype(y.dtype)
        total = total + (y * y * Tensor(weights)).sum().to(total.dtype)
    return total


# Every module is called -----------------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """Stands in the place of any module: calls it, and adds a learned multiple of a pattern to what it returns."""

    def __init__(self, inner: nn.Module) -> None:
        self.inner = inner
        self.amount = nn.Parameter(np.zeros(()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def forward(self, *args: Any, **options: Any) -> Tensor:
        y = self.inner(*args, **options)
        return y + self.amount * np.cos(np.arange(y.shape[-1]) + 1.0)


HEADLESS = {"vision", "vision.fc_norm", "vision.head", "vision.head_drop"}


@pytest.mark.parametrize("kind", MODELS)
def test_any_module_in_the_place_of_another_runs_and_learns(kind: str) -> None:
    """All but lists, which are not called, and the head of an image encoder whose features another model takes."""
    model, inputs = made(kind)
    model.requires_grad_(False)
    before = loss_of(model(*inputs)).item()
    for name, module in list(model.named_modules()):
        if not name or type(module) is nn.ModuleList or name in HEADLESS:
            continue
        *path, last = name.split(".")
        parent, shifted = functools.reduce(getattr, path, model), Shifted(module)
        setattr(parent, last, shifted)
        loss = loss_of(model(*inputs))
        assert loss.item() == pytest.approx(before, rel=1e-12), f"in the place of {name}"
        loss.backward()
        gradient = shifted.amount.grad
        assert gradient is not None, f"{name} is not called"
        assert gradient.item() != 0, f"what {name} returns is not used"
        setattr(parent, last, module)


class LowRank(nn.Linear):
    """A linear map with an update of low rank, W + B A (Hu et al., LoRA, 2022): W is frozen, A and B learn."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        self.weight, self.bias = layer.weight, layer.bias
        out_features, in_features = self.weight.shape
        self.down = nn.Parameter(np.random.default_rng(0).normal(0, 0.1, (rank, in_features)).astype(np.float32))
        self.up = nn.Parameter(np.zeros((out_features, rank), np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.down), self.up)


@pytest.mark.parametrize("kernels", ["numpy", "auto"])
def test_a_low_rank_update_learns_while_the_rest_is_frozen(kernels: str) -> None:
    with tv.use_kernels(kernels):
        model, (images,) = made("vit cls", "float32")
        logits, before = model(images).numpy(), model.requires_grad_(False).state_dict()
        for block in model.blocks:
            block.attn.qkv, block.mlp.fc1 = LowRank(block.attn.qkv, 2), LowRank(block.mlp.fc1, 2)
        np.testing.assert_allclose(model(images).numpy(), logits, rtol=1e-5)
        learning = [p for p in model.parameters() if p.requires_grad]
        assert len(learning) == 2 * 2 * 2
        optimizer, losses = tv.optim.AdamW(learning, lr=1e-2), []
        for _ in range(100):
            loss = F.cross_entropy(model(images), [2, 0, 1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    state = model.state_dict()
    for name, array in before.items():
        np.testing.assert_array_equal(state[name], array)


# One token is read ----------------------------------------------------------------------------------------------------


class Watched(nn.Linear):
    """Keeps the shapes of what it is given."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.bias, self.shapes = layer.weight, layer.bias, set()

    def forward(self, x: Tensor) -> Tensor:
        self.shapes |= {x.shape}
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [("vit cls", "blocks"), ("vit post", "blocks"), ("vqa cross", "fusion.decoder.blocks"),
     ("vqa joint", "fusion.encoder.blocks"), ("two towers", "text.encoder.blocks")],
)  # fmt: skip
def test_the_last_block_computes_the_token_that_is_read_and_no_other(kind: str, blocks: str) -> None:
    model, inputs = made(kind)
    *before, last = functools.reduce(getattr, blocks.split("."), model)
    for block in (*before, last):
        block.mlp.fc1 = Watched(block.mlp.fc1)
    model(*inputs)
    assert last.mlp.fc1.shapes == {(3, 8)}
    assert all(len(shape) == 3 for block in before for shape in block.mlp.fc1.shapes)


# What is traced is what is trained ------------------------------------------------------------------------------------


def counted(run: Callable[[], Any]) -> tuple[Any, Counter[str]]:
    """What `run` returns, and how often it applies each operation."""
    names: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        apply = Op.apply.__func__
        patch.setattr(Op, "apply", classmethod(lambda cls, *a, **k: names.update([cls.name]) or apply(cls, *a, **k)))
        return run(), names


HOW = [("numpy", "float32"), ("auto", "float32"), ("numpy", "bfloat16"), ("auto", "bfloat16")]


@pytest.mark.parametrize(("kernels", "precision"), quick_first(HOW, 3))
@pytest.mark.parametrize("kind", ["vit cls", "vit mean", "vit post", "vqa joint", "captioner"])
def test_a_trace_runs_the_operations_that_run_without_one(kind: str, kernels: str, precision: str) -> None:
    model, inputs = made(kind, "float32")
    parameters = list(model.train().parameters())

    def step() -> list[np.ndarray]:
        tv.manual_seed(1)  # of dropout
        with tv.autocast(precision):
            loss = loss_of(model(*inputs))
        return [t.numpy() for t in (loss, *tv.grad(loss, parameters, allow_unused=True)) if t is not None]

    with tv.use_kernels(kernels):
        plain, names = counted(step)
        with tv.study.trace() as trace:
            traced = step()
    assert Counter(entry.op.name for entry in trace.entries) == names
    for one, other in zip(plain, traced, strict=True):
        np.testing.assert_array_equal(one, other)
