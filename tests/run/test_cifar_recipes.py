"""The recipes for CIFAR-10 and their like: the size of their models, and short runs of them on a few pictures."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import Watch, isolate

import tinyvit as tv
from tinyvit.models import ViT
from tinyvit.recipe import Recipe, load_recipe
from tinyvit.run.folder import load_run
from tinyvit.run.loop import train
from tinyvit.run.own_images import chosen_recipe

CLASSES, SIDE, CHANNELS = 10, 32, 3
LIMITS = {"cifar-10": 150_000, "cifar-10-quick": 150_000, "cct-cifar-10": 500_000, "vit-cifar-10": 4_000_000}
PASSES = {"cct-cifar-10": 200, "vit-cifar-10": 200}


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of 32 x 32 pixels, of which those of a class have one colour in common."""
    isolate(tmp_path, monkeypatch)
    rng = np.random.default_rng(0)
    for k, name in enumerate(("red", "green", "blue")):
        Path("pictures", name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 90, (SIDE, SIDE, CHANNELS), np.uint8)
            pixels[..., k] += 150
            Image.fromarray(pixels).save(Path("pictures", name, f"{i}.png"))
    return Path("pictures")


def weights_of(recipe: Recipe, side: int = SIDE, channels: int = CHANNELS) -> int:
    # In TOML, 0 stands for None.
    options = {
        key: value for key, value in dataclasses.asdict(recipe.model).items() if value or isinstance(value, bool)
    }
    model = ViT(side, num_classes=CLASSES, in_channels=channels, **options)
    return sum(math.prod(p.shape) for p in model.parameters())


@pytest.mark.parametrize("name", LIMITS)
def test_the_model_has_no_more_weights_than_promised(name: str) -> None:
    assert weights_of(load_recipe(name)) <= LIMITS[name]


@pytest.mark.parametrize(("name", "limit"), [("mnist", 28_000), ("fashion-mnist", 30_000)])
def test_the_models_of_grey_images_have_no_more_weights_than_promised(name: str, limit: int) -> None:
    assert weights_of(load_recipe(name), side=28, channels=1) <= limit


@pytest.mark.parametrize("name", PASSES)
def test_a_recipe_for_a_gpu_says_that_its_accuracy_was_not_measured(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.train.epochs == PASSES[name]
    assert "No accuracy has been measured" in recipe.about.note
    assert "for a GPU" in recipe.about.title


@pytest.mark.parametrize(
    "name", [pytest.param("vit-cifar-10", marks=pytest.mark.slow), *sorted({*LIMITS} - {"vit-cifar-10"})]
)
def test_it_trains_to_its_end_on_a_few_pictures(name: str, pictures: Path) -> None:
    shortened = ["data.limit=8", "batch_size=4", "epochs=1", "warmup_epochs=0", "data.validation=0.2"]
    recipe, _ = chosen_recipe(name, str(pictures), [*shortened, f"image_size={SIDE}"])
    assert recipe.model == load_recipe(name).model
    result = train(recipe, "short")
    assert [line["step"] for line in result.metrics] == [2]
    assert np.isfinite([result.metrics[0]["train_loss"], result.metrics[0]["val_loss"], result.test["loss"]]).all()
    assert load_run(result.folder).recipe == recipe


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar-10", "cifar-10-quick"])
def test_its_steps_on_a_cpu_are_made_from_a_record(name: str, pictures: Path) -> None:
    shortened = ["data.limit=12", "batch_size=3", "epochs=1", "warmup_epochs=0", "data.validation=0.2"]
    recipe, _ = chosen_recipe(name, str(pictures), [*shortened, f"image_size={SIDE}"])
    reasons = []
    with tv.use_kernels("auto"):
        train(recipe, "short", display=Watch(lambda training, _: reasons.append(training.steps.why_not_recorded)))
    assert reasons == [""] * 4
