"""Features of images from a trained model, and what they are worth: `tinyvit features`, `tinyvit probe`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.words import counted
from ..checkpoint import save
from ..data import Dataset, FolderOptions, image_folder, load_dataset
from ..data.image_files import find_images, listed_files, read_files
from ..data.images import fitted
from ..errors import DataError, StudyError
from ..interop.probe import features_of, fitted_probe, nearest_neighbours
from ..models import ViT
from ..tasks import DataSpec
from .export import require_new
from .folder import TrainedModel, load_run


def write_features(run: str, images: Sequence[str], out: Path, layer: int | None = None) -> str:
    """Write the features of image files, and of all in folders, to a safetensors file; return a line about it.

    The file holds `features`, float32 (n, dim), and for `tinyvit.load` also `files`, their names in the same order.

    Raises
    ------
    DataError
        If an image cannot be read; nothing is written.
    StudyError
        If the model is no ViT or has no such layer.
    """
    require_new(out)
    trained = load_run(run)
    model = _vit_of(trained, run, layer)
    paths = [path for name in images for path in _files_of(Path(name))]
    good, pixels, broken = read_files(paths, trained.data.read_image)
    if broken:
        raise DataError(f"some images cannot be read: {listed_files(broken)}")
    features = features_of(model, np.stack(pixels), trained.data.mean, trained.data.std, layer)
    save(out, {"features": features, "files": [str(path) for path in good]})
    return f"{counted(len(features), 'images')}, {counted(features.shape[1], 'features')} each -> {out}"


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = find_images(path).images
    if not found:
        raise DataError(f"{path} holds no images")
    return found


def _vit_of(trained: TrainedModel, run: str, layer: int | None = None) -> ViT:
    model = trained.model
    if not isinstance(model, ViT) or len(trained.data.shape) != 3:
        raise StudyError(f"{run} is no ViT of images; only those have features")
    depth = len(model.blocks)
    if layer is not None and not -depth <= layer < depth:
        raise StudyError(f"--layer is {layer}; this model has the blocks 0 to {depth - 1}")
    return model


def probe(run: str, data: str, limit: int = 1000, image_size: int | None = None) -> str:
    """Return how well frozen features tell the classes of a data set: nearest neighbours and a linear classifier.

    Parameters
    ----------
    run : a run, or pretrained weights.
    data : the name of a data set of images, or folder:PATH.
    limit : the largest number of images, in all: four fifths are of the train split, the others of the test split.
    image_size : of pretrained weights, another size of images; smaller ones are faster.
    """
    trained = load_run(run)
    model, spec = _vit_of(trained, run), trained.data
    if image_size is not None:
        try:
            model.set_input_size(image_size)
        except ValueError as error:
            raise StudyError(f"--image-size is {image_size}: {error}") from error
        spec = DataSpec((), (spec.shape[0], image_size, image_size), spec.mean, spec.std, resize=spec.resize)
    counts = {"train": max(2, limit * 4 // 5), "test": max(1, limit // 5)}
    features, labels, classes = {}, {}, 0
    for split, count in counts.items():
        dataset = _loaded(data, split, spec, count)
        features[split] = features_of(model, _fitted(dataset, spec), spec.mean, spec.std)
        labels[split], classes = dataset.labels, len(dataset.classes)
    neighbours = nearest_neighbours(features["train"], labels["train"], features["test"])
    linear = fitted_probe(features["train"], labels["train"])
    found = linear.predict(features["test"])
    shares = [float(np.mean(guess == labels["test"])) for guess in (neighbours, found)]
    return (
        f"{data}: {classes} classes, {len(labels['train']):,} images to learn from, {len(labels['test']):,} to test\n"
        f"20 nearest neighbours: accuracy {100 * shares[0]:.2f} %\n"
        f"linear classifier: accuracy {100 * shares[1]:.2f} % (penalty {linear.penalty:g})"
    )


def _loaded(data: str, split: str, spec: DataSpec, count: int) -> Dataset:
    """Load a random part of a split, the same in every run."""
    resize = None if spec.preprocessing is None else spec.preprocessing.resize
    if data.startswith("folder:"):
        options = FolderOptions(image_size=spec.shape[-1], channels=spec.shape[0], resize=resize)
        dataset = image_folder(data.removeprefix("folder:"), split, options=options)
    else:
        dataset = load_dataset(data, split)
    return dataset.chosen(np.sort(np.random.default_rng(0).permutation(len(dataset))[:count]))


def _fitted(dataset: Dataset, spec: DataSpec) -> NDArray[np.uint8]:
    """Bring the images of a data set to the size and the channels of a model, uint8 (n, C, H, W)."""
    channels, height, width = spec.shape
    images: Any = dataset.images
    if images.ndim != 4:
        raise DataError(f"{dataset.name} has videos; features are those of images")
    if images.shape[1:] == spec.shape:
        return images
    from ..interop.describe import default_preprocessing

    resize = (spec.preprocessing or default_preprocessing(spec.mean, spec.std)).resize
    return np.stack([fitted(pixels, channels, (height, width), resize) for pixels in images])
