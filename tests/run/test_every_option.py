"""Every task is crossed with every option: a run is refused before its folder is made, by an error that names the key,
or its steps and its evaluation work."""

import contextlib
import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_values import any_value
from tiny_tasks import KINDS, tiny

from tinyvit.data import Dataset
from tinyvit.errors import RecipeError, TinyvitError
from tinyvit.recipe import Data, Model, Recipe, Task, Train
from tinyvit.run.loop import train
from tinyvit.run.state import Training

pytestmark = pytest.mark.usefixtures("few_scenes", "few_samples")

TASKS = {name: (name, ()) for name in KINDS} | {
    name: ("masked-patches", (f"data.name={name}", "kind=classify", f"patch_size={size}"))
    for name, size in (("digits", 2), ("motion", 8), ("chirps", 8))
}
ALWAYS = ("limit=20", "batch_size=10", "epochs=1")


@pytest.fixture
def few_samples(monkeypatch):
    """Data sets of few samples, each loaded once in a test."""
    monkeypatch.setattr("tinyvit.data.moving.COUNTS", {"train": 40, "test": 20})
    for place, name in (
        *(("tinyvit.tasks.base", "load_texts"), ("tinyvit.tasks.classify", "load_dataset")),
        ("tinyvit.tasks.mask", "load_dataset"),
    ):
        monkeypatch.setattr(f"{place}.{name}", functools.cache(few(getattr(__import__(place, fromlist=[name]), name))))


def few(load):
    return lambda name, split, **options: load(name, split, **options).sample(40)


def values_of(section: type, key: dataclasses.Field) -> list[str]:
    """Values of a key that differ from its default, as one writes them."""
    allowed = key.metadata.get("allowed")
    if isinstance(allowed, tuple):
        return [value for value in allowed if value != key.default]
    if key.type is bool:
        return [str(not key.default).lower()]
    if key.type is float:
        return ["0.3"] if section is not Train or key.name != "momentum" else ["0", "0.3"]
    return {"shift": ["1", "9999"], "cutout": ["2", "9999"], "patch_size": ["4", "5"]}.get(key.name, ["1", "3", "8"])


OPTIONS = {
    f"{section.__name__.lower()}.{key.name}={value}"
    for section in (Data, Model, Task, Train)
    for key in dataclasses.fields(section)
    if key.name not in ("name", "start_from", "epochs", "limit", "checkpoint_minutes")
    for value in values_of(section, key)
}
EXTRAS = {
    *(
        "data.name=digits",
        "data.name=motion",
        "data.name=reverse",
        "data.name=scenes-questions",
        "data.name=folder:none",
    ),
    *("data.limit=1", "data.limit=2", "task.start_from=none", "train.optimizer=sgd train.nesterov=true"),
    *("train.optimizer=sgd train.momentum=0 train.nesterov=true", "train.optimizer=sgd train.precision=float16"),
    *("model.dim=6", "model.dim=7 model.heads=1", "data.batch_size=1 train.accumulate=3", "model.pos_embed=sincos2d"),
}


def first_step(recipe: Recipe) -> Training:
    """Make the first step of a run, and measure the model; the whole run does no more."""
    training = Training(recipe)
    with np.errstate(all="ignore"):
        training.step(next(training.groups()))
        training.task.evaluate(training.model, training.test_data.first(12), 10)
    return training


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_option_works_or_is_refused(task) -> None:
    name, own = TASKS[task]
    refused, wrong = [], []
    for option in sorted(OPTIONS | EXTRAS):
        try:
            first_step(tiny(name, *own, *ALWAYS, *option.split()))
        except TinyvitError as error:
            refused.append(option)
            keys = "|".join(part.partition("=")[0].rpartition(".")[2] for part in option.split())
            if not re.search(rf"\b(data|model|task|train)\.[a-z]|\b({keys})\b|folder|run", str(error)):
                wrong.append(f"{option}: {error}")
        except FloatingPointError:
            pass
        except Exception as error:
            wrong.append(f"{option}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
    assert len(refused) < len(OPTIONS) * 4 / 5  # a task without images refuses all keys for images


AUGMENTATIONS = ("shift=1", "flip=true", "rotate=5", "scale=0.1", "cutout=2")
REFUSED = [
    *[(task, f"data.{change}") for task in ("translate", "masked-words") for change in AUGMENTATIONS],
    *[(task, "data.flip=true") for task in ("motion", "chirps", "vqa-cross", "vqa-cnn", "vqa-joint")],
    *[(task, change) for task in ("digits", "caption", "motion") for change in ("data.shift=48", "data.cutout=48")],
    *[("translate", f"model.{key}") for key in ("pool=mean", "pos_embed=none", "stem=conv", "qkv_bias=false")],
    *[("translate", f"model.{key}=0.1") for key in ("emb_dropout", "drop_path", "layer_scale", "eps", "head_dropout")],
    *[("translate", f"model.{key}") for key in ("class_token=true", "qk_norm=true", "last_norm=none", "act=silu")],
    *[("translate", f"model.{key}") for key in ("norm_layer=rmsnorm", "mlp_layer=local", "lsa=true", "rope=true")],
    *[(task, f"model.{key}") for task in ("masked-patches", "masked-both") for key in ("mlp_layer=local", "rope=true")],
    *[(task, "model.pool=cls_mean") for task in TASKS if task.startswith(("vqa-cross", "vqa-joint", "caption"))],
    *[(task, "model.pool=seq") for task in TASKS if task.startswith(("vqa-cross", "vqa-joint", "caption", "segment"))],
    *[(task, "task.lora_rank=2") for task in TASKS],
    *[(task, f"task.{key}") for task in TASKS for key in ("distill=soft", "distill_weight=0.3")],
    *[(task, "task.teacher=runs/none") for task in KINDS],
    *[(task, "task.text_depth=3") for task in ("digits", "motion", "masked-patches", "translate")],
    *[(task, "train.label_smoothing=0.1") for task in ("retrieve", "masked-both", "masked-words", "masked-patches")],
    *[(task, "task.word_prior=0.5") for task in TASKS if task not in ("caption", "translate")],
    *[(task, "task.fusion=cross") for task in TASKS if not task.startswith("vqa")],
    *[(task, "task.hide=words") for task in TASKS if not task.startswith("masked")],
    *[(task, "task.hide_words=0.3") for task in TASKS if task not in ("masked-words", "masked-both")],
    *[(task, "task.hide_patches=0.3") for task in TASKS if task not in ("masked-patches", "masked-both")],
    *[(task, f"train.{key}") for task in TASKS for key in ("momentum=0.5", "nesterov=true")],
    *[(task, f"train.{key}=0.5 train.optimizer=sgd") for task in TASKS for key in ("beta1", "beta2")],
    *[(task, f"train.{key}=0.5") for task in TASKS for key in ("lion_beta2", "muon_momentum", "cooldown")],
    *[(task, "train.beta2=0.5 train.optimizer=lion") for task in TASKS],
    *[(task, f"data.{key}=0.5/0.2") for task in KINDS for key in ("normalize", "resize")],
    *[(task, f"data.{key}") for task in TASKS for key in ("test=0.3", "channels=1", "statistics=half", "cache_mb=9")],
    *[(task, f"data.{key}=0.3") for task in KINDS for key in ("mixup", "cutmix")],
]


@pytest.mark.parametrize("task", TASKS)
def test_an_option_that_a_task_cannot_use_is_refused_before_a_folder_is_made(task) -> None:
    name, own = TASKS[task]
    for option in [option for which, option in REFUSED if which == task]:
        with pytest.raises(RecipeError) as caught:
            train(tiny(name, *own, *ALWAYS, *option.split()), "run")
        assert option.partition("=")[0] in str(caught.value), option
    assert not Path("runs").exists()


CHANGES = (
    *("model.patch_size=4", "model.dim=16", "model.depth=3", "model.heads=1", "model.mlp_dim=12", "model.pool=mean"),
    *("model.norm=post", "model.pos_embed=none", "model.qkv_bias=false", "model.dropout=0.5", "model.emb_dropout=0.3"),
    *("model.drop_path=0.5", "model.layer_scale=0.5", "model.register_tokens=1", "model.stem=conv"),
    *("model.class_token=true", "model.distilled=true", "model.no_embed_class=true", "model.last_norm=none"),
    *("model.pre_norm=true", "model.qk_norm=true", "model.proj_bias=false", "model.act=silu", "model.eps=1e-2"),
    *("model.head_dropout=0.5", "model.stem=spt", "model.stem=cct", "model.norm_layer=rmsnorm"),
    *("model.mlp_layer=local", "model.mlp_layer=swiglu", "model.lsa=true", "model.rope=true", "task.text_depth=3"),
)
# Recipes of one kind of task are changed into each other by one key, `fusion` or `hide`. Keys that only the other ones
# use are therefore not refused. The keys without a default are those that every recipe states.
OF_VIT = {
    *("patch_size", "depth", "pool", "pos_embed", "qkv_bias", "emb_dropout", "drop_path", "layer_scale"),
    *("register_tokens", "stem", "class_token", "distilled", "no_embed_class", "last_norm", "pre_norm", "qk_norm"),
    *("proj_bias", "act", "eps", "norm_layer", "mlp_layer", "lsa", "rope"),
}
WITHOUT_EFFECT = {
    "vqa-cnn": OF_VIT,
    "vqa-joint": {
        *("text_depth", "qkv_bias", "drop_path", "layer_scale", "qk_norm", "proj_bias", "act"),
        *("mlp_layer", "lsa", "rope"),
    },
    "masked-words": OF_VIT,
    "translate": {"patch_size"},
}


def trained(task: str, *changes: str) -> dict[str, bytes]:
    """Return the weights after a step, by name and shape, of a model of two blocks."""
    name, own = TASKS[task]
    deep = ("text_depth=2",) if name not in ("masked-patches", "translate") else ()
    training = first_step(tiny(name, *ALWAYS, "depth=2", *deep, *own, *changes))
    return {f"{key} {value.shape}": value.tobytes() for key, value in training.model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("motion", "chirps")])
def test_every_key_of_the_model_has_an_effect_or_is_refused(task) -> None:
    before, without = trained(task), set()
    for change in CHANGES:
        with contextlib.suppress(RecipeError):
            if trained(task, change) == before:
                without.add(change.partition("=")[0].partition(".")[2])
    assert without == WITHOUT_EFFECT.get(task, set())


@pytest.mark.parametrize("task", ["digits", "caption", "motion", "masked-both", "retrieve"])
def test_augmentations_that_a_task_can_use_are_used(task, monkeypatch) -> None:
    name, own = TASKS[task]
    plain, changed = (
        next(iter(Training(tiny(name, *own, *ALWAYS, *changes)).loader.batches(0))).images
        for changes in ((), ("shift=2", "rotate=20", "scale=0.2", "cutout=3"))
    )
    assert plain.shape == changed.shape
    assert all((plain[i] != changed[i]).any() for i in range(len(plain)))


def test_the_frames_of_a_video_are_changed_alike() -> None:
    task, own = TASKS["motion"]
    training = Training(tiny(task, *own, *ALWAYS, "shift=2", "rotate=20", "scale=0.2", "cutout=5"))
    assert isinstance(training.train_data, Dataset)
    still = np.repeat(training.train_data.images[:6, :1], 8, axis=1)  # every frame is the first
    augment = training.loader.augment
    assert augment is not None
    changed = augment(still, np.random.default_rng(0))
    assert (changed != still).any()
    np.testing.assert_array_equal(changed, np.repeat(changed[:, :1], 8, axis=1))
    np.testing.assert_array_equal(augment(still[:, 0], np.random.default_rng(0)), changed[:, 0])


@pytest.mark.parametrize("change", ["label_smoothing=0.1", "momentum=0.5", "fusion=cross"])
def test_a_run_of_an_earlier_version_may_have_options_without_effect(change) -> None:
    assert Training(tiny("masked-patches", *ALWAYS, change), legacy=True).total_steps


PATCHES = st.sampled_from((2, 4, 5, 8, 16, 40))
SIZES = ("dim", "depth", "heads", "mlp_dim", "register_tokens", "text_depth")  # large ones take long


@st.composite
def drawn_recipes(draw: st.DrawFn) -> Recipe:
    task, own = TASKS[draw(st.sampled_from(sorted(TASKS)))]
    recipe = tiny(task, *own, *ALWAYS)
    for name, section in (("data", Data), ("model", Model), ("task", Task), ("train", Train)):
        keys = [key for key in dataclasses.fields(section) if key.name != "epochs"]
        for key in draw(st.lists(st.sampled_from(keys), max_size=2)):
            values = PATCHES if key.name == "patch_size" else any_value(key, 40 if key.name in SIZES else np.inf)
            changed = dataclasses.replace(getattr(recipe, name), **{key.name: draw(values)})
            if not (isinstance(changed, Train) and changed.min_lr > changed.lr):
                recipe = dataclasses.replace(recipe, **{name: changed})
    return recipe


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(recipe=drawn_recipes())
def test_no_recipe_ends_with_an_error_that_is_not_ours(recipe) -> None:
    with contextlib.suppress(TinyvitError, FloatingPointError, MemoryError):
        first_step(recipe)
