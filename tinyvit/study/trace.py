"""What users open and hold: a trace, and the ways to look at it.

with tv.study.trace() as trace:
    F.cross_entropy(model(images), labels).backward()
print(trace.text("attention"))
trace["blocks.0.attn/attention"].backward.outgoing
trace.save_html("page.html")
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import context
from ..engine import Tensor
from .page.graph import dot_of, svg_of
from .page.page import save_page
from .page.text import overview_of, text_of
from .record.recorder import Recorder
from .record.records import Recording
from .record.values import Keeper


class Trace(Recording):
    """Everything that ran while a trace was open, see `Recording`; and the ways to look at it."""

    def save_html(self, path: str | Path) -> None:
        """Write the page of this trace: one file that works without a network. Raises OSError."""
        save_page(self, path)

    def text(self, operation: str | None = None) -> str:
        """The walk in words: one line for each operation; all steps and checks of those whose key has `operation`."""
        return overview_of(self) if operation is None else text_of(self, operation)

    def graph(self, form: str = "svg") -> str:
        """The operations and what flows between them, as "svg" or as "dot" (for Graphviz)."""
        if form not in ("svg", "dot"):
            raise ValueError(f"graph: form is {form!r}; it must be 'svg' or 'dot'")
        return svg_of(self) if form == "svg" else dot_of(self)

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{svg_of(self)}"


@contextmanager
def trace(max_bytes: int = 256 * 2**20, names: dict[str, Tensor] | None = None) -> Iterator[Trace]:
    """Record every operation and every gradient rule that runs within the block (on one thread at a time).

    Parameters
    ----------
    max_bytes : int
        Of the arrays to keep whole. Of those that come when this is used up, statistics and 64 elements are kept.
    names : of tensors that shall be called so ("image"); parameters have the names that their model gives them, other
        leaves those of the local variables that hold them.

    Yields
    ------
    Trace, which is filled meanwhile.

    Raises
    ------
    RuntimeError
        If another trace is open.
    """
    if context.now().recorder is not None:
        raise RuntimeError("a trace is open already, and records what runs here; leave out this one or close that")
    recorded = Trace()
    with context.changed(recorder=Recorder(recorded, Keeper(max_bytes), names or {})):
        yield recorded
