"""Commands that use a trained model: `evaluate`, `predict`, `ask`, `caption`, `translate`, `retrieve`."""

import json
from pathlib import Path
from typing import Any

import click

from ..backend.terminal import head, note, show
from ..errors import DataError
from .group import commands, device_option

# Images -------------------------------------------------------------------------------------------------------------


@commands.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@click.option("--data", metavar="PATH", help="Where data of your own lies now, if it was moved.")
@device_option
def evaluate(run: str, as_json: bool, data: str | None) -> None:
    """Measure a trained model on its test data.

    RUN is a run folder, or the name of a recipe whose trained weights come with the package. The images, questions or
    texts are those in the test split of the data set that the model was trained on. The path of data of your own
    begins at the current folder, or at one of the three folders above the run.

    \b
    tinyvit evaluate runs/digits
    tinyvit evaluate runs/digits --json
    """
    from ..run.folder import load_run
    from ..run.moved import with_data
    from ..use import evaluate, evaluated

    trained = load_run(run)
    if data is not None:
        trained = trained._replace(recipe=with_data(trained.recipe, data))
    show(json.dumps(evaluated(trained), indent=1) if as_json else evaluate(trained))


@commands.command()
@click.argument("run")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@device_option
def predict(run: str, images: tuple[str, ...]) -> None:
    """Name the class of images.

    Prints the path, the most probable class and its probability, separated by tabs; on a terminal under a heading. A
    folder stands for all images in it and in the folders below it.

    RUN is a run folder, or the name of a recipe whose trained weights come with the package. An image of another size
    is cut to a square and resized; colour becomes grey if the model needs grey. Digits must be light on dark.

    If an image cannot be read, standard error says so, the other images are named, and the exit status is 2.

    \b
    tinyvit predict runs/digits three.png
    tinyvit predict runs/digits scans
    tinyvit predict runs/digits *.png | sort -t $'\\t' -k 2
    """
    from ..run.folder import load_run
    from ..use import files_of, predict, require_kind

    trained, failed = load_run(run), False
    require_kind(trained, "classify")
    head("image", "class", "probability")
    waiting: list[str | Path] = list(reversed(images))
    while waiting:
        path = waiting.pop()
        try:
            if Path(path).is_dir():
                waiting += reversed(files_of(trained.data, Path(path)))
                continue
            name, probability = predict(trained, path)
        except DataError as error:
            note(f"tinyvit: error: {error}")
            failed = True
        else:
            show(path, name, f"{probability:.4f}")
    if failed:
        click.get_current_context().exit(2)


_BEST = 10  # images that `retrieve` prints


# Images and texts ---------------------------------------------------------------------------------------------------


def _free(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    from ..use import require_free

    if path is not None:
        require_free(path)
    return path


_picture = click.option(
    "--out",
    metavar="FILE",
    type=Path,
    callback=_free,
    help="Draw a picture, a PNG, of the part of the image that each word attends to.",
)


def _draw(out: Path | None, maps: Any, title: str) -> None:
    from ..use import draw_word_maps

    if out is not None:
        draw_word_maps(out, maps, title)
        note(f"tinyvit: attention of each word -> {out}")


@commands.command()
@click.argument("run")
@click.argument("image")
@click.argument("question")
@_picture
def ask(run: str, image: str, question: str, out: Path | None) -> None:
    """Answer a question about an image.

    Prints the answer and its probability, separated by a tab. RUN is a run folder, or the name of a
    recipe whose trained weights come with the package. `tinyvit data sample vqa` writes images and questions to try.

    \b
    tinyvit ask vqa shape.png "what color is the circle?"
    tinyvit ask runs/vqa shape.png "is there a circle?" --out looks.png
    """
    from ..run.folder import load_run
    from ..use import ask

    answer, probability, maps = ask(load_run(run), image, question)
    _draw(out, maps, f"{question}  {answer}")
    head("answer", "probability")
    show(answer, f"{probability:.4f}")


@commands.command()
@click.argument("run")
@click.argument("image")
@_picture
def caption(run: str, image: str, out: Path | None) -> None:
    """Describe an image.

    Prints the caption. RUN is a run folder, or the name of a recipe whose trained weights come with the package.
    `tinyvit data sample caption` writes images to try.

    \b
    tinyvit caption caption scene.png
    tinyvit caption runs/caption scene.png --out looks.png
    """
    from ..run.folder import load_run
    from ..use import caption

    text, maps = caption(load_run(run), image)
    _draw(out, maps, text)
    show(text)


@commands.command()
@click.argument("run")
@click.argument("text")
@device_option
def translate(run: str, text: str) -> None:
    """Write a text for a text.

    \b
    tinyvit translate runs/translate "c a f f e e"
    """
    from ..run.folder import load_run
    from ..use import translate

    show(translate(load_run(run), text))


@commands.command()
@click.argument("run")
@click.option("--images", "folder", metavar="DIR", required=True, help="The folder of images to search.")
@click.argument("text")
@_picture
def retrieve(run: str, folder: str, text: str, out: Path | None) -> None:
    """Find the images that a text describes.

    Prints the ten best matches, each with its cosine similarity to the text after a tab, from -1 to 1: it ranks the
    images, and says nothing about one alone. If there are more, standard error says of how many images they are the
    best. DIR is searched with the folders in it; files that are no images are passed over. If an image cannot be read,
    standard error says so, the others are searched, and the exit status is 2. The picture of --out shows the part of
    the best image that each word matches.

    RUN is a run folder, or the name of a recipe whose trained weights come with the package. `tinyvit data sample
    retrieve` writes images to search.

    \b
    tinyvit retrieve retrieve --images scenes "a big purple circle and a big yellow circle"
    """
    from ..run.folder import load_run
    from ..use import search

    found, maps, broken = search(load_run(run), folder, text)
    _draw(out, maps, text)
    head("image", "cosine similarity to the text, from -1 to 1")
    for path, cosine in found[:_BEST]:
        show(path, f"{cosine:.4f}")
    if len(found) > _BEST:
        note(f"tinyvit: the {_BEST} best of {len(found):,} images")
    if broken:
        click.get_current_context().exit(2)
