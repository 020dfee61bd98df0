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

from .backend.files import missing, read_text
from .backend.html import box_html, details_html, table_html
from .backend.words import did_you_mean
from .errors import RecipeError
from .recipe_keys import Range, Section
from .recipe_keys import key as _key

_FOLDER = Path(__file__).with_name("recipes")

_COUNT = Range(at_least=1, at_most=2**31 - 1)
_SIZE = Range(at_least=1, at_most=2**20)  # of a part of the model; a larger one would not fit into memory
_SIZE_OR_NONE = Range(at_least=0, at_most=2**20)
_PIXELS = Range(at_least=0, at_most=2**14)
_NOT_NEGATIVE = Range(at_least=0)
_FRACTION = Range(at_least=0, below=1)


# The schema: one class for each section, one field for each key; no key occurs in two sections ----------------------


@dataclass(frozen=True, kw_only=True)
class About(Section):
    """The purpose of the recipe and its expected result; nothing here changes the run."""

    title: str = ""
    command: str = ""
    minutes: float = _key(_NOT_NEGATIVE, 0.0)  # on 2 CPU cores
    accuracy: float = _key(Range(at_least=0, at_most=1), 0.0)  # on the test images
    is_aim: bool = False  # minutes, then on a GPU, and accuracy are aims, which nobody has measured
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """The data set, the batch size, and the augmentation of training images (0 or false: none)."""

    name: str  # a data set, or folder:PATH for images and csv:PATH for texts of one's own, see `tinyvit.data`
    batch_size: int = _key(_COUNT)
    image_size: int = _key(_PIXELS, 0)  # pixels; 0 keeps the size of the files
    shift: int = _key(_PIXELS, 0)  # largest shift in pixels, in both directions
    flip: bool = False  # mirror left and right
    rotate: float = _key(Range(at_least=0, at_most=180), 0.0)  # largest angle in degrees, in both directions
    scale: float = _key(_FRACTION, 0.0)  # by a factor between 1 - scale and 1 + scale
    cutout: int = _key(_PIXELS, 0)  # side, in pixels, of a square that is set to 0
    crop: float = _key(_FRACTION, 0.0)  # the smallest share of the area of a random resized crop
    flip_alternating: bool = False  # mirror half of the images in one epoch, the others in the next
    policy: str = _key(("none", "rand", "trivial"), "none")  # RandAugment or TrivialAugment
    policy_layers: int = _key(Range(at_least=1, at_most=16), 2)  # operations of RandAugment
    policy_strength: float = _key(Range(at_least=0, at_most=1), 0.3)  # their strength
    colour: float = _key(_FRACTION, 0.0)  # largest change of brightness, contrast and saturation
    erasing: float = _key(_FRACTION, 0.0)  # share of the images of which a rectangle is filled with noise
    # How often a batch holds each image, changed differently (repeated augmentation, Hoffer et al. 2020).
    repeats: int = _key(Range(at_least=1, at_most=64), 1)
    mixup: float = _key(Range(at_least=0, at_most=100), 0.0)  # a of Beta(a, a) for mixed images
    cutmix: float = _key(Range(at_least=0, at_most=100), 0.0)  # the same for rectangles of another image
    limit: int = _key(Range(at_least=0, at_most=2**31 - 1), 0)  # train on this many samples only; 0 is all
    normalize: str = ""  # mean and std of each channel, "0.5 0.5 0.5 / 0.5 0.5 0.5"; empty for those of the data set
    resize: str = ""  # how the files of a folder are resized, "bicubic 0.9 center", see `tinyvit.data.Resize`
    # A fraction or a number of the training images; with 0, learning curves are measured on the test images.
    validation: float = _key(Range(at_least=0, at_most=2**31 - 1), 0.1)
    split_seed: int = _key(Range(at_least=0, below=2**63), 0)  # decides which images are held out; `seed` does not
    # Of a folder of images, see `tinyvit.data.FolderOptions`:
    test: float = _key(Range(above=0, at_most=2**31 - 1), 0.2)  # held out for the test, if there is no folder test
    channels: int = _key(Range(at_least=0, at_most=3), 0)  # 1 or 3; 0 is that of the images
    statistics: str = _key(("found", "half"), "found")  # of the pixels, by which images are normalized
    broken: str = _key(("skip", "refuse"), "skip")  # files that cannot be read
    cache_mb: int = _key(Range(at_least=1, at_most=2**30), 1024)  # memory for images; others are read when needed
    sample_rate: int = _key(Range(at_least=0, at_most=384_000), 0)  # of sounds; 0 is that of the files
    seconds: float = _key(Range(at_least=0, at_most=600), 0.0)  # of each sound; 0 is chosen by the files


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """The arguments of `tinyvit.models.ViT` that the data does not decide."""

    patch_size: int = _key(_SIZE)
    dim: int = _key(_SIZE)
    depth: int = _key(Range(at_least=1, at_most=10_000))
    heads: int = _key(_SIZE)
    mlp_dim: int = _key(_SIZE_OR_NONE, 0)  # 0 is 4 * dim
    pool: str = _key(("cls", "mean", "first", "cls_mean", "seq"), "cls")  # seq: sequence pooling, of CCT
    norm: str = _key(("pre", "post"), "pre")
    pos_embed: str = _key(("learned", "sincos1d", "sincos2d", "none"), "learned")
    qkv_bias: bool = True
    dropout: float = _key(_FRACTION, 0.0)
    emb_dropout: float = _key(_FRACTION, 0.0)
    drop_path: float = _key(_FRACTION, 0.0)
    layer_scale: float = _key(Range(at_least=0, at_most=1e6), 0.0)  # initial value; 0 is no layer scale
    register_tokens: int = _key(_SIZE_OR_NONE, 0)
    stem: str = _key(("linear", "conv", "cct", "spt"), "linear")  # see `tinyvit.nn.PatchEmbed`
    class_token: bool = False  # also where `pool` does not read one
    distilled: bool = False
    no_embed_class: bool = False
    last_norm: str = _key(("auto", "norm", "fc_norm", "none"), "auto")
    pre_norm: bool = False
    qk_norm: bool = False
    proj_bias: bool = True
    act: str = _key(("gelu", "gelu_tanh", "quick_gelu", "relu", "silu"), "gelu")
    eps: float = _key(Range(above=0, at_most=1), 1e-6)  # of every layer norm
    head_dropout: float = _key(_FRACTION, 0.0)
    norm_layer: str = _key(("layernorm", "rmsnorm"), "layernorm")
    mlp_layer: str = _key(("mlp", "local", "swiglu"), "mlp")  # local: a depthwise convolution between the linear maps
    lsa: bool = False  # locality self-attention: a learned temperature, and no token attends to itself
    rope: bool = False  # rotary positions on two axes


@dataclass(frozen=True, kw_only=True)
class Task(Section):
    """The task that the model learns; the defaults are those of image classification."""

    kind: str = _key(("classify", "vqa", "caption", "retrieve", "masked", "translate", "segment", "detect"), "classify")
    fusion: str = _key(("cnn", "cross", "joint"), "joint")  # of vqa: how image and question are combined
    text_depth: int = _key(Range(at_least=1, at_most=10_000), 2)  # blocks of the text encoder or decoder, or of queries
    hide: str = _key(("patches", "words", "both"), "patches")  # of masked
    hide_patches: float = _key(Range(above=0, below=1), 0.75)  # share of the patches that are hidden
    hide_words: float = _key(Range(above=0, below=1), 0.15)  # share of the words that are hidden
    word_prior: float = _key(_FRACTION, 0.0)  # of caption and translate, see `tinyvit.tasks.write.Write`
    mask_head: str = _key(("linear", "queries"), "linear")  # of segment, see `tinyvit.models.segmenter`
    dice: float = _key(Range(at_least=0, at_most=1e6), 0.0)  # of segment: the weight of the Dice loss
    queries: int = _key(_SIZE, 10)  # of detect: the most things that can be found in an image
    # A run folder whose model, or whose encoders of images and texts, the run starts from; or a pretrained folder,
    # which decides [model].
    start_from: str = ""
    teacher: str = ""  # of classify: a run, or a pretrained folder, whose predictions are learned beside the labels
    distill: str = _key(("hard", "soft"), "hard")  # its most probable class, or all its probabilities
    distill_temperature: float = _key(Range(above=0, at_most=1e3), 3.0)  # of soft: logits are divided by it
    distill_weight: float = _key(Range(above=0, at_most=1), 0.5)  # share of the loss; the labels have the rest
    freeze: str = _key(("none", "vision", "text", "both", "backbone"), "none")  # what is not trained; all but the head
    lora_rank: int = _key(Range(at_least=0, at_most=1024), 0)  # of adapters beside frozen linear maps; 0 is none
    lora_targets: str = "*.qkv *.proj"  # patterns of the names of those maps


@dataclass(frozen=True, kw_only=True)
class Train(Section):
    """The length of the run, the optimizer and its schedule (0: not used)."""

    epochs: int = _key(_COUNT)
    lr: float = _key(Range(above=0))  # at the peak of the schedule
    min_lr: float = _key(_NOT_NEGATIVE, 0.0)  # at its end
    schedule: str = _key(("cosine", "linear", "constant", "cooldown"), "cosine")
    cooldown: float = _key(Range(above=0, at_most=1), 0.2)  # of that schedule: the share of the steps in which lr falls
    warmup_epochs: float = _key(Range(at_least=0, at_most=1e6), 0.0)
    optimizer: str = _key(("adamw", "adam", "sgd", "lion", "muon"), "adamw")
    weight_decay: float = _key(_NOT_NEGATIVE, 0.0)
    beta1: float = _key(_FRACTION, 0.9)  # of adamw and adam, of what muon leaves to adamw, and of lion
    beta2: float = _key(_FRACTION, 0.999)  # of the same but lion
    lion_beta2: float = _key(_FRACTION, 0.99)
    muon_momentum: float = _key(_FRACTION, 0.95)  # of the matrices of blocks
    momentum: float = _key(_FRACTION, 0.9)  # of sgd
    nesterov: bool = False
    clip_norm: float = _key(_NOT_NEGATIVE, 0.0)
    label_smoothing: float = _key(_FRACTION, 0.0)
    layer_decay: float = _key(Range(above=0, at_most=1), 1.0)  # factor of lr from each block to the one below it
    ema: float = _key(_FRACTION, 0.0)  # decay of the exponential moving average of the weights
    accumulate: int = _key(_COUNT, 1)  # batches whose gradients are added up for one step
    shards: int = _key(Range(at_least=0, at_most=4096), 0)  # parts of a batch that are computed apart; 0: not divided
    reduce: str = _key(("exact", "fast"), "exact")  # how several processes add up gradients, see `tinyvit.distributed`
    wire: str = _key(("float32", "bfloat16"), "float32")  # the dtype of gradients that a fast sum sends
    precision: str = _key(("float32", "bfloat16", "float16"), "float32")  # of matrix products, attention and GELU
    keep: str = _key(("last", "best"), "last")  # the weights to use: the last, or those of the best epoch
    patience: int = _key(Range(at_least=0, at_most=2**31 - 1), 0)  # epochs without a better one before the run stops
    continued_from: int = _key(Range(at_least=0, at_most=2**31 - 1), 0)  # epochs before --resume --set added some
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

    def is_like(self, other: "Recipe") -> bool:
        """Return whether the accuracy that `other` states is to be expected of this recipe too."""
        own, theirs = ({**dataclasses.asdict(r), "about": {}} for r in (self, other))
        for tables in (own, theirs):
            for key in ("seed", "precision", "shards", "reduce", "wire", "checkpoint_minutes"):
                del tables["train"][key]
        return own == theirs

    def _repr_html_(self) -> str:
        """Return what notebooks show: the title, the keys that differ from their defaults, and all keys folded up."""
        sections = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]
        keys = [(name, key, getattr(part, key.name)) for name, part in sections for key in dataclasses.fields(part)]
        every = [(f"{name}.{key.name}", value) for name, key, value in keys if name != "about"]
        changed = [
            (f"{name}.{key.name}", value) for name, key, value in keys if name != "about" and value != key.default
        ]
        folded = details_html(f"all {len(every)} keys", table_html(every))
        return box_html(f"Recipe: {self.about.title or self.data.name}", table_html(changed), folded)

    def to_toml(self) -> str:
        """Return the recipe as TOML with every key; reading it gives an equal recipe."""
        blocks = (
            f"[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
            for section, table in dataclasses.asdict(self).items()
        )
        return "\n".join(blocks)


# The keys of [data] by which runs trained before they had them.
_EARLIER: dict[str, Any] = {"validation": 0.0}
_EARLIER_OF_FOLDERS: dict[str, Any] = {"channels": 3, "statistics": "half"}
_BASES = 8  # recipes that may build on each other
_SECTIONS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Recipe)}
_SECTION_OF = {key.name: section for section, cls in _SECTIONS.items() for key in dataclasses.fields(cls)}


def key_named(name: str) -> dataclasses.Field[Any] | None:
    """Return the key of a recipe that a name means, with or without its section, with - for _ or a slip, or None."""
    section, _, short = name.replace("-", "_").rpartition(".")
    near = difflib.get_close_matches(short, _SECTION_OF, n=1, cutoff=0.85)
    if not near or section not in ("", _SECTION_OF[near[0]]):
        return None
    return next(key for key in dataclasses.fields(_SECTIONS[_SECTION_OF[near[0]]]) if key.name == near[0])


# Reading a recipe ---------------------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_recipe(name: str | os.PathLike[str], of_run: bool = False) -> Recipe:
    """Read a recipe by its name (see `recipe_names`) or from the path of a .toml file. Raises RecipeError.

    `of_run` says that the file is that of a run folder. Keys that it lacks then have the values by which earlier
    versions trained, which are not always the defaults of new recipes.
    """
    path = Path(name)
    if name in recipe_names():
        path = _FOLDER / f"{name}.toml"
    elif path.suffix != ".toml":
        raise RecipeError(
            f"there is no recipe {str(name)!r}{did_you_mean(str(name), recipe_names())}: "
            f"give {', '.join(recipe_names())} or the path of a .toml file"
        )
    try:
        tables = _with_base(path, tomllib.loads(read_text(path)))
        return _recipe(_completed(tables) if of_run else tables)
    except FileNotFoundError as error:
        raise RecipeError(missing(path, "recipe")) from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor TOML, or nested without end
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _with_base(path: Path, tables: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """Return the tables of a recipe with those keys of its base that it does not state; `about` is its own.

    The base is a recipe of the package, or the path of a .toml file beside this one.
    """
    if "base" not in tables:
        return tables
    base = tables["base"]
    if not isinstance(base, str):
        raise RecipeError(f"base is {base!r}; it must be the name of a recipe or the path of a .toml file")
    if depth == _BASES:
        raise RecipeError(f"base is {base!r}; recipes may build on each other {_BASES} times, but not in a circle")
    place = _FOLDER / f"{base}.toml" if base in recipe_names() else path.parent / base
    if place.suffix != ".toml":
        near, known = did_you_mean(base, recipe_names()), ", ".join(recipe_names())
        raise RecipeError(f"base is {base!r}{near}; give {known} or the path of a .toml file")
    try:
        below = _with_base(place, tomllib.loads(read_text(place)), depth + 1)
    except OSError as error:
        why = f"{place} cannot be read ({error.strerror})" if place.exists() else missing(place, "recipe")
        raise RecipeError(f"base is {base!r}, and {why}") from error
    merged = {name: table for name, table in below.items() if name != "about"}
    for name, table in tables.items():
        if name != "base":
            both = isinstance(table, dict) and isinstance(merged.get(name), dict)
            merged[name] = merged[name] | table if both else table
    return merged


def _completed(tables: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of a run of an earlier version with the keys that they lack."""
    data = tables.get("data")
    if not isinstance(data, dict):
        return tables
    of_folder = str(data.get("name")).startswith("folder:")
    return tables | {"data": _EARLIER | (_EARLIER_OF_FOLDERS if of_folder else {}) | data}


def _recipe(tables: dict[str, Any]) -> Recipe:
    """Make a recipe from the tables of a TOML document."""
    for section, table in tables.items():
        if section not in _SECTIONS:
            near = did_you_mean(section, _SECTIONS)
            raise RecipeError(f"there is no section [{section}]{near}: a recipe has {', '.join(_SECTIONS)}")
        if not isinstance(table, dict):
            raise RecipeError(f"{section} is {table!r}; it must be a section, headed [{section}]")
        for key in table:
            _find(f"{section}.{key}")
    return Recipe(**{name: _section(name, tables.get(name, {})) for name in _SECTIONS})


def _section(name: str, table: dict[str, Any]) -> Any:
    """Make the section `name` from its table."""
    keys = dataclasses.fields(_SECTIONS[name])
    missing = [f"{name}.{key.name}" for key in keys if key.default is dataclasses.MISSING and key.name not in table]
    if missing:
        raise RecipeError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: every recipe must state "
            f'{"it" if len(missing) == 1 else "them"}, or name another to start from: base = "digits"'
        )
    return _SECTIONS[name](**table)


def _find(key: str) -> tuple[str, str]:
    """Return the section and the name of `key`, which may be given without its section."""
    section, _, name = key.rpartition(".")
    if name in _SECTION_OF and section in ("", _SECTION_OF[name]):
        return _SECTION_OF[name], name
    near = difflib.get_close_matches(name, _SECTION_OF, n=1)
    meant = f"did you mean {_SECTION_OF[near[0]]}.{near[0]}?" if near else None
    hint = meant or "`tinyvit recipe digits` prints all keys and what they do"
    raise RecipeError(f"there is no key {key!r}: {hint}")


def _value(text: str, kind: type) -> Any:
    """Read the right side of key=value, as TOML or else as plain text."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = table.pop("value")  # what is left are further keys, from a text with line breaks
    return text if table or (kind is str and not isinstance(value, str)) else value


def _toml(value: bool | int | float | str) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON allows and TOML does not
    return repr(value).lower()
