"""Commands that find masks and boxes: `segment`, `detect`."""

from pathlib import Path

import click

from ..backend.terminal import head, note, show
from .group import commands, device_option


@commands.command()
@click.argument("run")
@click.argument("image")
@click.option("--out", metavar="FILE", type=Path, default=Path("mask.png"), show_default=True, help="The mask, a PNG.")
@device_option
def segment(run: str, image: str, out: Path) -> None:
    """Name the class of every pixel of an image.

    Prints the classes that were found and their shares of the pixels, separated by tabs. The mask is an indexed PNG
    whose values are the numbers of the classes, 255 outside of the centred square that the model sees. The image with
    the mask over it is drawn beside it, in FILE-overlay.png.

    \b
    tinyvit segment runs/segment scene.png --out mask.png
    """
    from ..dense import overlay_of, require_free_pair, segment, write_mask
    from ..run.folder import load_run

    require_free_pair(out, overlay_of(out))
    found = segment(load_run(run), image)
    write_mask(out, found)
    note(f"tinyvit: mask -> {out}, overlay -> {overlay_of(out)}")
    head("class", "share of the pixels")
    for name, share in found.shares():
        show(name, f"{share:.4f}")


@commands.command()
@click.argument("run")
@click.argument("image")
@click.option("--out", metavar="FILE", type=Path, default=Path("boxes.png"), show_default=True, help="The picture.")
@click.option("--least", metavar="P", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="The smallest probability of a box that counts.")  # fmt: skip
@device_option
def detect(run: str, image: str, out: Path, least: float) -> None:
    """Find the things in an image.

    Prints for each its class, its probability and its box (left, top, right and bottom edge in pixels), separated by
    tabs. The picture shows the boxes, and where the query that found each thing attended; the same boxes are
    listed beside it as JSON.

    \b
    tinyvit detect runs/detect scene.png --out boxes.png
    """
    from ..dense import detect, json_of, require_free_pair, write_boxes
    from ..run.folder import load_run

    require_free_pair(out, json_of(out))
    found = detect(load_run(run), image, least)
    write_boxes(out, found, image)
    note(f"tinyvit: boxes -> {out}, {json_of(out)}")
    head("class", "probability", "left", "top", "right", "bottom")
    for thing in found.things:
        show(thing.name, f"{thing.score:.4f}", *(f"{edge:.1f}" for edge in thing.box))
