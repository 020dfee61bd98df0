"""Tasks: what a run learns. A task loads data, builds a model, computes the loss of a batch, and measures the model.

The training loop, checkpoints and run folders are the same for all tasks.

Order: metrics, report, spec, options, base, classify, answer, write, mask, retrieve, segment, detect.
"""

from ..recipe import Recipe
from .answer import Answer
from .base import DataSpec, Task, recipe_error
from .classify import Classify
from .detect import Detect
from .mask import Mask
from .report import Report
from .retrieve import Retrieve
from .segment import Segment
from .write import Caption, Translate

TASKS: dict[str, type[Task]] = {
    "classify": Classify,
    "vqa": Answer,
    "caption": Caption,
    "retrieve": Retrieve,
    "masked": Mask,
    "translate": Translate,
    "segment": Segment,
    "detect": Detect,
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
    "Detect",
    "Mask",
    "Report",
    "Retrieve",
    "Segment",
    "Task",
    "Translate",
    "recipe_error",
    "task_of",
]
