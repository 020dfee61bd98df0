"""Random streams: Philox4x32-10 bit by bit, the statistics of dropout, and streams that can be saved and restored."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import dropout_mask, philox

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.backend import default_generator
from tinyvit.engine import Tensor
from tinyvit.functional.random import philox4x32


@pytest.fixture(autouse=True, scope="module")
def plain() -> Iterator[None]:
    with tv.use_kernels("numpy"):
        yield


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, words: str) -> None:
    c, k, expected = ([int(word, 16) for word in text.split()] for text in (counter, key, words))
    assert philox4x32(np.array(c, np.uint32)[:, None], (k[0], k[1]))[:, 0].tolist() == expected
    assert philox((c[0], c[1], c[2], c[3]), (k[0], k[1])) == expected


word = st.integers(0, 2**32 - 1)


@given(st.lists(st.tuples(word, word, word, word), min_size=1, max_size=5), st.tuples(word, word))
def test_philox_of_many_counters_equals_philox_of_each(counters: list[tuple[int, ...]], key: tuple[int, int]) -> None:
    found = philox4x32(np.array(counters, np.uint32).T, key)
    assert found.dtype == np.uint32
    assert found.T.tolist() == [philox(c, key) for c in counters]


# Dropout --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (7, 2), (2**40 + 5, 2**33 + 1), (2**63 - 1, 2**64 - 1)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_the_mask_depends_on_seed_offset_and_position_only(seed: int, offset: int, p: float) -> None:
    mask = F.dropout_mask((3, 7), p, seed, offset, np.float64)
    np.testing.assert_allclose(mask.numpy(), dropout_mask((3, 7), p, seed, offset), rtol=1e-15)
    longer = F.dropout_mask((50,), p, seed, offset, np.float32).numpy()
    np.testing.assert_array_equal(longer[:21] != 0, mask.numpy().ravel() != 0)  # neither dtype nor length matters


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_the_right_share(p: float) -> None:
    n = 200_000
    y = F.dropout(np.ones(n), p, generator=tv.Generator(1)).numpy()
    assert set(np.unique(y)) == {0, 1 / (1 - p)}
    assert abs((y == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / n)
    neighbours = [np.corrcoef(y[:-lag], y[lag:])[0, 1] for lag in (1, 2, 4, 1000)]
    assert max(np.abs(neighbours)) < 5 / np.sqrt(n)


def test_each_draw_is_independent_of_the_others() -> None:
    n = 100_000
    streams = [tv.Generator(seed, offset) for seed, offset in itertools.product((0, 1, 2**32), (0, 1, 2**32))]
    masks = [F.dropout(np.ones(n), generator=g).numpy() for g in streams]
    for a, b in itertools.combinations(masks, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(n)


def test_dropout_in_backward_is_the_dropout_of_forward() -> None:
    x = Tensor(np.ones((40, 5)), requires_grad=True)
    y = F.dropout(x, 0.3, generator=tv.Generator(4))
    F.dropout(x, 0.3)  # another draw between forward and backward
    np.testing.assert_array_equal(tv.grad(y.sum(), x)[0].numpy(), y.numpy())


def test_dropout_at_its_limits_and_in_evaluation() -> None:
    x = Tensor(np.ones(8))
    offset = default_generator.offset
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x
    assert default_generator.offset == offset  # nothing was drawn
    np.testing.assert_array_equal(F.dropout(x, 1.0).numpy(), 0)


# Generators -----------------------------------------------------------------------------------------------------------


def test_only_what_is_random_advances_the_stream() -> None:
    x = tv.tensor(np.ones((2, 3, 4)))
    model = tv.models.ViT(4, 2, 3, 8, 1, 2, dropout=0.5, emb_dropout=0.5, drop_path=0.5).eval()
    calls = {
        lambda: F.scaled_dot_product_attention(x, x, x): 0,
        lambda: F.dropout(x, 0.0): 0,
        lambda: F.dropout(x, 0.5, training=False): 0,
        lambda: model(np.ones((2, 3, 4, 4), np.float32)): 0,
        lambda: F.dropout(x, 0.5): 1,
        lambda: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5): 1,
    }
    for call, draws in calls.items():
        before = default_generator.offset
        call()
        assert default_generator.offset - before == draws


def test_a_generator_that_is_given_decides_alone() -> None:
    x = tv.tensor(np.ones((4, 5, 6)))
    functions = (
        lambda generator: F.dropout(x, 0.5, generator=generator),
        lambda generator: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5, generator=generator),
    )
    for function in functions:
        before = default_generator.state_dict()
        one, same, other = (function(tv.Generator(seed)).numpy() for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert (one != other).any()
        assert default_generator.state_dict() == before


def test_a_restored_generator_continues_its_stream() -> None:
    stream = tv.Generator(11)
    F.dropout(np.ones(5), generator=stream)
    state = stream.state_dict()
    expected = [F.dropout(np.ones(9), generator=stream).numpy() for _ in range(3)] + [stream.numpy().normal(size=4)]
    other = tv.Generator(0)
    other.load_state_dict(state)
    found = [F.dropout(np.ones(9), generator=other).numpy() for _ in range(3)] + [other.numpy().normal(size=4)]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert other.state_dict() == stream.state_dict() == {"seed": 11, "offset": 5}


def test_manual_seed_restarts_the_default_stream() -> None:
    def draw() -> list[np.ndarray]:
        model = tv.nn.Sequential(tv.nn.Linear(3, 4), tv.nn.Embedding(2, 4))
        return [*model.state_dict().values(), F.dropout(np.ones(50)).numpy()]

    runs = []
    for seed in (5, 5, 6):
        tv.manual_seed(seed)
        runs.append(draw())
    for a, b, c in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_a_seed_is_a_non_negative_63_bit_integer() -> None:
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=rf"seed is {seed}; it must be in \[0, 2\*\*63\)"):
            tv.manual_seed(seed)
