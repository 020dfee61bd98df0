"""Training steps by several processes against those of one: `python -m benchmarks processes`.

Every contender makes the steps of one ViT on the same batches of random images: the gradient, clipping and AdamW. In
each round all of them are started anew, one after the other, in processes of their own; every other round goes in the
reverse order. The first steps of a process are not timed. A ratio is that of the medians of one round, so that what
slows both contenders of a round cancels.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import numpy as np

import tinyvit as tv
from tinyvit.backend import Group, limit_threads
from tinyvit.data import Dataset, Loader
from tinyvit.optim.tree import shards_of
from tinyvit.recipe import About, Data, Model, Recipe, Train
from tinyvit.run.captured_cpu import WARM_UP
from tinyvit.run.sharded import ShardedSteps, number_of_shards
from tinyvit.run.steps import Steps
from tinyvit.tasks import task_of

from .by_operation import SHAPES
from .cases import ModelShape
from .machine import ROOT, describe_machine
from .models import build_model
from .stats import quantile, summarize

_NOT_TIMED = WARM_UP + 2  # steps of each process, of which the last is made from the record
_BATCHES = 4  # different ones
_LINE = "measured "  # before what a worker reports


@dataclass(frozen=True)
class Contender:
    """A way to make steps: so many processes with so many threads each, and the settings of the recipe."""

    name: str
    processes: int = 1
    threads: int = 1
    shards: int = 0
    reduce: str = "exact"


CONTENDERS = (
    Contender("whole batches"),
    Contender("8 shards", shards=8),
    Contender("two threads", threads=2),
    Contender("exact", processes=2, shards=2),
    Contender("fast", processes=2, shards=2, reduce="fast"),
)
# Speed of the first as a multiple of the second.
RATIOS = (("exact", "fast"), ("exact", "two threads"), ("fast", "two threads"), ("8 shards", "whole batches"))


# In each process ------------------------------------------------------------------------------------------------------


def steps_of(shape: ModelShape, contender: Contender, group: Group) -> tuple[Any, Loader]:
    """Return what makes the steps of a new model, as a run does, and the loader of its batches."""
    settings = Train(
        epochs=1, lr=1e-3, weight_decay=0.05, clip_norm=1.0, shards=contender.shards, reduce=contender.reduce
    )
    size = Model(patch_size=shape.patch, dim=shape.dim, depth=shape.depth, heads=shape.heads)
    recipe = Recipe(about=About(), data=Data(name="cifar-10", batch_size=shape.batch), model=size, train=settings)
    random, count = np.random.default_rng(0), _BATCHES * shape.batch
    images = random.integers(0, 256, (count, shape.channels, shape.image, shape.image), np.uint8)
    labels, classes = random.integers(0, shape.classes, count), tuple(map(str, range(shape.classes)))
    flat = (0.5,) * shape.channels
    data, task = Dataset("random", "train", images, labels, classes, flat, flat), task_of(recipe)
    task.prepare(data)
    model = build_model(shape)
    optimizer = tv.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    parts = (model, task, optimizer, settings, None)
    return ShardedSteps(*parts, group) if settings.shards else Steps(*parts), Loader(data, shape.batch)


def work(shape: ModelShape, contender: Contender, steps: int) -> None:
    """Make steps as one process of a contender; the first one prints their seconds."""
    limit_threads(contender.threads)
    group = Group()
    if contender.processes > 1:
        from mpi4py import MPI

        from tinyvit.distributed.mpi import MPIGroup

        group = MPIGroup(MPI)
    make, loader = steps_of(shape, contender, group)
    shards = number_of_shards(make.settings, group)
    own, seconds = shards_of(group.rank, group.size, shards), []
    for i in range(steps + _NOT_TIMED):
        place = divmod(i, _BATCHES)
        batch = next(loader.sharded_batches(*place, shards, own) if shards else loader.batches(*place))
        group.barrier()
        began = time.perf_counter()
        make([batch], i + 1, 1)
        seconds.append(time.perf_counter() - began)
    if group.is_first:
        print(_LINE + json.dumps(seconds[_NOT_TIMED:]), flush=True)


# The command ----------------------------------------------------------------------------------------------------------


def started(contender: Contender, shape: str, batch: int, steps: int) -> list[float]:
    """Start the processes of a contender, and return the seconds of their steps."""
    number = CONTENDERS.index(contender)
    command = [sys.executable, "-P", "-m", "benchmarks.processes", json.dumps([shape, batch, number, steps])]
    if contender.processes > 1:
        launcher = shutil.which("mpiexec", path=sysconfig.get_path("scripts")) or shutil.which("mpiexec")
        if launcher is None:
            raise click.ClickException("there is no mpiexec: pip install 'tinyvit[mpi]'")
        command = [launcher, "-n", str(contender.processes), *command]
    path = os.pathsep.join([*filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])])
    threads = {"TINYVIT_THREADS": str(contender.threads), "OPENBLAS_NUM_THREADS": str(contender.threads)}
    environment = {**os.environ, **threads, "PYTHONPATH": path}
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    for line in job.stdout.splitlines():
        if line.startswith(_LINE):
            return json.loads(line.removeprefix(_LINE))
    raise click.ClickException(f"{contender.name} failed: {job.stderr.strip()[-500:]}")


def report(medians: dict[str, Sequence[float]]) -> list[str]:
    """Return the lines to print, from the median of the seconds of a step in each round."""
    lines = ["| contender | processes | threads of each | a step, median of rounds | least | most |"]
    lines.append("|---|---|---|---|---|---|")
    for each in CONTENDERS:
        found = medians[each.name]
        row = (quantile(found, 0.5), min(found), max(found))
        times = " | ".join(f"{1e3 * seconds:.1f} ms" for seconds in row)
        lines.append(f"| {each.name} | {each.processes} | {each.threads} | {times} |")
    for one, other in RATIOS:
        values = [b / a for a, b in zip(medians[one], medians[other], strict=True)]
        lines.append(
            f"{one} has {quantile(values, 0.5):.2f} of the speed of {other} ({min(values):.2f} to {max(values):.2f} "
            f"in {len(values)} rounds)"
        )
    return lines


@click.command("processes", short_help="several processes against one")
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="vit-s", show_default=True)
@click.option("--batch", type=click.IntRange(1), help="Samples of a batch.  [default: by shape]")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often each one is started.")
@click.option("--steps", type=click.IntRange(1), default=10, show_default=True, help="Steps of each process.")
def main(shape: str, batch: int | None, rounds: int, steps: int) -> None:
    """Measure training steps by two processes, with exact and fast sums, and by one; needs MPI and two processors."""
    batch = batch or SHAPES[shape].batch
    click.echo(f"{describe_machine()}\n{shape}, batches of {batch}, medians of {steps} steps")
    medians: dict[str, Sequence[float]] = {each.name: [] for each in CONTENDERS}
    for i in range(rounds):
        for each in CONTENDERS[:: 1 if i % 2 == 0 else -1]:
            medians[each.name] = [*medians[each.name], summarize(started(each, shape, batch, steps)).median]
    click.echo("\n".join(report(medians)))


if __name__ == "__main__":
    name, batch, number, steps = json.loads(sys.argv[1])
    work(replace(SHAPES[name], batch=batch), CONTENDERS[number], steps)
