"""Max pooling of images, forward and backward.

| version | what it changes, and gains                                                                              |
|---------|---------------------------------------------------------------------------------------------------------|
| v1      | the definition: one window after the other                                                              |
| v2      | the pixels of an image laid out by their place within a stride: those that a place of the window falls  |
|         | on, for all windows, are then a run of memory; images shared among threads                              |

x (P, H, W) with P = B C, y (P, OH, OW). Around an image is -inf, which counts where it is the largest. A gradient is
shared equally by all pixels that are the largest of a window; that of a window whose largest is NaN, of which no pixel
is the largest, is NaN for all of them, as in the plain rule.
"""

import numpy as np

from .. import threads as pool
from ..arrays import dense
from ..bfloat16 import bits, float_like, real, rounded, settle, widened
from ..compiler import body, entry
from ..threads import parallel

PARTS = 64  # of the images
_SERIAL = 20_000  # pixels below which waking another thread costs more than it saves


# v1 -----------------------------------------------------------------------------------------------------------------


@body
def _pixel(image, row, column):
    """A pixel of an image with -inf around it."""
    inside = 0 <= row < image.shape[0] and 0 <= column < image.shape[1]
    return widened(image[row, column]) if inside else real(-np.inf, image)


@entry
def _forward_1(x, y, window, stride, padding, team):
    for p in range(y.shape[0]):
        for r in range(y.shape[1]):
            for n in range(y.shape[2]):
                best = real(-np.inf, x)
                for i in range(window[0]):
                    for j in range(window[1]):
                        pixel = _pixel(x[p], r * stride[0] + i - padding[0], n * stride[1] + j - padding[1])
                        if pixel > best or np.isnan(pixel):
                            best = pixel
                y[p, r, n] = rounded(best, y)


@body
def _share(image, sums, peak, given, top, left, window):
    """Add to the sums of gradients that of one window."""
    ties = real(0, image)
    for i in range(window[0]):
        for j in range(window[1]):
            if _pixel(image, top + i, left + j) == peak:
                ties += real(1, image)
    share = given / ties
    for row in range(max(0, top), min(image.shape[0], top + window[0])):
        for column in range(max(0, left), min(image.shape[1], left + window[1])):
            sums[row, column] += share if _pixel(image, row, column) == peak else real(0, image) * share


@entry
def _backward_1(dy, x, y, dx, window, stride, padding, team):
    for p in range(y.shape[0]):
        sums = float_like(dx[p])
        sums[:] = real(0, x)
        for r in range(y.shape[1]):
            for n in range(y.shape[2]):
                top, left = r * stride[0] - padding[0], n * stride[1] - padding[1]
                _share(x[p], sums, widened(y[p, r, n]), widened(dy[p, r, n]), top, left, window)
        settle(sums, dx[p])


# v2 -----------------------------------------------------------------------------------------------------------------


@body
def _laid_out(x, stride, padding, value):
    """Room for an image and what is around it, `value` at first: (SH, SW, rows, columns) as `_move` says."""
    rows = (x.shape[1] + 2 * padding[0] - 1) // stride[0] + 1
    columns = (x.shape[2] + 2 * padding[1] - 1) // stride[1] + 1
    return np.full((stride[0], stride[1], rows, columns), real(value, x))


@body
def _move(image, places, padding, back):
    """Lay out an image, places[i, j, r, n] = image[r SH + i - PH, n SW + j - PW], or bring the places `back`."""
    for row in range(image.shape[0]):
        pixels, padded = image[row], row + padding[0]
        for j in range(places.shape[1]):
            step, first = places.shape[1], j - padding[1]
            low = max(0, -(first // step))
            high = max(low, (pixels.size - 1 - first) // step + 1)
            part = places[padded % places.shape[0], j, padded // places.shape[0]]
            run, spaced = part[low:high], pixels[low * step + first :]
            if back:
                for n in range(run.size):
                    spaced[n * step] = rounded(run[n], pixels)
            else:
                for n in range(run.size):
                    run[n] = widened(spaced[n * step])


@body
def _met(places, k, window, windows):
    """What place k of the window falls on, a run with one for each window.

    Windows have as many columns as `places`: those beyond the last of y are none, and go on in the next row.
    """
    i, j = k // window[1], k % window[1]
    start = i // places.shape[0] * places.shape[3] + j // places.shape[1]
    return places[i % places.shape[0], j % places.shape[1]].ravel()[start : start + windows]


@body
def _forward_chunk_2(chunk, chunks, x, y, window, stride, padding):
    """Some of the images."""
    places = _laid_out(x, stride, padding, -np.inf)
    columns = places.shape[3]
    best = np.empty((y.shape[1] - 1) * columns + y.shape[2], places.dtype)
    for p in range(x.shape[0] * chunk // chunks, x.shape[0] * (chunk + 1) // chunks):
        _move(x[p], places, padding, False)
        best[:] = real(-np.inf, x)
        for k in range(window[0] * window[1]):
            pixels = _met(places, k, window, best.size)
            for n in range(best.size):
                best[n] = pixels[n] if (pixels[n] > best[n]) | np.isnan(pixels[n]) else best[n]
        for r in range(y.shape[1]):
            row, out = best[r * columns :], y[p, r]
            for n in range(out.size):
                out[n] = rounded(row[n], y)


@entry
def _forward_2(x, y, window, stride, padding, team):
    parallel(_forward_chunk_2, min(x.shape[0], PARTS), team, (x, y, window, stride, padding))


@body
def _backward_chunk_2(chunk, chunks, dy, x, y, dx, window, stride, padding):
    """Some of the images."""
    places, sums = _laid_out(x, stride, padding, -np.inf), _laid_out(x, stride, padding, 0)
    columns, zero, one = places.shape[3], real(0, x), real(1, x)
    ties = np.empty((y.shape[1] - 1) * columns + y.shape[2], places.dtype)
    peaks, shares = np.zeros_like(ties), np.zeros_like(ties)  # those of no window stay 0
    for p in range(x.shape[0] * chunk // chunks, x.shape[0] * (chunk + 1) // chunks):
        _move(x[p], places, padding, False)
        for r in range(y.shape[1]):
            row, largest = peaks[r * columns :], y[p, r]
            for n in range(largest.size):
                row[n] = widened(largest[n])
        ties[:] = zero
        for k in range(window[0] * window[1]):
            pixels = _met(places, k, window, ties.size)
            for n in range(ties.size):
                ties[n] += one if pixels[n] == peaks[n] else zero
        for r in range(y.shape[1]):
            row, count, given = shares[r * columns :], ties[r * columns :], dy[p, r]
            for n in range(given.size):
                row[n] = widened(given[n]) / count[n]
        sums[:] = zero
        for k in range(window[0] * window[1]):
            pixels, out = _met(places, k, window, ties.size), _met(sums, k, window, ties.size)
            for n in range(ties.size):
                out[n] += shares[n] if pixels[n] == peaks[n] else zero * shares[n]
        _move(dx[p], sums, padding, True)


@entry
def _backward_2(dy, x, y, dx, window, stride, padding, team):
    parallel(_backward_chunk_2, min(x.shape[0], PARTS), team, (dy, x, y, dx, window, stride, padding))


VERSIONS = {1: (_forward_1, _backward_1), 2: (_forward_2, _backward_2)}


# Launchers ----------------------------------------------------------------------------------------------------------


def _images(x):
    """x (B, C, H, W) as (B C, H, W), dense, as compiled code takes it."""
    return bits(dense(x)).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def forward(x, *, window, stride, padding, version):
    """x (B, C, H, W) -> y (B, C, OH, OW)."""
    sizes = zip(x.shape[2:], window, stride, padding, strict=True)
    y = np.empty((*x.shape[:2], *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)), x.dtype)
    VERSIONS[version][0](_images(x), _images(y), window, stride, padding, pool.team(x.size > _SERIAL))
    return (y,)


def backward(dy, x, y, *, window, stride, padding, needs, version):
    """dy (B, C, OH, OW), x and y -> dx (B, C, H, W)."""
    dx = np.empty(x.shape, x.dtype)
    arrays = (_images(a) for a in (dy, x, y, dx))
    VERSIONS[version][1](*arrays, window, stride, padding, pool.team(x.size > _SERIAL))
    return (dx,)
