"""`tinyvit data check` and training say the same words and numbers about the files that are left out, of every kind."""

import csv
import logging
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tinyvit.data import FolderOptions, ImageFolder, SoundFolder, SoundOptions, TextTable, check_folder
from tinyvit.data.check_sounds import check_sounds
from tinyvit.data.check_texts import check_texts
from tinyvit.data.own_texts import CAPTIONS

HELD = {"test": 0.2, "validation": 0.2}
NAMES = [f"{name}{i}" for name in "ab" for i in range(12)]


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, 8 * 8 * 3, np.uint8)
    if path.suffix == ".png":
        Image.fromarray(noise.reshape(8, 8, 3)).save(path)
        return
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 1, 1000, 0, "NONE", ""))
        file.writeframes(noise.tobytes())


def classes(root: Path, suffix: str, torn: list[str]) -> None:
    for i, name in enumerate(NAMES):
        write(root / name[0] / f"{name}{suffix}", i)
    for name in torn:
        (root / name[0] / f"{name}{suffix}").write_bytes(b"torn " + name.encode())
    (root / "a/notes.txt").write_text("notes")


def of_images(root: Path, torn: list[str]) -> tuple[Any, str]:
    classes(root, ".png", torn)
    options = FolderOptions(**HELD)
    return ImageFolder(root, options), check_folder(root, options).text


def of_sounds(root: Path, torn: list[str]) -> tuple[Any, str]:
    classes(root, ".wav", torn)
    options = SoundOptions(image_size=8, **HELD)
    return SoundFolder(root, options), check_sounds(root, options).text


def of_captions(root: Path, torn: list[str]) -> tuple[Any, str]:
    rows = [(f"{name}.png", f"number {i}") for i, name in enumerate(NAMES)]
    for i, (file, _) in enumerate(rows):
        write(root / file, i)
    for name in torn:
        (root / f"{name}.png").write_bytes(b"torn " + name.encode())
    with (root / "captions.csv").open("w") as file:
        csv.writer(file).writerows([("image", "caption"), *rows, ("gone.png", "no image")])
    options = FolderOptions(**HELD)
    table = root / "captions.csv"
    return TextTable(table, CAPTIONS, options), check_texts(table, CAPTIONS, options).text


@pytest.mark.parametrize("torn", [[], ["a1"], NAMES[2:7]], ids=["none", "one", "five"])
@pytest.mark.parametrize("kind", [of_images, of_sounds, of_captions])
def test_a_check_and_training_say_the_same_about_files_left_out(tmp_path, caplog, kind, torn) -> None:
    data, checked = kind(tmp_path, torn)
    with caplog.at_level(logging.WARNING):
        train = data.load("train")
        for split in ("validation", "test"):
            data.load(split, like=train)
    trained = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    shown = [line for line in checked.splitlines() if "left out" in line]
    assert [line.partition(": ")[2] for line in trained] == shown
    assert len(shown) >= (2 if len(torn) > 1 else 1), "the files are torn in several splits"
    assert sum(int(line.split()[0]) for line in shown) == len(torn) + 1
