"""Sounds: .wav files as spectrograms, which a model takes as grey images.

Files
    Uncompressed PCM of 8, 16, 24 or 32 bits, also in the extensible form; the channels of stereo are averaged.
Rate and length
    Every sound is brought to one rate of samples per second and one length: the middle of a longer one is taken, and a
    shorter one gets silence on both sides.
Pixels
    A spectrogram has as many bands (rows) as columns. The bands divide 60 Hz to half the rate into equal ratios, the
    highest on top; the columns are Hann windows, evenly spaced, that overlap by half or more. Black is 80 decibels
    below a full-scale tone, white is such a tone.
"""

import struct
from dataclasses import dataclass
from functools import cache
from io import SEEK_END, BufferedReader
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backend.files import MAX_IMAGE_BYTES, missing, open_file
from ..errors import DataError

LOWEST, DECIBELS, WINDOW = 60, 80, 0.032  # hertz; from black to white; seconds of the shortest window
RATES = (1000, 384_000)  # samples per second that are believed
LONGEST = 600  # seconds that a model may take
_PCM, _EXTENSIBLE = 1, 0xFFFE  # formats of samples; the second says further on which it is
_SUB_FORMAT = bytes.fromhex("000000001000800000aa00389b71")  # how a sub-format of Microsoft ends, after its number
_HOW = "save it as uncompressed PCM, for example with: ffmpeg -i IN -c:a pcm_s16le OUT.wav"


class Header(NamedTuple):
    """The beginning of a .wav file: samples per second, channels, bytes of a sample, samples; bytes that are there."""

    rate: int
    channels: int
    width: int
    samples: int
    there: int

    @property
    def seconds(self) -> float:
        return self.samples / self.rate

    @property
    def wanted(self) -> int:
        """The bytes that all samples take."""
        return self.samples * self.channels * self.width

    @property
    def is_whole(self) -> bool:
        """Whether the file is long enough for the samples that it promises."""
        return self.there >= self.wanted


def read_header(path: str | Path) -> Header:
    """Return what the header of a .wav file says. Raises DataError."""
    return _read(path, False)[0]


def read_wave(path: str | Path) -> tuple[NDArray[np.float32], int]:
    """Return the samples of a .wav file, the mean of its channels, from -1 to 1, and its rate. Raises DataError."""
    header, data = _read(path, True)
    if len(data) < header.wanted:
        raise DataError(f"{path} is truncated: it has {len(data):,} of {header.wanted:,} bytes of samples")
    return _samples(data, header.width).reshape(-1, header.channels).mean(axis=1, dtype=np.float32), header.rate


def _read(path: str | Path, with_samples: bool) -> tuple[Header, bytes]:
    try:
        with open_file(path, MAX_IMAGE_BYTES) as file:
            header = _parsed(file)
            data = file.read(min(header.wanted, header.there)) if with_samples else b""
    except FileNotFoundError as error:
        raise DataError(missing(path)) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, struct.error) as error:
        reason = "it ends too early" if isinstance(error, struct.error) else str(error)
        raise DataError(f"{path} cannot be read as a .wav file ({reason}): {_HOW}") from error
    if header.width not in (1, 2, 3, 4):
        raise DataError(f"{path} has samples of {8 * header.width} bits, not 8, 16, 24 or 32: {_HOW}")
    if not RATES[0] <= header.rate <= RATES[1]:
        raise DataError(f"{path} has {header.rate:,} samples per second; from {RATES[0]:,} to {RATES[1]:,} are allowed")
    if not header.samples:
        raise DataError(f"{path} has no samples")
    return header, data


def _parsed(file: BufferedReader) -> Header:
    """Return the header of an open file, which is then at its first sample. Raises ValueError or struct.error.

    The module `wave` of Python is not used: before Python 3.12 it refuses the extensible form of PCM.
    """
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise ValueError("it does not begin with RIFF and WAVE" if head else "it is empty")
    size = file.seek(0, SEEK_END)
    file.seek(len(head))
    form: tuple[int, int, int] | None = None
    while True:
        name, length = struct.unpack("<4sI", file.read(8))
        begin = file.tell()
        if name == b"fmt ":
            form = _form_of(file.read(min(length, 40)))
        elif name == b"data":
            if form is None:
                raise ValueError("its samples come before their format")
            rate, channels, width = form
            return Header(rate, channels, width, length // (channels * width), size - begin)
        file.seek(begin + length + length % 2)  # chunks begin at even places


def _form_of(chunk: bytes) -> tuple[int, int, int]:
    """Return rate, channels and bytes of a sample, by the chunk that describes them."""
    code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if code == _EXTENSIBLE:
        code, end = struct.unpack_from("<H14s", chunk, 24)
        if end != _SUB_FORMAT:
            raise ValueError("unknown format in the extensible form")
    if code != _PCM:
        raise ValueError(f"unknown format: {code}")
    if not channels or not bits:
        raise ValueError(f"it has {channels} channels of {bits} bits")
    return rate, channels, (bits + 7) // 8


def _samples(data: bytes, width: int) -> NDArray[np.float32]:
    """Return little-endian samples of 1 to 4 bytes as numbers from -1 to 1. Those of one byte are unsigned."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / np.float32(128)
    if width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, width = wide.tobytes(), 4
    return np.frombuffer(data, f"<i{width}").astype(np.float32) / np.float32(2 ** (8 * width - 1))


def resampled(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Return samples at another rate, with all frequencies that both rates can hold."""
    count = max(1, round(len(samples) * wanted / rate))
    spectrum = np.fft.rfft(samples)
    kept = np.zeros(count // 2 + 1, spectrum.dtype)
    common = min(len(spectrum), len(kept))
    kept[:common] = spectrum[:common]
    return (np.fft.irfft(kept, count) * (count / len(samples))).astype(np.float32)


def fitted_length(samples: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return the middle `count` samples, with silence on both sides if there are fewer."""
    begin = max(0, (len(samples) - count) // 2)
    samples = samples[begin : begin + count]
    before = (count - len(samples)) // 2
    return np.pad(samples, (before, count - len(samples) - before))


def spectrogram_of(samples: NDArray[np.float32], rate: int, size: int) -> NDArray[np.uint8]:
    """Return the spectrogram of samples (n,) with `size` bands and columns, uint8 (1, size, size)."""
    window = max(2, round(rate * WINDOW), -(-2 * len(samples) // size))
    samples = fitted_length(samples, max(len(samples), window))
    starts = np.rint(np.linspace(0, len(samples) - window, size)).astype(np.int64)
    hann = np.hanning(window + 2)[1:-1].astype(np.float32)
    frames = samples[starts[:, None] + np.arange(window)] * hann
    power = (np.abs(np.fft.rfft(frames, axis=-1)) / (hann.sum() / 2)) ** 2
    decibels = 10 * np.log10(power @ _bands(rate, window, size) + 1e-12)
    grey = (decibels / DECIBELS + 1).clip(0, 1) * 255
    return np.ascontiguousarray(np.rint(grey).astype(np.uint8).T[::-1][None])


@cache
def _bands(rate: int, window: int, size: int) -> NDArray[np.float32]:
    """Return the weights (frequencies, bands) of triangles that overlap, each with the largest weight 1."""
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    edges = np.geomspace(LOWEST, rate / 2, size + 1)
    middles = np.sqrt(edges[:-1] * edges[1:])
    spread = np.maximum(rate / window, middles * (edges[1] / edges[0] - 1))
    return (1 - np.abs(frequencies[:, None] - middles) / spread).clip(0, None).astype(np.float32)


@dataclass(frozen=True)
class WaveReader:
    """Read a .wav file as a spectrogram, uint8 (1, size, size). It can be copied and pickled.

    Attributes
    ----------
    size : bands, and columns.
    rate : samples per second.
    seconds : the length.
    converts : whether a file of another rate is converted; else it is refused.
    """

    size: int
    rate: int
    seconds: float
    converts: bool = False

    def __call__(self, path: str | Path) -> NDArray[np.uint8]:
        samples, rate = read_wave(path)
        if rate != self.rate:
            if not self.converts:
                raise DataError(
                    f"{path} has {rate:,} samples per second, not {self.rate:,}: convert it (ffmpeg -i IN -ar "
                    f"{self.rate} OUT.wav), or train with --set sample_rate={self.rate}, which converts every file"
                )
            samples = resampled(samples, rate, self.rate)
        return spectrogram_of(fitted_length(samples, self.count), self.rate, self.size)

    @property
    def count(self) -> int:
        """The number of samples."""
        return max(1, round(self.seconds * self.rate))
