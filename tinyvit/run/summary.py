"""What notebooks show for a trained model and for the result of a run."""

from collections.abc import Sequence
from typing import Any

from ..backend.html import box_html, details_html, table_html
from ..data.image_files import listed
from ..nn import Module
from ..recipe import Recipe
from ..tasks import DataSpec

_EPOCHS = 5  # the last ones, which are shown
_NAMES = 12  # classes or words that are shown


def model_html(recipe: Recipe, model: Module, data: DataSpec) -> str:
    """Return the facts about a trained model: its task, its size, its data and its classes; the recipe is folded up."""
    rows: list[tuple[str, object]] = [
        ("task", recipe.task.kind),
        ("model", f"{type(model).__name__} with {sum(p.size for p in model.parameters()):,} weights"),
        ("data", recipe.data.name),
    ]
    if data.shape:
        rows.append(("images", " x ".join(map(str, data.shape))))
    for what, names in (("classes", data.classes), ("words", data.words)):
        if names:
            rows.append((what, f"{len(names):,}: {listed(names, _NAMES)}"))
    if recipe.about.accuracy:
        what = "accuracy aimed at" if recipe.about.is_aim else "expected accuracy"
        rows.append((what, f"{100 * recipe.about.accuracy:g} %"))
    folded = details_html("recipe", recipe._repr_html_())
    return box_html(recipe.about.title or recipe.data.name, table_html(rows), folded)


def result_html(title: str, metrics: Sequence[dict[str, Any]], score: str) -> str:
    """Return the result of a run, with a line for each of its last epochs; `score` names the accuracy."""
    head = ("epoch", "train loss", "validation loss", f"validation {score}")
    rows = [
        (line["epoch"], f"{line['train_loss']:.4f}", f"{line['val_loss']:.4f}", f"{100 * line['val_accuracy']:.2f} %")
        for line in metrics[-_EPOCHS:]
    ]
    return box_html(title, table_html([head, *rows]))
