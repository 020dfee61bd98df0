"""The `tinyvit` command: it reads arguments, calls the functions that do the work, and prints their results.

Exit status: 0 done, 1 the run failed, 2 wrong usage or bad input, 130 stopped by Ctrl-C.
"""

import io
import os
import sys
from pathlib import Path
from traceback import format_exception
from typing import Any, NoReturn

import click

from . import __version__
from .backend.terminal import note, show
from .errors import DataError, TinyvitError, TrainingFailed, show_warnings


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="tinyvit %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """Train and study small Vision Transformers with nothing but NumPy.

    \b
    tinyvit train                      train on the digits in the package
    tinyvit evaluate runs/digits       measure the accuracy of each class
    tinyvit predict runs/digits a.png  name the digit in a picture
    tinyvit study                      show every gradient, step by step

    With TINYVIT_TRACEBACK=1 in the environment, errors show their traceback.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


# Training -----------------------------------------------------------------------------------------------------------


def _use_device(context: click.Context, parameter: click.Parameter, name: str) -> None:
    from .backend import set_default_device

    try:
        set_default_device(name)
    except (ValueError, RuntimeError) as error:
        raise click.BadParameter(str(error)) from error


_device = click.option(
    "--device", default="cpu", show_default=True, callback=_use_device, expose_value=False, help="Where to compute."
)


def _folder(name: str) -> Path:
    if not name:  # from an empty shell variable, for example: Path("") would be the current folder
        raise click.BadParameter("it is empty; give the name of a folder.")
    return Path(name)


@commands.command()
@click.argument("recipe", required=False)
@click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Change a key of the recipe.")
@click.option("--out", metavar="DIR", type=_folder, help="The run folder, new or empty.  [default: runs/RECIPE]")
@click.option("--resume", "resumed", metavar="DIR", type=_folder, help="Resume the run in DIR.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="The dtype of matrix products, attention and GELU, as --set precision=... sets it.",
)
@_device
@click.option("--study", is_flag=True, help="Monitor gradients, updates, activations and attention of every layer.")
def train(
    recipe: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    resumed: Path | None,
    precision: str | None,
    study: bool,
) -> None:
    """Train a model.

    RECIPE is the name of a recipe that comes with the package (default: digits), or a .toml file.

    \b
    tinyvit train
    tinyvit train mnist --set epochs=3 --set lr=5e-4
    tinyvit train my.toml --out runs/first
    tinyvit train --resume runs/first
    tinyvit train --study

    The recipe, a line of metrics for each epoch, the weights, a checkpoint and the learning curves are written to the
    run folder. Each run has a new folder: runs/digits, runs/digits-2 ...

    With --study, the run folder also gets study.html and study.png, which show every layer over the run, and
    study.jsonl with their numbers. A warning names the layer and the step as soon as values vanish, explode, die or
    become NaN. The weights are the same as without --study, and training takes less than 3 % longer. Only classifiers
    of images can be monitored.

    Ctrl-C finishes the current step and writes a checkpoint; a second Ctrl-C stops at once. A resumed run ends with
    the same result as a run that was never stopped.
    """
    from .recipe import load_recipe
    from .run import loop as training
    from .run.display import live_display

    display = live_display()
    if study:
        from .study.watch.monitor import Monitor

        display = Monitor(display)
    if precision is not None:
        assignments = (*assignments, f"precision={precision}")
    if resumed is not None:
        if recipe is not None or assignments or out is not None:
            raise click.UsageError("--resume uses the recipe in DIR: leave out RECIPE, --set, --precision and --out")
        result = training.resume(resumed, display)
    else:
        name = "digits" if recipe is None else recipe
        chosen = load_recipe(name).override(assignments)
        result = training.train(chosen, Path(name).stem, out, display)
    show(result)


# Using a trained model ----------------------------------------------------------------------------------------------


@commands.command()
@click.argument("run")
@_device
def evaluate(run: str) -> None:
    """Measure a trained model on its test data.

    RUN is a run folder, or the name of a recipe whose trained weights come with the package. The images, questions or
    texts are those in the test split of the data set that the model was trained on.

    \b
    tinyvit evaluate runs/digits
    """
    from .run.folder import load_run
    from .use import evaluate

    show(evaluate(load_run(run)))


@commands.command()
@click.argument("run")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@_device
def predict(run: str, images: tuple[str, ...]) -> None:
    """Name the class of images.

    Prints the path, the most probable class and its probability, separated by tabs.

    RUN is a run folder, or the name of a recipe whose trained weights come with the package. An image of another size
    is cut to a square and resized; colour becomes grey if the model needs grey. Digits must be light on dark.

    If an image cannot be read, standard error says so, the other images are named, and the exit status is 2.

    \b
    tinyvit predict runs/digits three.png
    tinyvit predict runs/digits *.png | sort -t $'\\t' -k 2
    """
    from .run.folder import load_run
    from .use import predict, require_kind

    trained, failed = load_run(run), False
    require_kind(trained, "classify")
    for path in images:
        try:
            name, probability = predict(trained, path)
        except DataError as error:
            note(f"tinyvit: error: {error}")
            failed = True
        else:
            show(path, name, f"{probability:.4f}")
    if failed:
        click.get_current_context().exit(2)


@commands.command()
@click.argument("run", default="digits")
@click.option("--image", metavar="FILE", help="The image.  [default: the test image with the least certain class]")
@click.option("--label", metavar="CLASS", help="The target of the loss.  [default: the label, or the predicted class]")
@click.option("--out", metavar="FILE", help="The page to write.  [default: study.html, study-softmax.html ...]")
@click.option("--text", is_flag=True, help="Print the steps instead of writing a page.")
@click.option("--operation", metavar="NAME", help="Print all steps of the operations whose names contain NAME.")
@click.option("--plant", metavar="OPERATION", help="Plant a fault in a gradient rule, to be found: attention ... any.")
def study(
    run: str,
    image: str | None,
    label: str | None,
    out: str | None,
    text: bool,
    operation: str | None,
    plant: str | None,
) -> None:
    """Show the gradients of a model, step by step.

    Writes one HTML file that works without a network. It shows every operation of a forward and a backward pass, with
    its formula, its arrays, the steps of its gradient rule and a numeric check.

    RUN is a run folder, the name of a recipe whose trained weights come with the package, or the name of an operation
    (softmax, layer_norm) to study alone.

    \b
    tinyvit study
    tinyvit study runs/mnist --image seven.png --label 7
    tinyvit study softmax --text
    tinyvit study --operation blocks.0.attn/attention
    tinyvit study --plant any
    """
    from .study.subject import printed, write_page

    if text or operation:
        show(printed(run, image, label, operation, plant))
    else:
        show(write_page(run, image, label, out, plant))


# Images and texts ---------------------------------------------------------------------------------------------------


def _free(_context: click.Context, _option: click.Parameter, path: Path) -> Path:
    from .use import require_free

    require_free(path)
    return path


_picture = click.option(
    "--out",
    metavar="FILE",
    type=Path,
    default=Path("attention.png"),
    show_default=True,
    callback=_free,
    help="The picture that shows the attention of each word.",
)


def _draw(out: Path, maps: Any, title: str) -> None:
    from .use import draw_word_maps

    draw_word_maps(out, maps, title)
    note(f"tinyvit: attention of each word -> {out}")


@commands.command()
@click.argument("run")
@click.argument("image")
@click.argument("question")
@_picture
def ask(run: str, image: str, question: str, out: Path) -> None:
    """Answer a question about an image.

    Prints the answer and its probability, separated by a tab, and draws the attention of each word.

    \b
    tinyvit ask runs/vqa shape.png "what color is the circle?"
    """
    from .run.folder import load_run
    from .use import ask

    answer, probability, maps = ask(load_run(run), image, question)
    _draw(out, maps, f"{question}  {answer}")
    show(answer, f"{probability:.4f}")


@commands.command()
@click.argument("run")
@click.argument("image")
@_picture
def caption(run: str, image: str, out: Path) -> None:
    """Describe an image.

    Prints the caption, and draws the attention of the model for each word that it wrote.

    \b
    tinyvit caption runs/caption scene.png
    """
    from .run.folder import load_run
    from .use import caption

    text, maps = caption(load_run(run), image)
    _draw(out, maps, text)
    show(text)


@commands.command()
@click.argument("run")
@click.option("--images", "folder", metavar="DIR", required=True, help="The folder of images to search.")
@click.argument("text")
@_picture
def retrieve(run: str, folder: str, text: str, out: Path) -> None:
    """Find the images that a text describes.

    Prints the ten best matches, each with its cosine similarity after a tab, and draws for each word the part of the
    best image that it matches. DIR is searched with the folders in it. If an image cannot be read, standard error says
    so, the others are searched, and the exit status is 2.

    \b
    tinyvit retrieve runs/retrieve --images pictures "a big red circle and a small blue square"
    """
    from .run.folder import load_run
    from .use import search

    found, maps, broken = search(load_run(run), folder, text)
    _draw(out, maps, text)
    for path, cosine in found[:10]:
        show(path, f"{cosine:.4f}")
    if broken:
        click.get_current_context().exit(2)


# This machine and its data ------------------------------------------------------------------------------------------


@commands.command()
def info() -> None:
    """Show what this machine has and what tinyvit uses.

    Prints versions, devices, threads, the folders of data sets, and the implementation of each operation.
    """
    from .info import report

    show(report())


@commands.group(no_args_is_help=False)
def data() -> None:
    """Manage data sets on this machine.

    Data sets are looked for in the folder that the environment variable TINYVIT_DATA names, then in the user's cache
    folder; if they are in neither, they are downloaded to the cache folder.
    """


@data.command()
@click.argument("name")
def fetch(name: str) -> None:
    """Download a data set.

    Verifies the checksums and prints the folder of the data set. An interrupted download is resumed.

    \b
    tinyvit data fetch mnist
    """
    from .data import fetch

    show(fetch(name))


# Errors and exit status ---------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Run the command and end the process with its exit status; an error is one line on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths may contain bytes that are not valid text
    show_warnings(lambda message: note(f"tinyvit: warning: {message}"))
    try:
        status = commands(prog_name="tinyvit", standalone_mode=False)
    except Exception as error:
        if os.environ.get("TINYVIT_TRACEBACK") == "1":
            sys.excepthook = lambda *raised: note("".join(format_exception(*raised)))
            raise
        status, message = _status_and_message(error)
        note(f"tinyvit: {message}")
        _discard_failing_output()
    sys.exit(status or 0)


def _discard_failing_output() -> None:
    """Discard what standard output cannot write (its disk is full): Python would try again at exit, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _status_and_message(error: Exception) -> tuple[int, str]:
    """Return the exit status for an error, and the message to print."""
    if isinstance(error, click.Abort):  # click turns KeyboardInterrupt into Abort
        return 130, str(error.__cause__) or "stopped"
    if isinstance(error, click.UsageError):
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return 2, f"error: {error.format_message().rstrip('.')}{where}"
    wrong_environment = isinstance(error, ValueError) and str(error).startswith("TINYVIT_")
    if wrong_environment or isinstance(error, click.ClickException | TinyvitError):
        return 2, f"error: {error}"
    if isinstance(error, TrainingFailed):
        return 1, f"error: {error}"
    if isinstance(error, OSError):
        return 1, f"error: reading or writing failed: {error}"
    if isinstance(error, MemoryError):
        return 1, f"error: out of memory; a smaller model or data.batch_size needs less ({str(error) or 'no details'})"
    return 1, f"error: {type(error).__name__}: {error} (a bug; TINYVIT_TRACEBACK=1 shows where)"
