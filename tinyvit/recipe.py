"""Recipes: one TOML file decides everything about a training run, and states what to expect of it.

The dataclasses below are the schema: type, default and allowed values of every key stand in one place. A recipe is
checked when it is made, so any code that holds one may rely on it. Whether the parts of the model fit together and fit
the data (the patches must tile the image, for example) is left to the model.
"""

import dataclasses
import difflib
import json
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .backend.files import read_text
from .errors import RecipeError

_FOLDER = Path(__file__).with_name("recipes")
_KINDS: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}


# The values of a key ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Range:
    """A range of allowed numbers, which never include infinity and NaN."""

    at_least: float = float("-inf")
    above: float = float("-inf")
    at_most: float = float("inf")
    below: float = float("inf")

    def __contains__(self, value: float) -> bool:
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    def __str__(self) -> str:
        bounds = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        return " and ".join(
            f"{field.name.replace('_', ' ')} {bound}" for field, bound in bounds if bound != field.default
        )


def _key(allowed: Range | tuple[str, ...], default: Any = dataclasses.MISSING) -> Any:
    """Declare a key with the range or the choices of its values; without a default, every recipe must state it."""
    return dataclasses.field(default=default, metadata={"allowed": allowed})


_COUNT = Range(at_least=1, at_most=2**31 - 1)
_SIZE = Range(at_least=1, at_most=2**20)  # of a part of the model; a larger one would not fit into memory
_SIZE_OR_NONE = Range(at_least=0, at_most=2**20)
_PIXELS = Range(at_least=0, at_most=2**14)
_NOT_NEGATIVE = Range(at_least=0)
_FRACTION = Range(at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A section of a recipe, whose values are checked when it is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int and abs(value) <= 2**53:
                value = float(value)
                object.__setattr__(self, field.name, value)
            allowed = field.metadata.get("allowed")
            known = type(value) is field.type and (field.type is not str or _is_text(value))
            if not known or (allowed is not None and value not in allowed):
                expected = _KINDS[field.type]
                if isinstance(allowed, Range):
                    expected += f", {allowed}"
                elif allowed is not None:
                    expected = "one of " + ", ".join(map(repr, allowed))
                name = f"{type(self).__name__.lower()}.{field.name}"
                raise RecipeError(f"{name} is {value!r}; it must be {expected}")


def _is_text(value: str) -> bool:
    """Return whether UTF-8 can encode `value`: the name of a file may contain bytes that are not valid text."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


# The schema: one class for each section, one field for each key; no key occurs in two sections ----------------------


@dataclass(frozen=True, kw_only=True)
class About(_Section):
    """The purpose of the recipe and its expected result; nothing here changes the run."""

    title: str = ""
    command: str = ""
    minutes: float = _key(_NOT_NEGATIVE, 0.0)  # on 2 CPU cores
    accuracy: float = _key(Range(at_least=0, at_most=1), 0.0)  # on the test images
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Data(_Section):
    """The data set, the batch size, and the augmentation of training images (0 or false: none)."""

    name: str  # a data set, or folder:PATH for a folder of images, see `tinyvit.data.image_folder`
    batch_size: int = _key(_COUNT)
    image_size: int = _key(_PIXELS, 0)  # pixels; 0 keeps the size of the files
    shift: int = _key(_PIXELS, 0)  # largest shift in pixels, in both directions
    flip: bool = False  # mirror left and right
    rotate: float = _key(Range(at_least=0, at_most=180), 0.0)  # largest angle in degrees, in both directions
    scale: float = _key(_FRACTION, 0.0)  # by a factor between 1 - scale and 1 + scale
    cutout: int = _key(_PIXELS, 0)  # side, in pixels, of a square that is set to 0
    limit: int = _key(Range(at_least=0, at_most=2**31 - 1), 0)  # train on this many samples only; 0 is all


@dataclass(frozen=True, kw_only=True)
class Model(_Section):
    """The arguments of `tinyvit.models.ViT` that the data does not decide."""

    patch_size: int = _key(_SIZE)
    dim: int = _key(_SIZE)
    depth: int = _key(Range(at_least=1, at_most=10_000))
    heads: int = _key(_SIZE)
    mlp_dim: int = _key(_SIZE_OR_NONE, 0)  # 0 is 4 * dim
    pool: str = _key(("cls", "mean", "first"), "cls")
    norm: str = _key(("pre", "post"), "pre")
    pos_embed: str = _key(("learned", "sincos1d", "sincos2d", "none"), "learned")
    qkv_bias: bool = True
    dropout: float = _key(_FRACTION, 0.0)
    emb_dropout: float = _key(_FRACTION, 0.0)
    drop_path: float = _key(_FRACTION, 0.0)
    layer_scale: float = _key(Range(at_least=0, at_most=1e6), 0.0)  # initial value; 0 is no layer scale
    register_tokens: int = _key(_SIZE_OR_NONE, 0)
    stem: str = _key(("linear", "conv"), "linear")


@dataclass(frozen=True, kw_only=True)
class Task(_Section):
    """The task that the model learns; the defaults are those of image classification."""

    kind: str = _key(("classify", "vqa", "caption", "retrieve", "masked", "translate"), "classify")
    fusion: str = _key(("cnn", "cross", "joint"), "joint")  # of vqa: how image and question are combined
    text_depth: int = _key(Range(at_least=1, at_most=10_000), 2)  # blocks of the text encoder or decoder
    hide: str = _key(("patches", "words", "both"), "patches")  # of masked
    hide_patches: float = _key(Range(above=0, below=1), 0.75)  # share of the patches that are hidden
    hide_words: float = _key(Range(above=0, below=1), 0.15)  # share of the words that are hidden
    word_prior: float = _key(_FRACTION, 0.0)  # of caption and translate, see `tinyvit.tasks.write.Write`
    start_from: str = ""  # a run folder whose encoders of images and texts the run starts from
    freeze: str = _key(("none", "vision", "text", "both"), "none")  # encoders that are not trained


@dataclass(frozen=True, kw_only=True)
class Train(_Section):
    """The length of the run, the optimizer and its schedule (0: not used)."""

    epochs: int = _key(_COUNT)
    lr: float = _key(Range(above=0))  # at the peak of the schedule
    min_lr: float = _key(_NOT_NEGATIVE, 0.0)  # at its end
    schedule: str = _key(("cosine", "linear", "constant"), "cosine")
    warmup_epochs: float = _key(Range(at_least=0, at_most=1e6), 0.0)
    optimizer: str = _key(("adamw", "adam", "sgd"), "adamw")
    weight_decay: float = _key(_NOT_NEGATIVE, 0.0)
    beta1: float = _key(_FRACTION, 0.9)  # of adamw and adam
    beta2: float = _key(_FRACTION, 0.999)
    momentum: float = _key(_FRACTION, 0.9)  # of sgd
    nesterov: bool = False
    clip_norm: float = _key(_NOT_NEGATIVE, 0.0)
    label_smoothing: float = _key(_FRACTION, 0.0)
    ema: float = _key(_FRACTION, 0.0)  # decay of the exponential moving average of the weights
    accumulate: int = _key(_COUNT, 1)  # batches whose gradients are added up for one step
    precision: str = _key(("float32", "bfloat16", "float16"), "float32")  # of matrix products, attention and GELU
    seed: int = _key(Range(at_least=0, below=2**63), 0)
    checkpoint_minutes: float = _key(Range(above=0), 10.0)  # between checkpoints, in addition to one after each epoch


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All sections of a recipe: `recipe.train.lr` is the key `lr` of the section `[train]`."""

    about: About
    data: Data
    model: Model
    train: Train
    task: Task = dataclasses.field(default_factory=Task)

    def __post_init__(self) -> None:
        if self.train.min_lr > self.train.lr:
            raise RecipeError(
                f"train.min_lr is {self.train.min_lr}; it must be at most train.lr, which is {self.train.lr}"
            )

    def override(self, assignments: Iterable[str]) -> "Recipe":
        """Return the recipe with the keys changed that texts such as "train.lr=1e-3", or shorter "lr=1e-3", name.

        Values are written as in TOML, but text needs no quotes. Raises RecipeError.
        """
        tables = dataclasses.asdict(self)
        for assignment in assignments:
            key, equals, text = (part.strip() for part in assignment.partition("="))
            if not equals:
                raise RecipeError(f"{assignment!r} is not of the form key=value, such as train.lr=1e-3")
            section, name = _find(key)
            tables[section][name] = _value(text, type(tables[section][name]))
        return _recipe(tables)

    def to_toml(self) -> str:
        """Return the recipe as TOML with every key; reading it gives an equal recipe."""
        blocks = (
            f"[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
            for section, table in dataclasses.asdict(self).items()
        )
        return "\n".join(blocks)


_SECTIONS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Recipe)}
_SECTION_OF = {key.name: section for section, cls in _SECTIONS.items() for key in dataclasses.fields(cls)}


# Reading a recipe ---------------------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_recipe(name: str | os.PathLike[str]) -> Recipe:
    """Read a recipe by its name (see `recipe_names`) or from the path of a .toml file. Raises RecipeError."""
    path = Path(name)
    if name in recipe_names():
        path = _FOLDER / f"{name}.toml"
    elif path.suffix != ".toml":
        raise RecipeError(
            f"there is no recipe {str(name)!r}{_did_you_mean(str(name), recipe_names())}: "
            f"give {', '.join(recipe_names())} or the path of a .toml file"
        )
    try:
        return _recipe(tomllib.loads(read_text(path)))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor TOML, or nested without end
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _recipe(tables: dict[str, Any]) -> Recipe:
    """Make a recipe from the tables of a TOML document."""
    for section, table in tables.items():
        if section not in _SECTIONS:
            near = _did_you_mean(section, _SECTIONS)
            raise RecipeError(f"there is no section [{section}]{near}: a recipe has {', '.join(_SECTIONS)}")
        if not isinstance(table, dict):
            raise RecipeError(f"{section} is {table!r}; it must be a section, headed [{section}]")
        for key in table:
            _find(f"{section}.{key}")
    return Recipe(**{name: _section(name, tables.get(name, {})) for name in _SECTIONS})


def _section(name: str, table: dict[str, Any]) -> Any:
    """Make the section `name` from its table."""
    for key in dataclasses.fields(_SECTIONS[name]):
        if key.default is dataclasses.MISSING and key.name not in table:
            raise RecipeError(f"{name}.{key.name} is missing: every recipe must state it")
    return _SECTIONS[name](**table)


def _find(key: str) -> tuple[str, str]:
    """Return the section and the name of `key`, which may be given without its section."""
    section, _, name = key.rpartition(".")
    if name in _SECTION_OF and section in ("", _SECTION_OF[name]):
        return _SECTION_OF[name], name
    near = difflib.get_close_matches(name, _SECTION_OF, n=1)
    hint = f"did you mean {_SECTION_OF[near[0]]}.{near[0]}?" if near else f"keys are {', '.join(_SECTION_OF)}"
    raise RecipeError(f"there is no key {key!r}: {hint}")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _value(text: str, kind: type) -> Any:
    """Read the right side of key=value, as TOML or else as plain text."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = table.pop("value")
    if table:  # the text contains a line break and sets further keys
        return text
    return text if kind is str and not isinstance(value, str) else value


def _toml(value: bool | int | float | str) -> str:
    if isinstance(value, str):
        quoted = json.dumps(value, ensure_ascii=False)
        return quoted.replace("\x7f", "\\u007f")  # the only character that JSON leaves as it is and TOML forbids
    return repr(value).lower()
