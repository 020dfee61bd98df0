"""Commands about this machine and its data: `info`, `data`."""

from pathlib import Path

import click

from ..backend.terminal import show
from .group import WithKeys, commands


@commands.command()
@click.option(
    "--tune",
    metavar="RECIPE",
    is_flag=False,
    flag_value="digits",
    help="Measure first whether OpenBLAS makes products of this recipe faster.  [without a name: digits]",
)
def info(tune: str | None) -> None:
    """Show what this machine has and what tinyvit uses.

    Prints versions, devices, threads, the folders of data sets, and the implementation of each operation.

    With --tune, the matrix products of a recipe's training step are made by OpenBLAS and by tinyvit's kernels in turn,
    a fifth of a second for each shape. Later runs leave to OpenBLAS the shapes for which it was at least 5 % faster.
    The choice is kept beside the compiled kernels, for this processor, these versions and this number of threads; a run
    that was begun before keeps its own. Without --tune nothing is measured, and the kernels make all products.
    """
    from ..info import report

    if tune is not None:
        from ..recipe import load_recipe
        from ..run.tune import tune as measure

        measure(load_recipe(tune))
    show(report())


@commands.group(no_args_is_help=False)
def data() -> None:
    """Manage data sets on this machine.

    Data sets are looked for in the folder that the environment variable TINYVIT_DATA names, then in the user's cache
    folder; if they are in neither, they are downloaded to the cache folder.
    """


@data.command(name="list")
def names() -> None:
    """List the data sets, and the folder of each that is on this machine."""
    from ..data import described_datasets

    for name, place in described_datasets():
        show(name, place)


@data.command()
@click.argument("folder", metavar="FOLDER")
@click.option("--out", metavar="FILE", help="The contact sheet to draw.  [default: FOLDER-check.png]")
def check(folder: str, out: str | None) -> None:
    """Check a folder of your own images, or a table of texts.

    Prints the number of images of each class and split, sizes, modes, the files that are left out, and images
    that occur twice, in different splits for example; draws some images of each class as a contact sheet. Of a table
    of texts (captions.csv), it prints rows, words, answers, and images that are broken or missing.

    What would stop training, such as a class without images, is listed at the end; the exit status is then 2.

    \b
    tinyvit data check pictures
    tinyvit data check captions.csv
    """
    from ..run.sheets import checked

    found = checked(folder, out)
    show(found.text)
    if found.faults:
        click.get_current_context().exit(2)


@data.command(name="show", cls=WithKeys)
@click.argument("recipe", default="digits")
@click.option("--images", metavar="PATH", help="Images of your own: a folder, or a CSV table.")
@click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Change a key of the recipe.")
@click.option("--size", metavar="PIXELS", type=click.IntRange(1, 2**14), help="Of images with masks or boxes.")
@click.option("--out", metavar="FILE", help="The sheet to draw.  [default: RECIPE-augmented.png or samples.png]")
def show_images(
    recipe: str, images: str | None, assignments: tuple[str, ...], size: int | None, out: str | None
) -> None:
    """Draw training images as a recipe changes them, or a data set with its masks and boxes.

    RECIPE is a recipe, or a folder of your own images, as for `tinyvit train`. Each row of the sheet is an epoch. It
    may also be a data set with masks or boxes (scenes-shapes, scenes-pairs, canvas), folder:PATH for images with PNG
    masks, or coco:PATH for annotations in the format of COCO; all files of their splits are checked.

    \b
    tinyvit data show cifar-10
    tinyvit data show pictures --set policy=trivial
    tinyvit data show canvas
    """
    from ..dense import draw_samples, has_masks_or_boxes
    from ..run.own_images import chosen_recipe
    from ..run.sheets import show_augmented

    if has_masks_or_boxes(recipe):
        if images or assignments:
            raise click.UsageError(f"{recipe} is a data set with masks or boxes: leave out --images and --set")
        path = Path(out or "samples.png")
        for line in draw_samples(path, recipe, size):
            show(line)
        show(f"-> {path}")
        return
    if size is not None:
        raise click.UsageError("--size is for data sets with masks or boxes; set data.image_size of the recipe instead")
    chosen, name = chosen_recipe(recipe, images, assignments)
    show(show_augmented(chosen, out, name))


@data.command()
@click.argument("name")
def fetch(name: str) -> None:
    """Download a data set.

    Verifies the checksums and prints the folder of the data set. An interrupted download is resumed.

    \b
    tinyvit data fetch mnist
    """
    from ..data import fetch

    show(fetch(name))


@data.command()
@click.argument("name")
@click.option("--out", metavar="FOLDER", help="The folder to write, new or empty.  [default: NAME-samples]")
@click.option("--count", default=12, show_default=True, type=click.IntRange(1, 1000), help="How many images.")
def sample(name: str, out: str | None, count: int) -> None:
    """Write some test images of a data set as files, to try a model on.

    A table, samples.csv, says what is on them: a label, a caption, or questions with their answers. Boxes are not
    written; the table then lists the files alone. NAME is a data set (`tinyvit data list`), or a recipe, whose data
    set is meant.

    \b
    tinyvit data sample caption --out scenes
    tinyvit caption caption scenes/000.png
    """
    from ..run.samples import write_samples

    show(write_samples(name, out or f"{name}-samples", count))
