"""What is studied by the command: a trained model on an image that it is unsure of, or one operation by itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import functional as F
from ..autograd import Op, Tensor, no_grad
from ..data import normalize, read_image
from ..dispatch import use_kernels
from ..errors import DataError, StudyError
from ..models import ViT
from ..runs import TrainedModel, load_data, load_run
from .fused import comparisons_of
from .page import save_page
from .plant import planted
from .trace import Trace, trace

# What the command does ----------------------------------------------------------------------------------------------


def write_page(run: str, image: str | None, out: str, plant: str | None = None) -> str:
    """Write the page of a run, or of an operation, and say where it is and how it is opened."""
    with planted(plant) as mistake:
        recorded, told = _studied(run, image)
        if mistake is not None:
            told["exercise"] = mistake
            told["title"] = "One gradient rule of this page is wrong. Which one?"
        try:
            save_page(recorded, out, told)
        except OSError as error:
            raise StudyError(f"{out} cannot be written: {error.strerror}") from error
    return f"{told['summary']}\n{out}: {Path(out).stat().st_size / 1e6:.1f} MB; open it in a browser"


def printed(run: str, image: str | None, operation: str | None, plant: str | None = None) -> str:
    """The walk in words, of all operations or of those with `operation` in their name."""
    with planted(plant):
        recorded, told = _studied(run, image)
        if operation is None and run in Op.registry:
            operation = run
        try:
            return f"{told['summary']}\n\n{recorded.text(operation)}"
        except KeyError as error:
            raise StudyError(error.args[0]) from error


def _studied(run: str, image: str | None) -> tuple[Trace, dict[str, Any]]:
    if run in Op.registry and not Path(run).exists():
        if image is not None:
            raise StudyError(f"{run} is an operation and takes no image; leave out --image")
        return study_operation(run), about_operation(run)
    subject = study_run(run, image)
    return subject.trace, about(subject)


# One operation ------------------------------------------------------------------------------------------------------


def study_operation(name: str) -> Trace:
    """Trace an operation, forward and backward, on its own samples, by the plain rule at float64."""
    rng = np.random.default_rng(0)
    with use_kernels("numpy"), trace() as recorded:
        for sample in Op.registry[name].samples():
            inputs = [None if x is None else Tensor(x, requires_grad=True) for x in sample.inputs]
            outputs = Op.registry[name].apply(*inputs, **sample.params)
            for y in outputs if isinstance(outputs, tuple) else (outputs,):
                y.backward(rng.standard_normal(y.shape), retain_graph=True)
    for entry in recorded:
        entry.line = ""
    return recorded


def about_operation(name: str) -> dict[str, Any]:
    return {
        "title": f"The gradient of {name.replace('_', ' ')}, step by step",
        "summary": f"{name} on samples of a few shapes, at float64, with random gradients coming back.",
    }


# One image, through a model -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """One image, gone through a model forward and backward.

    Attributes
    ----------
    run, image : their names.
    pixels : uint8 (C, H, W).
    target : the class that the loss asks for.  is_label : whether that is the image's label, or what the model says.
    probabilities : of the classes.
    """

    run: str
    image: str
    pixels: np.ndarray
    classes: tuple[str, ...]
    target: int
    is_label: bool
    probabilities: np.ndarray
    loss: float
    trained: TrainedModel
    model: ViT
    trace: Trace


def study_run(run: str = "digits", image: str | Path | None = None) -> Subject:
    """Trace the loss of one image, and its gradients, by the plain rules at float32.

    Parameters
    ----------
    run : a run folder, or the name of a recipe whose trained weights come with the package.
    image : an image file, whose most probable class is then taken for the right one; by default the test image that the
        model is least sure of, with its label: where the model is sure, gradients are almost zero.

    Raises
    ------
    RunError, RecipeError, CheckpointError, DataError
    """
    trained = load_run(run)
    if not isinstance(trained.model, ViT) or len(trained.data.shape) != 3 or not trained.data.classes:
        raise StudyError(f"{run} is no classifier of images; those are what tinyvit study walks through")
    if image is None:
        pixels, target, name = _least_sure(trained)
    else:
        channels, height, width = trained.data.shape
        pixels, target, name = read_image(image, channels, height if height == width else None), None, str(image)
        if pixels.shape != trained.data.shape:
            raise DataError(
                f"{image} has {pixels.shape[2]} x {pixels.shape[1]} pixels; this model takes {width} x {height}"
            )
    probabilities = _probabilities(trained, pixels[None])[0]
    chosen = int(probabilities.argmax()) if target is None else target
    images = Tensor(normalize(pixels[None], trained.data.mean, trained.data.std), requires_grad=True)
    with use_kernels("numpy"), trace(names={"image": images}) as recorded:
        loss = F.cross_entropy(trained.model(images), np.array([chosen]))
        loss.backward()
    for entry in recorded:
        entry.line = ""  # it was called from here, which tells nobody anything
    return Subject(
        run=run,
        image=name,
        pixels=pixels,
        classes=trained.data.classes,
        target=chosen,
        is_label=target is not None,
        probabilities=probabilities,
        loss=loss.item(),
        trained=trained,
        model=trained.model,
        trace=recorded,
    )


@no_grad()
def _probabilities(trained: TrainedModel, pixels: np.ndarray) -> np.ndarray:
    with use_kernels("numpy"):
        return F.softmax(trained.model(normalize(pixels, trained.data.mean, trained.data.std))).numpy()


def _least_sure(trained: TrainedModel) -> tuple[np.ndarray, int, str]:
    """Of the first 500 test images, the one whose two most probable classes are closest; its label, its name."""
    test = load_data(trained.recipe, "test")
    probabilities = _probabilities(trained, test.images[:500])
    first, second = np.sort(probabilities, axis=1)[:, :-3:-1].T
    i = int((first - second).argmin())
    return test.images[i], int(test.labels[i]), f"test image {i} of {trained.recipe.data.name}"


def about(subject: Subject) -> dict[str, Any]:
    """What the page says of a subject, see `tinyvit.study.page.page_of`."""
    model, p = subject.model, subject.probabilities
    order = [int(i) for i in np.argsort(-p)]
    says = ", ".join(f"{subject.classes[i]} {p[i]:.1%}".replace("%", " %") for i in order[:3])
    whose = "its label" if subject.is_label else "the most probable class"
    parameters = sum(parameter.size for parameter in model.parameters())
    return {
        "title": f"How a ViT learns from one image: {subject.run}",
        "summary": f"{subject.image}. The model says {says}. Loss {subject.loss:.4f} against class "
        f"{subject.classes[subject.target]} ({whose}).",
        "facts": [
            ["model", f"{subject.run}: {parameters:,} parameters, {len(model.blocks)} blocks"],
            ["image", f"{subject.image}, {' x '.join(map(str, subject.pixels.shape))}"],
            ["loss", f"{subject.loss:.6g}, cross-entropy against class {subject.classes[subject.target]} ({whose})"],
            ["computed by", "the plain rules at float32, in eval mode (no dropout)"],
        ],
        "notes": [
            "The image is one that the model is unsure of: where a model is sure, all gradients are almost zero."
            if subject.is_label
            else "The loss asks for what the model finds most probable, so where it is sure the gradients are small."
        ],
        "fused": comparisons_of(subject.trace),
        "pixels": subject.pixels,
        "grid": list(model.patch_embed.grid),
        "prefix": model.prefix,
        "pool": model.pool,
        "classes": list(subject.classes),
        "probabilities": [float(x) for x in p],
        "target": subject.target,
        "tour": _tour(subject),
        "python": f"from tinyvit.study.subject import study_run; trace = study_run({subject.run!r}).trace"
        if subject.is_label
        else "",
    }


def _tour(subject: Subject) -> list[dict[str, Any]]:
    """Where a newcomer may begin: places of the page, with what is to be seen there."""
    recorded, target = subject.trace, subject.target
    first = recorded.entries[0]
    last = f"blocks.{len(subject.model.blocks) - 1}.attn/attention"
    places: list[tuple[str, str, str | None, Any, str, str]] = [
        ("cross_entropy", "forward", None, None, "The loss",
         "From the scores of all classes to one number: how surprised the model is by the right answer."),
        ("cross_entropy", "backward", "dlogits", (0, target), "Where the way back begins",
         "The slope of the loss for itself is 1. One rule later it is p - t: what the model says, less what is true."),
        ("head/linear", "backward", "dweight", None, "A matrix product",
         "The gradient of a weight is what came back times what went in. Open a cell, and see both."),
        (last, "backward", "ds", None, "Attention and its softmax",
         "ds = p (dp - r): why every row sums to zero, and how much of it comes from each of the two terms."),
        ("blocks.0.norm1/layer_norm", "backward", "dx", None, "Layer norm",
         "Two means are taken off the gradient, one for each thing that the norm forgets of its input."),
        (first.key, "backward", f"d{first.op.inputs[0]}", None, "The image itself",
         "The end of the way: how the loss would change with each pixel."),
    ]  # fmt: skip
    keys = {entry.key for entry in recorded}
    return [
        {"op": recorded[key].index, "dir": int(way == "backward"), "a": a, "index": index, "title": title, "text": text}
        for key, way, a, index, title, text in places
        if key in keys
    ]
