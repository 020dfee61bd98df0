"""The Vision Transformer: timm's names, every option against plain NumPy, digits learned by its published forms."""

import functools
import math
from typing import Any

import block_oracles
import numpy as np
import oracles
import pytest
from block_oracles import Weights, part
from threadpoolctl import threadpool_limits
from tiers import quick_first

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.data.digits import read_digits
from tinyvit.engine import Tensor
from tinyvit.models import ViT

TINY: dict[str, Any] = {
    "image_size": (8, 12), "patch_size": 4, "num_classes": 3, "dim": 8, "depth": 2, "heads": 2, "mlp_dim": 6,
    "in_channels": 2,
}  # fmt: skip


def tiny(**options: Any) -> ViT:
    tv.manual_seed(0)
    return ViT(**TINY | options)


def some_images(count: int = 2, config: dict[str, Any] = TINY) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, config["in_channels"], *config["image_size"]))


def in_float64(model: ViT) -> ViT:
    rng = np.random.default_rng(1)
    for p in model.to("float64").parameters():
        p.assign(0.5 * rng.standard_normal(p.shape))
    return model


# Names and shapes -----------------------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_timm() -> None:
    expected: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 8), "pos_embed": (1, 7, 8)}
    expected |= {"patch_embed.proj.weight": (8, 2, 4, 4), "patch_embed.proj.bias": (8,)}
    for i in range(2):
        expected |= {
            f"blocks.{i}.norm1.weight": (8,), f"blocks.{i}.norm1.bias": (8,),
            f"blocks.{i}.attn.qkv.weight": (24, 8), f"blocks.{i}.attn.qkv.bias": (24,),
            f"blocks.{i}.attn.proj.weight": (8, 8), f"blocks.{i}.attn.proj.bias": (8,),
            f"blocks.{i}.norm2.weight": (8,), f"blocks.{i}.norm2.bias": (8,),
            f"blocks.{i}.mlp.fc1.weight": (6, 8), f"blocks.{i}.mlp.fc1.bias": (6,),
            f"blocks.{i}.mlp.fc2.weight": (8, 6), f"blocks.{i}.mlp.fc2.bias": (8,),
        }  # fmt: skip
    expected |= {"norm.weight": (8,), "norm.bias": (8,), "head.weight": (3, 8), "head.bias": (3,)}
    assert {name: values.shape for name, values in tiny().state_dict().items()} == expected
    assert list(tiny().state_dict()) == list(expected)


ALL_NAMES = list(tiny().state_dict())


@pytest.mark.parametrize(
    ("options", "added", "gone"),
    [
        ({"pool": "mean"}, {"fc_norm.weight": (8,), "fc_norm.bias": (8,), "pos_embed": (1, 6, 8)},
         {"cls_token", "norm.weight", "norm.bias"}),
        ({"pool": "first"}, {"pos_embed": (1, 6, 8)}, {"cls_token"}),
        ({"norm": "post"}, {}, {"norm.weight", "norm.bias"}),
        ({"qkv_bias": False}, {}, {"blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"}),
        ({"pos_embed": "none"}, {}, {"pos_embed"}),
        ({"pos_embed": "sincos1d"}, {}, {"pos_embed"}),
        ({"num_classes": 0}, {}, {"head.weight", "head.bias"}),
        ({"register_tokens": 2}, {"reg_token": (1, 2, 8), "pos_embed": (1, 9, 8)}, set()),
        ({"layer_scale": 0.1}, {f"blocks.{i}.ls{j}.gamma": (8,) for i in (0, 1) for j in (1, 2)}, set()),
        ({"mlp_dim": None, "depth": 1}, {"blocks.0.mlp.fc1.weight": (32, 8), "blocks.0.mlp.fc1.bias": (32,),
          "blocks.0.mlp.fc2.weight": (8, 32)}, {n for n in ALL_NAMES if n.startswith("blocks.1.")}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)  # fmt: skip
def test_options_change_these_names_and_no_others(options: Any, added: dict[str, Any], gone: set[str]) -> None:
    plain = {name: values.shape for name, values in tiny().state_dict().items()}
    expected = {name: shape for name, shape in (plain | added).items() if name not in gone}
    assert {name: values.shape for name, values in tiny(**options).state_dict().items()} == expected


# The whole model once more, in NumPy ----------------------------------------------------------------------------------


def sincos(position: int, dim: int) -> list[float]:
    angles = [position / 10000 ** (2 * (j // 2) / dim) for j in range(dim)]
    values = [math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(angles)]
    return [float(np.float32(v)) for v in values]  # the model keeps them as float32


def positions(kind: str, tokens: int, prefix: int, grid: tuple[int, int], w: Weights, dim: int) -> np.ndarray:
    if kind == "learned":
        return w["pos_embed"][0]
    if kind == "sincos1d":
        return np.array([sincos(i, dim) for i in range(tokens)])
    if kind == "sincos2d":
        patches = [sincos(i, dim // 2) + sincos(j, dim // 2) for i in range(grid[0]) for j in range(grid[1])]
        return np.array([[0.0] * dim] * prefix + patches)
    return np.zeros((tokens, dim))


def vit_in_numpy(images: np.ndarray, w: Weights, options: dict[str, Any]) -> np.ndarray:
    o = {"pool": "cls", "norm": "pre", "pos_embed": "learned", "stem": "linear"} | TINY | options
    patch, x = o["patch_size"], images
    if o["stem"] == "conv":
        for i in (0, 2):  # two convolutions of stride 2 for patches of 4
            v = part(w, f"patch_embed.stem.{i}")
            x = np.maximum(oracles.conv2d(x, v["weight"], v["bias"], stride=(2, 2), padding=(1, 1)), 0)
        patch = 1
    v = part(w, "patch_embed.proj")
    columns = oracles.conv2d(x, v["weight"], v["bias"], stride=(patch, patch), padding=(0, 0))
    grid = columns.shape[2:]
    x = np.array([[c[:, i, j] for i in range(grid[0]) for j in range(grid[1])] for c in columns])
    extra = [np.repeat(w[name], len(x), axis=0) for name in ("cls_token", "reg_token") if name in w]
    prefix = sum(e.shape[1] for e in extra)
    x = np.concatenate([*extra, x], axis=1)
    x = x + positions(o["pos_embed"], x.shape[1], prefix, grid, w, o["dim"])
    x = block_oracles.stack(o["depth"], lambda y, u: block_oracles.block(y, u, o["heads"], o["norm"], 1e-6), x, w, 1e-6)
    if o["pool"] == "mean":
        x = block_oracles.normalized(x[:, prefix:].mean(axis=1), part(w, "fc_norm"), 1e-6)
    else:
        x = x[:, 0 if o["pool"] == "cls" else prefix]
    return block_oracles.linear(x, part(w, "head")) if o["num_classes"] else x


OPTIONS: list[dict[str, Any]] = [
    {}, {"pool": "mean"}, {"pool": "first"}, {"norm": "post"}, {"norm": "post", "pool": "mean"},
    {"norm": "post", "pool": "first"}, {"pos_embed": "sincos1d"}, {"pos_embed": "sincos2d"}, {"pos_embed": "none"},
    {"qkv_bias": False}, {"layer_scale": 0.1}, {"register_tokens": 2}, {"register_tokens": 2, "pool": "mean"},
    {"register_tokens": 2, "pool": "first"}, {"register_tokens": 1, "pos_embed": "sincos2d"}, {"stem": "conv"},
    {"num_classes": 0}, {"depth": 0}, {"heads": 1, "mlp_dim": None},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_computes_what_plain_numpy_does(options: dict[str, Any]) -> None:
    model, images = in_float64(tiny(**options)), some_images()
    expected = vit_in_numpy(images, model.state_dict(), options)
    np.testing.assert_allclose(model(images).numpy(), expected, rtol=1e-9, atol=1e-11, strict=True)
    gradients = tv.grad(model(images).sum(), list(model.parameters()), allow_unused=True)
    unused = {n for (n, _), g in zip(model.named_parameters(), gradients, strict=True) if g is None}
    assert not unused


def test_dropout_rates_reach_where_they_act() -> None:
    model = tiny(dropout=0.1, emb_dropout=0.2, drop_path=0.3, depth=4)
    assert model.pos_drop.p == 0.2
    for block, rate in zip(model.blocks, (0, 0.1, 0.2, 0.3), strict=True):
        assert (block.attn.dropout, block.attn.proj_drop.p, block.mlp.drop.p) == (0.1, 0.1, 0.1)
        assert block.drop_path.p == pytest.approx(rate)
    images = some_images().astype(np.float32)
    for rates in ({"dropout": 0.5}, {"emb_dropout": 0.5}, {"drop_path": 0.5}):
        one = tiny(**rates, depth=4)
        assert (one(images).numpy() != one(images).numpy()).any(), rates
    model.eval()
    expected = vit_in_numpy(images.astype(np.float64), model.state_dict(), {"depth": 4})
    np.testing.assert_allclose(model(images).numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(model(images).numpy(), model(images).numpy())


def test_features_are_the_tokens_that_the_head_reads() -> None:
    images = some_images()
    for options, read in [({}, lambda x: x[:, 0]), ({"norm": "post", "pool": "first"}, lambda x: x[:, 0])]:
        model = in_float64(tiny(**options))
        tokens = model.features(images)
        assert tokens.shape == (2, 6 + ("cls_token" in model.state_dict()), 8)
        np.testing.assert_allclose(model.head(read(tokens)).numpy(), model(images).numpy(), rtol=1e-12)


# What a model of images has to be -----------------------------------------------------------------------------------


def test_a_batch_is_its_images_one_by_one_in_any_order() -> None:
    model, images = in_float64(tiny()), some_images(5)
    whole = model(images).numpy()
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(model(images[order]).numpy(), whole[order], rtol=1e-10)
    np.testing.assert_allclose(np.concatenate([model(i[None]).numpy() for i in images]), whole, rtol=1e-10)
    assert model(images[:0]).shape == (0, 3)


def test_without_positions_patches_are_a_set() -> None:
    images = some_images()
    moved = np.concatenate([images[..., 8:], images[..., :8]], axis=-1)  # whole patches
    for kind, same in [("none", True), ("learned", False), ("sincos1d", False), ("sincos2d", False)]:
        model = in_float64(tiny(pos_embed=kind))
        assert np.allclose(model(images).numpy(), model(moved).numpy(), rtol=1e-9) == same


def test_the_same_seed_builds_the_same_model() -> None:
    one, same = tiny().state_dict(), tiny().state_dict()
    other = ViT(**TINY).state_dict()  # the stream has gone on
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
    assert (one["head.weight"] != other["head.weight"]).all()


def test_state_moves_between_models() -> None:
    source, target = tiny(), ViT(**TINY)
    images = some_images().astype(np.float32)
    target.load_state_dict(source.state_dict())
    np.testing.assert_array_equal(target(images).numpy(), source(images).numpy())
    assert source(images).dtype == np.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "pool is 'max'; it must be one of cls, mean, first"),
        ({"pos_embed": "rope"}, "pos_embed is 'rope'; it must be one of learned, sincos1d, sincos2d, none"),
        ({"norm": "none"}, "norm is 'none'"), ({"stem": "deep"}, "stem is 'deep'"),
        ({"patch_size": 5}, r"patch_size \(5, 5\) does not divide image_size \(8, 12\)"),
        ({"image_size": 0}, "image_size is 0"), ({"heads": 3}, "dim is 8 and heads 3"),
        ({"dim": 6, "pos_embed": "sincos2d"}, "multiple of 4, not 6"), ({"dropout": 1.5}, "1.5"),
        ({"stem": "conv", "patch_size": (4, 2)}, "square patches"),
        ({"stem": "conv", "dim": 2, "heads": 1}, "dim of at least 4, not 2"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_images_of_another_shape_are_refused() -> None:
    for shape in [(1, 2, 8, 8), (1, 3, 8, 12), (2, 8, 12)]:
        with pytest.raises(ValueError, match=r"images have shape .*; this model takes \(B, 2, 8, 12\)"):
            tiny()(np.zeros(shape, np.float32))


# Gradients and learning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"norm": "post", "pool": "mean"}, {"stem": "conv", "register_tokens": 1}], ids=str
)
def test_gradcheck_of_every_parameter(options: dict[str, Any]) -> None:
    model = in_float64(tiny(depth=1, **options))
    names = [name for name, _ in model.named_parameters()]

    def loss(images: Tensor, *parameters: Tensor) -> Tensor:
        for name, p in zip(names, parameters, strict=True):
            *path, last = name.split(".")
            vars(functools.reduce(getattr, path, model))[last] = p  # off the record: it is no Parameter
        return F.cross_entropy(model(images), [0, 2])

    images = Tensor(some_images(), requires_grad=True)
    tv.gradcheck(loss, [images, *model.parameters()], order=2, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "form",
    quick_first(
        [
            {"norm": "post", "pool": "first", "pos_embed": "sincos1d"}, {"qkv_bias": False},
            {"norm": "post", "pool": "mean"}, {"dropout": 0.1, "emb_dropout": 0.1},
        ]
    ),
    ids=str,
)  # fmt: skip
def test_published_forms_learn_a_batch_of_real_digits(form: dict[str, Any]) -> None:
    images, labels = (a[:16] for a in read_digits("train"))
    images = images.astype(np.float32) / 255
    tv.manual_seed(0)
    model = ViT(8, 2, 10, dim=32, depth=2, heads=4, mlp_dim=64, in_channels=1, **form)
    optimizer = tv.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    with threadpool_limits(1):  # matrices this small lose time with two threads
        for _ in range(150):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    logits = model.eval()(images)
    assert losses[0] == pytest.approx(math.log(10), rel=0.1)
    assert F.cross_entropy(logits, labels).item() < 0.05
    np.testing.assert_array_equal(logits.argmax(axis=1).numpy(), labels)


# Parts that are replaced ---------------------------------------------------------------------------------------------


class Doubling(tv.nn.Module):
    """In the place of dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["blocks.0.attn.proj_drop", "blocks.1.drop_path", "blocks.1.mlp.drop"])
def test_what_stands_in_the_place_of_dropout_is_called(name: str, training: bool) -> None:
    model, images = tiny().train(training), some_images().astype(np.float32)
    parent, _, attribute = name.rpartition(".")
    with tv.use_kernels("auto"):
        plain = model(images).numpy()
        setattr(dict(model.named_modules())[parent], attribute, Doubling().train(training))
        assert not np.allclose(model(images).numpy(), plain)


def test_a_part_may_be_replaced_by_a_function() -> None:
    model, images = tiny(), some_images().astype(np.float32)
    for block in model.blocks:
        block.__dict__["attn"] = lambda y, *args, read: (y if read is None else y[:, read]) * 0
        block.mlp.__dict__["fc2"] = lambda x: x[..., :1] * np.zeros(8, np.float32)
    assert model(images).shape == (2, 3)


@pytest.mark.parametrize("name", ["blocks.0.mlp", "blocks.0.mlp.fc2", "blocks.1.attn", "blocks.1.attn.proj"])
def test_a_forward_that_was_written_anew_is_called(name: str) -> None:
    model, images = tiny(), some_images().astype(np.float32)
    module = dict(model.named_modules())[name]
    forward = module.forward
    with tv.use_kernels("auto"):
        plain = model(images).numpy()
        module.forward = lambda *args, **options: forward(*args, **options) * 2  # type: ignore[method-assign]
        assert not np.allclose(model(images).numpy(), plain)
