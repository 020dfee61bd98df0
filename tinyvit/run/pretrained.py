"""Pretrained weights of others in place of a run: used as they are, or as the start of a run (task.start_from)."""

import dataclasses
from pathlib import Path
from typing import Any

from ..data import Preprocessing
from ..errors import CheckpointError, RecipeError
from ..interop import from_pretrained
from ..interop.describe import form_of_model, preprocessing_of
from ..interop.files import INDEX, WEIGHTS
from ..interop.hub import PREFIX, downloaded, pinned
from ..models import ViT
from ..nn import Module
from ..recipe import About, Data, Model, Recipe, Train
from ..tasks import DataSpec

NAME = "pretrained"  # of the data that such a model was trained on, which is not here
_FILES = ("config.json", WEIGHTS, INDEX)
_SUFFIXES = (".safetensors", ".npz", ".index.json", ".bin", ".pt", ".pth", ".ckpt")
_OF_TRAINING = ("dropout", "emb_dropout", "drop_path", "head_dropout")  # keys of [model] that a recipe decides


def is_pretrained(name: str | Path) -> bool:
    """Return whether a name means pretrained weights: one of the hub, a file, or a folder without a recipe."""
    if str(name).startswith(PREFIX):
        return True
    path = Path(name)
    if path.is_dir():
        return not (path / "recipe.toml").exists() and any((path / file).is_file() for file in _FILES)
    return path.is_file() and path.name.endswith(_SUFFIXES)


def load_pretrained(name: str | Path) -> tuple[Recipe, ViT, DataSpec]:
    """Load pretrained weights, with a recipe and facts about their data as those of a run. Raises CheckpointError."""
    model = from_pretrained(name)
    preprocessing = preprocessing_of(model)
    classes = model.labels or tuple(map(str, range(model.num_classes)))
    shape = (model.patch_embed.in_channels, *model.patch_embed.image_size)
    data = DataSpec(classes, shape, preprocessing.mean, preprocessing.std, resize=preprocessing.resize.state())
    recipe = Recipe(
        about=About(title=str(name)),
        data=Data(name=NAME, batch_size=32),
        model=_section(model, Model(patch_size=1, dim=1, depth=1, heads=1)),
        train=Train(epochs=1, lr=1e-3),
    )
    return recipe, model, data


def _section(model: ViT, before: Model) -> Model:
    """Return the section [model] of a recipe for such a model, with the rates of dropout of the section `before`."""
    form = form_of_model(model)
    if form.patch_size[0] != form.patch_size[1]:
        raise CheckpointError(f"the patches have {form.patch_size} pixels; a recipe has square ones only")
    return Model(
        patch_size=form.patch_size[0],
        dim=form.dim,
        depth=form.depth,
        heads=form.heads,
        mlp_dim=form.mlp_dim,
        pool=form.pool,
        pos_embed="learned" if form.has_positions else "none",
        qkv_bias=form.qkv_bias,
        layer_scale=1.0 if form.layer_scale else 0.0,
        register_tokens=form.registers,
        class_token=form.class_token,
        distilled=form.distilled,
        no_embed_class=form.no_embed_class,
        last_norm=form.place,
        pre_norm=form.pre_norm,
        qk_norm=form.qk_norm,
        proj_bias=form.proj_bias,
        act=form.act,
        eps=form.eps,
        **{key: getattr(before, key) for key in _OF_TRAINING},
    )


def adopted(recipe: Recipe) -> Recipe:
    """Return a recipe that starts from pretrained weights with their form, and with images prepared as they want it.

    The section [model] becomes that of the weights, except for rates of dropout, and images in a folder get the
    channels of the weights. Unless the recipe states them, the size of these images, their resizing, mean and std are
    those of the weights too. A name of the hub gets the revision that was found, so that the run can be repeated. Other
    recipes are returned as they are.

    Raises
    ------
    RecipeError
        If the task is no classification.
    CheckpointError
        If the weights cannot be loaded.
    """
    name = recipe.task.start_from
    if not name or not is_pretrained(name):
        return recipe
    if recipe.task.kind != "classify":
        raise RecipeError(f"task.start_from is {name!r}; only a 'classify' run starts from pretrained weights")
    if name.startswith(PREFIX):
        name = pinned(name, downloaded(name))
    model = from_pretrained(name)
    preprocessing, data = preprocessing_of(model), recipe.data
    changes: dict[str, Any] = {"normalize": data.normalize or _normalize(preprocessing)}
    if data.name.startswith("folder:"):
        height, width = model.patch_embed.image_size
        if not data.image_size and height != width:
            raise RecipeError(f"the weights take images of {height} x {width}; set data.image_size to one number")
        changes["channels"] = model.patch_embed.in_channels
        changes["image_size"] = data.image_size or height
        changes["resize"] = data.resize or " ".join(map(str, preprocessing.resize.state()))
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(data, **changes),
        model=_section(model, recipe.model),
        task=dataclasses.replace(recipe.task, start_from=name),
    )


def _normalize(preprocessing: Preprocessing) -> str:
    return " / ".join(" ".join(map(repr, numbers)) for numbers in (preprocessing.mean, preprocessing.std))


def transfer_pretrained(model: Module, data: DataSpec, recipe: Recipe) -> None:
    """Copy all pretrained weights but the head's into `model`, their positions resampled for the size of the images.

    Raises CheckpointError or RecipeError if they cannot be loaded, or do not fit the model or its images.
    """
    name, size = recipe.task.start_from, data.shape[-2:]
    try:
        source = from_pretrained(name, image_size=(size[0], size[1]), num_classes=0)
    except CheckpointError:
        raise
    except ValueError as error:
        raise RecipeError(f"task.start_from: {name} for images of {size[1]} x {size[0]} pixels: {error}") from error
    channels = source.patch_embed.in_channels
    if channels != data.shape[0]:
        raise RecipeError(
            f"task.start_from: {name} takes images of {channels} channels; {recipe.data.name} has {data.shape[0]}"
        )
    state, own = source.state_dict(), dict(model.named_parameters())
    fresh = ("head.", "head_dist.")
    extra = [key for key in own if key not in state and not key.startswith(fresh) and ".lora_" not in key]
    wrong = [*extra, *(key for key in state if key not in own or own[key].shape != state[key].shape)]
    if wrong:
        raise RecipeError(f"task.start_from: {name} has another form than [model] says: {', '.join(wrong[:5])}")
    for key, value in state.items():
        own[key].assign(value)
