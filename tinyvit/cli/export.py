"""`tinyvit export`: each format is one entry of a table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..backend.terminal import show
from .group import commands, folder


def _onnx(trained: Any, out: Path, int8: bool = False) -> str:
    from ..run.export import to_onnx

    return to_onnx(trained, out, int8)


def _c(trained: Any, out: Path, int8: bool = False) -> str:
    from ..run.export import to_c

    return to_c(trained, out, int8)


def _web(trained: Any, out: Path, int8: bool = False) -> str:
    from ..run.webpage import to_web

    return to_web(trained, out, int8)


def _to_folder(style: str) -> Callable[[Any, Path], str]:
    def write(trained: Any, out: Path) -> str:
        from ..interop.save import export_folder, next_step

        return f"{export_folder(trained.model, out, style)}\n{next_step(out, style)}"

    return write


FORMATS: dict[str, Callable[..., str]] = {
    "onnx": _onnx,
    "c": _c,
    "web": _web,
    "timm": _to_folder("timm"),
    "hf": _to_folder("hf"),
}
WITH_INT8 = ("onnx", "c", "web")


@commands.command()
@click.argument("run")
@click.option("--to", "target", type=click.Choice(list(FORMATS)), required=True, help="The format to write.")
@click.option("--out", metavar="PATH", type=folder, required=True, help="The folder or the file to write.")
@click.option("--int8", is_flag=True, help=f"Store weights in 8 bits ({', '.join(WITH_INT8)}).")
def export(run: str, target: str, out: Path, int8: bool) -> None:
    """Write a trained model in a format of others.

    RUN is a run folder, the name of a recipe whose trained weights come with the package, or a folder that timm,
    transformers or this command wrote.

    \b
    onnx  a file for onnxruntime and other runtimes; of models with several parts, a folder with a file for each
    c     a folder with C99 source, which needs no library but libm, and an example that checks itself
    web   a folder with a page on which to draw for the model, offline: for runs that classify images; needs clang
    timm  a folder for timm.create_model("local-dir:PATH", pretrained=True)
    hf    a folder for transformers: ViT, DeiT or DINOv2, by what the model has

    Nothing is replaced: PATH must be new, or an empty folder. The command prints how to use what it wrote.

    The names of the classes, mean, std, size and crop of images are written too. Adapters are merged into the weights.
    An ONNX file is compared with the model on images of the test split; C is for one image at a time.

    \b
    tinyvit export digits --to onnx --out digits.onnx
    tinyvit export runs/pictures --to timm --out pictures-timm
    """
    from ..run.export import require_new
    from ..run.folder import load_run

    if int8 and target not in WITH_INT8:
        raise click.UsageError(f"--int8 is for --to {' and --to '.join(WITH_INT8)}.")
    require_new(out)
    trained = load_run(run)
    show(FORMATS[target](trained, out, int8=True) if int8 else FORMATS[target](trained, out))
