"""Generated data beyond still images: videos of a moving shape, and spectrograms of sweeping tones.

The seed of a split decides every sample. No single frame of a video, and no single column of a spectrogram, shows the
class.
"""

import numpy as np
from numpy.typing import NDArray

MOTIONS = ("left", "right", "up", "down", "clockwise", "counter-clockwise", "growing", "shrinking")
SWEEPS = ("steady", "rising", "falling", "rising then falling", "falling then rising")
FRAMES, SIDE = 8, 24  # of a video
RATE = 8000  # samples per second
WINDOW, HOP, BANDS = 256, 64, 32  # of a spectrogram: samples in a window and between windows, frequency bands
COLUMNS = 32  # of a spectrogram, 2,240 samples: 0.28 s
COUNTS = {"train": 4000, "test": 1000}
_SEEDS = {"train": 0, "test": 1}


def motion(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return videos (n, 8, 1, 24, 24) of a disc or a square that moves over dark noise, and the motions (n,)."""
    rng, count = np.random.default_rng((30, _SEEDS[split])), COUNTS[split]
    labels = np.arange(count) % len(MOTIONS)
    time = np.linspace(-1, 1, FRAMES)
    speed = rng.uniform(3, 6, (count, 1))  # pixels from the middle of the film to its end
    centre = rng.uniform(9, SIDE - 9, (count, 2, 1))
    start, turn = rng.uniform(0, 2 * np.pi, (count, 1)), np.pi * (time + 1)
    x, y = np.zeros((2, count, FRAMES))
    radius = np.repeat(rng.uniform(2, 3.5, (count, 1)), FRAMES, axis=1)
    for label, (dx, dy) in enumerate([(-1, 0), (1, 0), (0, -1), (0, 1)]):
        chosen = labels == label
        x[chosen], y[chosen] = dx * speed[chosen] * time, dy * speed[chosen] * time
    for label, sign in ((4, 1), (5, -1)):  # y points down, so growing angles are clockwise
        chosen = labels == label
        angle = start[chosen] + sign * turn
        x[chosen], y[chosen] = 0.8 * speed[chosen] * np.cos(angle), 0.8 * speed[chosen] * np.sin(angle)
    for label, sign in ((6, 1), (7, -1)):
        chosen = labels == label
        radius[chosen] *= np.exp(0.5 * sign * time)
    pixel = np.arange(SIDE) + 0.5
    across = pixel[None, None, None, :] - (centre[:, 0] + x)[..., None, None]
    down = pixel[None, None, :, None] - (centre[:, 1] + y)[..., None, None]
    square = rng.random((count, 1, 1, 1)) < 0.5
    distance = np.where(square, np.maximum(np.abs(across), np.abs(down)), np.hypot(across, down))
    light = (0.5 + radius[..., None, None] - distance).clip(0, 1) * rng.uniform(120, 220, (count, 1, 1, 1))
    noise = rng.normal(20, 10, light.shape)
    return np.rint((light + noise).clip(0, 255)).astype(np.uint8)[:, :, None], labels


def chirps(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return spectrograms (n, 1, 32, 32) of tones in noise, and how the pitch of each changes (n,).

    Time runs to the right; low pitches are at the bottom.
    """
    rng, count = np.random.default_rng((31, _SEEDS[split])), COUNTS[split]
    labels = np.arange(count) % len(SWEEPS)
    samples = WINDOW + HOP * (COLUMNS - 1)
    time = np.linspace(0, 1, samples)
    shapes = np.stack([np.full(samples, 0.5), time, 1 - time, 1 - np.abs(2 * time - 1), np.abs(2 * time - 1)])
    low = rng.uniform(300, 1200, (count, 1))
    octaves = rng.uniform(0.5, 1.3, (count, 1))
    pitch = low * 2 ** (octaves * shapes[labels])  # hertz
    phase = 2 * np.pi * np.cumsum(pitch / RATE, axis=1) + rng.uniform(0, 2 * np.pi, (count, 1))
    loudness = rng.uniform(0.5, 1, (count, 1))
    wave = loudness * (np.sin(phase) + 0.3 * np.sin(2 * phase)) + rng.normal(0, 0.35, (count, samples))
    return spectrogram(wave.astype(np.float32))[:, None], labels


def spectrogram(wave: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the spectrograms (n, bands, columns) of waves (n, samples), as grey values that span 60 decibels.

    The windows are Hann windows of 256 samples, 64 apart; the 32 bands divide 200 to 4,000 Hz into equal ratios, the
    highest on top.
    """
    windows = np.lib.stride_tricks.sliding_window_view(wave, WINDOW, axis=1)[:, ::HOP]
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW).astype(np.float32), axis=-1)) ** 2
    edges = np.geomspace(200, RATE / 2, BANDS + 1)
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)
    middles = np.sqrt(edges[:-1] * edges[1:])
    spread = RATE / WINDOW + middles * (edges[1] / edges[0] - 1)
    weights = (1 - np.abs(frequencies[:, None] - middles) / spread).clip(0, None)
    decibels = 10 * np.log10(power @ (weights / weights.sum(axis=0)) + 1e-3)
    return np.rint((decibels + 5).clip(0, 60) * 255 / 60).astype(np.uint8).transpose(0, 2, 1)[:, ::-1]
