"""A trace as a graph: an SVG for notebooks, and text for Graphviz."""

import html
import json

from ..record.records import Entry, Recording
from ..record.submodules import edges_of, groups_of
from ..record.values import Value

_ROW, _TOP, _LEFT, _WIDTH = 26, 8, 110, 330


def dot_of(recording: Recording) -> str:
    """Graphviz text with the operations as nodes, clustered by submodule, and with the leaves they read."""
    lines = ["digraph trace {", "  node [shape=box, fontname=sans, fontsize=10];"]
    for g, group in enumerate(groups_of(recording.entries)):
        lines.append(f"  subgraph cluster_{g} {{ label={json.dumps(group['title'])};")
        lines += [f"    op{i} [label={json.dumps(_title(recording.entries[i]))}];" for i in group["ops"]]
        lines.append("  }")
    lines += [f"  op{a} -> op{b};" for a, b in edges_of(recording.entries)]
    leaves: dict[int, str] = {}
    for entry in recording.entries:
        for value in entry.inputs:
            if isinstance(value, Value) and value.origin.kind == "leaf":
                if id(value) not in leaves:
                    leaves[id(value)] = f"leaf{len(leaves)}"
                    label = json.dumps(f"{value.name} {_shape(value)}")
                    lines.append(f"  {leaves[id(value)]} [shape=plaintext, label={label}];")
                lines.append(f"  {leaves[id(value)]} -> op{entry.index} [style=dotted];")
    return "\n".join([*lines, "}", ""])


def _title(entry: Entry) -> str:
    return f"{entry.key}\n{', '.join(map(_shape, entry.outputs))}"


def _shape(value: Value) -> str:
    return " x ".join(map(str, value.shape)) or "a number"


def svg_of(recording: Recording) -> str:
    """An SVG element with the operations from top to bottom, and the norms of their outputs and gradients."""
    entries = recording.entries
    height = _TOP + _ROW * len(entries) + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 290}" height="{height}" '
        'font-family="sans-serif" font-size="11" role="img" aria-label="operations and the data flow between them">'
    ]
    for a, b in edges_of(entries):
        ya, yb = (_TOP + _ROW * i + _ROW // 2 - 2 for i in (a, b))
        if b == a + 1:
            path = f"M {_LEFT + 14} {ya + 10} L {_LEFT + 14} {yb - 10}"
        else:
            bend = min(100, 10 + 8 * (b - a))
            path = f"M {_LEFT} {ya} C {_LEFT - bend} {ya}, {_LEFT - bend} {yb}, {_LEFT} {yb}"
        parts.append(f'<path d="{path}" fill="none" stroke="#999" stroke-width="1.2"/>')
    for i, entry in enumerate(entries):
        y = _TOP + _ROW * i
        norm = f"{entry.outputs[0].statistics.norm:.3g}"
        back = next((v for v in entry.backward.outgoing if v is not None), None) if entry.backward else None
        norms = f"{_shape(entry.outputs[0])}   |y| {norm}" + (f"   |dx| {back.statistics.norm:.3g}" if back else "")
        parts.append(
            f'<rect x="{_LEFT}" y="{y}" width="{_WIDTH}" height="{_ROW - 6}" rx="5" fill="#f1eee6" stroke="#ccc"/>'
            f'<text x="{_LEFT + 8}" y="{y + 14}" fill="#1b1c1f">{html.escape(entry.key)}</text>'
            f'<text x="{_LEFT + _WIDTH + 8}" y="{y + 14}" fill="#888">{norms}</text>'
        )
    return "".join([*parts, "</svg>"])
