"""Kill a process of many jobs at a random moment, and resume them: `python tests/distributed/killed_jobs.py`.

Each job trains a tiny model on the digits in twelve steps, with a checkpoint after each, by 2, 3 or 4 processes.
SIGKILL comes from outside, to a random process, at a moment drawn uniformly from the time between the start of this
process's watcher and the end of an undisturbed job. Then the run is resumed, or started again if it had not begun, by
another number of processes.

A row for each job says how long mpiexec took to end after the signal, whether the one message named the process and the
command to go on, whether the weights have the bits of a run that was never stopped, and which files were left behind.
The exit status is 1 if something was wrong. It needs MPI and the files of processes in /proc, as Linux has them.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import distributed_run
from tiny_run import tiny_recipe

from tinyvit.checkpoint import leftovers

SIZES = (2, 3, 4)
RECIPE = tiny_recipe("epochs=6", "batch_size=60", "limit=120", "checkpoint_minutes=1e-9", "shards=4", "ema=0.9")
LIMIT = 5.0  # seconds within which a job must end
KERNELS = "numpy"  # they start faster
_WATCHER = "distributed/watch.py"


class Death(NamedTuple):
    """The death of a process: its rank, its number, and the seconds from then to the end of the job."""

    rank: int
    process: int
    seconds: float


def new(out: Path) -> list[object]:
    """Return the arguments of a new run."""
    recipe = out.with_name("recipe.toml")
    recipe.write_text(RECIPE.to_toml())
    return ["train", recipe, "--out", out]


def completed(size: int, *arguments: object) -> str:
    """Train by `size` processes, to the end; return what went wrong."""
    status, _, error = distributed_run.run(size, *arguments, kernels=KERNELS)
    return f"exit status {status}: {error}" if status or error else ""


def descendants(process: int) -> Iterator[int]:
    """Yield the numbers of all processes that a process has started, and those that they have started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    known = {process}
    while found := {child for child, parent in parents.items() if parent in known} - known:
        yield from found
        known |= found


def watched_process(job: int, rank: int) -> int | None:
    """Return the number of the process of this rank, once it has started its watcher."""
    for process in descendants(job):
        try:
            place = Path("/proc", str(process))
            is_watcher = _WATCHER in (place / "cmdline").read_bytes().decode(errors="replace")
            variables = (place / "environ").read_bytes().split(b"\0")
            if is_watcher and f"PMI_RANK={rank}".encode() in variables:
                return int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return None


def killed(size: int, rank: int, wait: float, out: Path) -> tuple[str, Death] | None:
    """Start a job and kill the process `rank` some seconds after its watcher started.

    Returns what the job has printed as errors, and the death; None if it had ended before.
    """
    with distributed_run.start(size, *new(out), kernels=KERNELS) as job:
        while (process := watched_process(job.pid, rank)) is None:
            time.sleep(0.02)
        time.sleep(wait)
        if job.poll() is not None:
            job.communicate()
            return None
        os.kill(process, signal.SIGKILL)
        signalled = time.monotonic()
        status = job.wait()
        death = Death(rank, process, time.monotonic() - signalled)
        _, error = job.communicate()  # watchers print on their own
    return (error, death) if status else None


def wrong_message(error: str, size: int, death: Death, out: Path) -> str:
    """Return what is wrong with what a killed job has printed."""
    lines = [line for line in error.splitlines() if line.startswith("tinyvit")]
    if not lines and (out / "test.json").exists():
        return ""  # all processes had ended the run
    if len(lines) != 1:
        return f"{len(lines)} messages"
    if not lines[0].startswith(f"tinyvit: error: rank {death.rank} (process {death.process} on "):
        return f"another process is named: {lines[0]}"
    resumes = f"continue with: mpiexec -n {size} tinyvit train --resume {out} --distributed"
    again = f"before the run began; start it again: mpiexec -n {size} tinyvit {' '.join(map(str, new(out)))}"
    return "" if lines[0].endswith(resumes) or again in lines[0] else f"no command: {lines[0]}"


def left_behind(out: Path) -> str:
    """Return the names of files of no use in a run folder."""
    return ", ".join(sorted(path.name for path in [*leftovers(out), *out.glob(".*")]))


def trial(number: int, random_one: random.Random, usual: float, expected: bytes, folder: Path) -> tuple[bool, float]:
    """Kill, resume and compare one job; print its row; return whether all was right, and how long the end took."""
    ended, attempt = None, 0
    while ended is None:
        size = random_one.choice(SIZES)
        rank, wait = random_one.randrange(size), random_one.uniform(0, usual)
        other = random_one.choice([n for n in (1, *SIZES) if n != size])
        attempt += 1
        out = folder / f"run-{number}-{attempt}"
        ended = killed(size, rank, wait, out)
    error, death = ended
    message = wrong_message(error, size, death, out)
    has_begun, has_checkpoint = ((out / name).exists() for name in ("recipe.toml", "checkpoint.safetensors"))
    wrong = completed(other, "train", "--resume", out) if has_begun else completed(other, *new(out))
    is_equal = not wrong and (out / "model.safetensors").read_bytes() == expected
    left = left_behind(out)
    when = "with" if has_checkpoint else "before"
    row = (
        f"{number} | {rank} of {size}, {when} a checkpoint | {death.seconds:.2f} s | {message or 'right'}",
        f"by {other}: {'equal' if is_equal else f'DIFFERENT {wrong}'} | {left or 'nothing'}",
    )
    print(f"| {' | '.join(row)} |", flush=True)
    return is_equal and not message and not left and death.seconds <= LIMIT, death.seconds


def main() -> None:
    """Kill and resume."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=20, help="jobs to kill")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random")
    options = parser.parse_args()
    random_one, found = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if wrong := completed(1, *new(folder / "alone")):
            raise SystemExit(wrong)
        expected = (folder / "alone" / "model.safetensors").read_bytes()
        began = time.monotonic()
        if wrong := completed(3, *new(folder / "whole")):
            raise SystemExit(wrong)
        usual = time.monotonic() - began
        print(f"an undisturbed job of 3 processes took {usual:.1f} s\n")
        print("| job | killed | mpiexec ended after | message | resumed | left behind |\n|---|---|---|---|---|---|")
        for i in range(options.count):
            found.append(trial(i + 1, random_one, usual, expected, folder))
    right = sum(is_right for is_right, _ in found)
    print(f"{right} of {len(found)} were right; the longest end took {max(seconds for _, seconds in found):.2f} s")
    sys.exit(right < len(found))


if __name__ == "__main__":
    main()
