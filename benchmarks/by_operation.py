"""Where the time of a training step goes, operation by operation: `python -m benchmarks.by_operation [SHAPE ...]`.

A clock around each kernel and each plain rule, forward and backward, and around the optimizer's step; the time between
them is Python: the tape, the layers, dispatch. Each call and each gap counts with the 20 % quantile of its times over
the steps, because other programs on the machine only add to them.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from tinyvit.kernels.cpu import processor
from tinyvit.kernels.cpu.threads import thread_count

from tinyvit import dispatch
from tinyvit.backend.words import counted

from .cases import SUITES, Case, DenseShape, ModelShape
from .inputs import make_inputs
from .machine import describe_machine
from .models import build_model
from .stats import LOW, quantile
from .steps import batch_of, loss_of, new_optimizer

SHAPES = {case.shape.name: case.shape for case in SUITES["train"].cases if isinstance(case.shape, ModelShape)}
_DENSE = {case.shape.name: case.shape for case in SUITES["dense"].cases if isinstance(case.shape, DenseShape)}
_ALL = SHAPES | _DENSE
REST = "Python"


class Clock:
    """The calls of the step that is being made: name, start and end of each, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, float]] = []

    def around(self, function: Any, name: Callable[..., str]) -> Any:
        """Return `function` with each call noted under `name(*arguments)`."""

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.calls.append((name(*arguments), start, time.perf_counter()))

        return timed

    def parts(self, start: float, end: float) -> list[tuple[str, float]]:
        """Return the calls, and the gaps before, between and after them, with their seconds."""
        parts = []
        for name, begun, ended in self.calls:
            parts += [(REST, begun - start), (name, ended - begun)]
            start = ended
        return [*parts, (REST, end - start)]


@contextmanager
def clocked() -> Iterator[Clock]:
    """Within this block, have a clock around everything that computes."""
    clock, before = Clock(), []
    for kind in (dispatch.Implementation, dispatch.PlainRule):
        for way in ("forward", "backward"):
            function = getattr(kind, way)
            before.append((kind, way, function))
            setattr(kind, way, clock.around(function, lambda self, *_, way=way: f"{self.op.name} {way}"))
    try:
        yield clock
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def profile(shape: ModelShape | DenseShape, steps: int) -> dict[str, float]:
    """Return the seconds that a step spends in each operation, the largest first, and in `REST`."""
    model, inputs = build_model(shape), make_inputs(Case("train", "train", shape, "step"))
    optimizer, loss, batch = new_optimizer(shape, model), loss_of(shape, model), batch_of(inputs)
    found = []
    with clocked() as clock:
        for _ in range(steps + 2):
            clock.calls.clear()
            start = time.perf_counter()
            optimizer.zero_grad()
            loss(*batch).backward()
            clock.around(optimizer.step, lambda: type(optimizer).__name__.lower())()
            found.append(clock.parts(start, time.perf_counter()))
    return by_name(found[2:])  # the first steps compile


def by_name(steps: Sequence[Sequence[tuple[str, float]]]) -> dict[str, float]:
    """Add up, by name, the 20 % quantiles over the steps of each part of a step."""
    total: dict[str, float] = defaultdict(float)
    for part in zip(*steps, strict=True):
        total[part[0][0]] += quantile([seconds for _, seconds in part], LOW)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


@click.command()
@click.argument("names", nargs=-1, metavar="[SHAPE]...")
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True)
def main(names: tuple[str, ...], steps: int) -> None:
    """Show what a training step spends in each operation; by default of digits-s and mnist-s."""
    for name in names or ("mnist-s", "digits-s"):
        if name not in _ALL:
            raise click.UsageError(f"SHAPE is {name}; it must be one of {', '.join(_ALL)}")
        parts = profile(_ALL[name], steps)
        whole = sum(parts.values())
        click.echo(f"{name}, {whole * 1e3:.2f} ms: {describe_machine().device}, {processor.level()}, ", nl=False)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
        click.echo(f"{counted(thread_count(), 'threads')}, load {load:.1f}")
        for part, seconds in parts.items():
            if seconds > 0.002 * whole:
                click.echo(f"  {part:28}{seconds * 1e6:9.0f} us {seconds / whole:6.1%}")


if __name__ == "__main__":
    main()
