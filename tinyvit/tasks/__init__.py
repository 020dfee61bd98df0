"""Tasks: what a run learns. A task loads data, builds a model, computes the loss of a batch, and measures the model.

The training loop, checkpoints and run folders are the same for all tasks.

Order: base, classify, answer, write, mask, retrieve.
"""

from ..recipe import Recipe
from .answer import Answer
from .base import DataSpec, Report, Task, recipe_error
from .classify import Classify
from .mask import Mask
from .retrieve import Retrieve
from .write import Caption, Translate

TASKS: dict[str, type[Task]] = {
    "classify": Classify,
    "vqa": Answer,
    "caption": Caption,
    "retrieve": Retrieve,
    "masked": Mask,
    "translate": Translate,
}


def task_of(recipe: Recipe) -> Task:
    """Return the task that `recipe` names."""
    return TASKS[recipe.task.kind](recipe)


__all__ = [
    "TASKS",
    "Answer",
    "Caption",
    "Classify",
    "DataSpec",
    "Mask",
    "Report",
    "Retrieve",
    "Task",
    "Translate",
    "recipe_error",
    "task_of",
]
