"""Modules find, name, save and load their parameters; layers compute their papers' formulas."""

import re
from typing import Any

import block_oracles
import ml_dtypes
import numpy as np
import oracles
import pytest
from float64_modules import close, in_float64, normal
from oracles import ORACLES

import tinyvit as tv
from tinyvit import nn
from tinyvit.engine import Tensor


class Pair(nn.Module):
    def __init__(self) -> None:
        self.first = nn.Linear(2, 3)
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.second = nn.Sequential(nn.Linear(3, 2, bias=False), nn.GELU(), nn.Dropout(0.5))


# Names, saving, loading -----------------------------------------------------------------------------------------------


def test_parameters_have_dotted_names_in_order_of_definition() -> None:
    names = [name for name, _ in Pair().named_parameters()]
    assert names == ["scale", "first.weight", "first.bias", "second.0.weight"]
    assert [type(m).__name__ for m in Pair().modules()] == ["Pair", "Linear", "Sequential", "Linear", "GELU", "Dropout"]


def test_state_dict_gives_copies() -> None:
    module = Pair()
    state = module.state_dict()
    assert list(state) == ["scale", "first.weight", "first.bias", "second.0.weight"]
    for name, p in module.named_parameters():
        np.testing.assert_array_equal(state[name], p.numpy(), strict=True)
        assert not np.shares_memory(state[name], p.data)


@pytest.mark.parametrize("as_tensors", [False, True])
def test_load_state_dict_copies_into_the_same_memory(as_tensors: bool) -> None:
    module, source = Pair(), Pair().state_dict()
    memory = [p.data for p in module.parameters()]
    module.load_state_dict({k: tv.tensor(v) for k, v in source.items()} if as_tensors else source)
    for p, array, (name, values) in zip(module.parameters(), memory, source.items(), strict=True):
        assert p.data is array, name
        np.testing.assert_array_equal(array, values)
        values += 1  # the source is the caller's
        assert (array != values).all()
        assert p.requires_grad


def test_loading_converts_to_the_dtype_of_the_module() -> None:
    module = Pair()
    module.load_state_dict({k: v.astype(np.float64) for k, v in Pair().state_dict().items()})
    assert {p.dtype for p in module.parameters()} == {np.dtype(np.float32)}


def test_names_that_do_not_fit_are_listed_and_nothing_is_loaded() -> None:
    module = Pair()
    before = module.state_dict()
    state = {k: v + 1 for k, v in before.items()}
    state["other"] = state.pop("first.bias")
    with pytest.raises(KeyError, match=r"missing names \['first.bias'\], unexpected names \['other'\]"):
        module.load_state_dict(state)
    for name, values in module.state_dict().items():
        np.testing.assert_array_equal(values, before[name])
    module.load_state_dict(state, strict=False)
    for name, values in module.state_dict().items():
        np.testing.assert_array_equal(values, before[name] + (name != "first.bias"))


def test_a_wrong_shape_is_told_with_both_and_nothing_is_loaded() -> None:
    module = Pair()
    before = module.state_dict()
    state = {k: v + 1 for k, v in before.items()} | {"second.0.weight": np.zeros((3, 2))}
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"second.0.weight has shape \(3, 2\); the module's is \(2, 3\)"):
            module.load_state_dict(state, strict)
    for name, values in module.state_dict().items():
        np.testing.assert_array_equal(values, before[name])


@pytest.mark.parametrize("dtype", [np.complex64, np.str_, object, "datetime64[s]"])
def test_load_state_dict_takes_numbers_only(dtype: Any) -> None:
    module = Pair()
    before = module.state_dict()
    name, array = next(iter(before.items()))
    with pytest.raises(TypeError, match=rf"load_state_dict: {name} has dtype .*; it must hold real numbers"):
        module.load_state_dict({**before, name: array.astype(np.int64).astype(dtype)})
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.float16, np.float64, ml_dtypes.bfloat16])
def test_load_state_dict_takes_numbers_of_any_kind(dtype: Any) -> None:
    module = Pair()
    module.load_state_dict({name: np.ones_like(array).astype(dtype) for name, array in module.state_dict().items()})
    for value in module.state_dict().values():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, 1)


def test_a_tied_parameter_is_one_parameter_with_two_names() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    module[1].weight = module[0].weight
    assert [n for n, _ in module.named_parameters()] == ["0.weight"]
    assert list(module.state_dict()) == ["0.weight", "1.weight"]
    module([0, 3]).sum().backward()
    first, second = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    first.weight.assign(module[0].weight.data)
    second.weight.assign(module[0].weight.data)
    second(first([0, 3])).sum().backward()
    np.testing.assert_allclose(
        module[0].weight.grad.numpy(), first.weight.grad.numpy() + second.weight.grad.numpy(), rtol=1e-6
    )
    module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()})
    np.testing.assert_array_equal(module[1].weight.numpy(), first.weight.numpy() + 1)


def test_a_module_list_keeps_its_order_beyond_ten() -> None:
    modules = [nn.Linear(1, i + 1) for i in range(12)]
    listed = nn.ModuleList(modules[:11])
    listed.append(modules[11])
    assert len(listed) == 12
    assert list(listed) == modules
    assert [listed[0], listed[-1], listed[10]] == [modules[0], modules[11], modules[10]]
    weights = [n for n, _ in listed.named_parameters() if n.endswith("weight")]
    assert weights == [f"{i}.weight" for i in range(12)]


@pytest.mark.parametrize("container", [list, tuple])
@pytest.mark.parametrize("item", [nn.GELU(), nn.Parameter([1.0])])
def test_a_plain_list_of_modules_is_refused(container: type, item: Any) -> None:
    with pytest.raises(TypeError, match=r"Pair.layers: .*ModuleList"):
        Pair().layers = container([item])


# Modes, dtypes, freezing ----------------------------------------------------------------------------------------------


def test_train_and_eval_reach_every_module() -> None:
    module = Pair()
    assert all(m.training for m in module.modules())
    assert module.eval() is module
    assert not any(m.training for m in module.modules())
    x = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(module.second(x).numpy(), module.second(x).numpy())
    module.train()
    assert (module.second(x).numpy() != module.second(x).numpy()).any()


def test_to_converts_parameters_and_drops_gradients() -> None:
    module = Pair()
    module.first(np.ones((1, 2), np.float32)).sum().backward()
    parameters = list(module.parameters())
    assert module.to("float64") is module
    for p, before in zip(module.parameters(), parameters, strict=True):
        assert p is before
        assert (p.dtype, p.grad) == (np.float64, None)
    assert module.first(np.ones((1, 2))).dtype == np.float64


FLOATING = ("float16", "bfloat16", "float32", "float64")
DTYPES = (*FLOATING, "bool", "int8", "uint8", "int16", "int32", "int64", "uint64")


@pytest.mark.parametrize("target", [*DTYPES, "cpu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_to_casts_floating_constants_only(dtype: str, target: str) -> None:
    module = nn.Sequential(nn.Identity())
    module[0].constant = constant = tv.tensor(np.array([0, 1, 1]), dtype=dtype)
    module[0].scale = nn.Parameter(np.ones(2, np.float32))
    if target not in (*FLOATING, "cpu"):
        with pytest.raises(TypeError, match=rf"to: the dtype is {target}; a module takes a floating one"):
            module.to(target)
        assert (module[0].constant, module[0].scale.dtype) == (constant, np.float32)
        return
    module.to(target)
    kept = target == "cpu" or dtype not in FLOATING
    assert module[0].constant.dtype.name == (dtype if kept else target)
    assert module[0].scale.dtype.name == ("float32" if target == "cpu" else target)
    np.testing.assert_array_equal(module[0].constant.numpy().astype(np.float64), [0, 1, 1])


def test_a_boolean_mask_stays_one() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            self.mask, self.attn = tv.tensor(np.tri(3, dtype=bool)), nn.Attention(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, self.mask)

    module, x = Masked().to("float64"), normal(1, 3, 4)
    close(module(x), module.attn(x, is_causal=True).numpy())


@pytest.mark.parametrize("wrong", [None, 3, "gpu", "float31", ()])
@pytest.mark.parametrize("thing", [nn.Linear(1, 1), tv.tensor([1.0])])
def test_to_names_what_is_neither_a_device_nor_a_dtype(thing: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"to: {wrong!r} is neither a device")):
        thing.to(wrong)


def test_frozen_parameters_get_no_gradient() -> None:
    module = Pair()
    module.first.requires_grad_(False)
    module.second(module.first(np.ones((1, 2), np.float32)) * module.scale).sum().backward()
    assert module.first.weight.grad is None
    assert module.second[0].weight.grad is not None
    assert module.first.requires_grad_().weight.requires_grad


def test_a_parameter_is_a_floating_leaf_with_memory_of_its_own() -> None:
    array = np.ones(3)
    p = nn.Parameter(array)
    assert p.requires_grad
    assert not np.shares_memory(p.data, array)
    assert nn.Parameter([1.0, 2.0]).dtype == np.float32
    with pytest.raises(TypeError, match="floating"):
        nn.Parameter([1, 2])


def test_a_module_shows_its_parts() -> None:
    text = repr(Pair())
    assert text.startswith(
        "Pair(scale=(3,)\n  (first): Linear(weight=(3, 2), bias=(3,))\n  (second): Sequential(\n    (0):"
    )
    with pytest.raises(NotImplementedError, match="Pair defines no forward"):
        Pair()(1)


# Layers ---------------------------------------------------------------------------------------------------------------


def test_layers_compute_their_formulas() -> None:
    x, images = normal(2, 5, 4), normal(2, 3, 6, 5)
    linear, w = in_float64(nn.Linear(4, 3))
    close(linear(x), block_oracles.linear(x.numpy(), w))
    norm, w = in_float64(nn.LayerNorm(4, eps=1e-3))
    close(norm(x), block_oracles.normalized(x.numpy(), w, 1e-3))
    conv, w = in_float64(nn.Conv2d(3, 4, (3, 2), stride=2, padding=(1, 0)))
    close(conv(images), oracles.conv2d(images.numpy(), **w, stride=(2, 2), padding=(1, 0)))
    pool = ORACLES["max_pool2d"](images.numpy(), window=(2, 2), stride=(2, 1), padding=(0, 1))
    close(nn.MaxPool2d(2, stride=(2, 1), padding=(0, 1))(images), pool)
    table, w = in_float64(nn.Embedding(5, 4))
    close(table([[0, 4], [2, 2]]), w["weight"][[[0, 4], [2, 2]]])
    for approximate in ("none", "tanh"):
        close(nn.GELU(approximate)(x), ORACLES["gelu"](x.numpy(), approximate=approximate))
    close(nn.ReLU()(x), np.maximum(x.numpy(), 0))
    close(nn.LayerScale(4, 0.5).to("float64")(x), x.numpy() / 2)
    mlp, w = in_float64(nn.Mlp(4, 7))
    close(mlp(x), block_oracles.mlp(x.numpy(), w))
    assert nn.Mlp(4).fc1.weight.shape == (16, 4)
    assert nn.LayerNorm(4).eps == 1e-5


def test_attention_layers_compute_their_formulas() -> None:
    x, context = normal(2, 5, 6), normal(2, 3, 4, seed=1)
    mask = np.random.default_rng(2).random((2, 1, 5, 5)) < 0.7
    for bias in (True, False):
        attn, w = in_float64(nn.Attention(6, 2, qkv_bias=bias))
        assert ("qkv.bias" in w) == bias
        close(attn(x, mask, is_causal=True), block_oracles.self_attention(x.numpy(), w, 2, mask=mask, is_causal=True))
        cross, w = in_float64(nn.CrossAttention(6, 3, context_dim=4, qkv_bias=bias))
        expected = block_oracles.cross_attention(x.numpy(), context.numpy(), w, 3, mask=mask[..., :3])
        close(cross(x, context, mask[..., :3]), expected)
    with pytest.raises(ValueError, match=r"dim is 6 and heads 4"):
        nn.Attention(6, 4)


def test_drop_path_drops_whole_samples() -> None:
    x = Tensor(np.ones((4000, 2, 3)))
    drop = nn.DropPath(0.25)
    y = drop(x).numpy()
    assert set(np.unique(y)) == {0, 1 / 0.75}
    assert (y == y[:, :1, :1]).all()
    assert abs((y[:, 0, 0] == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)
    assert drop.eval()(x) is x
    assert nn.DropPath(0.0)(x) is x


@pytest.mark.parametrize("layer", [nn.Dropout, nn.DropPath])
def test_a_probability_out_of_range_is_refused_at_the_door(layer: type) -> None:
    with pytest.raises(ValueError, match=r"p is 1\.5"):
        layer(1.5)


def test_initial_values() -> None:
    tv.manual_seed(0)
    for module, fan_in in [(nn.Linear(100, 300), 100), (nn.Conv2d(4, 200, 5), 100)]:
        for p in module.parameters():
            assert np.abs(p.numpy()).max() <= fan_in**-0.5
            assert p.numpy().std() == pytest.approx(fan_in**-0.5 / np.sqrt(3), rel=0.1)
    wide = nn.init.trunc_normal((200, 200), std=1.0)
    assert 1.99 < np.abs(wide).max() <= 2
    assert wide.std() == pytest.approx(0.88, rel=0.02)  # of a normal cut off at two standard deviations
    assert nn.init.trunc_normal((200, 200)).std() == pytest.approx(0.02, rel=0.02)
    norm = nn.LayerNorm(3)
    assert norm.weight.numpy().tolist() == [1, 1, 1]
    assert norm.bias.numpy().tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(0, 3), "Linear: in_features is 0"),
        (lambda: nn.Linear(3, 2.5), "Linear: out_features is 2.5"),
        (lambda: nn.LayerNorm(-1), "LayerNorm: dim is -1"),
        (lambda: nn.Embedding(0, 3), "Embedding: num_embeddings is 0"),
        (lambda: nn.Conv2d(3, 0, 3), "Conv2d: out_channels is 0"),
        (lambda: tv.models.ViT(8, 2, 10, "32", 1, 2), "ViT: dim is '32'"),
        (lambda: tv.models.ViT(8, 2, 10, 32, -1, 2), "ViT: depth is -1"),
        (lambda: tv.models.ViT(8, 2, True, 32, 1, 2), "ViT: num_classes is True"),
    ],
)
def test_sizes_that_make_no_layer_are_named(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}; it must be an integer, at least"):
        make()


def test_convolutions_before_relus_keep_the_size_of_what_passes_through() -> None:
    tv.manual_seed(0)
    stack = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())))
    images = tv.tensor(np.random.default_rng(0).standard_normal((4, 32, 16, 16)), dtype="float32")
    assert (stack(images).numpy() ** 2).mean() < 0.01
    nn.initialize_conv(stack)
    assert 0.4 < (stack(images).numpy() ** 2).mean() < 2.5
    assert not any(layer.bias.numpy().any() for layer in stack.modules() if isinstance(layer, nn.Conv2d))
