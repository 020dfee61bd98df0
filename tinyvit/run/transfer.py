"""Transfer learning: a run that starts from the weights of another (task.start_from), frozen or not (task.freeze)."""

from typing import Any

from ..errors import RecipeError
from ..models import ViT
from ..nn import Module
from ..recipe import Recipe
from ..tasks import DataSpec
from .folder import RunError, load_run

# Parameters of an encoder that belong to the task it was trained for: they are neither transferred nor frozen.
_OF_THE_TASK = ("head.", "head_dist.", "norm.", "fc_norm.", "attention_pool.")
_HEADS = ("head.", "head_dist.")


def encoders_of(model: Module) -> dict[str, Any]:
    """Return the encoders of a model by the names "vision" and "text"; a ViT is its own vision encoder."""
    if isinstance(model, ViT):
        return {"vision": model}
    return {name: getattr(model, name) for name in ("vision", "text") if getattr(model, name, None) is not None}


def freeze_encoders(model: Module, recipe: Recipe) -> None:
    """Freeze the encoders that task.freeze names, except for the parameters that are not transferred.

    Raises RecipeError if the model has no such encoder, or the recipe no run to start from.
    """
    frozen, encoders = recipe.task.freeze, encoders_of(model)
    if frozen == "none":
        return
    if not recipe.task.start_from:
        raise RecipeError(f"task.freeze is {frozen!r}; name the run to start from in task.start_from")
    if frozen == "backbone":
        if not isinstance(model, ViT):
            raise RecipeError("task.freeze is 'backbone'; only a classifier of images has one")
        for key, parameter in model.named_parameters():
            parameter.requires_grad = key.startswith(_HEADS)
        return
    if frozen not in ("both", *encoders):
        raise RecipeError(f"task.freeze is {frozen!r}; this model's encoders are {', '.join(encoders) or 'none'}")
    for name in encoders if frozen == "both" else [frozen]:
        for key, parameter in encoders[name].named_parameters():
            parameter.requires_grad = key.startswith(_OF_THE_TASK)


def start_weights(model: Module, data: DataSpec, recipe: Recipe) -> str:
    """Copy the weights that `model` has in common with the run task.start_from; return in words what was taken.

    From a run of the same task with a model of the same form the whole model is taken. Its head starts anew if the
    classes are others. From any other run the encoders are taken, see `transfer_encoders`. Raises what that raises.
    """
    run, trained = recipe.task.start_from, load_run(recipe.task.start_from)
    own, theirs = model.state_dict(), trained.model.state_dict()
    heads = {key for key in own if key.startswith("head.")}
    fits = own.keys() == theirs.keys() and all(own[key].shape == theirs[key].shape for key in own.keys() - heads)
    is_same_task = trained.recipe.task.kind == recipe.task.kind and trained.data.words == data.words
    if fits and is_same_task and type(model) is type(trained.model) and trained.data.shape == data.shape:
        keeps_head = trained.data.classes == data.classes
        taken = {key: theirs[key] for key in own if keeps_head or key not in heads}
        model.load_state_dict(taken, strict=False)
        what = "the whole model" if keeps_head else "the whole model but its head, which starts anew for other classes"
    else:
        names = transfer_encoders(model, data, recipe)
        taken = {
            f"{name}.{key}": value
            for name in names
            for key, value in encoders_of(model)[name].state_dict().items()
            if not key.startswith(_OF_THE_TASK)
        }
        what = f"the {' and '.join(names)} {'encoder' if len(names) == 1 else 'encoders'}, while the rest starts anew"
    count, trainable = sum(value.size for value in taken.values()), [p for p in model.parameters() if p.requires_grad]
    frozen = "" if recipe.task.freeze == "none" else f"; {sum(p.size for p in trainable):,} weights are trained"
    return f"; started from {run}: took {what} ({count:,} weights){frozen}"


def transfer_encoders(model: Module, data: DataSpec, recipe: Recipe) -> list[str]:
    """Copy the weights of the encoders that `model` has in common with the run task.start_from; return their names.

    Raises
    ------
    RunError, CheckpointError
        If there is no such run, if it has no encoder in common with the model, of the same form and vocabulary, or if
        it lacks the encoder that task.freeze names.
    """
    run, frozen = recipe.task.start_from, recipe.task.freeze
    trained = load_run(run)
    own, theirs = encoders_of(model), encoders_of(trained.model)
    if trained.data.words != data.words:
        theirs.pop("text", None)
    common = own.keys() & theirs.keys()
    if not common:
        raise RunError(
            f"task.start_from: {run} has no encoder of images, or of texts of this vocabulary, to start from"
        )
    if frozen in ("vision", "text") and frozen not in common:
        raise RunError(f"task.freeze is {frozen!r}; {run} has no such encoder, or one of another vocabulary")
    for name in sorted(common):
        _copy_encoder(theirs[name], own[name], f"task.start_from: the {name} encoder of {run} is of another form")
    return sorted(common)


def _copy_encoder(source: Module, target: Module, complaint: str) -> None:
    """Copy the weights that are transferred; `complaint` begins the RunError if the two encoders do not match."""
    state = {key: value for key, value in source.state_dict().items() if not key.startswith(_OF_THE_TASK)}
    wanted = {key for key in target.state_dict() if not key.startswith(_OF_THE_TASK) and ".lora_" not in key}
    if wanted != state.keys():
        raise RunError(f"{complaint}: only one of the two has {min(wanted ^ state.keys())}")
    try:
        target.load_state_dict(state, strict=False)
    except ValueError as error:
        raise RunError(f"{complaint}: {error}") from error
