"""Whatever takes sizes or flags refuses a wrong one when it is made, with an error that names the argument."""

import inspect
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvit import models, nn

VISION = models.ViT(8, 4, 0, 8, 1, 2, pool="mean")
TEXT = models.TextEncoder(12, 8, 1, 2)
BLOCK: dict[str, Any] = {"dim": 8, "heads": 2, "mlp_dim": 8}
STACK = BLOCK | {"depth": 1}
WORDS = STACK | {"vocabulary": 12}
MLP = {"dim": 2, "hidden_dim": 4}

RIGHT: dict[type, dict[str, Any]] = {
    nn.Linear: {"in_features": 2, "out_features": 2},
    nn.LayerNorm: {"dim": 2},
    nn.RMSNorm: {"dim": 2},
    nn.LayerScale: {"dim": 2, "value": 0.1},
    nn.Embedding: {"num_embeddings": 2, "dim": 2},
    nn.Conv2d: {"in_channels": 2, "out_channels": 2, "kernel_size": 3, "stride": 1, "padding": 1},
    nn.DepthwiseConv: {"channels": 2, "kernel_size": 3},
    nn.MaxPool2d: {"kernel_size": 2, "stride": 2, "padding": 1},
    nn.PatchEmbed: {"image_size": 8, "patch_size": 4, "in_channels": 1, "dim": 8},
    nn.PatchProjection: {"in_channels": 1, "dim": 2, "patch_size": (2, 2)},
    nn.Mlp: MLP,
    nn.SwiGLU: MLP,
    nn.LocalMlp: MLP | {"grid": (2, 2), "prefix": 1},
    nn.Attention: {"dim": 4, "heads": 2},
    nn.CrossAttention: {"dim": 4, "heads": 2, "context_dim": 3},
    nn.Block: BLOCK | {"mlp_layer": "local", "grid": (2, 2), "prefix": 1},
    nn.DecoderBlock: BLOCK | {"context_dim": 3},
    nn.TransformerEncoder: STACK,
    nn.TransformerDecoder: STACK | {"context_dim": 3},
    nn.RotaryPositions: {"grid": (2, 2), "head_dim": 4, "prefix": 1},
    nn.LoRALinear: {"layer": nn.Linear(2, 2), "rank": 1},
    models.ViT: STACK | {"image_size": 8, "patch_size": 4, "num_classes": 2, "in_channels": 1, "register_tokens": 1},
    models.TwoTowers: {"vision": VISION, "text": TEXT, "dim": 8, "embedding_dim": 4},
    models.Detr: STACK | {"vision": VISION, "num_classes": 2, "queries": 2},
    models.EncoderDecoder: WORDS,
    models.MaskedModel: {"vision": VISION, "text": TEXT, "dim": 8, "heads": 2, "vocabulary": 12, "decoder_dim": 4}
    | {"decoder_depth": 1},
    models.LinearHead: {"patches": VISION.patch_embed, "dim": 8, "num_classes": 2},
    models.QueryHead: STACK | {"patches": VISION.patch_embed, "num_classes": 2, "width": 3},
    models.TextEmbedding: {"vocabulary": 12, "dim": 8, "max_length": 4},
    models.TextEncoder: WORDS,
    models.TextDecoder: WORDS | {"context_dim": 3},
    models.VQA: {"vision": VISION, "text": TEXT, "fusion": models.ProductFusion(8), "dim": 8, "num_answers": 2},
    models.ConvEncoder: {"image_size": (16, 16), "in_channels": 1, "dim": 4, "channels": 2},
    models.ProductFusion: {"dim": 4},
    models.CrossFusion: STACK,
    models.JointFusion: STACK,
}
MAY_BE_ZERO = {"depth", "decoder_depth", "prefix", "padding", "num_classes of ViT", "register_tokens"}
NOT_SQUARE = {"patch_size of PatchProjection"}  # one number for each axis, of which there may be four
NEVER = (-1, 2.5, "3", True, (), (0, 2), (2, -1), [2, 2.5], (True, True))


def sizes_of(kind: type) -> dict[str, str]:
    """The arguments of a class that are sizes, with their annotations."""
    parameters = inspect.signature(kind).parameters.values()
    found = {p.name: str(p.annotation).replace("<class 'int'>", "int") for p in parameters}
    return {name: text for name, text in found.items() if re.search(r"\bint\b", text) and "Callable" not in text}


def taking_sizes() -> list[type]:
    public = [getattr(room, name) for room in (nn, models) for name in room.__all__]
    return [kind for kind in public if inspect.isclass(kind) and issubclass(kind, nn.Module) and sizes_of(kind)]


def test_every_layer_and_model_that_takes_sizes_is_tried() -> None:
    assert set(taking_sizes()) == set(RIGHT)
    for kind, right in RIGHT.items():
        assert sizes_of(kind).keys() <= right.keys(), kind


@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.__name__)
@given(st.data())
@settings(max_examples=20)
def test_a_wrong_size_is_refused_at_once_and_named(kind, data) -> None:
    name = data.draw(st.sampled_from(sorted(sizes_of(kind))))
    own = f"{name} of {kind.__name__}"
    wrong = data.draw(
        st.sampled_from(NEVER)
        | st.just((2, 2, 2, 2)).filter(lambda _: own not in NOT_SQUARE)
        | st.just(0).filter(lambda _: not {name, own} & MAY_BE_ZERO)
        | st.just(None).filter(lambda _: "None" not in sizes_of(kind)[name])
    )
    if name == "padding" and wrong == (0, 2):
        wrong = (0, -1)
    with pytest.raises((ValueError, TypeError), match=rf"(must be|needs).*\b{name}\b|\b{name}\b.*must be"):
        kind(**RIGHT[kind] | {name: wrong})


FLAGS = [
    (kind, p.name)
    for kind in dict.fromkeys(getattr(room, name) for room in (nn, models) for name in room.__all__)
    if inspect.isclass(kind)
    for p in inspect.signature(kind).parameters.values()
    if p.annotation is bool
]
NEVER_FLAGS = ("no", "", None, 2, 1.5, (), np.ones(2), object())


@pytest.mark.parametrize(("kind", "name"), FLAGS)
def test_a_flag_is_true_or_false(kind: type, name: str) -> None:
    for wrong in NEVER_FLAGS:
        with pytest.raises(TypeError, match=rf"^\w+: {name} is .*; it must be True or False$"):
            kind(**RIGHT[kind] | {name: wrong})
    # As a flag of NumPy it means the same.
    right = RIGHT[kind] | ({"register_tokens": 0} if kind is models.ViT else {})
    of_python, of_numpy = (kind(**right | {name: truth}) for truth in (True, np.True_))
    shapes = [{k: v.shape for k, v in layer.state_dict().items()} for layer in (of_python, of_numpy)]
    assert shapes[0] == shapes[1]
    assert getattr(of_python, "prefix", None) == getattr(of_numpy, "prefix", None)


@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.__name__)
def test_integers_of_numpy_are_sizes_too(kind) -> None:
    kind(**{name: np.int64(v) if type(v) is int else v for name, v in RIGHT[kind].items()})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.ViT((2, 2, 8, 8), (1, 1, 4, 4), 3, 8, 1, 2), r"image_size is \(2, 2, 8, 8\); it must be one"),
        (lambda: nn.DepthwiseConv(4, 2), "DepthwiseConv: kernel_size is 2; it must be odd"),
        (lambda: nn.MaxPool2d(2, padding=2), "MaxPool2d: padding is 2; it must be at most half of kernel_size, 2"),
        (lambda: nn.MaxPool2d((4, 2), padding=(2, 2)), r"MaxPool2d: padding is \(2, 2\); it must be at most half"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused_at_once(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sizes", [(4, 16, 16), (16, 16), 16, (1, 2, 3, 4)])
def test_models_of_videos_say_that_they_keep_their_size(sizes) -> None:
    model = models.ViT((4, 8, 8), (2, 4, 4), 3, 8, 1, 2)
    for name in ("image_size", "patch_size"):
        with pytest.raises(ValueError, match="this model takes videos"):
            model.set_input_size(**{name: sizes})
