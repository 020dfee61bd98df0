"""What notebooks show for a tensor and for a module."""

import html

import numpy as np

from ..engine import Tensor
from ..nn import Module
from .record.values import Statistics

ROWS, COLUMNS = 8, 10  # the part of a tensor's last two axes that is shown
_CELL = "padding:1px 6px;text-align:right;font-variant-numeric:tabular-nums"


def tensor_html(tensor: Tensor) -> str:
    """A tensor's shape, dtype, statistics and first numbers; negative cells are blue, positive ones red."""
    array = tensor.numpy()
    s = Statistics.of(array)
    origin = ", requires a gradient" if tensor.requires_grad else ""
    origin = f", made by {tensor.node.op.name}" if tensor.node else origin
    trouble = f", <b>{s.trouble}</b>" if s.trouble else ""
    head = f"Tensor {list(array.shape)} {array.dtype}{origin}"
    statistics = f"min {s.smallest:.4g}, max {s.largest:.4g}, mean {s.mean:.4g}, norm {s.norm:.4g}{trouble}"
    if not array.size:
        return f"<div><b>{head}</b></div>"
    matrix = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    limit = max(abs(s.smallest), abs(s.largest)) or 1.0
    rows = "".join(
        "<tr>" + "".join(f'<td style="{_CELL};{_colour(x / limit)}">{_number(x)}</td>' for x in row[:COLUMNS]) + "</tr>"
        for row in matrix[:ROWS]
    )
    is_cut = matrix.shape[0] > ROWS or matrix.shape[1] > COLUMNS
    more = f"<div>... {array.size:,} numbers in all</div>" if is_cut else ""
    return f"<div><b>{head}</b></div><div>{statistics}</div><table>{rows}</table>{more}"


def _number(x: object) -> str:
    return f"{x:.4g}" if isinstance(x, np.floating) else html.escape(str(x))


def _colour(share: float) -> str:
    """The background of a cell whose number is this share of the largest one."""
    if not np.isfinite(share):
        return "background:#ffb400"
    colour = "190,42,34" if share > 0 else "33,84,176"
    return f"background:rgba({colour},{min(1.0, abs(float(share))) * 0.55:.2f})"


def module_html(module: Module) -> str:
    """A module and its submodules as a collapsible tree, with their options and numbers of parameters."""
    return _branch("", module, is_open=True)


def _branch(name: str, module: Module, is_open: bool) -> str:
    count = sum(parameter.size for parameter in module.parameters())
    title = f"{html.escape(name)}{': ' if name else ''}<b>{type(module).__name__}</b>"
    inner = [_branch(n, child, is_open=False) for n, child in module.named_children()]
    options = html.escape(module.describe())
    text = f"{title} <span style='opacity:.65'>{options}{', ' if options else ''}{count:,} parameters</span>"
    if not inner:
        return f"<div style='margin-left:1.2em'>{text}</div>"
    opened = " open" if is_open else ""
    return f"<details{opened} style='margin-left:1.2em'><summary>{text}</summary>{''.join(inner)}</details>"
