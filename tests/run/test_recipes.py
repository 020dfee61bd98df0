"""Recipes: TOML stores everything that the schema allows, and every error names the mistake and the way out."""

import dataclasses
import inspect
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_values import any_value

from tinyvit.data import Augment, dataset_names
from tinyvit.errors import RecipeError
from tinyvit.models import ViT
from tinyvit.recipe import About, Data, Model, Recipe, Task, Train, load_recipe, recipe_names

MINIMAL = """
[data]
name = "digits"
batch_size = 8
[model]
patch_size = 2
dim = 8
depth = 1
heads = 1
[train]
epochs = 1
lr = 1
"""


def sections(cls: type) -> st.SearchStrategy:
    return st.builds(cls, **{key.name: any_value(key) for key in dataclasses.fields(cls)})


recipes = st.builds(
    Recipe,
    about=sections(About),
    data=sections(Data),
    model=sections(Model),
    task=sections(Task),
    train=sections(Train).filter(lambda train: train.min_lr <= train.lr),
)


def from_toml(folder: Path, text: str) -> Recipe:
    (folder / "recipe.toml").write_text(text, "utf-8")
    return load_recipe(folder / "recipe.toml")


# Reading and writing ------------------------------------------------------------------------------------------------


@given(recipe=recipes)
def test_a_recipe_written_as_toml_reads_back_equal(tmp_path_factory, recipe):
    assert from_toml(tmp_path_factory.getbasetemp(), recipe.to_toml()) == recipe


@given(recipe=recipes)
def test_the_toml_states_every_key_with_its_value(recipe):
    assert tomllib.loads(recipe.to_toml()) == dataclasses.asdict(recipe)


@given(recipe=recipes)
def test_overriding_every_key_with_its_own_value_changes_nothing(recipe):
    lines = recipe.to_toml().split("\n")
    assert recipe.override(line for line in lines if "=" in line) == recipe


def test_keys_left_out_have_their_defaults_and_integers_serve_as_floats(tmp_path):
    recipe = from_toml(tmp_path, MINIMAL)
    assert recipe.model == Model(patch_size=2, dim=8, depth=1, heads=1)
    assert recipe.train == Train(epochs=1, lr=1.0)
    assert type(recipe.train.lr) is float


@pytest.mark.parametrize("name", sorted({*recipe_names()} - {"folder"}))  # which is completed by the user's images
def test_a_recipe_of_the_package_states_what_to_type_and_what_to_expect(name):
    recipe = load_recipe(name)
    if recipe.data.name.startswith("folder:"):  # of the user, who also names the weights to start from
        assert recipe.about.command.startswith(f"tinyvit train {name} --set data.name=folder:PATH")
        return
    assert recipe.about.command == f"tinyvit train {name}"
    assert recipe.about.title
    assert recipe.about.minutes > 0
    floor = 0.3 if recipe.task.kind == "masked" else 0.5  # some hidden pixels cannot be predicted
    assert floor < recipe.about.accuracy < 1
    assert recipe.data.name in dataset_names()


def test_the_package_has_the_promised_recipes():
    assert {"digits", "mnist", "fashion-mnist", "cifar-10", "vqa", "caption", "retrieve"} <= set(recipe_names())
    assert {"masked", "translate", "video", "audio"} <= set(recipe_names())
    assert {"cifar-10-quick", "cct-cifar-10", "vit-cifar-10"} <= set(recipe_names())


def test_no_key_occurs_in_two_sections():
    names = [key.name for section in dataclasses.fields(Recipe) for key in dataclasses.fields(section.type)]
    assert len(names) == len(set(names))  # so that a bare key in `--set key=value` says which is meant


def test_the_recipe_has_every_key_of_augment():
    keys = {key.name: (key.type, key.default) for key in dataclasses.fields(Data)}
    assert {key.name: (key.type, key.default) for key in dataclasses.fields(Augment)}.items() <= keys.items()


def test_the_recipe_has_every_argument_of_vit_that_the_data_does_not_decide():
    arguments = inspect.signature(ViT).parameters
    keys = {key.name: key.default for key in dataclasses.fields(Model)}
    assert list(keys) == [name for name in arguments if name not in ("image_size", "num_classes", "in_channels")]
    for name, default in keys.items():
        if default is dataclasses.MISSING:
            assert arguments[name].default is inspect.Parameter.empty
        else:
            assert default == (arguments[name].default or 0)  # TOML has no None; 0 stands for it


# Overriding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("train.lr=1e-3", "train", "lr", 0.001),
        ("lr=2", "train", "lr", 2.0),
        (" epochs = 3 ", "train", "epochs", 3),
        ("flip=true", "data", "flip", True),
        ("pool=mean", "model", "pool", "mean"),
        ('pool="mean"', "model", "pool", "mean"),
        ("seed=9223372036854775807", "train", "seed", 2**63 - 1),
        ("data.name=pictures/a=b c", "data", "name", "pictures/a=b c"),
        ("name=2024", "data", "name", "2024"),
        ("note=", "about", "note", ""),
        ('note="a" # why', "about", "note", "a"),
        ("note=1\nlr = 5", "about", "note", "1\nlr = 5"),
    ],
)
def test_an_override_changes_its_key_and_no_other(assignment, section, key, value):
    recipe = load_recipe("digits")
    changed = recipe.override([assignment])
    expected = dataclasses.asdict(recipe)
    expected[section][key] = value
    assert dataclasses.asdict(changed) == expected
    assert recipe == load_recipe("digits")


def test_the_last_of_two_overrides_of_a_key_is_used():
    assert load_recipe("digits").override(["epochs=3", "train.epochs=5"]).train.epochs == 5


# Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs", "'epochs' is not of the form key=value"),
        ("epoch=3", "there is no key 'epoch': did you mean train.epochs?"),
        ("train.epoch=3", "there is no key 'train.epoch': did you mean train.epochs?"),
        ("trian.lr=1", "there is no key 'trian.lr': did you mean train.lr?"),
        ("model.lr=1", "there is no key 'model.lr': did you mean train.lr?"),
        ("train.dim=8", "there is no key 'train.dim': did you mean model.dim?"),
        ("a.train.lr=1", "there is no key 'a.train.lr': did you mean train.lr?"),
        ("xyzzy=1", "there is no key 'xyzzy': `tinyvit recipe digits` prints all keys"),
        ("epochs=2.5", "train.epochs is 2.5; it must be an integer, at least 1"),
        ("epochs=true", "train.epochs is True; it must be an integer, at least 1"),
        ("epochs=0", "train.epochs is 0; it must be an integer, at least 1"),
        ("lr=0", "train.lr is 0.0; it must be a finite number, above 0"),
        ("lr=fast", "train.lr is 'fast'; it must be a finite number, above 0"),
        ("lr=nan", "train.lr is nan; it must be a finite number, above 0"),
        ("lr=inf", "train.lr is inf; it must be a finite number, above 0"),
        ("lr=1" + "0" * 400, "it must be a finite number, above 0"),
        ("dropout=1", "model.dropout is 1.0; it must be a finite number, at least 0 and below 1"),
        ("ema=-0.1", "train.ema is -0.1; it must be a finite number, at least 0 and below 1"),
        ("accuracy=1.5", "about.accuracy is 1.5; it must be a finite number, at least 0 and at most 1"),
        ("seed=9223372036854775808", "train.seed is 9223372036854775808; it must be an integer, at least 0"),
        ("epochs=2147483648", "train.epochs is 2147483648; it must be an integer, at least 1 and at most 2147483647"),
        ("accumulate=1" + "0" * 30, "it must be an integer, at least 1 and at most 2147483647"),
        ("image_size=16385", "data.image_size is 16385; it must be an integer, at least 0 and at most 16384"),
        ("shift=99999", "data.shift is 99999; it must be an integer, at least 0 and at most 16384"),
        ("register_tokens=9999999", "at least 0 and at most 1048576"),
        ("mlp_dim=9999999", "at least 0 and at most 1048576"),
        ("dim=9999999", "at least 1 and at most 1048576"),
        ("depth=10001", "at least 1 and at most 10000"),
        ("warmup_epochs=1e300", "at least 0 and at most 1000000.0"),
        ("epochs=1\nlr = 5", r"train.epochs is '1\nlr = 5'; it must be an integer"),
        ("title=\udcff", r"about.title is '\udcff'; it must be text"),
        ("flip=1", "data.flip is 1; it must be true or false"),
        ("flip=yes", "data.flip is 'yes'; it must be true or false"),
        ("pool=max", "model.pool is 'max'; it must be one of 'cls', 'mean', 'first'"),
        ("heads=[1, 2]", "model.heads is [1, 2]; it must be an integer, at least 1"),
        ("min_lr=1", "train.min_lr is 1.0; it must be at most train.lr, which is 0.002"),
    ],
)
def test_a_wrong_override_names_the_value_and_what_is_allowed(assignment, message):
    recipe = load_recipe("digits").override(["lr=2e-3"])
    with pytest.raises(RecipeError, match=re.escape(message)):
        recipe.override([assignment])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL.replace("[model]", "[modle]"), "there is no section [modle] (did you mean 'model'?)"),
        (MINIMAL.replace("epochs", "epoch"), "there is no key 'train.epoch': did you mean train.epochs?"),
        (MINIMAL.replace("lr = 1", ""), "train.lr is missing"),
        (MINIMAL.replace("[data]", "[about]").replace("name", "title"), "'about.batch_size'"),
        ("train = 3\n" + MINIMAL.partition("[train]")[0], "train is 3; it must be a section, headed [train]"),
        (MINIMAL.replace("lr = 1", 'lr = "1"'), "train.lr is '1'; it must be a finite number"),
        (MINIMAL + "lr = 2", "is not valid TOML: Cannot overwrite a value"),
        (MINIMAL + "lr =", "is not valid TOML"),
        ("", "data.name, data.batch_size are missing"),
    ],
)
def test_an_error_about_a_wrong_file_names_its_path_and_the_mistake(tmp_path, text, message):
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        from_toml(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "recipe.toml"))


def test_an_error_about_a_binary_file_names_its_path(tmp_path):
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=re.escape(f"{tmp_path / 'recipe.toml'} is not valid TOML")):
        load_recipe(tmp_path / "recipe.toml")


def test_an_error_about_a_missing_file_names_its_path(tmp_path):
    with pytest.raises(RecipeError, match=re.escape(f"there is no recipe '{tmp_path / 'my.toml'}'")):
        load_recipe(tmp_path / "my.toml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digts", "there is no recipe 'digts' (did you mean 'digits'?): give audio, caption, "),
        ("xyzzy", "there is no recipe 'xyzzy': give audio, caption, "),
        ("../recipes/digits", "there is no recipe '../recipes/digits'"),
    ],
)
def test_an_error_about_an_unknown_recipe_names_the_known_ones(name, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(name)


def test_a_section_made_in_python_is_checked_too():
    with pytest.raises(RecipeError, match=re.escape("train.lr is -1.0; it must be a finite number, above 0")):
        Train(epochs=1, lr=-1)


# A recipe that builds on another --------------------------------------------------------------------------------------


def test_a_recipe_states_what_differs_from_its_base(tmp_path):
    (tmp_path / "below.toml").write_text('base = "mnist"\n[about]\ntitle = "below"\n[train]\nepochs = 3\n')
    recipe = from_toml(tmp_path, 'base = "below.toml"\n[data]\nbatch_size = 7\n')
    mnist = load_recipe("mnist")
    assert recipe.about == About()
    assert recipe.data == dataclasses.replace(mnist.data, batch_size=7)
    assert (recipe.model, recipe.train) == (mnist.model, dataclasses.replace(mnist.train, epochs=3))
    assert tomllib.loads(recipe.to_toml()) == dataclasses.asdict(recipe)  # on its own, without a base


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ('"mnits"', "base is 'mnits' (did you mean 'mnist'?)"),
        ("3", "base is 3; it must be the name of a recipe"),
        ('"gone.toml"', "gone.toml'"),
        ('"recipe.toml"', "not in a circle"),
    ],
)
def test_a_base_that_cannot_be_used_is_named(tmp_path, base, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        from_toml(tmp_path, f"base = {base}")
