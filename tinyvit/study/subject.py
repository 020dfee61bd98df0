"""The study command: the page or the text of a trained model on an image that it is unsure of, or of one operation."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import functional as F
from ..backend.pages import is_page
from ..backend.words import counted, did_you_mean
from ..context import no_grad
from ..data import normalize
from ..data.image_files import same_form
from ..dispatch import use_kernels
from ..engine import Op, Tensor
from ..errors import StudyError
from ..models import ViT
from ..run.folder import RunError, TrainedModel, load_run, load_test_data
from .dense import KINDS, study_dense
from .page.fused import comparisons_of
from .page.write import save_page
from .planting import traced
from .trace import Trace

# The command --------------------------------------------------------------------------------------------------------


def write_page(run: str, image: str | None, label: str | None, out: str | None, plant: str | None = None) -> str:
    """Write the page of a run, or of an operation; return its summary, its path, and how to open it."""
    recorded, contents = _studied(run, image, label, plant)
    if recorded.mistake is not None:
        contents["exercise"] = recorded.mistake
        contents["title"] = "One gradient rule on this page is wrong. Which one?"
    path = _page_name(run, image, plant) if out is None else out
    return f"{contents['summary']}\n{written(recorded, path, contents)}"


def written(recorded: Trace, path: str, contents: dict[str, Any]) -> str:
    """Write the page of a trace; return its path, its size and how to open it.

    Raises StudyError, also if a file that is no page of this program would be replaced.
    """
    try:
        if Path(path).exists() and not is_page(Path(path)):
            raise StudyError(f"--out is {path}, a file that this program did not write; name another")
        save_page(recorded, path, contents)
    except OSError as error:
        raise StudyError(f"{path} cannot be written: {error.strerror}") from error
    return f"{path}: {Path(path).stat().st_size / 1e6:.1f} MB; open it in a browser"


def _page_name(run: str, image: str | None, plant: str | None) -> str:
    """study.html, or study-<subject>.html."""
    parts = [] if run == "digits" else [Path(run).name]
    parts += [] if image is None else [Path(image).stem]
    parts += [] if plant is None else ["exercise"]
    return "-".join(["study", *parts]) + ".html"


def printed(run: str, image: str | None, label: str | None, operation: str | None, plant: str | None = None) -> str:
    """The text of all operations, or all steps of those whose key contains `operation`."""
    recorded, contents = _studied(run, image, label, plant)
    if operation is None and run in Op.registry:
        operation = run
    try:
        return f"{contents['summary']}\n\n{recorded.text(operation)}"
    except KeyError as error:
        raise StudyError(error.args[0]) from error


def _studied(run: str, image: str | None, label: str | None, plant: str | None) -> tuple[Trace, dict[str, Any]]:
    """The trace of a run or of an operation, and what its page says about it."""
    if run in Op.registry and not Path(run).exists():
        if image is not None or label is not None:
            raise StudyError(f"{run} is an operation and takes no image; leave out --image and --label")
        return study_operation(run, plant), about_operation(run)
    try:
        trained = load_run(run)
        if trained.recipe.task.kind in KINDS:
            return study_dense(run, trained, image, label, plant)
        subject = study_run(run, image, label, plant)
    except RunError as error:
        if Path(run).exists():
            raise
        near = did_you_mean(run, Op.registry)
        raise StudyError(f"{error}; {run!r} is not the name of an operation either{near}") from error
    return subject.trace, about(subject)


# One operation ------------------------------------------------------------------------------------------------------


def study_operation(name: str, plant: str | None = None) -> Trace:
    """Trace an operation, forward and backward, on its own samples, with the plain rule at float64."""
    samples = list(Op.registry[name].samples())

    def compute() -> None:
        rng = np.random.default_rng(0)
        for sample in samples:
            inputs = [None if x is None else Tensor(x, requires_grad=True) for x in sample.inputs]
            outputs = Op.registry[name].apply(*inputs, **sample.params)
            for y in outputs if isinstance(outputs, tuple) else (outputs,):
                y.backward(rng.standard_normal(y.shape), retain_graph=True)

    return traced(compute, {}, plant)


def about_operation(name: str) -> dict[str, Any]:
    return {
        "title": f"The gradient of {name.replace('_', ' ')}, step by step",
        "summary": f"{name} on samples of several shapes, at float64, with random gradients of its output.",
    }


# One image, through a model -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """The forward and the backward pass of a model on one image.

    Attributes
    ----------
    run, image : their names.  pixels : uint8 (C, H, W).
    target : the class that the loss takes as right.
    source : where the target comes from: the image's "label", the model's own "guess", or the user's "choice".
    probabilities : of the classes.
    """

    run: str
    image: str
    pixels: np.ndarray
    classes: tuple[str, ...]
    target: int
    source: str
    probabilities: np.ndarray
    loss: float
    trained: TrainedModel
    model: ViT
    trace: Trace


def study_run(
    run: str = "digits",
    image: str | Path | None = None,
    label: str | None = None,
    plant: str | None = None,
    chance: random.Random | None = None,
) -> Subject:
    """Trace the loss of one image, and its gradients, with plain rules at float32.

    Parameters
    ----------
    run : a run folder, or the name of a recipe whose trained weights come with the package.
    image : an image file. The default is the test image of which the model is least sure, because gradients are almost
        zero where a model is sure.
    label : the class that the loss takes as right. The default is the label of a test image; for a file it is the most
        probable class.
    plant : the operation of which one gradient rule is to be wrong, or "any".
    chance : chooses the place of that fault; by default it is a new one at each call.

    Raises
    ------
    RunError, RecipeError, CheckpointError, DataError, PlantError
    """
    trained, kinds = load_run(run), " and ".join(map(repr, KINDS))
    if not isinstance(trained.model, ViT) or len(trained.data.shape) != 3 or not trained.data.classes:
        raise StudyError(f"{run} is not a classifier of images; tinyvit study works with those and with {kinds} runs")
    if image is None:
        pixels, target, name = _least_sure(trained)
        source = "label"
    else:
        pixels, name = trained.data.read_image(image), str(image)
        target, source = int(_probabilities(trained, pixels[None])[0].argmax()), "guess"
    if label is not None:
        target, source = _class_of(label, trained.data.classes), "choice"
    images = Tensor(normalize(pixels[None], trained.data.mean, trained.data.std), requires_grad=True)

    def compute() -> None:
        F.cross_entropy(trained.model(images), np.array([target])).backward()

    recorded = traced(compute, {"image": images}, plant, chance)
    loss = recorded["cross_entropy"].outputs[0].array
    assert loss is not None
    return Subject(
        run=run,
        image=name,
        pixels=pixels,
        classes=trained.data.classes,
        target=target,
        source=source,
        probabilities=_probabilities(trained, pixels[None])[0],
        loss=float(loss),
        trained=trained,
        model=trained.model,
        trace=recorded,
    )


def _class_of(label: str, classes: tuple[str, ...]) -> int:
    names = [same_form(name) for name in classes]
    if same_form(label) not in names:
        raise StudyError(f"there is no class {label!r}{did_you_mean(label, classes)}; available: {', '.join(classes)}")
    return names.index(same_form(label))


@no_grad()
def _probabilities(trained: TrainedModel, pixels: np.ndarray) -> np.ndarray:
    with use_kernels("numpy"):
        return F.softmax(trained.model(normalize(pixels, trained.data.mean, trained.data.std))).numpy()


def _least_sure(trained: TrainedModel) -> tuple[np.ndarray, int, str]:
    """Among the first 500 test images, the one whose two most probable classes are closest; its label and its name."""
    test = load_test_data(trained)
    probabilities = _probabilities(trained, test.images[:500])
    first, second = np.sort(probabilities, axis=1)[:, :-3:-1].T
    i = int((first - second).argmin())
    return test.images[i], int(test.labels[i]), f"test image {i} of {trained.recipe.data.name}"


# What the page says about it ----------------------------------------------------------------------------------------

_SOURCES = {"label": "its label", "guess": "the model's own guess", "choice": "as asked"}
_ANSWERS = {
    "label": "is given the right answer",
    "guess": "takes its own guess as the right answer, because the image has no label",
    "choice": "is given the answer that the reader chose",
}
_NOTES = {
    "label": "The model is unsure of this image. Where a model is sure, all gradients are almost zero.",
    "guess": "The loss takes the most probable class as right, so the gradients are small where the model is sure. "
    "The option --label chooses another class.",
    "choice": "The loss takes as right the class that was given with --label.",
}


def about(subject: Subject) -> dict[str, Any]:
    """The contents of the page of a subject, see `tinyvit.study.page.write.page_of`."""
    model, p = subject.model, subject.probabilities
    target = subject.classes[subject.target]
    guesses = ", ".join(f"{subject.classes[i]} ({100 * p[i]:.0f} %)" for i in np.argsort(-p)[:2])
    source = _SOURCES[subject.source]
    parameters = sum(parameter.size for parameter in model.parameters())
    loss = f"the loss against {target}, {source}, is {subject.loss:.4f}"
    return {
        "title": f"How a ViT learns from one image: {subject.run}",
        "summary": f"{subject.image}: the model says {guesses}; {loss}.",
        "facts": [
            ["model", f"{subject.run}: {parameters:,} parameters, {counted(len(model.blocks), 'blocks')}"],
            ["image", f"{subject.image}, {' x '.join(map(str, subject.pixels.shape))}"],
            ["loss", f"{subject.loss:.6g}, cross-entropy against class {target} ({source})"],
            ["computed by", "the plain rules at float32, in eval mode (no dropout)"],
        ],
        "notes": [_NOTES[subject.source]],
        "fused": comparisons_of(subject.trace),
        "pixels": subject.pixels,
        "grid": list(model.patch_embed.grid),
        "prefix": model.prefix,
        "pool": model.pool,
        "classes": list(subject.classes),
        "probabilities": [float(x) for x in p],
        "target": subject.target,
        "answer": _ANSWERS[subject.source],
        "tour": _tour(subject),
        "python": "" if subject.trace.mistake else f"from tinyvit.study.subject import study_run; {_call(subject)}",
    }


def _call(subject: Subject) -> str:
    """Python code that makes the same trace."""
    arguments = [repr(subject.run)]
    if subject.source != "label" and not subject.image.startswith("test image"):
        arguments.append(f"image={subject.image!r}")
    if subject.source == "choice":
        arguments.append(f"label={subject.classes[subject.target]!r}")
    return f"trace = study_run({', '.join(arguments)}).trace"


def _tour(subject: Subject) -> list[dict[str, Any]]:
    """Places of the page to start from, and what the reader can see there."""
    recorded, target = subject.trace, subject.target
    first = recorded.entries[0]
    last = f"blocks.{len(subject.model.blocks) - 1}.attn/attention"
    places: list[tuple[str, str, str | None, Any, str, str]] = [
        ("cross_entropy", "forward", None, None, "The loss",
         "It turns the scores of all classes into one number: how much the right answer surprises the model."),
        ("cross_entropy", "backward", "dlogits", (0, target), "Where the backward pass starts",
         "The slope of the loss with respect to itself is 1. One rule later the gradient is p - t: the predicted "
         "probabilities minus the target."),
        ("head/linear", "backward", "dweight", None, "A matrix product",
         "The gradient of a weight is the gradient of the output times the input. Open a cell to see both."),
        (last, "backward", "ds", None, "Attention and its softmax",
         "ds = p (dp - r) explains why every row sums to zero, and how much of it comes from each of the two terms."),
        ("blocks.0.norm1/layer_norm", "backward", "dx", None, "Layer norm",
         "The rule subtracts two means from the gradient: one because the norm ignores the mean of its input, one "
         "because it ignores the scale."),
        (first.key, "backward", f"d{first.op.inputs[0]}", None, "The image itself",
         "Here the backward pass ends: these gradients say how the loss would change with each pixel."),
    ]  # fmt: skip
    keys = {entry.key for entry in recorded}
    return [
        {"op": recorded[key].index, "dir": int(way == "backward"), "a": a, "index": index, "title": title, "text": text}
        for key, way, a, index, title, text in places
        if key in keys
    ]
