"""The fixed tree of sums: which process adds what, and that its bits do not depend on the number of processes."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvit.optim.tree import add_up, halves, nodes_within, shards_of


@given(st.integers(1, 70).flatmap(lambda shards: st.tuples(st.just(shards), st.integers(1, shards))))
def test_every_shard_is_of_one_process_and_all_have_as_many_or_one_more(drawn: tuple[int, int]) -> None:
    shards, size = drawn
    shares = [shards_of(rank, size, shards) for rank in range(size)]
    assert list(chain(*shares)) == list(range(shards))
    assert {len(share) for share in shares} <= {shards // size, -(-shards // size)}


@given(st.integers(2, 200), st.integers(0, 9))
def test_the_halves_of_a_node_are_its_shards_and_the_first_has_a_power_of_two(count: int, first: int) -> None:
    left, right = halves((first, first + count))
    assert (left[0], left[1], right[1]) == (first, right[0], first + count)
    assert left[1] > left[0]
    assert right[1] > right[0]
    half = left[1] - left[0]
    assert half & (half - 1) == 0
    assert half < count <= 2 * half


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_processes_whose_number_is_a_power_of_two_have_one_node_each(size: int) -> None:
    for rank in range(size):
        share = shards_of(rank, size, 16)
        assert nodes_within(share, (0, 16)) == [(share.start, share.stop)]


@given(st.integers(1, 40), st.data())
def test_the_bits_of_a_sum_do_not_depend_on_the_number_of_processes(shards: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, shards))
    rng = np.random.default_rng(shards)
    leaves = rng.standard_normal((shards, 5)).astype(np.float32) * 10.0 ** rng.integers(-4, 4, (shards, 1))
    leaves = leaves.astype(np.float32)
    whole = (0, shards)

    def leaf(node: tuple[int, int]) -> np.ndarray | None:
        return leaves[node[0]].copy() if node[1] - node[0] == 1 else None

    alone = add_up(whole, leaf)
    partials = {
        node: add_up(node, leaf) for rank in range(size) for node in nodes_within(shards_of(rank, size, shards), whole)
    }
    assert [shard for node in sorted(partials) for shard in range(*node)] == list(range(shards))
    assert add_up(whole, partials.get).tobytes() == alone.tobytes()
    np.testing.assert_allclose(alone, leaves.astype(np.float64).sum(axis=0), rtol=1e-4, atol=1e-3)


def test_the_tree_is_fixed() -> None:
    """(((0 + 1) + (2 + 3)) + (4 + 5)), with numbers for which the order decides the bits."""
    a = np.array([1e8, 1, -1e8, 1, 3, 1e-3], np.float32)[:, None]
    expected = ((a[0] + a[1]) + (a[2] + a[3])) + (a[4] + a[5])
    found = add_up((0, 6), lambda node: a[node[0]].copy() if node[1] - node[0] == 1 else None)
    assert found.tobytes() == expected.tobytes()
    assert found != a.sum()
