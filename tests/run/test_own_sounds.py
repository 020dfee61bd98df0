"""A run on a folder of .wav files: one command trains it, and it names sounds of any rate that it may convert."""

import wave
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_run import isolate

from tinyvit import use
from tinyvit.cli import commands
from tinyvit.errors import DataError, RecipeError
from tinyvit.recipe import load_recipe
from tinyvit.run.folder import load_run, load_splits
from tinyvit.run.loop import train
from tinyvit.run.own_images import chosen_recipe
from tinyvit.run.sheets import checked
from tinyvit.run.state import Training
from tinyvit.tasks import DataSpec

SMALL = ("dim=8", "depth=1", "heads=2", "mlp_dim=8", "lr=0.01", "epochs=12", "image_size=16", "patch_size=8")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


def write(path: Path, pitch: float, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 8000 * np.sin(2 * np.pi * pitch * np.arange(rate // 8) / rate)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.rint(samples).astype("<i2").tobytes())
    return path


@pytest.fixture
def sounds() -> str:
    for name, pitch in (("low", 200), ("high", 2000)):
        for i in range(20):
            write(Path("sounds", name, f"{i}.wav"), pitch * (1 + i / 40))
    return "sounds"


def test_a_folder_of_sounds_is_trained_on_by_its_name_alone(sounds) -> None:
    recipe, name = chosen_recipe(sounds, None, SMALL)
    assert (name, recipe.data.name, recipe.data.seconds, recipe.train.keep) == (
        "sounds",
        "sounds:sounds",
        0.125,
        "best",
    )
    assert recipe.about.title == "Sounds in sounds: high, low"
    assert chosen_recipe(sounds, None, [])[0].data.image_size == 64
    result = train(recipe, name)
    assert result.accuracy == 1
    trained = load_run(result.folder)
    assert use.evaluated(trained)["accuracy"] == 1
    assert trained.data.sound == (8000, 0.125, False)
    spoken = CliRunner().invoke(commands, ["predict", str(result.folder), "sounds/low/3.wav", "sounds/high/2.wav"])
    assert [line.split("\t")[1] for line in spoken.output.splitlines()] == ["low", "high"]
    with pytest.raises(DataError, match="16,000 samples per second, not 8,000"):
        trained.predict(str(write(Path("new.wav"), 210, 16000)))
    with pytest.raises(DataError, match="there is no file"):
        trained.predict("none.wav")
    picture = Image.fromarray(np.zeros((16, 16), np.uint8))
    picture.save("picture.png")
    refused = CliRunner().invoke(commands, ["predict", str(result.folder), "picture.png"])
    assert refused.exit_code != 0
    with pytest.raises(DataError, match=r"picture\.png is a picture \(PNG\), but this model takes sounds: .* \.wav"):
        trained.predict("picture.png")
    assert trained.predict(picture)[0][0][0] in ("high", "low")  # a spectrogram


def test_a_stated_rate_converts_every_file(sounds) -> None:
    for i in range(8):
        write(Path(f"sounds/low/other{i}.wav"), 220 + i, 16000)
    with pytest.raises(DataError, match="different numbers of samples per second"):
        Training(chosen_recipe(sounds, None, SMALL)[0])
    result = train(chosen_recipe(sounds, None, (*SMALL, "sample_rate=4000", "epochs=8"))[0], "sounds")
    trained = load_run(result.folder)
    assert trained.data.sound == (4000, 0.125, True)
    assert trained.predict(str(write(Path("new.wav"), 210, 11025)))[0][0][0] == "low"


def test_a_check_shows_the_splits_that_training_makes(sounds) -> None:
    expected = [len(split.labels) for split in load_splits(chosen_recipe(sounds, None, SMALL)[0])]
    line = next(line for line in checked(sounds).text.splitlines() if line.startswith("all"))
    assert list(map(int, line.split()[1:])) == expected


def test_the_check_draws_spectrograms(sounds) -> None:
    assert checked(sounds).text.endswith("-> sounds-check.png")
    assert Path("sounds-check.png").is_file()


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["data.name=sounds:sounds", "flip=true", "image_size=16"], "tell left from right"),
        (["data.name=sounds:sounds", "channels=3"], "data.channels is 3, which is for images"),
        (["data.name=sounds:sounds", "resize=bicubic 1 center"], "data.resize is"),
        (["sample_rate=8000"], "data.sample_rate is 8000, which is for sounds of your own only"),
        (["seconds=1"], "data.seconds is 1.0, which is for sounds"),
    ],
)
def test_keys_that_do_not_fit_sounds_are_refused(sounds, assignments, message) -> None:
    with pytest.raises(RecipeError, match=message):
        Training(load_recipe("digits").override(assignments))


@pytest.mark.parametrize(
    "sound",
    [(8000,), (8000, 1.0, 1), (0, 1.0, True), (8000.0, 1.0, True), (8000, 0.0, True), (8000, float("nan"), True)],
)
def test_a_checkpoint_with_an_impossible_sound_is_refused(sound) -> None:
    spec = DataSpec(("a", "b"), (1, 16, 16), (0.5,), (0.2,), sound=(8000, 1.0, True))
    assert DataSpec.from_state(spec.state_dict()) == spec
    with pytest.raises(ValueError, match=r"sound|unpack"):
        DataSpec.from_state(spec.state_dict() | {"sound": list(sound)})
