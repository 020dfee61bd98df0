"""Runs by several processes: how tests start them, and what each process does, `python distributed_run.py JSON`.

The JSON names the arguments of `tinyvit`, the rank that fails, if one does, and how: see `killed_run.plan`, and
`fail_at`. Data sets are small, as in killed runs.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from killed_run import die, main
from tiny_run import ENVIRONMENT


def needs_mpi() -> str:
    """Return the path of mpiexec; skip the test, with the reason, where runs by several processes cannot start."""
    import pytest
    from peers import peer

    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("mpiexec")
    if found is None:
        pytest.skip("needs mpiexec: there is none; pip install mpich")
    peer("mpi4py", "mpi4py")
    return found


def start(
    ranks: int, *arguments: object, death: dict[str, Any] | None = None, rank: int = -1, kernels: str = "auto"
) -> subprocess.Popen[str]:
    """Start `tinyvit` with these arguments in `ranks` processes, of which `rank` dies as `death` says."""
    death = death or {"how": "none"}
    work = {"arguments": [*map(str, arguments), "--distributed"], "kernels": kernels, "death": death, "rank": rank}
    command = [needs_mpi(), "-n", str(ranks), sys.executable, "-W", "error", __file__, json.dumps(work)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a job; return its exit status, standard output and standard error."""
    with process:
        try:
            out, err = process.communicate()
        except BaseException:  # pytest's limit of time: leaving would wait for the job
            process.kill()
            raise
    return process.returncode, out, err


def run(ranks: int, *arguments: object, **how: Any) -> tuple[int, str, str]:
    """Run `tinyvit` with these arguments in `ranks` processes."""
    return finish(start(ranks, *arguments, **how))


def own_rank() -> int:
    """Return the rank of this process, which the launchers of MPICH and Open MPI tell before MPI is started."""
    return int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")))


def fail_at(step: int, how: str) -> None:
    """Prepare a failure at a step of this process.

    `how` is "exception"; "nan" for a loss that is NaN; "killed" before the step; "killed-within" while gradients are
    computed; "killed-after" when they have been added up; "killed-early" before the run folder is made.
    """
    import tinyvit.run.loop
    from tinyvit.run.sharded import ShardedSteps

    if how == "killed-early":
        tinyvit.run.loop.require_agreement = lambda training: die()

    differentiate, add_gradient, now = ShardedSteps.differentiate, ShardedSteps.add_gradient, [False]

    def failing(steps: Any, batches: Any, number: int, epoch: int) -> float:
        now[0] = number == step
        if now[0] and how == "exception":
            raise RuntimeError("planned")
        if now[0] and how == "killed":
            die()
        loss = differentiate(steps, batches, number, epoch)
        if now[0] and how == "killed-after":
            die()
        return loss

    def bad(steps: Any, batch: Any, is_only_one: bool) -> float:
        loss = add_gradient(steps, batch, is_only_one)
        if now[0] and how == "killed-within":
            die()
        return float("nan") if now[0] and how == "nan" else loss

    ShardedSteps.differentiate = failing  # type: ignore[method-assign]
    ShardedSteps.add_gradient = bad  # type: ignore[method-assign]


if __name__ == "__main__":
    work = json.loads(sys.argv[1])
    mine = work["death"] if work["rank"] == own_rank() else {"how": "none"}
    if mine["how"] in ("exception", "nan") or mine["how"].startswith("killed"):
        fail_at(mine["step"], mine["how"])
        mine = {"how": "none"}
    main(work["arguments"], work["kernels"], mine)
