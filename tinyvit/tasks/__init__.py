"""What a run learns: a task is its data, the model for it, the loss of a batch, and what is measured.

The training loop, checkpoints and run folders are the same for all of them.
"""

from ..run.recipe import Recipe
from .answer import Answer
from .base import DataSpec, Found, Task, mistake_in
from .classify import Classify
from .mask import Mask
from .retrieve import Retrieve
from .write import Caption, Translate

TASKS: dict[str, type[Task]] = {
    "classify": Classify, "vqa": Answer, "caption": Caption, "retrieve": Retrieve, "masked": Mask,
    "translate": Translate,
}  # fmt: skip


def task_of(recipe: Recipe) -> Task:
    """The task that `recipe` names."""
    return TASKS[recipe.task.kind](recipe)


__all__ = [
    "TASKS", "Answer", "Caption", "Classify", "DataSpec", "Found", "Mask", "Retrieve", "Task", "Translate",
    "mistake_in", "task_of",
]  # fmt: skip
