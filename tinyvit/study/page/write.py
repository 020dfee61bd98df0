"""The study page: a trace as one HTML file that works from disk, without a network.

The page shows the contents of its document and computes no formula of its own. Its sources are HTML, CSS and plain
JavaScript in the folder assets, which are put together here without a build.
"""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from ...backend.pages import filled, page
from ...backend.words import counted
from ...checkpoint import atomic_write
from ...errors import StudyError
from ..record.records import Entry, NotFinite, Recording
from ..record.submodules import edges_of, groups_of
from .document import BACKWARD, FORWARD, Document, document_of
from .pack import MAX_VALUES, json_number
from .questions import questions_of
from .tour import tour_of

SOURCES = Path(__file__).with_name("assets")
_SCRIPTS = (
    *("data", "cells", "heatmap", "timeline", "graph", "card", "inspector", "why"),
    *("start", "attention", "health", "views", "main"),
)
_STYLES = ("page", "views")
_KNOWN = ("grid", "prefix", "pool", "classes", "exercise", "homework", "probabilities", "target", "answer", "python")


def save_page(trace: Recording, path: str | Path, about: dict[str, Any] | None = None) -> None:
    """Write the page of a trace. Raises OSError, or StudyError if there is nothing to show."""
    atomic_write(Path(path), page_of(trace, about).encode(errors="replace"))  # a file name may not be valid text


def page_of(trace: Recording, about: dict[str, Any] | None = None) -> str:
    """The page of a trace as text.

    Parameters
    ----------
    about : dict, optional
        Further contents: `title`, `summary`, `facts` (pairs of text), `notes` (paragraphs), `pixels` (uint8 (C, H, W)),
        `grid` (rows and columns of patches), `prefix` (tokens before the patches), `pool`, `classes`, `probabilities`,
        `target`, `answer` (which answer the loss takes as right), `tour` (places to start from), `fused` (comparisons
        of a kernel with its formula), `exercise` (the planted mistake; hides the verdicts until the reader asks),
        `homework` (the number of an exercise: there is no verdict and no mistake in the page), `python` (code that
        makes the trace).
    """
    if not trace.entries:
        raise StudyError("no operation ran while the trace was open, so there is nothing to show")
    about = about or {}
    document = document_of(trace)
    if "homework" in about:
        _remove_verdicts(document)
    shown = _shown(trace, document, about)
    blobs = document.packer.blobs()
    shown |= {"blobs": list(blobs), "facts": [*about.get("facts", []), *_facts(trace, document, about)]}
    title = about.get("title", "The backward pass, step by step")
    body = filled(
        (SOURCES / "page.html").read_text("utf-8"),
        {
            "HEADLINE": html.escape(title),
            "SUMMARY": html.escape(about.get("summary", repr(trace))),
            "NOSCRIPT": _without_scripts(document, "exercise" in about or "homework" in about),
            "DOCUMENT": json.dumps(shown, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
            "BLOBS": "\n".join(f'<script type="text/plain" id="blob-{c}">{text}</script>' for c, text in blobs.items()),
            "SCRIPT": "\n".join((SOURCES / f"{name}.js").read_text("utf-8") for name in _SCRIPTS),
        },
    )
    styles = [(SOURCES / f"{name}.css").read_text("utf-8") for name in _STYLES]
    return page(title, body, styles, "script-src 'unsafe-inline'; img-src data:; font-src data:")


def _shown(trace: Recording, document: Document, about: dict[str, Any]) -> dict[str, Any]:
    """The data that the page's scripts read."""
    known = {k: about[k] for k in _KNOWN if k in about}
    if trace.model is not None:
        known["parameters"] = [name for name, _ in trace.model.named_parameters()]
    if "pixels" in about:
        known["pixels"] = document.value("pixels", about["pixels"], "Cyx", ["leaf"])
    attention = _attention(trace, document)
    bad = trace.first_not_finite()
    shown = {
        "format": 1,
        "about": known,
        "ops": document.ops,
        "values": document.values,
        "arrays": document.packer.entries,
        "kinds": document.kinds,
        "groups": groups_of(trace.entries),
        "edges": edges_of(trace.entries),
        "attention": attention if "pixels" in known else [],
        "layers": _layers(trace),
        "fused": about.get("fused", []),
        "quiz": questions_of(trace, document),
        "tour": about["tour"] if "tour" in about else tour_of(trace),
        "firstBad": None if bad is None else _place(bad),
        "notes": [*about.get("notes", []), *_NOTES],
    }
    return shown


_NOTES = [
    "This page shows every operation of one forward and one backward pass, in the order in which they ran. The "
    "steps of a rule come from the rule itself, which ran on arrays that record every operation on them.",
    "The numbers are those of the run, exact to the last bit of their dtype. When the page unfolds a number into its "
    "terms, it adds and multiplies recorded numbers and compares the result with the recorded one. It computes nothing "
    "else.",
    "The check compares the rule, at float64, with central differences of <dy, f(x)> for several step sizes. The "
    "tolerance consists of the variation among these differences and of their rounding error. A gradient too small to "
    "test is called unclear, not wrong.",
]


def _place(bad: NotFinite) -> dict[str, Any]:
    is_forward = isinstance(bad.place, Entry)
    entry = bad.place if isinstance(bad.place, Entry) else bad.place.entry
    direction = FORWARD if is_forward else BACKWARD
    return {"op": entry.index, "dir": direction, "given": bad.value.name if bad.is_input else None}


def _attention(trace: Recording, document: Document) -> list[dict[str, Any]]:
    """For each attention, the arrays of its gradient rule that are shown over the image."""
    layers = []
    for entry in trace.entries:
        maps = entry.op.attention_maps
        found = {s["n"]: s["v"] for s in document.ops[entry.index]["steps"][BACKWARD] if s["n"] in maps}
        if maps and len(found) == len(maps):
            layers.append({"op": entry.index, "title": entry.module or entry.key, **found})
    return layers


def _layers(trace: Recording) -> list[dict[str, Any]]:
    """For each parameter, in the order of the model, the norms of its gradient and of itself."""
    weights = dict(trace.model.named_parameters()) if trace.model else {}
    rows = []
    for name in [*weights, *(n for n in trace.gradients if n not in weights)]:
        if name in trace.gradients:
            weight = float(np.linalg.norm(weights[name].numpy().astype(np.float64))) if name in weights else 0.0
            norm = json_number(trace.gradients[name].statistics.norm)
            rows.append({"name": name, "gradient": norm, "weight": json_number(weight)})
    return rows


def _remove_verdicts(document: Document) -> None:
    """Leave the numbers of the checks, and take away what they show: readers are to judge for themselves."""
    for op in document.ops:
        if op["check"]:
            op["check"] |= {"verdict": "", "why": "", "rows": [[*row[:-1], ""] for row in op["check"]["rows"]]}


def _facts(trace: Recording, document: Document, about: dict[str, Any]) -> list[list[str]]:
    from importlib.metadata import version

    checks = document.checks.values()
    counts = {v: sum(c.verdict == v for c in checks) for v in ("agrees", "wrong", "unclear")}
    compared = counted(sum(len(c.rows) for c in checks), "numbers")
    agree = "rule agrees" if counts["agrees"] == 1 else "rules agree"
    verdicts = f"{counts['agrees']} {agree}, {counts['wrong']} wrong, {counts['unclear']} unclear"
    facts = [
        ["operations", f"{len(trace.entries)} forward, {counted(len(trace.backwards), 'gradient rules')}"],
        ["checks", compared if "homework" in about else f"{verdicts}; {compared}"],
        ["tinyvit", version("tinyvit")],
    ]
    if document.packer.left_out:
        facts.append(["left out", f"{document.packer.left_out} arrays beyond {MAX_VALUES:,} numbers; only statistics"])
    if not trace.complete:
        facts.append(["incomplete", "the trace reached its limit of operations"])
    return facts


def _without_scripts(document: Document, is_exercise: bool) -> str:
    """For readers without scripts: every operation with its formulas and, except in exercises, its verdict."""
    verdicts = ["" if is_exercise or not op["check"] else op["check"]["verdict"] for op in document.ops]
    rows = "".join(
        f"<tr><th>{html.escape(op['key'])}</th><td>{document.kinds[op['op']]['f']}</td>"
        f"<td>{document.kinds[op['op']]['b']}</td><td>{verdict}</td></tr>"
        for op, verdict in zip(document.ops, verdicts, strict=True)
    )
    head = "<tr><th>operation</th><th>forward</th><th>backward</th><th>check</th></tr>"
    return f"<h2>Without scripts: the operations, their formulas, their checks</h2><table>{head}{rows}</table>"
