"""Medians and quantiles of times, and the test that ends a measurement."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LOW, HIGH = 0.2, 0.8  # the quantiles of a range
NOISE = 0.01  # the relative standard error of every median ratio at which a case ends
MIN_ROUNDS = 5
NOISY = 0.1  # the spread of equal runs from which on a machine is called noisy
_SIGMAS = 1.6832  # the distance between these two quantiles of a normal distribution, in standard deviations
_MEDIAN = 1.2533  # sqrt(pi / 2): the standard error of the median of normal values, relative to that of their mean


class Summary(NamedTuple):
    """The median of some values, and their 20 and 80 % quantiles."""

    median: float
    low: float
    high: float


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, by linear interpolation between the sorted values."""
    if not values:
        raise ValueError("there are no values")
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def summarize(values: Sequence[float]) -> Summary:
    return Summary(quantile(values, 0.5), quantile(values, LOW), quantile(values, HIGH))


def ratios(baseline: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """How many times as fast as the baseline, for each round: what slowed both in one round cancels."""
    return [b / s for b, s in zip(baseline, seconds, strict=True)]


def noise(values: Sequence[float]) -> float:
    """The relative standard error of the median, from the quantiles, so that rare slow rounds do not count."""
    median, low, high = summarize(values)
    return _MEDIAN * (high - low) / _SIGMAS / math.sqrt(len(values)) / median


def spread(values: Sequence[float]) -> float:
    """The distance between the 20 and 80 % quantiles, relative to the median."""
    median, low, high = summarize(values)
    return (high - low) / median


def is_quiet(series: Iterable[Sequence[float]], limit: float = NOISE, rounds: int = MIN_ROUNDS) -> bool:
    """Whether every series has at least `rounds` values and a noise of at most `limit`."""
    return all(len(values) >= rounds and noise(values) <= limit for values in series)


def differ(a: Summary, b: Summary) -> bool:
    """Whether the difference is beyond the noise: the ranges from the 20 to the 80 % quantile do not overlap."""
    return a.high < b.low or b.high < a.low
