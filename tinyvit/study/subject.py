"""What is studied when nobody says: a trained model, one image that it is unsure of, one forward and one backward."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import functional as F
from ..autograd import Tensor, no_grad
from ..data import normalize, read_image
from ..dispatch import use_kernels
from ..errors import DataError
from ..runs import TrainedModel, load_data, load_run
from .trace import Trace, trace


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
    model, p = subject.trained.model, subject.probabilities
    order = [int(i) for i in np.argsort(-p)]
    says = ", ".join(f"{subject.classes[i]} {p[i]:.1%}".replace("%", " %") for i in order[:3])
    whose = "its label" if subject.is_label else "the most probable class"
    parameters = sum(parameter.size for parameter in model.parameters())
    return {
        "title": f"How a ViT learns from one image: {subject.run}",
        "summary": f"{subject.image}. The model says {says}. Loss {subject.loss:.4f} against class "
        f"{subject.classes[subject.target]} ({whose}).",
        "facts": [
            ["model", f"{subject.run}: {parameters:,} parameters, {len(model.blocks)} blocks, {model.blocks[0].attn.heads} heads"],
            ["image", f"{subject.image}, {' x '.join(map(str, subject.pixels.shape))}"],
            ["loss", f"{subject.loss:.6g}, cross-entropy against class {subject.classes[subject.target]} ({whose})"],
            ["computed by", "the plain rules at float32, in eval mode (no dropout)"],
        ],
        "notes": [
            "The image is one that the model is unsure of: where a model is sure, all gradients are almost zero."
            if subject.is_label
            else "The loss asks for what the model finds most probable, so where it is sure the gradients are small."
        ],
        "pixels": subject.pixels,
        "grid": list(model.patch_embed.grid),
        "prefix": model.prefix,
        "pool": model.pool,
        "classes": list(subject.classes),
    }
