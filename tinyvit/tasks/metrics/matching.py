"""The assignment problem: which of several predictions is for which of the things that are there."""

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
    costs = costs.astype(np.float64)
    row_potential, column_potential = np.zeros(count), np.zeros(columns)
    row_of = np.full(columns, -1)  # the row that has each column
    for start in range(count):
        distance = np.full(columns, np.inf)  # of the shortest path from `start` to each column
        before = np.full(columns, -1)  # the column from whose row that path comes; -1 from `start` itself
        done = np.zeros(columns, bool)
        row, column, length = start, -1, 0.0
        while row >= 0:
            through = length + costs[row] - row_potential[row] - column_potential
            shorter = ~done & (through < distance)
            distance[shorter], before[shorter] = through[shorter], column
            column = int(np.where(done, np.inf, distance).argmin())
            length, done[column] = float(distance[column]), True
            row = int(row_of[column])
        # The potentials make the costs on the new path zero again, and no cost negative.
        closed = done & (row_of >= 0)
        row_potential[row_of[closed]] += length - distance[closed]
        row_potential[start] += length
        column_potential[done] -= length - distance[done]
        while column >= 0:  # each row on the path takes the column after it
            row_of[column] = start if before[column] < 0 else row_of[before[column]]
            column = int(before[column])
    taken = np.flatnonzero(row_of >= 0)
    result = np.empty(count, np.int64)
    result[row_of[taken]] = taken
    return result
