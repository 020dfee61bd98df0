"""What sums of gradients by several processes cost: `python -m benchmarks.distributed`.

Jobs of 1, 2 and 4 processes are started in turn by mpiexec. Each writes the gradients of its shards into one array and
adds them up, exactly and fast, as a training step does, but computes none; before each sum all processes wait for each
other. Each process has one thread. The model of `tinyvit.distributed.cost` is fitted to the smallest of all times and
compared with jobs of 3 processes, which were held out. With the time that a process takes to compute 16 images, it
predicts the efficiency of 64 and 1,024 processes, here and over networks.

Other programs on the machine slow all of this down, those jobs most that have more processes than there are processors.
A job of one process waits for nobody, so its processor time is taken, which depends on them less.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import click
import numpy as np
from tinyvit.kernels.cpu.quota import usable_processors

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.backend import Group, limit_threads
from tinyvit.distributed.cost import EXACT, FAST, Measured, StepTime, fitted
from tinyvit.optim.tree import add_up, nodes_within, shards_of
from tinyvit.run.buckets import Buckets
from tinyvit.run.flat import FlatGradient

from .by_operation import SHAPES
from .machine import ROOT, describe_machine
from .models import build_model
from .stats import LOW, quantile

SHARDS, IMAGES = 8, 16
SIZES = {"10 k": 10_000, "100 k": 100_000, "1 M": 1_000_000, "4 M": 4_000_000}
FITTED, HELD_OUT = (1, 2, 4), 3
MODELS = ("digits-s", "vit-s")
NETWORKS = {"10 Gb/s Ethernet": (1.25e9, 3e-5), "100 Gb/s InfiniBand": (12.5e9, 2e-6)}  # bytes/s, seconds a message
_PIECES = 40  # parameters that the gradients are of
_LINE = "measured "  # before what a worker reports

Times = dict[tuple[int, int, str], list[float]]  # by processes, weights and mode


# In each process ------------------------------------------------------------------------------------------------------


def _sums(group: Group, weights: int) -> dict[str, Any]:
    """Return functions that add up gradients of that many weights, each of which all processes must call."""
    random = np.random.default_rng(group.rank)
    parameters = [tv.Tensor(np.zeros(n, np.float32), True) for n in [weights // _PIECES] * _PIECES]
    for p in parameters:
        p.grad = tv.Tensor(random.standard_normal(p.shape).astype(np.float32))
    exact, fast = FlatGradient(parameters, SHARDS), FlatGradient(parameters, group.size)
    buckets = Buckets(fast, group, "float32")
    nodes = nodes_within(shards_of(group.rank, group.size, SHARDS), (0, SHARDS))

    def add(total: Any, node: tuple[int, int]) -> bool:
        if node[1] - node[0] == 1:
            exact.add(total, node[0], 0.0)
        return node[1] - node[0] == 1

    def leaf(node: tuple[int, int]) -> Any:
        return exact.packed(node[0], 0.0) if node[1] - node[0] == 1 else None

    def sum_exact() -> None:
        group.sum_exact({node: add_up(node, leaf, add) for node in nodes}, SHARDS)

    def sum_fast() -> None:
        buckets.begin()
        buckets.finish(group.rank, 0.0)

    return {EXACT: sum_exact, FAST: sum_fast}


def work(repeats: int) -> None:
    """Measure as one process of a job; the first one prints the times of the slowest process of each sum."""
    from mpi4py import MPI

    from tinyvit.distributed.mpi import MPIGroup

    limit_threads(1)
    group = MPIGroup(MPI)
    clock = time.perf_counter if group.size > 1 else time.process_time
    for weights in SIZES.values():
        sums = _sums(group, weights)
        for i in range(repeats + 2):
            for mode in sorted(sums, reverse=i % 2 == 0):
                group.barrier()
                began = clock()
                sums[mode]()
                seconds = max(group.gather(clock() - began))
                if group.is_first and i >= 2:
                    print(_LINE + json.dumps([group.size, weights, mode, seconds]), flush=True)


# The command ----------------------------------------------------------------------------------------------------------


def measured(rounds: int, repeats: int) -> Times:
    """Start the jobs in turn, and return the seconds of all sums."""
    beside = shutil.which("mpiexec", path=sysconfig.get_path("scripts"))
    launcher = beside or shutil.which("mpiexec")
    if launcher is None:
        raise click.ClickException("there is no mpiexec: pip install 'tinyvit[mpi]'")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])]),
    }
    times: Times = defaultdict(list)
    for i in range(rounds):
        for size in sorted((*FITTED, HELD_OUT), reverse=i % 2 == 1):
            worker = [sys.executable, "-P", "-m", "benchmarks.distributed", "--worker", "--repeats", str(repeats)]
            command = [launcher, "-n", str(size), *worker]
            job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
            if job.returncode:
                raise click.ClickException(f"a job of {size} processes failed: {job.stderr.strip()[-500:]}")
            for line in job.stdout.splitlines():
                if line.startswith(_LINE):
                    *key, seconds = json.loads(line.removeprefix(_LINE))
                    times[tuple(key)].append(seconds)  # type: ignore[index]
    return times


def seconds_to_compute(name: str, repeats: int) -> tuple[int, float]:
    """Return the weights of a model, and the seconds of one thread for the gradient of 16 images."""
    shape = SHAPES[name]
    limit_threads(1)
    model, random = build_model(shape), np.random.default_rng(0)
    images = random.standard_normal((IMAGES, shape.channels, shape.image, shape.image)).astype(np.float32)
    labels = random.integers(0, shape.classes, IMAGES)
    times = []
    for _ in range(repeats + 2):
        began = time.process_time()
        F.cross_entropy(model(tv.Tensor(images)), labels).backward()
        times.append(time.process_time() - began)
    return sum(p.size for p in model.parameters()), quantile(times[2:], LOW)


def points_of(times: Times) -> tuple[list[Measured], list[Measured]]:
    """Return the points to fit, and those that are held out, from the times of all sums."""
    points = [
        Measured(size, SHARDS, weights, 0.0, min(seconds), mode)
        for (size, weights, mode), seconds in sorted(times.items())
    ]
    return [p for p in points if p.processes != HELD_OUT], [p for p in points if p.processes == HELD_OUT]


def prediction(model: StepTime, weights: int, compute: float, processes: Sequence[int] = (64, 1024)) -> str:
    """Return a row of the table of predictions: the efficiency of exact and fast sums, and where exact ones pay."""
    found = [f"{model.efficiency(n, n, weights, compute * n, mode):.2f}" for n in processes for mode in (EXACT, FAST)]
    most = model.exact_pays_up_to(weights, compute)
    return " | ".join([*found, f"{most:,}" if most < 1 << 20 else "any"])


def report(times: Times, computed: dict[str, tuple[int, float]]) -> list[str]:
    """Return the lines to print: measurements beside the model, its factors, and what it predicts."""
    to_fit, held_out = points_of(times)
    models = {mode: fitted([p for p in to_fit if p.mode == mode]) for mode in (EXACT, FAST)}
    lines = ["| processes | weights | sum | measured | model | |", "|---|---|---|---|---|---|"]
    for p in to_fit + held_out:
        expected = models[p.mode].seconds(*p[:4], p.mode)
        note = "held out" if p.processes == HELD_OUT else ""
        both = f"{1e3 * p.seconds:.2f} ms | {1e3 * expected:.2f} ms"
        lines.append(f"| {p.processes} | {p.weights:,} | {p.mode} | {both} | {note} |")
    for mode, model in models.items():
        lines.append(
            f"{mode}: {1e9 * model.added:.2f} ns a number added, {1e9 * model.sent:.2f} ns a number sent, "
            f"{1e6 * model.each:.0f} us a message"
        )
    everything = fitted(to_fit)
    lines += [
        "| model | between processes | 64: exact | fast | 1,024: exact | fast | exact pays up to |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (weights, compute) in computed.items():
        for where, network in {"as on this machine": None, **NETWORKS}.items():
            model = everything.over(*network) if network else everything
            lines.append(f"| {name} | {where} | {prediction(model, weights, compute)} |")
    return lines


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="How often each job is started.")
@click.option("--repeats", type=click.IntRange(1), default=15, show_default=True, help="Sums of each kind in a job.")
@click.option("--worker", is_flag=True, hidden=True)
def main(rounds: int, repeats: int, worker: bool) -> None:
    """Measure what sums of gradients by several processes cost, and predict the time of steps."""
    if worker:
        work(repeats)
        return
    click.echo(f"{describe_machine()}; {usable_processors()} processors can be used")
    computed = {name: seconds_to_compute(name, repeats) for name in MODELS}
    for name, (weights, seconds) in computed.items():
        click.echo(f"{name}: {weights:,} weights, {1e3 * seconds:.1f} ms of processor time for {IMAGES} images")
    click.echo("\n".join(report(measured(rounds, repeats), computed)))


if __name__ == "__main__":
    main()
