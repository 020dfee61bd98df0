"""Distillation: the trained model from which a run learns, beside the labels (task.teacher)."""

import hashlib

from ..errors import RecipeError
from ..nn import Module
from ..recipe import Recipe
from ..tasks import Classify, DataSpec, Task
from .folder import RunError, load_run


def attach_teacher(task: Task, recipe: Recipe, data: DataSpec) -> str:
    """Give a task the teacher that the recipe names; return a checksum of its weights, or an empty text without one.

    Raises
    ------
    RunError, CheckpointError
        If there is no such run.
    RecipeError
        If it is of another task, or of other classes or images.
    """
    name = recipe.task.teacher
    if not name or not isinstance(task, Classify):
        return ""
    try:
        trained = load_run(name)
    except RunError as error:
        raise RunError(f"task.teacher: {error}") from error
    if trained.recipe.task.kind != "classify":
        raise RecipeError(
            f"task.teacher is {name!r}, a {trained.recipe.task.kind!r} run; give one that classifies images"
        )
    differences = trained.data.differences(data)
    if not differences and (trained.data.mean, trained.data.std) != (data.mean, data.std):
        differences = [
            f"the images were normalized by mean and std {trained.data.mean}, {trained.data.std} and are now by "
            f"{data.mean}, {data.std}: set data.normalize"
        ]
    if differences:
        raise RecipeError(f"task.teacher is {name!r}, which learned from other data: {'; '.join(differences)}")
    task.teacher = trained.model.eval().requires_grad_(False)
    return _checksum(trained.model)


def _checksum(model: Module) -> str:
    found = hashlib.sha256()
    for name, array in model.state_dict().items():
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.hexdigest()
