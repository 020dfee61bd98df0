"""Generated data: what a label says is to be seen, and the splits share nothing."""

import numpy as np
import pytest

from tinyvit.data import CHANNEL_STATISTICS, moving, scenes


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(moving, "COUNTS", {"train": 160, "test": 80})


def test_a_video_shows_its_motion(few):
    videos, labels = moving.motion("train")
    light = (videos[:, :, 0].astype(float) - 60).clip(0, None)  # without the noise
    area, pixel = light.sum(axis=(2, 3)), np.arange(moving.SIDE)
    x, y = light.sum(axis=2) @ pixel / area, light.sum(axis=3) @ pixel / area
    right, down = x[:, -1] - x[:, 0], y[:, -1] - y[:, 0]
    steps = np.diff(np.stack([x, y]), axis=2)
    clockwise = (steps[0, :, :-1] * steps[1, :, 1:] - steps[1, :, :-1] * steps[0, :, 1:]).sum(axis=1)  # y points down
    shown = {
        "left": -right, "right": right, "up": -down, "down": down, "clockwise": clockwise,
        "counter-clockwise": -clockwise, "growing": area[:, -1] - area[:, 0], "shrinking": area[:, 0] - area[:, -1],
    }  # fmt: skip
    assert tuple(shown) == moving.MOTIONS
    for number, name in enumerate(moving.MOTIONS):
        assert (shown[name][labels == number] > 0).all()


def test_a_spectrogram_shows_how_the_pitch_changes(few):
    images, labels = moving.chirps("train")
    rows = images[:, 0].astype(float).argmax(axis=1)  # of the loudest band in each column; the highest is on top
    first, middle, last = (np.median(rows[:, part], axis=1) for part in (slice(4), slice(14, 18), slice(-4, None)))
    rises = {  # to the middle, and from there
        "steady": (0, 0), "rising": (1, 1), "falling": (-1, -1), "rising then falling": (1, -1),
        "falling then rising": (-1, 1),
    }  # fmt: skip
    assert tuple(rises) == moving.SWEEPS
    for number, name in enumerate(moving.SWEEPS):
        chosen = labels == number
        found = np.median(first[chosen] - middle[chosen]), np.median(middle[chosen] - last[chosen])
        assert tuple(np.sign(found)) == rises[name]


@pytest.mark.parametrize("make", [moving.motion, moving.chirps])
def test_generated_samples_are_in_one_split_only(few, make):
    train, test = ({image.tobytes() for image in make(split)[0]} for split in ("train", "test"))
    assert (len(train), len(test)) == (160, 80)
    assert not train & test


def test_no_scene_is_in_two_splits(monkeypatch):
    monkeypatch.setattr(scenes, "TRAIN_SCENES", 600)
    monkeypatch.setattr(scenes, "TEST_SCENES", 600)  # so many that chance alone would draw some of them twice
    scenes.of_split.cache_clear()
    train, test = scenes.of_split("train"), scenes.of_split("test")
    scenes.of_split.cache_clear()
    captions = [[scenes.caption(scene) for scene in part] for part in (train.all, test.seen, test.unseen)]
    assert [len(set(part)) for part in captions] == [600, 600, 600]
    assert len(set().union(*captions)) == 1800


def test_the_statistics_of_classic_data_sets_are_those_usually_published():
    published = {
        "mnist": "0.1307 0.3081",
        "fashion-mnist": "0.2860 0.3530",
        "cifar-10": "0.4914 0.4822 0.4465 0.2470 0.2435 0.2616",
        "cifar-100": "0.5071 0.4865 0.4409 0.2673 0.2564 0.2762",
    }
    for name, numbers in published.items():
        mean, std = CHANNEL_STATISTICS[name]
        assert [*mean, *std] == [float(number) for number in numbers.split()]
