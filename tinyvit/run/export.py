"""Export a trained model: which parts of it, on what data they are checked, and the facts that users of the files need.

A classifier is one part, and so are models of masks and of boxes. Models of images and texts have parts that run on
their own: the towers of a retrieval model; the encoder of a captioner, and its decoder, whose logits at each token are
of the token after it: one step of writing runs it on the tokens so far, and reads the logits of the last.
"""

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import normalize
from ..data.tokenizer import PAD
from ..errors import TinyvitError
from ..program.program import Program, freeze_function
from .folder import RunError, TrainedModel, load_test_data

ROWS = 32  # of the test split, on which a file is compared with the model
Axes = Mapping[str, tuple[str | None, ...]]
_OUTPUTS = {
    "segment": "logits of the class of each pixel, in the order B, H, W, K; the first class is the background",
    "detect": "for each query logits of the classes and, last, of none (B, Q, K + 1), and a box (B, Q, 4): the x and y "
    "of its centre, its width and its height in units of the sides of the image",
}


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes
    ----------
    function : of tensors.
    inputs : arrays by the names of its arguments.
    axes : for each input, letters of the axes that are free.
    outputs : the names of what it returns.
    """

    function: Callable[..., Any]
    inputs: Mapping[str, np.ndarray]
    axes: Axes
    outputs: tuple[str, ...]


def require_new(out: Path) -> None:
    """Raise RunError if an export to `out` would replace a file, or write beside files in a folder."""
    if out.is_dir() and not out.is_symlink():
        if any(out.iterdir()):
            raise RunError(f"{out} is not empty; give a name that does not exist")
    elif os.path.lexists(out):
        raise RunError(f"{out} exists already; give a name that does not")


def to_onnx(trained: TrainedModel, out: Path, int8: bool = False) -> str:
    """Write one file, or a folder with a file for each part of the model; return what was written, in words."""
    parts = parts_of(trained)
    facts = facts_of(trained)
    lines = []
    for name, part in parts.items():
        path = out / f"{name}.onnx" if len(parts) > 1 else out
        if len(parts) > 1:
            out.mkdir(parents=True, exist_ok=True)
        program = frozen(trained, part)
        lines.append(
            str(program.export_onnx(path, *part.inputs.values(), names=part.outputs, metadata=facts, int8=int8))
        )
    inputs = "; ".join(
        f"{name}: {' x '.join(letter or str(n) for letter, n in zip(part.axes[name], x.shape, strict=True))}, {x.dtype}"
        for part in parts.values()
        for name, x in part.inputs.items()
    )
    file = out if len(parts) == 1 else out / f"{next(iter(parts))}.onnx"
    run = f'onnxruntime.InferenceSession("{file}").run(None, {{name: array, ...}})'
    lines.append(f"next, in Python: {run} with {inputs}")
    lines.append("the metadata of the file says how inputs are prepared, and names the classes or words")
    return "\n".join(lines)


def to_c(trained: TrainedModel, out: Path, int8: bool = False) -> str:
    """Write a folder with C files, of several parts one for each in it; return what was written, in words."""
    lines, parts = [], parts_of(trained)
    for name, part in parts.items():
        alone = {key: (letters[0], *[None] * (len(letters) - 1)) for key, letters in part.axes.items()}
        part = Part(part.function, part.inputs, alone, part.outputs)
        inputs = [x[:1] for x in part.inputs.values()]
        lines.append(
            str(
                frozen(trained, part).export_c(
                    out / name if len(parts) > 1 else out, *inputs, name=name, int8=int8, metadata=facts_of(trained)
                )
            )
        )
    for name in parts:
        folder = shlex.quote(str(out / name if len(parts) > 1 else out))
        lines.append(
            f"next: cd {folder} && cc -std=c99 -O2 -o example main.c {name}.c -lm && ./example  "
            "# prints the outputs for one input, and whether they are as expected"
        )
    lines.append(f"to call it: {'_run, '.join(parts)}_run in the headers, which also say how inputs are prepared")
    return "\n".join(lines)


def frozen(trained: TrainedModel, part: Part) -> Program:
    """Return a part as a program. Raises RunError if its batch size cannot be left free."""
    shortened = {  # one longer than the longest text cannot be traced
        name: x[:2, :-2] if part.axes[name][1:] == ("N",) and x.shape[1] > 3 else x[:2]
        for name, x in part.inputs.items()
    }
    program = freeze_function(part.function, shortened, trained.model, part.axes)
    if not program.is_batch_free:
        raise RunError(f"this model cannot be exported with a free batch size: {program.graph.reason}")
    return program


def facts_of(trained: TrainedModel) -> dict[str, Any]:
    """Return what users need to know to prepare inputs and to read outputs."""
    data = trained.data
    facts: dict[str, Any] = {"kind": trained.recipe.task.kind}
    if data.shape:
        facts |= {
            "size": list(data.shape[-2:]),
            "channels": data.shape[-3],
            "mean": list(data.mean),
            "std": list(data.std),
            "input": "images are (pixels / 255 - mean) / std for each channel, in the order B, C, H, W",
        }
    facts |= {"output": _OUTPUTS[facts["kind"]]} if facts["kind"] in _OUTPUTS else {}
    facts |= {"classes": list(data.classes)} if data.classes else {}
    facts |= {"words": list(data.words), "lengths": list(data.lengths)} if data.words else {}
    return facts


# Parts ----------------------------------------------------------------------------------------------------------------


def parts_of(trained: TrainedModel) -> dict[str, Part]:
    """Return the parts of a model by name, each with rows of the test split, or random ones where that is not there."""
    kind = trained.recipe.task.kind
    if kind not in _PARTS:
        raise RunError(f"a {kind!r} run cannot be exported; these can: {', '.join(_PARTS)}")
    images, read, written = _rows(trained)
    return _PARTS[kind](trained.model, images, read, written)


def _classifier(model: Any, images: Any, read: Any, written: Any) -> dict[str, Part]:
    return {"model": _part(model, "logits", images=images)}


def _answers(model: Any, images: Any, read: Any, written: Any) -> dict[str, Part]:
    return {"model": _part(lambda images, ids: model(images, ids), "logits", images=images, ids=read)}


def _towers(model: Any, images: Any, read: Any, written: Any) -> dict[str, Part]:
    return {
        "images": _part(model.encode_images, "embedding", images=images),
        "texts": _part(model.encode_texts, "embedding", ids=read),
    }


def _captions(model: Any, images: Any, read: Any, written: Any) -> dict[str, Part]:
    context = model.encode(images)[0].detach().numpy()
    return {
        "encoder": _part(lambda images: model.encode(images)[0], "context", images=images),
        "decoder": _part(lambda ids, context: model.decoder(ids, context), "logits", ids=written, context=context),
    }


def _translations(model: Any, images: Any, read: Any, written: Any) -> dict[str, Part]:
    context, mask = model.encode(read)
    visible = {"ids": written, "context": context.detach().numpy(), "visible": np.asarray(mask)}
    decoder = Part(
        lambda ids, context, visible: model.decoder(ids, context, visible),
        visible,
        {"ids": ("B", "N"), "context": ("B", "S", None), "visible": ("B", None, None, "S")},
        ("logits",),
    )
    return {"encoder": _part(lambda ids: model.encode(ids)[0], "context", ids=read), "decoder": decoder}


def _detector(model: Any, images: Any, read: Any, written: Any) -> dict[str, Part]:
    return {"model": _part(model, "logits", "boxes", images=images)}


_PARTS: dict[str, Callable[..., dict[str, Part]]] = {
    "classify": _classifier,
    "vqa": _answers,
    "retrieve": _towers,
    "caption": _captions,
    "translate": _translations,
    "segment": _classifier,
    "detect": _detector,
}


def _part(function: Callable[..., Any], *outputs: str, **inputs: np.ndarray) -> Part:
    """Return a part whose batch is free, and of ids the length."""
    axes = {name: ("B", "N") if x.dtype.kind in "iu" else ("B", *[None] * (x.ndim - 1)) for name, x in inputs.items()}
    return Part(function, inputs, axes, outputs)


def _rows(trained: TrainedModel) -> tuple[Any, Any, Any]:
    """Return images, texts that are read and texts that are written of a few samples; None for what there is not."""
    data = trained.data
    try:
        dataset: Any = load_test_data(trained)
    except (TinyvitError, OSError):
        dataset = None
    rng = np.random.default_rng(0)
    images = read = written = None
    if data.shape:
        chosen = slice(ROWS)
        if data.lengths and dataset is not None:
            chosen = dataset.image_of[:ROWS]
        pixels = rng.integers(0, 256, (ROWS, *data.shape), np.uint8) if dataset is None else dataset.images[chosen]
        images = normalize(pixels, data.mean, data.std)
    for place, length in enumerate(data.lengths):
        table = None if dataset is None else (dataset.texts, dataset.labels)[place][:ROWS]
        if table is None:
            table = rng.integers(0, len(data.words), (ROWS, length))
        table = np.pad(table, ((0, 0), (0, length - table.shape[1])), constant_values=PAD).astype(np.int64)
        read, written = (table, written) if place == 0 else (read, table[:, :-1])
    return images, read, written
