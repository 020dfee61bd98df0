"""Published ingredients of ViTs, each an option: against plain NumPy, and in everything else that a model can do."""

import functools
import math
from pathlib import Path
from typing import Any

import block_oracles
import numpy as np
import oracles
import pytest
from block_oracles import Weights, part

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor
from tinyvit.errors import TinyvitError
from tinyvit.models import ViT

TINY: dict[str, Any] = {
    "image_size": (8, 12), "patch_size": 4, "num_classes": 3, "dim": 8, "depth": 2, "heads": 2, "mlp_dim": 6,
    "in_channels": 2,
}  # fmt: skip
INGREDIENTS: list[dict[str, Any]] = [
    {"pool": "seq"}, {"stem": "cct"}, {"stem": "spt"}, {"mlp_layer": "local"}, {"mlp_layer": "swiglu"}, {"lsa": True},
    {"norm_layer": "rmsnorm"}, {"qk_norm": True}, {"rope": True},
]  # fmt: skip
MIXTURES: list[dict[str, Any]] = [
    {"pool": "seq", "register_tokens": 1}, {"pool": "seq", "norm": "post"}, {"pool": "mean", "mlp_layer": "local"},
    {"pool": "first", "mlp_layer": "local", "register_tokens": 2}, {"qk_norm": True, "norm_layer": "rmsnorm"},
    {"pool": "mean", "rope": True, "lsa": True, "pos_embed": "none"}, {"norm": "post", "norm_layer": "rmsnorm"},
    {"patch_size": 2, "stem": "cct", "pool": "mean", "norm_layer": "rmsnorm", "mlp_layer": "swiglu"},
    {"patch_size": (2, 4), "stem": "spt", "rope": True}, {"rope": True, "register_tokens": 1, "heads": 1},
]  # fmt: skip


def tiny(**options: Any) -> ViT:
    tv.manual_seed(0)
    return ViT(**TINY | options)


def in_float64(model: ViT) -> ViT:
    rng = np.random.default_rng(1)
    for name, p in model.to("float64").named_parameters():
        values = 0.5 * rng.standard_normal(p.shape)
        p.assign(np.abs(values) + 1 if name.endswith("temperature") else values)
    return model


def some_images(count: int = 2, size: tuple[int, int] = (8, 12)) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 2, *size))


# The whole model in NumPy, for these options -----------------------------------------------------------------------


def normalized(x: np.ndarray, w: Weights) -> np.ndarray:
    """A layer norm, or an RMS norm where there is no bias."""
    return oracles.layer_norm(x, **w, eps=1e-6) if "bias" in w else oracles.rms_norm(x, **w, eps=1e-6)


def patches_of(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return oracles.im2col(x, size, size, (0, 0)).swapaxes(1, 2)


def tokens_of(x: np.ndarray, w: Weights, patch: tuple[int, int], stem: str) -> np.ndarray:
    if stem == "cct":
        for i in range(patch[0].bit_length() - 1):
            x = oracles.conv2d(x, w[f"stem.{3 * i}.weight"], None, stride=(1, 1), padding=(1, 1))
            largest = lambda window: window.max(axis=(1, 2))  # noqa: E731
            x = oracles.over_windows(np.maximum(x, 0), (3, 3), (2, 2), (1, 1), -math.inf, largest)
        return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)
    if stem == "spt":
        moved = [x]
        for down, right in ((-1, -1), (-1, 1), (1, -1), (1, 1)):  # where the contents go, in halves of a patch
            image = np.zeros_like(x)
            for i, j in np.ndindex(x.shape[2:]):
                y, z = i - down * (patch[0] // 2), j - right * (patch[1] // 2)
                if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]:
                    image[:, :, i, j] = x[:, :, y, z]
            moved.append(image)
        rows = patches_of(np.concatenate(moved, axis=1), patch)
        x = oracles.layer_norm(rows, w["proj.norm.weight"], w["proj.norm.bias"], 1e-5)
        return x @ w["proj.weight"].reshape(len(w["proj.weight"]), -1).T + w["proj.bias"]
    return patches_of(x, patch) @ w["proj.weight"].reshape(len(w["proj.weight"]), -1).T + w["proj.bias"]


def turned(x: np.ndarray, grid: tuple[int, int], prefix: int) -> np.ndarray:
    """Rotary positions of one head, x (B, N, D), by complex numbers."""
    numbers = x[..., 0::2] + 1j * x[..., 1::2]
    quarter = x.shape[-1] // 4
    for n in range(prefix, x.shape[1]):
        row, column = divmod(n - prefix, grid[1])
        for i in range(2 * quarter):
            place = np.float32(column if i < quarter else row)
            numbers[:, n, i] *= np.exp(1j * place * 100 ** (-(i % quarter) / quarter))
    return np.stack([numbers.real, numbers.imag], axis=-1).reshape(x.shape)


def attention(x: np.ndarray, w: Weights, o: dict[str, Any], grid: tuple[int, int], prefix: int) -> np.ndarray:
    size, outs = o["dim"] // o["heads"], []
    q, k, v = np.split(block_oracles.linear(x, part(w, "qkv")), 3, axis=-1)
    for h in range(o["heads"]):
        one = [y[:, :, h * size : (h + 1) * size] for y in (q, k, v)]
        for i, name in enumerate(("q_norm", "k_norm")):
            one[i] = normalized(one[i], part(w, name)) if part(w, name) else one[i]
            one[i] = turned(one[i], grid, prefix) if o["rope"] else one[i]
        scores = one[0] @ one[1].swapaxes(1, 2) / (w["temperature"][h] if o["lsa"] else math.sqrt(size))
        if o["lsa"]:
            scores[:, range(x.shape[1]), range(x.shape[1])] = -np.inf
        outs.append(np.apply_along_axis(oracles.softmax, -1, scores) @ one[2])
    return block_oracles.linear(np.concatenate(outs, axis=-1), part(w, "proj"))


def mlp(x: np.ndarray, w: Weights, o: dict[str, Any], grid: tuple[int, int], prefix: int) -> np.ndarray:
    y = block_oracles.linear(x, part(w, "fc1"))
    if o["mlp_layer"] == "swiglu":
        gate, value = np.split(y, 2, axis=-1)
        return block_oracles.linear(gate / (1 + np.exp(-gate)) * value, part(w, "fc2"))
    if o["mlp_layer"] == "local":
        image = y[:, prefix:].reshape(len(y), *grid, -1)
        image = oracles.depthwise_conv(image, **part(w, "dwconv"))
        y = np.concatenate([y[:, :prefix], image.reshape(len(y), math.prod(grid), -1)], axis=1)
    return block_oracles.linear(oracles.each(oracles.gelu)(y), part(w, "fc2"))


def vit_in_numpy(images: np.ndarray, w: Weights, options: dict[str, Any]) -> np.ndarray:
    o = {
        "pool": "cls", "norm": "pre", "stem": "linear", "mlp_layer": "mlp", "lsa": False, "rope": False,
    } | TINY | options  # fmt: skip
    patch = np.broadcast_to(o["patch_size"], 2).tolist()
    grid = (8 // patch[0], 12 // patch[1])
    x = tokens_of(images, part(w, "patch_embed"), (patch[0], patch[1]), o["stem"])
    extra = [np.repeat(w[name], len(x), axis=0) for name in ("cls_token", "reg_token") if name in w]
    prefix = sum(e.shape[1] for e in extra)
    x = np.concatenate([*extra, x], axis=1) + w.get("pos_embed", 0)
    for i in range(o["depth"]):
        u = part(w, f"blocks.{i}")
        for name, branch in (("attn", attention), ("mlp", mlp)):
            norm = functools.partial(normalized, w=part(u, "norm1" if name == "attn" else "norm2"))
            f = functools.partial(branch, w=part(u, name), o=o, grid=grid, prefix=prefix)
            x = x + f(norm(x)) if o["norm"] == "pre" else norm(x + f(x))
    x = normalized(x, part(w, "norm")) if part(w, "norm") else x
    if o["pool"] == "seq":
        scores = block_oracles.linear(x[:, prefix:], part(w, "attention_pool"))[..., 0]
        x = np.array([oracles.softmax(row) @ tokens for row, tokens in zip(scores, x[:, prefix:], strict=True)])
    elif o["pool"] == "mean":
        x = normalized(x[:, prefix:].mean(axis=1), part(w, "fc_norm"))
    else:
        x = x[:, 0 if o["pool"] == "cls" else prefix]
    return block_oracles.linear(x, part(w, "head"))


@pytest.mark.parametrize("options", INGREDIENTS + MIXTURES, ids=str)
def test_every_ingredient_computes_what_plain_numpy_does(options: dict[str, Any]) -> None:
    model, images = in_float64(tiny(**options)), some_images()
    expected = vit_in_numpy(images, model.state_dict(), options)
    tolerance = 1e-6 if options.get("rope") else 1e-9  # the model keeps sines and cosines as float32
    np.testing.assert_allclose(model(images).numpy(), expected, rtol=tolerance, atol=tolerance / 100, strict=True)
    gradients = tv.grad(model(images).sum(), list(model.parameters()), allow_unused=True)
    unused = {n for (n, _), g in zip(model.named_parameters(), gradients, strict=True) if g is None}
    assert not unused


@pytest.mark.parametrize("options", [o for o in INGREDIENTS if o != {"qk_norm": True}], ids=str)
def test_gradcheck_of_every_parameter(options: dict[str, Any]) -> None:
    small = {"image_size": 4, "patch_size": 2, "dim": 4, "heads": 1, "depth": 1, "mlp_dim": 3, "in_channels": 1}
    model = in_float64(tiny(**small, **options))
    names = [name for name, _ in model.named_parameters()]

    def loss(images: Tensor, *parameters: Tensor) -> Tensor:
        for name, p in zip(names, parameters, strict=True):
            *path, last = name.split(".")
            vars(functools.reduce(getattr, path, model))[last] = p  # off the record: it is no Parameter
        return F.cross_entropy(model(images), [0, 2])

    images = Tensor(some_images(size=(4, 4))[:, :1], requires_grad=True)
    tv.gradcheck(loss, [images, *model.parameters()], order=2, atol=1e-6, rtol=1e-4)


# Names, and what cannot be ------------------------------------------------------------------------------------------

BLOCKS = ("blocks.0.", "blocks.1.")


@pytest.mark.parametrize(
    ("options", "added", "gone"),
    [
        ({"pool": "seq"}, {"attention_pool.weight": (1, 8), "attention_pool.bias": (1,), "pos_embed": (1, 6, 8)},
         {"cls_token"}),
        ({"stem": "cct", "patch_size": 4, "dim": 80, "heads": 5, "depth": 0},
         {"patch_embed.stem.0.weight": (64, 2, 3, 3), "patch_embed.stem.3.weight": (80, 64, 3, 3)},
         {"patch_embed.proj.weight", "patch_embed.proj.bias"}),
        ({"stem": "spt"}, {"patch_embed.proj.weight": (8, 10, 4, 4), "patch_embed.proj.norm.weight": (160,),
          "patch_embed.proj.norm.bias": (160,)}, set()),
        ({"mlp_layer": "local"}, {f"{b}mlp.dwconv.{n}": s for b in BLOCKS
          for n, s in (("weight", (6, 1, 3, 3)), ("bias", (6,)))}, set()),
        ({"mlp_layer": "swiglu", "mlp_dim": None}, {f"{b}mlp.{n}": s for b in BLOCKS
          for n, s in (("fc1.weight", (48, 8)), ("fc1.bias", (48,)), ("fc2.weight", (8, 24)))}, set()),
        ({"lsa": True}, {f"{b}attn.temperature": (2,) for b in BLOCKS}, set()),
        ({"norm_layer": "rmsnorm"}, {}, {"norm.bias", *(f"{b}norm{i}.bias" for b in BLOCKS for i in (1, 2))}),
        ({"rope": True}, {}, set()),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)  # fmt: skip
def test_options_change_these_names_and_no_others(options: Any, added: dict[str, Any], gone: set[str]) -> None:
    sizes = {key: options[key] for key in ("dim", "heads", "depth") if key in options}
    plain = {name: values.shape for name, values in tiny(**sizes).state_dict().items()}
    expected = {name: shape for name, shape in (plain | added).items() if name not in gone}
    assert {name: values.shape for name, values in tiny(**options).state_dict().items()} == expected


def test_the_temperature_starts_at_the_root_of_the_head_size() -> None:
    np.testing.assert_array_equal(tiny(lsa=True).state_dict()["blocks.0.attn.temperature"], [2, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_layer": "batchnorm"}, "norm_layer is 'batchnorm'; it must be one of layernorm, rmsnorm"),
        ({"mlp_layer": "moe"}, "mlp_layer is 'moe'; it must be one of mlp, local, swiglu"),
        ({"mlp_layer": "swiglu", "act": "relu"}, "act is 'relu', which mlp_layer='swiglu' does not use"),
        ({"rope": True, "dim": 12}, "rope is True, so dim / heads must be a multiple of 4, not 6"),
        ({"stem": "cct", "patch_size": (4, 2)}, r"stem='cct' needs square patches.* 2, 4, 8 or so, not \(4, 2\)"),
        ({"stem": "cct", "image_size": 12, "patch_size": 6}, "needs square patches"),
        ({"stem": "cct", "patch_size": 1}, "needs square patches"),
        ({"stem": "deep"}, "stem is 'deep'; it must be 'linear' or, for images, one of 'conv', 'cct', 'spt'"),
    ]
    + [
        ({"image_size": (4, 8, 8), "patch_size": (2, 4, 4)} | options, f"{next(iter(options))} is")
        for options in ({"stem": "cct"}, {"stem": "spt"}, {"mlp_layer": "local"}, {"rope": True})
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.mark.parametrize(("options", "message"), [({"rope": True}, "rope is True"), ({"mlp_layer": "local"}, "local")])
def test_some_of_the_tokens_are_refused_where_all_are_needed(options: dict[str, Any], message: str) -> None:
    model = tiny(pool="mean", **options)
    assert model.needs_all_tokens
    assert not tiny(lsa=True).needs_all_tokens
    with pytest.raises(ValueError, match=message):
        model.encode(model.embed(some_images().astype(np.float32))[:, 1:])
    with pytest.raises(ValueError, match="mlp_layer at 'mlp' and rope at False"):
        tv.models.MaskedModel(tiny(pool="mean", num_classes=0, **options), None, 8, 2)


# Everything else that a model can do ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", INGREDIENTS + MIXTURES[:4], ids=str)
def test_a_program_and_what_is_exported_from_it_compute_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    model, images = tiny(**options).eval(), some_images(3).astype(np.float32)
    program = tv.freeze(model, images[:1])
    assert program.is_batch_free
    np.testing.assert_array_equal(program(images), model(images).numpy())
    program.export_c(tmp_path / "c")
    assert list((tmp_path / "c").glob("*.c"))


@pytest.mark.parametrize("options", INGREDIENTS, ids=str)
@pytest.mark.parametrize("style", ["timm", "hf"])
def test_weights_for_others_are_written_so_that_they_are_read_back_or_refused(
    style: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, images = tiny(image_size=8, in_channels=3, **options).eval(), np.ones((1, 3, 8, 8), np.float32)
    if options != {"qk_norm": True} or style == "hf":
        with pytest.raises(TinyvitError, match=next(iter(options))):
            tv.models.save_pretrained(model, tmp_path / "out", style)
        assert not (tmp_path / "out").exists()
        return
    tv.models.save_pretrained(model, tmp_path / "out", style)
    found = tv.models.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(found(images).numpy(), model(images).numpy(), atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("options", INGREDIENTS + MIXTURES, ids=str)
def test_mixed_precision_is_near_float32_and_keeps_parameters_in_float32(options: Any, precision: str) -> None:
    model, images = tiny(**options), some_images().astype(np.float32)
    for name, p in model.named_parameters():
        p.assign(p.numpy() + 0.3 * np.random.default_rng(len(name)).standard_normal(p.shape))
    expected = model(images).numpy()
    with tv.autocast(precision):
        logits = model(images)
        F.cross_entropy(logits, [0, 2]).backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {np.dtype(np.float32)}
    largest = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(logits.numpy().astype(np.float32), expected, atol=0.06 * largest)


@pytest.mark.parametrize("options", [{"mlp_layer": "local"}, {"rope": True}, {"lsa": True}], ids=str)
def test_a_model_takes_images_of_another_size(options: dict[str, Any]) -> None:
    model, images = in_float64(tiny(pos_embed="none", **options)), some_images(size=(16, 8))
    model.set_input_size((16, 8))
    other = ViT(**TINY | {"image_size": (16, 8), "pos_embed": "none"} | options).to("float64")
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(model(images).numpy(), other(images).numpy())


def test_no_token_attends_to_itself() -> None:
    model = tiny(lsa=True)
    with tv.nn.keep_attention(model) as kept:
        model(some_images().astype(np.float32))
    for maps in kept.values():
        assert (np.einsum("bhnn->bhn", maps[0]) == 0).all()
        np.testing.assert_allclose(maps[0].sum(axis=-1), 1, rtol=1e-5)


def test_scores_of_rotary_positions_depend_on_distances_alone() -> None:
    rope = tv.nn.RotaryPositions((5, 6), 8).to("float64")
    q, k = (np.random.default_rng(i).standard_normal(8) for i in (0, 1))
    turn = lambda x: rope(Tensor(np.broadcast_to(x, (1, 1, 30, 8)).copy())).numpy()[0, 0].reshape(5, 6, 8)  # noqa: E731
    scores = np.einsum("ijd,kld->ijkl", turn(q), turn(k))
    np.testing.assert_allclose(scores[1:, :-2, 1:, :-2], scores[:-1, 2:, :-1, 2:], atol=1e-5)
    assert abs(scores[0, 0, 0, 1] - scores[0, 0, 1, 0]) > 1e-2  # rows and columns are told apart


def test_states_and_steps_of_every_ingredient() -> None:
    """A state moves between models, and a training step changes every parameter."""
    images = some_images(4).astype(np.float32)
    for options in [*INGREDIENTS, {"mlp_layer": "local", "pool": "mean"}]:
        if options == {"mlp_layer": "local"}:
            continue  # the last convolution changes patches only, which the class token reads no more
        model, other = tiny(**options), ViT(**TINY | options)
        other.load_state_dict(model.state_dict())
        np.testing.assert_array_equal(other(images).numpy(), model(images).numpy())
        F.cross_entropy(model(images), [0, 1, 2, 0]).backward()
        tv.optim.AdamW(model.parameters(), 1e-2).step()
        same = [n for n, value in model.state_dict().items() if (value == other.state_dict()[n]).all()]
        assert not same, (options, same)
