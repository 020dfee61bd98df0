"""What a ViT offers beside its logits: features, intermediate tokens, new heads, other sizes; and hints at prefixes."""

from typing import Any

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.models import ViT, attention_rollout

SMALL: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "num_classes": 3, "dim": 8, "depth": 2, "heads": 2, "in_channels": 1,
}  # fmt: skip
FORMS: list[dict[str, Any]] = [
    {}, {"pool": "mean"}, {"pool": "first", "register_tokens": 1}, {"pool": "cls_mean"}, {"distilled": True},
    {"pool": "mean", "class_token": True, "register_tokens": 2}, {"norm": "post"}, {"last_norm": "fc_norm"},
    {"no_embed_class": True, "pos_embed": "sincos1d"}, {"pre_norm": True, "qk_norm": True, "proj_bias": False},
]  # fmt: skip
IMAGES = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)


def small(**options: Any) -> ViT:
    tv.manual_seed(0)
    return ViT(**SMALL | options).eval()


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_features_and_head_are_the_two_halves_of_a_model(options: dict[str, Any]) -> None:
    model = small(**options)
    tokens = model.forward_features(IMAGES)
    assert tokens.shape == (2, 4 + model.prefix, 8)
    np.testing.assert_allclose(model.forward_head(tokens).numpy(), model(IMAGES).numpy(), atol=1e-6)
    pooled = model.forward_head(tokens, pre_logits=True)
    assert pooled.shape == (2, model.head_dim)
    if not options.get("distilled"):
        np.testing.assert_array_equal(model.head(pooled).numpy(), model.forward_head(tokens).numpy())


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_intermediate_tokens_end_with_the_features(options: dict[str, Any]) -> None:
    model = small(**options)
    first, last = model.forward_intermediates(IMAGES, norm=True)
    np.testing.assert_array_equal(last.numpy(), model.forward_features(IMAGES).numpy())
    again = model.forward_intermediates(IMAGES, [-1, 0, 0], norm=True)
    for found, expected in zip(again, (last, first, first), strict=True):
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
    raw = model.forward_intermediates(IMAGES, [0])[0]
    np.testing.assert_array_equal(model.norm(raw).numpy(), first.numpy())
    with pytest.raises(ValueError, match="indices names block 2; this model has the blocks 0 to 1"):
        model.forward_intermediates(IMAGES, [2])


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_a_new_head_leaves_everything_else(options: dict[str, Any]) -> None:
    model = small(**options)
    before = model.state_dict()
    model.reset_classifier(5)
    assert model(IMAGES).shape == (2, model.num_classes) == (2, 5)
    assert {n: v.shape for n, v in model.state_dict().items() if "head" not in n} == {
        n: v.shape for n, v in before.items() if "head" not in n
    }
    assert not model.head.training
    model.reset_classifier(0)
    assert model(IMAGES).shape == (2, model.head_dim)
    with pytest.raises(ValueError, match="num_classes is -1"):
        model.reset_classifier(-1)


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_images_of_another_size_need_other_positions_only(options: dict[str, Any]) -> None:
    model, direct = small(**options), small(**options | {"image_size": 16})
    before = model.state_dict()
    model.set_input_size(16)
    images = np.random.default_rng(1).standard_normal((2, 1, 16, 16)).astype(np.float32)
    assert model(images).shape == (2, 3)
    assert {n: v.shape for n, v in model.state_dict().items()} == {n: v.shape for n, v in direct.state_dict().items()}
    for name, value in model.state_dict().items():
        if name != "pos_embed":
            np.testing.assert_array_equal(value, before[name])
    if "pos_embed" not in before and model.pos_embed is not None:
        np.testing.assert_array_equal(model.pos_embed.numpy(), direct.pos_embed.numpy())
    model.set_input_size(patch_size=8)
    assert model.patch_embed.proj.weight.shape == (8, 1, 8, 8)
    assert model(images).shape == (2, 3)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"patch_size \(4, 4\) does not divide image_size \(10, 10\)"):
        small().set_input_size(10)
    with pytest.raises(ValueError, match="stem='conv', whose patches have a fixed size"):
        small(stem="conv").set_input_size(patch_size=8)
    with pytest.raises(ValueError, match="takes videos"):
        ViT(**SMALL | {"image_size": (4, 8, 8), "patch_size": (2, 4, 4)}).set_input_size(16)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"distilled": True, "pool": "mean"}, "distilled is True, so pool must be 'cls', not 'mean'"),
        ({"distilled": True, "register_tokens": 1}, "register_tokens 0, not 1"),
        ({"act": "mish"}, "act is 'mish'; it must be one of gelu, gelu_tanh"),
        ({"last_norm": "both"}, "last_norm is 'both'"),
        ({"eps": -1.0}, "eps"),
        ({"head_dropout": 1.5}, "p is 1.5"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        small(**options)


def test_rollout_multiplies_the_attention_of_all_blocks() -> None:
    model = small(register_tokens=1)
    rolled = attention_rollout(model, IMAGES)
    assert rolled.shape == (2, 6, 6)
    np.testing.assert_allclose(rolled.sum(axis=-1), 1, atol=1e-6)
    with tv.nn.keep_attention(model) as kept:
        model(IMAGES)
    first, second = (0.5 * np.eye(6) + 0.5 * kept[f"blocks.{i}.attn"][0].mean(axis=1) for i in (0, 1))
    np.testing.assert_allclose(rolled, second @ first, atol=1e-6)
    np.testing.assert_array_equal(attention_rollout(model, IMAGES, residual=1.0)[0], np.eye(6))
    with pytest.raises(ValueError, match="residual is 2"):
        attention_rollout(model, IMAGES, residual=2)


def test_parameters_are_not_drawn_where_they_are_about_to_be_loaded() -> None:
    from tinyvit.context import no_draws

    before = tv.manual_seed(0)
    with no_draws():
        model = ViT(**SMALL, stem="conv")
    assert before is None
    assert not any(p.numpy().any() for name, p in model.named_parameters() if "norm" not in name)
    np.testing.assert_array_equal(ViT(**SMALL).state_dict()["cls_token"], small().state_dict()["cls_token"])


@pytest.mark.parametrize("strict", [True, False])
def test_a_prefix_that_would_make_names_fit_is_suggested(strict: bool) -> None:
    model = small()
    state = model.state_dict()
    for renamed, hint in (
        ({f"module.{name}": value for name, value in state.items()}, "the prefix 'module.' removed from the names"),
        ({f"a.b.{name}": value for name, value in state.items()}, r"the prefix 'a\.b\.' removed from the names"),
    ):
        with pytest.raises(KeyError, match=f"{hint} of the state, {len(state)} of {len(state)} would fit"):
            model.load_state_dict(renamed, strict=strict)

    class Wrapped(tv.nn.Module):
        def __init__(self) -> None:
            self.vision = small()

    with pytest.raises(KeyError, match=r"the prefix 'vision\.' added to the names of the state"):
        Wrapped().load_state_dict(state, strict=strict)
    with pytest.raises(KeyError) as caught:
        model.load_state_dict({"something.else": np.zeros(1)}, strict=strict)
    assert "prefix" not in str(caught.value)
