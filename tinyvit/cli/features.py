"""Commands about the features of a model: `features`, `probe`."""

from pathlib import Path

import click

from ..backend.terminal import show
from .group import commands, device_option


@commands.command()
@click.argument("run")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--out", metavar="FILE", type=Path, required=True, help="The safetensors file to write.")
@click.option("--layer", type=int, help="The block whose features are written, from 0; -1 is the last.")
@device_option
def features(run: str, images: tuple[str, ...], out: Path, layer: int | None) -> None:
    """Write the features of images: what the head of the model reads.

    RUN is a run folder, the name of a recipe whose trained weights come with the package, or pretrained weights: a
    folder of timm or transformers, a file of weights, or hf-hub:NAME. A folder of images stands for all images in it.

    \b
    tinyvit features dinov2-small pictures --out features.safetensors
    """
    from ..run.features import write_features

    show(write_features(run, images, out, layer))


@commands.command()
@click.argument("run")
@click.option("--data", metavar="NAME", required=True, help="A data set of images, or folder:PATH.")
@click.option("--limit", type=click.IntRange(10), default=1000, show_default=True, help="The number of images.")
@click.option("--image-size", type=click.IntRange(1), help="Another size of images, in pixels.")
@device_option
def probe(run: str, data: str, limit: int, image_size: int | None) -> None:
    """Measure what frozen features know about the classes of a data set.

    Prints the accuracy of the 20 nearest neighbours and of a linear classifier on the features of some images. Nothing
    is trained but the linear classifier.

    \b
    tinyvit probe dinov2-small --data cifar-10 --image-size 112
    """
    from ..run.features import probe

    show(probe(run, data, limit, image_size))
