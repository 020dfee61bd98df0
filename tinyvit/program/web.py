"""A web page on which to draw for a model: one HTML file that works from disk, without a network.

The model is WebAssembly, compiled from exported C. The sources of the page are HTML, CSS and plain JavaScript in the
folder assets, which are put together here without a build.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.pages import filled, page
from ..checkpoint import atomic_write
from .onnx import INT8_TOLERANCE, TOLERANCE
from .wasm import ASSETS, Wasm, wasm_of

PAGE, MODULE = "index.html", "model.wasm"
_SCRIPTS = ("prepare", "model", "draw", "main")


@dataclass(frozen=True)
class Contents:
    """What a page says about a model of images, and how it prepares them.

    Attributes
    ----------
    title, summary : of the page.
    task, hint, empty : what to draw; the words on the empty drawing area; the verdict before anything is drawn.
    classes : their names, in the order of the logits.
    shape : of an image, (C, H, W).
    scale, offset : of each channel; the model takes pixels * scale - offset.
    drawing : the rule that makes an image of a drawing, see assets/prepare.js, and its text under "text".
    picture : that of a picture from a file; None for the largest centred part.
    grid, prefix : rows and columns of patches, and the number of tokens before them.
    reads : the tokens whose attention is shown as a mean, and, as `reader`, which these are in words.
    examples : images, uint8 (C, H, W), each with its label and its name.
    facts : further sentences about the model.
    """

    title: str
    summary: str
    task: str
    hint: str
    empty: str
    classes: Sequence[str]
    shape: tuple[int, int, int]
    scale: Sequence[float]
    offset: Sequence[float]
    drawing: Mapping[str, Any]
    picture: Mapping[str, Any] | None
    grid: tuple[int, int]
    prefix: int
    reads: Sequence[int]
    reader: str
    examples: Sequence[tuple[np.ndarray, int, str]] = ()
    facts: Sequence[str] = field(default=())


@dataclass(frozen=True)
class WrittenPage:
    """A page in a folder: the size of the HTML file, and of the WebAssembly that is in it and beside it, in bytes."""

    folder: Path
    size: int
    code: int

    def __str__(self) -> str:
        return (
            f"{self.folder / PAGE} ({self.size / 1000:,.0f} kB, needs no other file) and the same model as "
            f"{self.folder / MODULE} ({self.code / 1000:,.0f} kB)"
        )


def export_page(
    program: Any, folder: str | Path, contents: Contents, checks: np.ndarray, int8: bool = False
) -> WrittenPage:
    """Write the page of a program whose outputs are the logits (B, K) and maps of attention, each (B, H, N, N).

    `checks`, uint8 (n, C, H, W), are images on which the page compares its logits with those of the program when it is
    opened. Raises ExportError if there is no compiler, or C has no form of the program.
    """
    wasm = wasm_of(program, int8)
    logits = program(inputs_of(checks, contents))[0] if len(checks) else []
    rows = [{"pixels": _text_of(x), "logits": [float(n) for n in y]} for x, y in zip(checks, logits, strict=True)]
    page = page_of(wasm, contents, rows, INT8_TOLERANCE if int8 else TOLERANCE).encode()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    atomic_write(target / MODULE, wasm.code)
    atomic_write(target / PAGE, page)
    return WrittenPage(target, len(page), len(wasm.code))


def inputs_of(images: np.ndarray, contents: Contents) -> np.ndarray:
    """Return what the model takes for images, uint8 (B, C, H, W), by the arithmetic of the page: float32."""
    scale, offset = (np.array(x, np.float32).reshape(-1, 1, 1) for x in (contents.scale, contents.offset))
    return np.asarray(images * scale - offset, np.float32)


def page_of(wasm: Wasm, contents: Contents, checks: Sequence[Mapping[str, Any]], tolerance: float) -> str:
    """Return the page as text."""
    channels, height, width = contents.shape
    outputs = list(wasm.outputs)
    about = {
        "task": contents.task,
        "empty": contents.empty,
        "classes": list(contents.classes),
        "channels": channels,
        "height": height,
        "width": width,
        "scale": [float(np.float32(x)) for x in contents.scale],
        "offset": [float(np.float32(x)) for x in contents.offset],
        "drawing": dict(contents.drawing),
        "picture": contents.picture,
        "grid": contents.grid,
        "prefix": contents.prefix,
        "reads": list(contents.reads),
        "reader": contents.reader,
        "input": next(iter(wasm.inputs)),
        "outputs": outputs,
        "maps": [{"heads": shape[1], "tokens": shape[2]} for shape in list(wasm.outputs.values())[1:]],
        "examples": [{"pixels": _text_of(x), "label": i, "name": name} for x, i, name in contents.examples],
        "checks": checks,
        "tolerance": tolerance,
    }
    parts = {
        "TITLE": html.escape(contents.title),
        "SUMMARY": html.escape(contents.summary),
        "TASK": html.escape(contents.task),
        "HINT": html.escape(contents.hint),
        "RULE": html.escape(str(contents.drawing["text"])),
        "PATCHES": f"{contents.grid[0]} x {contents.grid[1]}",
        "FACTS": html.escape(" ".join(contents.facts)),
        "ABOUT": json.dumps(about, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "WASM": base64.b64encode(wasm.code).decode(),
        "SCRIPT": "\n".join((ASSETS / f"{name}.js").read_text("utf-8") for name in _SCRIPTS),
    }
    body, style = ((ASSETS / name).read_text("utf-8") for name in ("page.html", "page.css"))
    policy = "script-src 'unsafe-inline' 'wasm-unsafe-eval'; img-src blob: data:"
    return page(contents.title, filled(body, parts), [style], policy, head='<link rel="icon" href="data:,">')


def _text_of(image: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(image, np.uint8).tobytes()).decode()
