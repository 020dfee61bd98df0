"""A fixed binary tree of sums over the shards of a batch.

Floating-point addition is not associative, so the bits of a sum depend on the order of its additions. Here that order
is a tree over the shards, which does not depend on how many processes share the work: each process adds up the nodes
that lie within its own shards, and what is left is added in the same tree.
"""

from collections.abc import Callable
from typing import Any

from ..backend.group import Node


def shards_of(rank: int, size: int, shards: int) -> range:
    """Return the shards that process `rank` of `size` computes: consecutive ones, as many as the others or one more."""
    return range(shards * rank // size, shards * (rank + 1) // size)


def halves(node: Node) -> tuple[Node, Node]:
    """Return the two nodes that are added to give `node`, of two or more shards.

    The first one has as many shards as the largest power of two below their number, so that processes whose number is a
    power of two have one node each.
    """
    first, last = node
    middle = first + (1 << (last - first - 1).bit_length() - 1)
    return (first, middle), (middle, last)


def nodes_within(shards: range, node: Node) -> list[Node]:
    """Return the largest nodes of the tree under `node` that consist of some of `shards`, which are consecutive."""
    first, last = node
    if last <= shards.start or shards.stop <= first:
        return []
    if shards.start <= first and last <= shards.stop:
        return [node]
    left, right = halves(node)
    return nodes_within(shards, left) + nodes_within(shards, right)


def add_up(node: Node, known: Callable[[Node], Any], add: Callable[[Any, Node], bool] | None = None) -> Any:
    """Return the sum of a node from the arrays that are known; the first array of each addition is modified.

    Parameters
    ----------
    known : returns the array of a node, or None if it is to be added up from its halves. It must know all nodes of one
        shard that are asked for.
    add : `add(total, node)` may add the array of a node to another one in its own way, and returns whether it did. So
        an array that lies in many pieces needs no copy in one.
    """
    value = known(node)
    if value is not None:
        return value
    left, right = halves(node)
    total = add_up(left, known, add)
    if add is None or not add(total, right):
        total += add_up(right, known, add)
    return total
