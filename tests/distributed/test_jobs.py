"""Runs by several processes that mpiexec starts: the same bits with any number, and what is left when one fails.

TINYVIT_KILLED_JOBS=20 kills a process of twenty jobs at a random moment instead of one.
"""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import distributed_run
import pytest
from tiny_run import ALL_STREAMS, isolate, sha256, timeless, tiny_recipe
from tiny_tasks import tiny

import tinyvit as tv
from tinyvit.checkpoint import load
from tinyvit.recipe import Recipe
from tinyvit.run.loop import train

pytest.importorskip("fcntl", reason="this system has no signals as POSIX has them")
pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("TINYVIT_KILLED_JOBS", "1"))
LONG = tiny_recipe("epochs=6", "batch_size=60", "limit=120", "checkpoint_minutes=1e-9", "shards=4", "ema=0.9")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    distributed_run.needs_mpi()
    isolate(tmp_path, monkeypatch)


def written(recipe: Recipe) -> Path:
    path = Path("recipe.toml")
    path.write_text(recipe.to_toml())
    return path


def alone(recipe: Recipe, shards: int = 8) -> None:
    """Train in this process, by as many shards as several processes have, into the folder `alone`."""
    if not recipe.train.shards:
        recipe = recipe.override([f"shards={shards}"])
    with tv.use_kernels("auto"):
        train(recipe, "run", Path("alone"))


def result(folder: Path) -> tuple[Any, ...]:
    test = json.loads((folder / "test.json").read_text())
    return sha256(folder), timeless(folder), test


def ends(process: Any, of_launcher: bool = True) -> tuple[int, str]:
    """Wait for a job that ends before its time; return its exit status and the lines of standard error from tinyvit.

    The launcher may print others, about processes that were killed, only if `of_launcher` says so.
    """
    status, _, err = distributed_run.finish(process)
    lines = err.splitlines()
    said = [line for line in lines if line.startswith("tinyvit")]
    assert of_launcher or said == lines
    return status, "\n".join(said)


# The same bits --------------------------------------------------------------------------------------------------------


CASES = {
    "digits": (tiny_recipe(*ALL_STREAMS, "limit=210", "batch_size=50", "validation=0.2", "keep=best"), 2, 4, 8),
    "bfloat16": (tiny_recipe(*ALL_STREAMS, "limit=210", "batch_size=50", "precision=bfloat16", "shards=6"), 3),
    "retrieve": (tiny("retrieve", "accumulate=2", "epochs=1"), 4),
    "caption": (tiny("caption", "shards=4", "epochs=1"), 2),
}


@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("case", CASES)
def test_the_bits_of_a_run_do_not_depend_on_the_number_of_processes(case):
    recipe, *sizes = CASES[case]
    alone(recipe)
    for size in sizes:
        status, _, err = distributed_run.run(size, "train", written(recipe), "--out", f"by-{size}")
        assert (status, err) == (0, "")
        assert result(Path(f"by-{size}")) == result(Path("alone"))
        logs = [path.name for path in Path(f"by-{size}", "logs").iterdir()]
        assert sorted(logs) == [f"rank-{rank}.log" for rank in range(1, size)]


@pytest.mark.parametrize(("options", "error"), [(("accumulate=2",), 1e-3), (("wire=bfloat16",), 1e-2)])
def test_a_fast_sum_gives_nearly_the_same_weights(options, error):
    recipe = tiny_recipe("limit=120", "batch_size=60", "reduce=fast", *options)
    alone(recipe, shards=0)
    assert distributed_run.run(2, "train", written(recipe), "--out", "two")[0] == 0
    one, two = (load(Path(name, "checkpoint.safetensors"))["model"] for name in ("alone", "two"))
    assert all(abs(one[name] - two[name]).max() < error for name in one)


# Failures -------------------------------------------------------------------------------------------------------------


def resumed(folder: str, size: int) -> tuple[Any, ...]:
    """Resume the run in `folder` by `size` processes, to its end, and return its result."""
    status, _, err = distributed_run.run(size, "train", "--resume", folder)
    assert (status, err) == (0, "")
    assert not list(Path(folder).glob(".*"))  # of what the process that failed was writing
    return result(Path(folder))


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_killed_process_ends_the_job_which_another_number_resumes_to_the_same_bits(seed):
    rng = random.Random(seed)
    alone(LONG)
    size, step = rng.choice((2, 3)), rng.randrange(2, 8)
    rank = rng.randrange(size)
    death = {"how": rng.choice(("killed", "killed-within", "killed-after")), "step": step}
    if seed % 2:
        rank, death = 0, {"how": rng.choice(("before", "after")), "event": rng.randrange(20, 100)}
    began = time.monotonic()
    status, err = ends(distributed_run.start(size, "train", written(LONG), "--out", "killed", death=death, rank=rank))
    assert time.monotonic() - began < 60
    assert status != 0
    assert err.startswith(f"tinyvit: error: rank {rank} (process ")
    assert err.endswith(f"was killed; continue with: mpiexec -n {size} tinyvit train --resume killed --distributed")
    assert resumed("killed", rng.choice([n for n in (1, 2, 4) if n != size])) == result(Path("alone"))


def test_a_process_that_is_killed_before_the_run_begins_is_named_and_leaves_no_folder():
    death = {"how": "killed-early", "step": 0}
    status, err = ends(distributed_run.start(2, "train", written(LONG), "--out", "run", death=death, rank=1))
    assert status != 0
    assert err.startswith("tinyvit: error: rank 1 (process ")
    again = f"mpiexec -n 2 tinyvit train {written(LONG)} --out run --distributed"
    assert err.endswith(f" was killed before the run began; start it again: {again}")
    assert not Path("run").exists()


def test_a_process_that_is_stopped_for_a_while_is_waited_for():
    alone(LONG)
    process = distributed_run.start(2, "train", written(LONG), "--out", "waited")
    assert process.stdout.readline().startswith("digits: ")  # training is about to begin
    log = Path("waited", "logs", "rank-1.log")
    while not (log.exists() and log.read_text().startswith("rank 1 of 2, process ")):
        time.sleep(0.01)
    number = int(log.read_text().split()[5])
    os.kill(number, signal.SIGSTOP)
    time.sleep(1)
    os.kill(number, signal.SIGCONT)
    assert ends(process, of_launcher=False) == (0, "")
    assert result(Path("waited")) == result(Path("alone"))


@pytest.mark.parametrize(
    ("death", "rank", "says"),
    [
        ({"how": "exception", "step": 3}, 1, "tinyvit: error: RuntimeError: planned"),
        ({"how": "nan", "step": 3}, 1, "the loss of step 3 in shard 2, computed by rank 1, is nan, in epoch 2"),
        ({"how": "full", "event": 40}, 0, "No space left on device"),
    ],
)
def test_a_process_that_fails_ends_the_job_with_one_message(death, rank, says):
    process = distributed_run.start(2, "train", written(LONG), "--out", "failed", death=death, rank=rank)
    status, err = ends(process, of_launcher=False)
    assert status == 1
    assert says in err
    assert err.count("tinyvit") == err.count("tinyvit: error") + err.count("tinyvit train")
    assert err.count("tinyvit: error") == 1
    assert death["how"] == "exception" or "failed" in err
    assert load("failed/checkpoint.safetensors")["position"]["step"] >= (death["how"] != "full")


def test_ctrl_c_ends_all_after_the_same_step_and_another_number_resumes():
    recipe = LONG.override(["epochs=20"])
    alone(recipe)
    process = distributed_run.start(2, "train", written(recipe), "--out", "stopped")
    assert process.stdout.readline().startswith("digits: ")  # training is about to begin
    os.killpg(process.pid, signal.SIGINT)
    status, err = ends(process)
    assert status == 130, err
    assert err.startswith("tinyvit: stopped in epoch ")
    assert err.endswith("continue with: mpiexec -n 2 tinyvit train --resume stopped --distributed")
    assert resumed("stopped", 1) == result(Path("alone"))


def test_bad_input_is_one_message_and_leaves_no_folder():
    process = distributed_run.start(3, "train", written(LONG), "--set", "shards=2", "--out", "run")
    assert ends(process) == (
        2,
        "tinyvit: error: train.shards is 2, and there are 3 processes; set train.shards=3 or more, or start fewer "
        "processes",
    )
    assert not Path("run").exists()
