"""Transfer learning: a run that starts from the encoders of another (task.start_from), frozen or not (task.freeze)."""

from typing import Any

from ..errors import RecipeError
from ..models import ViT
from ..nn import Module
from ..recipe import Recipe
from ..tasks import DataSpec
from .folder import RunError, load_run

# Parameters of an encoder that belong to the task it was trained for: they are neither transferred nor frozen.
_OF_THE_TASK = ("head.", "norm.", "fc_norm.")


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
    if frozen not in ("both", *encoders):
        raise RecipeError(f"task.freeze is {frozen!r}; this model's encoders are {', '.join(encoders) or 'none'}")
    for name in encoders if frozen == "both" else [frozen]:
        for key, parameter in encoders[name].named_parameters():
            parameter.requires_grad = key.startswith(_OF_THE_TASK)


def transfer_encoders(model: Module, data: DataSpec, recipe: Recipe) -> None:
    """Copy the weights of the encoders that `model` has in common with the run task.start_from.

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
    for name in common:
        _copy_encoder(theirs[name], own[name], f"task.start_from: the {name} encoder of {run} is of another form")


def _copy_encoder(source: Module, target: Module, complaint: str) -> None:
    """Copy the weights that are transferred; `complaint` begins the RunError if the two encoders do not match."""
    state = {key: value for key, value in source.state_dict().items() if not key.startswith(_OF_THE_TASK)}
    wanted = {key for key in target.state_dict() if not key.startswith(_OF_THE_TASK)}
    if wanted != state.keys():
        raise RunError(f"{complaint}: only one of the two has {min(wanted ^ state.keys())}")
    try:
        target.load_state_dict(state, strict=False)
    except ValueError as error:
        raise RunError(f"{complaint}: {error}") from error
