"""Studying a model of segmentation or detection on one test image."""

from dataclasses import replace
from typing import Any

import numpy as np

from ..backend.words import counted
from ..context import no_grad
from ..data.augment import IGNORED
from ..data.dense import NO_BOX
from ..dispatch import use_kernels
from ..engine import Tensor
from ..errors import StudyError
from ..run.folder import TrainedModel, load_test_data
from ..tasks import task_of
from ..tasks.detect import found_boxes, match
from .page.fused import comparisons_of
from .planting import traced
from .trace import Trace

KINDS = ("segment", "detect")


def study_dense(
    run: str, trained: TrainedModel, image: str | None, label: str | None, plant: str | None
) -> tuple[Trace, dict[str, Any]]:
    """Trace the loss of a test image and its gradients, with plain rules; return the trace and what its page says.

    Only test images have the masks or boxes that the loss needs. `image` may be the number of one; the default is the
    first. Raises StudyError.
    """
    if label is not None:
        raise StudyError(f"{run} is a {trained.recipe.task.kind!r} run, whose images have no single class: no --label")
    test = load_test_data(trained)
    number = _number_of(image, len(test), run, trained.recipe.task.kind)
    task, batch = task_of(trained.recipe), test.batch(np.array([number]))
    model: Any = trained.model
    inputs = Tensor(batch.images, requires_grad=True)
    shown: Any = replace(batch, images=inputs)  # type: ignore[arg-type]  # a tensor, for its gradient
    losses: list[Tensor] = []

    def compute() -> None:
        losses[:] = [task.loss(model, shown)]
        losses[0].backward()

    recorded = traced(compute, {"image": inputs}, plant)
    says = _mask_facts if trained.recipe.task.kind == "segment" else _box_facts
    place = f"test image {number} of {trained.recipe.data.name}"
    vision = model.vision
    parameters = sum(parameter.size for parameter in model.parameters())
    with no_grad(), use_kernels("numpy"):
        found = says(trained, batch)
    return recorded, {
        "title": f"How a ViT learns from one image: {run}",
        "summary": f"{place}: {found}; the loss is {losses[0].item():.4f}.",
        "facts": [
            ["model", f"{run}: {parameters:,} parameters, {counted(len(vision.blocks), 'blocks')} of the encoder"],
            ["image", f"{place}, {' x '.join(map(str, test.images.shape[1:]))}"],
            ["loss", f"{losses[0].item():.6g}"],
            ["computed by", "the plain rules at float32, in eval mode (no dropout)"],
        ],
        "notes": [_NOTES[trained.recipe.task.kind]],
        "fused": comparisons_of(recorded),
        "pixels": test.images[number],
        "grid": list(vision.patch_embed.grid),
        "prefix": vision.prefix,
        "pool": vision.pool,
        "classes": list(trained.data.classes),
        "answer": _ANSWERS[trained.recipe.task.kind],
        "tour": _tour(recorded),
    }


_ANSWERS = {
    "segment": "is given the right class of every pixel",
    "detect": "is given the right classes and boxes",
}
_NOTES = {
    "segment": "The loss is the mean over all pixels, so each pixel's gradient is the predicted probabilities minus "
    "the target, divided by the number of pixels.",
    "detect": "Each thing is matched with the query whose prediction costs least; the matching itself has no gradient. "
    "The queries that are for no thing learn to say so.",
}


def _number_of(image: str | None, count: int, run: str, kind: str) -> int:
    text = "0" if image is None else image
    if not text.isdecimal() or int(text) >= count:
        raise StudyError(
            f"--image is {image!r}; {run} is a {kind!r} run, whose loss needs the truth about an image: give the "
            f"number of a test image, from 0 to {count - 1}"
        )
    return int(text)


def _mask_facts(trained: TrainedModel, batch: Any) -> str:
    model: Any = trained.model
    predicted, truth = model(batch.images).numpy()[0].argmax(axis=-1), batch.labels[0]
    known = truth != IGNORED
    return f"{100 * (predicted == truth)[known].mean():.1f} % of its pixels get the right class"


def _box_facts(trained: TrainedModel, batch: Any) -> str:
    model: Any = trained.model
    outputs = model(batch.images)
    (queries,), _ = match([outputs], batch.labels, batch.drawn[0])
    (found,) = found_boxes(*outputs)
    there = np.flatnonzero(batch.labels[0] != NO_BOX)
    assert found.scores is not None
    pairs = [
        f"{trained.data.classes[batch.labels[0, i]]} by query {queries[0, i]} "
        f"({trained.data.classes[found.labels[queries[0, i]]]}, {100 * found.scores[queries[0, i]]:.0f} %)"
        for i in there
    ]
    return f"its {len(there)} things are matched: {', '.join(pairs)}"


def _tour(recorded: Trace) -> list[dict[str, Any]]:
    """Places of the page to start from, and what the reader can see there."""
    entries = recorded.entries
    losses = [entry for entry in entries if entry.key.split("#")[0].endswith("cross_entropy")]
    attentions = [entry for entry in entries if entry.op.attention_maps]
    heads = [entry for entry in entries if "to_" in entry.key and entry.key.split("#")[0].endswith("/linear")]
    places = [
        (losses[-1], 1, "dlogits", "Where the gradient of the classes starts",
         "The predicted probabilities minus the target, for each pixel or query."),
        (heads[-1], 1, "dweight", "The head", "The gradient of a weight is that of the output times the input."),
        (attentions[-1], 1, "ds", "The last attention", "How the loss would change with each weight of the attention."),
        (entries[0], 1, f"d{entries[0].op.inputs[0]}", "The image itself", "Here the backward pass ends."),
    ]  # fmt: skip
    return [
        {"op": entry.index, "dir": way, "a": name, "index": None, "title": title, "text": text}
        for entry, way, name, title, text in places
    ]
