"""Traces: what users open, and the ways to look at one.

with tv.study.trace() as trace:
    F.cross_entropy(model(images), labels).backward()
print(trace.text("attention"))
trace["blocks.0.attn/attention"].backward.outgoing
trace.save_html("page.html")
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .. import context
from ..engine import Op, Tensor
from .page.graph import dot_of, svg_of
from .page.text import overview_of, text_of
from .page.write import save_page
from .record.recorder import Recorder
from .record.records import Recording
from .record.values import Archive


class Trace(Recording):
    """Everything that ran while a trace was open (see `Recording`), and ways to look at it."""

    def save_html(self, path: str | Path) -> None:
        """Write the page of this trace: one file that works without a network. Raises OSError."""
        save_page(self, path)

    def text(self, operation: str | None = None) -> str:
        """The trace as text: one line an operation, or all steps and checks of those whose key contains `operation`."""
        return overview_of(self) if operation is None else text_of(self, operation)

    def graph(self, form: str = "svg") -> str:
        """The operations and the data flow between them, as "svg" or as "dot" (for Graphviz)."""
        if form not in ("svg", "dot"):
            raise ValueError(f"graph: form is {form!r}; it must be 'svg' or 'dot'")
        return svg_of(self) if form == "svg" else dot_of(self)

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{svg_of(self)}"


@contextmanager
def trace(
    max_bytes: int = 256 * 2**20,
    names: dict[str, Tensor] | None = None,
    planted: Mapping[str, type[Op]] | None = None,
) -> Iterator[Trace]:
    """Record every operation and every gradient rule that runs within the block, on this thread.

    Parameters
    ----------
    max_bytes : int
        Bytes of arrays to store completely. Of any further arrays, statistics and 64 elements are stored.
    names : dict, optional
        Names for tensors, {"image": images}. Parameters have the names that their model gives them; other tensors have
        those of the variables that hold them, where exactly one does.
    planted : mapping, optional
        For exercises: by key of an operation in the trace, an operation with a wrong gradient rule to run there.

    Yields
    ------
    Trace, which is filled while the block runs.

    Raises
    ------
    RuntimeError
        If another trace is open on this thread.
    """
    if context.now().recorder is not None:
        raise RuntimeError("a trace is already open, and records everything here; close it first, or use that one")
    recorded = Trace()
    recorder = Recorder(recorded, Archive(max_bytes), names or {}, planted or {})
    with context.changed(recorder=recorder):
        yield recorded
    recorder.name_outputs(sys._getframe())
