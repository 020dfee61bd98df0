"""Sheets of small images: a folder's classes, and training images as augmentation changes them."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..checkpoint import atomic_write
from ..data import Dataset, check_folder
from ..data.check import Checked
from ..data.check_sounds import check_sounds
from ..data.check_texts import check_texts
from ..data.images import open_image
from ..data.own_texts import columns_in
from ..data.sounds import has_sounds
from ..errors import DataError, RecipeError
from ..recipe import Recipe
from ..tasks import DataSpec, task_of
from ..tasks.options import augmentation_of
from .curves import own_style
from .folder import load_splits
from .state import loader_of

_COLUMNS = 12  # images in a row
_SOFTWARE = "tinyvit"  # marks the pictures that are drawn here


def checked(folder: str, out: str | None = None) -> Checked:
    """Check images, sounds or texts, draw a contact sheet, and return the report, with the path of the sheet.

    `folder` is a folder or a table, as for `tinyvit train`. Nothing is drawn of texts without images.

    Raises DataError, also if another file would be overwritten.
    """
    path = Path(out or f"{Path(folder).resolve().name}-check.png")
    _require_own(path)
    columns = columns_in(folder)
    if columns:
        found = check_texts(folder, columns)
    else:
        found = check_sounds(folder) if has_sounds(folder) else check_folder(folder)
    if not found.examples:
        return found
    draw_sheet(path, f"{folder}: some images of each {'class' if columns is None else 'split'}", found.examples)
    return dataclasses.replace(found, text=f"{found.text}\n-> {path}")


def show_augmented(recipe: Recipe, out: str | None, name: str, count: int = 8) -> str:
    """Draw training images of a recipe as the first epochs show them, and return a text with the path of the sheet.

    Raises DataError, also if another file would be overwritten, and RecipeError if the recipe has no images.
    """
    path = Path(out or f"{name}-augmented.png")
    _require_own(path)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, batch_size=_COLUMNS, repeats=1))
    train = load_splits(recipe).train
    task_of(recipe).check(DataSpec.of(train))
    if not isinstance(train, Dataset) or train.images.ndim != 4:
        raise RecipeError(f"{recipe.data.name} has no images whose augmentation can be drawn")
    sample = train.sample(min(_COLUMNS, len(train))) if len(train.classes) <= _COLUMNS else train.first(_COLUMNS)
    loader = loader_of(recipe, sample)
    loader.shuffle = False
    rows = {"as they are": list(sample.images[np.arange(len(sample))])}
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (sample.mean, sample.std))
    for epoch in range(count):
        batch = next(iter(loader.batches(epoch)))
        assert batch.images is not None
        pixels = np.clip(np.rint((batch.images * std + mean) * 255), 0, 255).astype(np.uint8)
        rows[f"epoch {epoch + 1}"] = list(pixels)
    used = [*augmentation_of(recipe).used(), *(key for key in ("mixup", "cutmix") if getattr(recipe.data, key))]
    what = ", ".join(f"{key} {getattr(recipe.data, key)}" for key in used) or "no augmentation"
    draw_sheet(path, f"{recipe.data.name}: {what}", rows)
    return f"{recipe.data.name}: {what}\n-> {path}"


def _require_own(path: Path) -> None:
    """Raise DataError if a sheet at `path` would replace a file that was not drawn here."""
    if path.exists():
        with open_image(path) as image:
            own = image.info.get("Software") == _SOFTWARE
        if not own:
            raise DataError(f"--out is {path}, a file that this program did not draw; name another")


@own_style()
def draw_sheet(path: Path, title: str, rows: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Draw rows of images uint8 (C, H, W), each with its name, as a PNG. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = max(1, max(map(len, rows.values()), default=1))
    figure = Figure(figsize=(1.8 + 0.9 * across, 0.6 + 0.95 * len(rows)), dpi=110)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)
    grid = figure.subplots(len(rows), across, squeeze=False)
    figure.subplots_adjust(1.6 / (1.8 + 0.9 * across), 0.02, 0.99, 1 - 0.5 / (0.6 + 0.95 * len(rows)), 0.06, 0.06)
    for axes_row, (name, images) in zip(grid, rows.items(), strict=True):
        for axes in axes_row:
            axes.set_axis_off()
        for axes, image in zip(axes_row, images, strict=False):
            picture = image.transpose(1, 2, 0)
            axes.imshow(np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture, interpolation="nearest")
        short = name if len(name) <= 22 else f"{name[:21]}\N{HORIZONTAL ELLIPSIS}"
        axes_row[0].text(
            -0.1, 0.5, short, transform=axes_row[0].transAxes, ha="right", va="center", fontsize=9, parse_math=False
        )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": _SOFTWARE})
    atomic_write(path, drawn.getvalue())
