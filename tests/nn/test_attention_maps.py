"""Maps of attention are the weights by which the values were multiplied: with masks, dropout, autocast and caches."""

import itertools
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
from tinyvit import nn
from tinyvit.nn import keep_attention
from tinyvit.nn.transformer import KeyValueCache

B, N, DIM, HEADS = 2, 5, 8, 2
RNG = np.random.default_rng(0)
BOOLEAN = RNG.random((B, 1, N, N)) < 0.7
FLOATING = RNG.normal(size=(B, HEADS, N, N)).astype(np.float32)
HIDING = np.where(np.tri(N, dtype=bool), 0, -np.inf).astype(np.float32)
MASKS = {"none": None, "boolean": BOOLEAN, "floating": FLOATING, "hiding": HIDING, "tensor": tv.tensor(FLOATING)}
PRECISIONS = {"float32": 3e-6, "bfloat16": 0.04, "float16": 0.005}


def exact(x: Any) -> np.ndarray:
    return (x.numpy() if isinstance(x, tv.Tensor) else np.asarray(x)).astype(np.float64)


def heads_of(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:2], -1, HEADS, DIM // HEADS).transpose(2, 0, 3, 1, 4)


def probabilities(q: np.ndarray, k: np.ndarray, mask: Any, is_causal: bool) -> np.ndarray:
    """The softmax of the scores in float64; 0 for a query that sees nothing."""
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(DIM // HEADS)
    if mask is not None:
        mask = np.asarray(mask.numpy() if isinstance(mask, tv.Tensor) else mask)
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:], scores.shape[-1] - scores.shape[-2], dtype=bool), scores, -np.inf)
    with np.errstate(invalid="ignore"):
        p = np.exp(scores - scores.max(-1, keepdims=True))
        return np.nan_to_num(p / p.sum(-1, keepdims=True))


def outputs(layer: Any, maps: np.ndarray, v: np.ndarray) -> np.ndarray:
    """What attention gives if the values v are weighed with `maps`, before the dropout of the projection."""
    merged = (maps @ v).transpose(0, 2, 1, 3).reshape(*maps.shape[:1], -1, DIM)
    return merged @ exact(layer.proj.weight).T + exact(layer.proj.bias)


def layer_of(dropout: float, frozen: bool, **options: Any) -> Any:
    tv.manual_seed(1)
    layer = nn.Attention(DIM, HEADS, dropout=dropout, **options)
    layer.proj_drop = nn.Dropout(0.0)
    layer.qkv.weight.assign(2 * RNG.normal(size=(3 * DIM, DIM)) / np.sqrt(DIM))
    return layer.requires_grad_(not frozen).train(dropout > 0)


@pytest.mark.parametrize(("dropout", "frozen"), [(0.0, False), (0.0, True), (0.4, False), (0.4, True)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_maps_are_the_weights_that_were_used(precision, dropout, frozen) -> None:
    layer = layer_of(dropout, frozen)
    x = tv.tensor(RNG.normal(size=(B, N, DIM)).astype(np.float32))
    for mask, is_causal in itertools.product(MASKS, (False, True)):
        with tv.autocast(precision), keep_attention(layer) as kept:
            y = layer(x, MASKS[mask], is_causal)
            q, k, v = heads_of(exact(layer.qkv(x)))
        (maps,) = kept[""]
        assert maps.dtype == np.float32
        close = {"atol": PRECISIONS[precision], "err_msg": f"{mask}, causal: {is_causal}"}
        np.testing.assert_allclose(exact(y), outputs(layer, maps, v), **close)
        p = probabilities(q, k, MASKS[mask], is_causal)
        kept_ones = maps != 0
        np.testing.assert_allclose(maps * (1 - dropout), np.where(kept_ones, p, 0), **close)
        assert (maps[p == 0] == 0).all()
        if dropout:
            assert 0.05 < (maps[p > 0] == 0).mean() < 0.8
        else:
            assert kept_ones[p > 1e-6].all()


@pytest.mark.parametrize("step", [1, 2, N])
@pytest.mark.parametrize("mask", ["none", "boolean", "floating", "hiding", "tensor"])
def test_maps_with_a_cache_are_rows_of_those_without(mask, step) -> None:
    layer = layer_of(0.0, False)
    x = tv.tensor(RNG.normal(size=(B, N, DIM)).astype(np.float32))
    with keep_attention(layer) as kept:
        whole = layer(x, MASKS[mask], is_causal=True)
    cache, rows, ys = KeyValueCache(), [], []
    with keep_attention(layer) as parts:
        for start in range(0, N, step):
            stop = min(start + step, N)
            given = MASKS[mask]
            given = given if given is None else given[..., start:stop, :stop]
            ys.append(layer(x[:, start:stop], given, is_causal=True, cache=cache).numpy())
            rows.append(np.pad(parts[""][-1], ((0, 0), (0, 0), (0, 0), (0, N - stop))))
    np.testing.assert_allclose(np.concatenate(rows, axis=2), kept[""][0], atol=1e-6)
    np.testing.assert_allclose(np.concatenate(ys, axis=1), whole.numpy(), atol=1e-5)


SHARES = [(5,), (1, 4), (2, 3), (3, 1, 1), (2, 2, 1), (1, 1, 1, 1, 1)]  # how many tokens each call brings
SEEN = RNG.random((N, N)) < 0.7
ADDED = RNG.normal(size=(N, N))


@pytest.mark.parametrize("lsa", [False, True])
@pytest.mark.parametrize("kind", ["none", "array", "list", "boolean array", "boolean list", "number"])
def test_causal_attention_with_a_cache_is_that_of_the_whole_sequence(kind: str, lsa: bool) -> None:
    """The oracle is all tokens in one call, without a cache, in float64."""
    layer = layer_of(0.0, True, lsa=lsa).to("float64")
    x = RNG.normal(size=(B, N, DIM))
    mask = {"none": None, "number": 0.5}.get(kind, SEEN if "boolean" in kind else ADDED)
    q, k, v = heads_of(exact(layer.qkv(tv.tensor(x))))
    if lsa:
        q = q * (np.sqrt(DIM // HEADS) / exact(layer.temperature)).reshape(-1, 1, 1)
    added = np.where(mask, 0.0, -np.inf) if mask is SEEN else np.zeros((N, N)) if mask is None else mask
    hidden = np.eye(N, dtype=bool) & lsa  # no token attends to itself
    expected = outputs(layer, probabilities(q, k, np.where(hidden, -np.inf, added), True), v)
    for share in SHARES:
        cache, ys, start = KeyValueCache(), [], 0
        for count in share:
            stop = start + count
            given = mask[start:stop, :stop] if isinstance(mask, np.ndarray) else mask
            given = given.tolist() if "list" in kind else given
            ys.append(exact(layer(tv.tensor(x[:, start:stop]), given, is_causal=True, cache=cache)))
            start = stop
        np.testing.assert_allclose(np.concatenate(ys, axis=1), expected, atol=1e-12, err_msg=str(share))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("wrong", ["no", None, 2])
def test_a_flag_that_is_none_is_refused_before_the_cache_grows(wrong: Any, count: int) -> None:
    layer, cache = layer_of(0.0, True), KeyValueCache()
    with pytest.raises(TypeError, match=r"^attention: is_causal is .*; it must be True or False$"):
        layer(tv.tensor(np.ones((B, count, DIM), np.float32)), is_causal=wrong, cache=cache)
    assert cache.parts is None


def test_maps_of_cross_attention_are_the_weights_that_were_used() -> None:
    tv.manual_seed(0)
    layer = nn.CrossAttention(DIM, HEADS).eval()
    x, context = (tv.tensor(RNG.normal(size=(B, n, DIM)).astype(np.float32)) for n in (N, N))
    for name, mask in MASKS.items():
        with keep_attention(layer) as kept:
            y = layer(x, context, mask)
        v = heads_of(exact(layer.kv(context)))[1]
        np.testing.assert_allclose(exact(y), outputs(layer, kept[""][0], v), atol=1e-5, err_msg=name)


def test_dropout_is_the_same_with_and_without_maps() -> None:
    layer, x = layer_of(0.4, False), tv.tensor(RNG.normal(size=(B, N, DIM)).astype(np.float32))
    tv.manual_seed(3)
    without = [layer(x).numpy() for _ in range(2)]
    tv.manual_seed(3)
    with keep_attention(layer) as kept:
        with_maps = [layer(x).numpy() for _ in range(2)]
    np.testing.assert_array_equal(without, with_maps)
    assert ((kept[""][0] == 0) != (kept[""][1] == 0)).any()


def test_blocks_may_be_nested_and_a_layer_of_two_names_has_its_maps_under_both() -> None:
    layer, x = layer_of(0.0, False), tv.tensor(RNG.normal(size=(B, N, DIM)).astype(np.float32))
    model = nn.Sequential(layer, layer)
    with keep_attention(model) as outer:
        with keep_attention(model) as inner:
            model(x)
        model(x)
    model(x)
    assert (len(outer["0"]), len(inner["0"])) == (4, 2)
    assert outer["0"] is outer["1"]
    assert layer.kept == ()
