"""Depthwise convolution of grids of tokens, forward and backward.

| version | what it changes, and gains                                                                              |
|---------|---------------------------------------------------------------------------------------------------------|
| v1      | one place of the filter after the other is added to a whole row of an image, all pixels and channels at |
|         | once, because they are contiguous; threads share the images                                             |

Measured with one thread on a Zen 4, beside other programs, for 128 grids of 8 x 8 tokens of 144 channels and filters
3 x 3: v1 is 37 times as fast as the plain rule forward and 6 times backward (`python -m benchmarks.versions
depthwise_conv`).

x and y (B, H, W C) are rows of pixels, taps (KH, KW, W C) is the filter once for each pixel of a row. An image is
copied into a frame of zeros, so that the loops have no branches and an infinite weight gives NaN at the border, as in
the plain rule. The gradient of x is the same convolution of dy with the filter turned around. Sums for the gradient
of the weights begin anew with each image, and are added up in float64.
"""

import numpy as np

from ..cpu.arrays import dense
from ..cpu.chunks import bounds, move_sums, team_for
from ..cpu.compiler import body, entry
from ..cpu.threads import parallel

PARTS = 16  # parts of the images: they decide in which order the gradients of weights are added up


# v1 -----------------------------------------------------------------------------------------------------------------


@body
def _framed(x, taps, channels):
    """Allocate an image with a frame of zeros, for images of x and these taps."""
    down, across = taps.shape[0] - 1, (taps.shape[1] - 1) * channels
    return np.zeros((x.shape[1] + down, x.shape[2] + across), x.dtype)


@body
def _put(image, frame, taps, channels):
    """Copy an image (H, W C) into the frame."""
    top, left = taps.shape[0] // 2, taps.shape[1] // 2 * channels
    for r in range(image.shape[0]):
        row, place = image[r], frame[top + r, left:]
        for m in range(row.size):
            place[m] = row[m]


@body
def _convolved_chunk(chunk, chunks, x, taps, bias, y, channels):
    """Compute y for some of the images."""
    begin, end = bounds(x.shape[0], chunk, chunks)
    frame = _framed(x, taps, channels)
    for b in range(begin, end):
        _put(x[b], frame, taps, channels)
        for r in range(y.shape[1]):
            out = y[b, r]
            for m in range(out.size):
                out[m] = bias[m]
            for i in range(taps.shape[0]):
                for j in range(taps.shape[1]):
                    pixels, tap = frame[r + i, j * channels :], taps[i, j]
                    for m in range(out.size):
                        out[m] += pixels[m] * tap[m]


@entry
def _forward_1(x, taps, bias, y, channels, team):
    parallel(_convolved_chunk, min(x.shape[0], PARTS), team, (x, taps, bias, y, channels))


@body
def _summed_chunk(chunk, chunks, dy, x, taps, totals, channels):
    """Compute totals[chunk] (KH KW + 1, W C): the sums of dy times each moved image, then of dy, for some images."""
    begin, end = bounds(x.shape[0], chunk, chunks)
    frame, total = _framed(x, taps, channels), totals[chunk]
    sums = np.zeros(total.shape, x.dtype)
    for b in range(begin, end):
        _put(x[b], frame, taps, channels)
        for r in range(dy.shape[1]):
            given, whole = dy[b, r], sums[sums.shape[0] - 1]
            for m in range(given.size):
                whole[m] += given[m]
            for i in range(taps.shape[0]):
                for j in range(taps.shape[1]):
                    pixels, part = frame[r + i, j * channels :], sums[i * taps.shape[1] + j]
                    for m in range(given.size):
                        part[m] += pixels[m] * given[m]
        move_sums(sums, total)


@entry
def _backward_1(dy, x, taps, totals, channels, team):
    parallel(_summed_chunk, totals.shape[0], team, (dy, x, taps, totals, channels))


VERSIONS = {1: (_forward_1, _backward_1)}


# Launchers ----------------------------------------------------------------------------------------------------------


def _rows(x):
    """Return x (B, H, W, C) as (B, H, W C), dense."""
    return dense(x).reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def _repeated(values, width):
    """Return (..., C) once for each of `width` pixels: (..., width C)."""
    return dense(np.tile(values, width))


def _convolved(x, taps, bias, version):
    """Convolve x (B, H, W, C) with taps (KH, KW, C)."""
    y, width = np.empty(x.shape, x.dtype), x.shape[2]
    start = np.zeros(x.shape[3], x.dtype) if bias is None else bias
    work = x.size * taps.shape[0] * taps.shape[1] // 4
    rows = _rows(x), _repeated(taps, width), _repeated(start, width), _rows(y)
    VERSIONS[version][0](*rows, x.shape[3], team_for(work))
    return y


def forward(x, weight, bias, *, version):
    """Map x (B, H, W, C), weight (C, 1, KH, KW) and bias (C,), or None, to y (B, H, W, C)."""
    return (_convolved(x, weight[:, 0].transpose(1, 2, 0), bias, version),)


def backward(dy, x, weight, *, needs, version):
    """Map dy (B, H, W, C) to dx (B, H, W, C), dweight (C, 1, KH, KW) and dbias (C,)."""
    taps = weight[:, 0].transpose(1, 2, 0)
    dx = _convolved(dy, taps[::-1, ::-1], None, version) if needs[0] else None
    if not (needs[1] or needs[2]):
        return dx, None, None
    (down, across, channels), width = taps.shape, x.shape[2]
    totals = np.zeros((max(1, min(x.shape[0], PARTS)), down * across + 1, width * channels))
    rows = _rows(dy), _rows(x), _repeated(taps, width), totals
    VERSIONS[version][1](*rows, channels, team_for(x.size * down * across // 4))
    sums = totals.sum(axis=0).reshape(down * across + 1, width, channels).sum(axis=1).astype(x.dtype)
    dweight = sums[:-1].T.reshape(weight.shape) if needs[1] else None
    return dx, dweight, sums[-1] if needs[2] else None
