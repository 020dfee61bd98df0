"""How the work of a kernel is cut into chunks, and from how much work on they are shared among threads.

Waking another thread costs a few microseconds. The constants are the least work, by its kind, for which that pays; they
were measured on two cores.
"""

from .compiler import body
from .threads import team

ELEMENTS = 20_000  # elements that are read, computed with, and written once
COPIES = 50_000  # elements that are only converted or added, a vector at a time
DRAWS = 10_000  # elements that take a random number each
PRODUCTS = 250_000  # multiply-adds in register tiles
SCORES = 100_000  # multiply-adds of q k^T, each score of which is also exponentiated and multiplied with v
TOGETHER = 32  # rows that are summed before their sum is added to a total in float64, so that errors do not grow with R
PACKED = 30_000  # elements of a weight that are rearranged into panels


def team_for(work: int, least: int = ELEMENTS) -> int:
    """Return what `parallel` takes as its team: all threads if `work` is more than `least`, else the caller alone."""
    return team(work > least)


@body
def bounds(size, chunk, chunks):
    """Return where chunk number `chunk` of `size` items starts and stops; the chunks differ by at most one item."""
    return size * chunk // chunks, size * (chunk + 1) // chunks


@body
def chunks_of_rows(rows):
    """Return into how many chunks rows are cut: it depends on their number only, and so do the bits of sums."""
    return min(64, max(1, rows // 16))


@body
def move_sums(sums, totals):
    """Add `sums` (K, C) to `totals` in float64, and set them to zero."""
    for k in range(sums.shape[0]):
        part, total = sums[k], totals[k]
        for j in range(part.size):
            total[j] += part[j]
            part[j] = part.dtype.type(0)
