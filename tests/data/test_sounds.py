"""Sounds: every kind of .wav file, rates and lengths, spectrograms of known tones, folders, damaged files."""

import re
import shutil
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvit.data import SoundFolder, SoundOptions
from tinyvit.data.check_sounds import check_sounds
from tinyvit.data.sounds import find_sounds, has_sounds
from tinyvit.data.waves import DECIBELS, LOWEST, WaveReader, fitted_length, read_wave, resampled, spectrogram_of
from tinyvit.errors import DataError

RATE = 8000


def tone(pitch: float, seconds: float = 0.5, rate: int = RATE, loudness: float = 0.5) -> np.ndarray:
    return loudness * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


def write(path: Path, samples: np.ndarray, rate: int = RATE, width: int = 2, channels: int = 1) -> Path:
    """Write samples (n,) from -1 to 1 as PCM, the same in every channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    top = 2 ** (8 * width - 1)
    numbers = np.clip(np.rint(np.repeat(samples, channels) * top), -top, top - 1).astype(np.int64)
    data = b"".join(int(n + 128 * (width == 1)).to_bytes(width, "little", signed=width > 1) for n in numbers)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Low and high tones, ten of each, from 0.10 to 0.19 seconds."""
    for name, pitch in (("low", 200), ("high", 2000)):
        for i in range(10):
            write(tmp_path / "sounds" / name / f"{i}.wav", tone(pitch * (1 + i / 50), 0.1 + i / 100))
    return tmp_path / "sounds"


OPTIONS = SoundOptions(image_size=16, test=0.2, validation=0.25)


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_of_every_width_come_back(tmp_path, width, channels) -> None:
    samples = np.array([0, 0.5, -0.5, 1, -1, 0.123, -0.77])
    found, rate = read_wave(write(tmp_path / "x.wav", samples, 22050, width, channels))
    assert rate == 22050
    assert found.dtype == np.float32
    step = 2.0 ** (1 - 8 * width)
    assert np.abs(found - np.clip(samples, -1, 1 - step)).max() <= max(step / 2, 2e-7) * 1.001


def test_the_channels_of_stereo_are_averaged(tmp_path) -> None:
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes(struct.pack("<4h", 8192, 16384, -8192, 0))
    assert read_wave(tmp_path / "x.wav")[0].tolist() == [0.375, -0.125]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(x)) + x + b"\0" * (len(x) % 2) for name, x in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def in_format(code: int, bits: int = 32, count: int = 8) -> bytes:
    return riff(
        (b"fmt ", struct.pack("<HHIIHH", code, 1, RATE, RATE * bits // 8, bits // 8, bits)), (b"data", bytes(count))
    )


def extensible(samples: bytes, code: int = 1, bits: int = 16, end: str = "000000001000800000aa00389b71") -> bytes:
    form = struct.pack("<HHIIHH", 0xFFFE, 1, RATE, RATE * bits // 8, bits // 8, bits)
    form += struct.pack("<HHIH", 22, bits, 4, code) + bytes.fromhex(end)
    return riff((b"fmt ", form), (b"LIST", b"odd"), (b"data", samples))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_the_extensible_form_of_pcm_has_the_samples_of_the_plain_one(tmp_path, width) -> None:
    plain = write(tmp_path / "plain.wav", tone(440, 0.01), RATE, width)
    (tmp_path / "x.wav").write_bytes(extensible(plain.read_bytes()[44:], bits=8 * width))
    found, rate = read_wave(tmp_path / "x.wav")
    assert rate == RATE
    assert np.array_equal(found, read_wave(plain)[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"cannot be read as a \.wav file .*ffmpeg"),
        (b"ID3 this is an mp3", r"cannot be read as a \.wav file"),
        (in_format(3), r"cannot be read as a \.wav file .*unknown format"),
        (extensible(bytes(8), 3), r"cannot be read as a \.wav file .*unknown format: 3.*ffmpeg"),
        (extensible(bytes(8), end="00" * 14), r"unknown format in the extensible form.*ffmpeg"),
        (riff((b"data", bytes(8))), "its samples come before their format"),
        (in_format(1)[:40], "it ends too early"),
        (in_format(1, 0), "it has 1 channels of 0 bits"),
        (in_format(1, 64), "has samples of 64 bits, not 8, 16, 24 or 32"),
        (in_format(1).replace(struct.pack("<I", RATE), struct.pack("<I", 7)), "has 7 samples per second; from 1,000"),
        (in_format(1, count=0), "has no samples"),
        (in_format(1)[:-3], "is truncated: it has 5 of 8 bytes"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_an_error_with_the_way_out(tmp_path, content, message) -> None:
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_wave(tmp_path / "x.wav")
    with pytest.raises(DataError, match=r"there is no file '.*y\.wav'"):
        read_wave(tmp_path / "y.wav")


@settings(max_examples=80, deadline=None)
@given(where=st.integers(0, 43), value=st.integers(0, 255), cut=st.integers(1, 60))
def test_damaged_headers_are_sounds_or_one_clear_error(tmp_path_factory, where, value, cut) -> None:
    folder = tmp_path_factory.mktemp("wave")
    content = bytearray(write(folder / "x.wav", tone(440, 0.01)).read_bytes())
    content[where] = value
    (folder / "x.wav").write_bytes(content[:-cut] if cut < 30 else content)
    message = str(folder)
    try:
        assert np.isfinite(read_wave(folder / "x.wav")[0]).all()
    except DataError as error:
        message = str(error)
    assert str(folder) in message


# Spectrograms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pitch", [300, 700, 1500, 3000])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_tone_is_a_bright_row_at_its_pitch(pitch, rate) -> None:
    size = 32
    image = spectrogram_of(tone(pitch, 1.0, rate, 0.5).astype(np.float32), rate, size)
    assert image.shape == (1, size, size)
    assert image.dtype == np.uint8
    band = np.log(pitch / LOWEST) / np.log(rate / 2 / LOWEST) * size  # from the bottom
    rows = image[0].astype(int)[::-1].argmax(axis=0)
    assert (np.abs(rows + 0.5 - band) <= 1).all()
    assert image.max() == pytest.approx(255 * (1 + 20 * np.log10(0.5) / DECIBELS), abs=10)
    quieter = spectrogram_of(tone(pitch, 1.0, rate, 0.05).astype(np.float32), rate, size)
    assert int(image.max()) - int(quieter.max()) == pytest.approx(20 / DECIBELS * 255, abs=1)


def test_time_runs_to_the_right_and_silence_is_black() -> None:
    samples = np.concatenate([np.zeros(4000), tone(1000, 0.5)]).astype(np.float32)
    image = spectrogram_of(samples, RATE, 16)
    assert image[0, :, :6].max() == 0
    assert image[0, :, 10:].max(axis=0).min() > 200


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_sound_is_cut_or_filled_up_around_its_middle(length, count) -> None:
    samples = np.arange(1, length + 1, dtype=np.float32)
    found = fitted_length(samples, count)
    assert len(found) == count
    there = found[found > 0]
    assert there.tolist() == list(range(int(there[0]), int(there[0]) + min(length, count)))
    before, after = (there[0] - 1, length - there[-1]) if length > count else (
        np.argmax(found > 0), np.argmax(found[::-1] > 0))  # fmt: skip
    assert 0 <= after - before <= 1


@pytest.mark.parametrize(("rate", "wanted"), [(16000, 8000), (8000, 16000), (44100, 16000), (8000, 11025)])
def test_a_tone_keeps_its_pitch_and_loudness_at_another_rate(rate, wanted) -> None:
    found = resampled(tone(1000, 0.4, rate).astype(np.float32), rate, wanted)
    assert len(found) == round(0.4 * wanted)
    inner = slice(wanted // 20, -wanted // 20)
    assert np.abs(found - tone(1000, 0.4, wanted))[inner].max() < 0.01
    high = resampled(tone(0.45 * rate, 0.4, rate).astype(np.float32), rate, wanted)
    assert wanted > rate or np.abs(high[inner]).max() < 0.01  # no frequency is folded back


def test_a_file_of_another_rate_is_refused_or_converted(tmp_path) -> None:
    path = write(tmp_path / "x.wav", tone(1000, 0.5, 16000), 16000)
    with pytest.raises(DataError, match=r"16,000 samples per second, not 8,000: .* --set sample_rate=8000"):
        WaveReader(16, 8000, 0.5)(path)
    same = write(tmp_path / "y.wav", tone(1000, 0.5, 8000), 8000)
    difference = WaveReader(16, 8000, 0.5, True)(path).astype(int) - WaveReader(16, 8000, 0.5, True)(same)
    assert np.abs(difference[:, :, 1:-1])[0, 4:8].max() < 16


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_folder_of_sounds_has_splits_classes_and_statistics(sounds) -> None:
    folder = SoundFolder(sounds, OPTIONS)
    assert folder.classes == ("high", "low")
    assert (folder.rate, folder.channels) == (RATE, 1)
    train = folder.load("train")
    assert train.images.shape == (12, 1, 16, 16)
    assert train.name == f"sounds:{sounds}"
    assert train.sound == (RATE, folder.seconds, False)
    assert train.mean == (pytest.approx(train.images.mean() / 255, abs=1e-6),)
    test = folder.load("test", train)
    assert test.mean == train.mean
    for file, image, label in zip(test.files, test.images, test.labels, strict=True):
        assert np.array_equal(image, WaveReader(16, RATE, folder.seconds)(file))
        assert Path(file).parent.name == test.classes[label]
    lengths = sorted(0.1 + int(Path(f).stem) / 100 for f in map(str, folder.parts["train"].files))
    assert folder.seconds in [pytest.approx(length, abs=1e-3) for length in lengths]
    assert np.mean(np.array(lengths) <= folder.seconds + 1e-9) >= 0.9


def test_rates_must_agree_or_be_stated(sounds) -> None:
    write(sounds / "low" / "x.wav", tone(200, 0.2, 16000), 16000)
    with pytest.raises(DataError, match=r"8,000 \(\d+ files\), 16,000 \(1 file\); set data.sample_rate=8000"):
        SoundFolder(sounds, SoundOptions(image_size=16, test=1)).load("train")
    converted = SoundFolder(sounds, SoundOptions(image_size=16, test=1, sample_rate=8000)).load("train")
    assert converted.sound[2] is True
    assert len(converted) == 20


def test_other_files_are_left_out_and_named(sounds, caplog) -> None:
    (sounds / "low" / "bad.wav").write_bytes(b"RIFF....WAVE")
    (sounds / "low" / "song.mp3").write_bytes(b"ID3")
    (sounds / "low" / "notes.txt").write_text("hello")
    shutil.copy(sounds / "low" / "0.wav", sounds / "low" / "without_suffix")
    part = SoundFolder(sounds, SoundOptions(image_size=16, test=1)).parts["train"]
    assert {entry.path.name: entry.reason for entry in part.left_out} == {
        "song.mp3": "mp3, which is not read: save it as .wav",
        "notes.txt": "not a .wav file",
    }
    assert "without_suffix" in {file.name for file in find_sounds(sounds).images}
    SoundFolder(sounds, SoundOptions(image_size=16, test=1)).load("train")
    assert "bad.wav (cannot be read as a .wav file" in caplog.text
    with pytest.raises(DataError, match=r"bad\.wav"):
        SoundFolder(sounds, SoundOptions(image_size=16, test=1, broken="refuse")).load("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 1}, "image_size is 1"),
        ({"image_size": 8, "sample_rate": 10}, "sample_rate is 10; it must be from 1000"),
        ({"image_size": 8, "seconds": -1.0}, "seconds is -1.0"),
    ],
)
def test_options_out_of_range_are_refused(sounds, options, message) -> None:
    with pytest.raises(DataError, match=message):
        SoundFolder(sounds, SoundOptions(**options))


def test_a_class_without_sounds_is_an_error(sounds) -> None:
    (sounds / "none").mkdir()
    (sounds / "none" / "a.mp3").write_bytes(b"ID3")
    with pytest.raises(DataError, match=r"none holds no sounds \(\.wav\); .*save it as \.wav"):
        SoundFolder(sounds)


def test_a_folder_has_sounds_if_it_has_no_images(sounds, tmp_path) -> None:
    from PIL import Image

    assert has_sounds(sounds)
    (tmp_path / "t.csv").write_text("file,label\nsounds/low/0.wav,low\n")
    assert has_sounds(tmp_path / "t.csv")
    assert not has_sounds(tmp_path / "missing")
    Image.new("L", (4, 4)).save(sounds / "low" / "cover.png")
    assert not has_sounds(sounds)


def test_broken_files_decide_neither_the_length_nor_the_rate(sounds) -> None:
    options = SoundOptions(image_size=16, test=1)
    for i in range(6):
        content = in_format(1, 16, 800).replace(struct.pack("<I", RATE), struct.pack("<I", 16000))
        (sounds / "low" / f"broken{i}.wav").write_bytes(content.replace(struct.pack("<I", 800), b"\xfe\xff\xff\xff"))
    folder = SoundFolder(sounds, options)
    assert sum(file.name.startswith("broken") for file in folder.parts["train"].files) >= 5
    assert (folder.rate, len(folder.headers) <= 20) == (RATE, True)
    assert folder.seconds <= 0.19
    used = re.search(r"([0-9.]+) are used of each", check_sounds(sounds).text)
    assert used is not None
    assert float(used[1]) <= 0.19


def test_a_check_counts_rates_lengths_and_broken_files(sounds) -> None:
    write(sounds / "low" / "x.wav", tone(200, 0.4, 16000), 16000, 3, 2)
    (sounds / "high" / "bad.wav").write_bytes(b"")
    found = check_sounds(sounds)
    assert f"{sounds}: 21 sounds of 2 classes" in found.text
    assert "samples per second: 8,000 (20 files), 16,000 (1 file); train with --set sample_rate=8000" in found.text
    assert "channels: 1 (20 files), 2 (1 file)" in found.text
    assert "bits: 16 (20 files), 24 (1 file)" in found.text
    assert "seconds: 0.1 to 0.4, the median is 0.15" in found.text
    assert "1 file is left out of the " in found.text
    assert re.search(r"left out of the \w+ split, beside \d+ sounds: .*bad.wav", found.text)
    assert {name: len(images) for name, images in found.examples.items()} == {"high": 10, "low": 11}
