"""The assignment problem: which of several predictions is for which of the things that are there."""

import math

import numpy as np
from numpy.typing import NDArray


def match_pairs(costs: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return for each row of a matrix of costs a column of its own, so that the sum of their costs is the smallest.

    Each row in turn takes a column by the shortest augmenting path, whose length is found as in Dijkstra's algorithm
    with costs that potentials of rows and columns keep from being negative (Jonker and Volgenant, A shortest augmenting
    path algorithm for dense and sparse linear assignment problems, 1987). It takes a time of rows^2 x columns. There
    are never more things than a few dozen, and a library for this is not needed.

    Parameters
    ----------
    costs : float (T, Q)
        T things and Q >= T predictions. Must be finite.

    Returns
    -------
    int64 (T,)

    Raises
    ------
    ValueError
        If there are more rows than columns, or costs that are not finite.
    """
    count, columns = costs.shape
    if count > columns:
        raise ValueError(f"costs have {count} rows and {columns} columns; each row needs a column of its own")
    if not np.isfinite(costs).all():
        raise ValueError("costs must be finite")
    cheapest = costs.argmin(axis=1).tolist() if columns else []
    if len(set(cheapest)) == count:
        return np.array(cheapest, np.int64)  # no two rows want the same column
    result = np.empty(count, np.int64)
    for j, row in enumerate(_rows_of_columns(costs.astype(np.float64).tolist(), columns)):
        if row >= 0:
            result[row] = j
    return result


def _rows_of_columns(costs: list[list[float]], columns: int) -> list[int]:
    """Return for each column the row that takes it, or -1.

    The matrices are so small that lists take a fraction of the time of arrays.
    """
    row_potential, column_potential = [0.0] * len(costs), [0.0] * columns
    row_of = [-1] * columns
    for start in range(len(costs)):
        distance = [math.inf] * columns  # of the shortest path from `start` to each column
        before = [-1] * columns  # the column from whose row that path comes; -1 from `start` itself
        done: list[int] = []
        waiting = list(range(columns))
        row, column, length = start, -1, 0.0
        while row >= 0:
            own, base, nearest, least = costs[row], length - row_potential[row], -1, math.inf
            for j in waiting:
                through = base + own[j] - column_potential[j]
                if through < distance[j]:
                    distance[j], before[j] = through, column
                if distance[j] < least:
                    nearest, least = j, distance[j]
            column, length = nearest, least
            waiting.remove(column)
            done.append(column)
            row = row_of[column]
        # The potentials make the costs on the new path zero again, and no cost negative.
        row_potential[start] += length
        for j in done:
            column_potential[j] -= length - distance[j]
            if row_of[j] >= 0:
                row_potential[row_of[j]] += length - distance[j]
        while column >= 0:  # each row on the path takes the column after it
            row_of[column] = start if before[column] < 0 else row_of[before[column]]
            column = before[column]
    return row_of
