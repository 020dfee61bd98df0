"""The bits of a run do not depend on the number of threads; where they would, it is not resumed with another one."""

import subprocess
import sys

import pytest
from threadpoolctl import threadpool_limits
from tiers import quick_first
from tiny_run import ENVIRONMENT, Watch, isolate, tiny_recipe

import tinyvit as tv
from tinyvit.backend import product_threads
from tinyvit.errors import CheckpointError
from tinyvit.run.loop import resume, train
from tinyvit.run.state import Training

TWICE = """
import sys
from tiny_tasks import tiny
from tinyvit.data import scenes
from tinyvit.run.loop import train
scenes.TRAIN_SCENES, scenes.TEST_SCENES = 80, 12
large = ("dim=64", "mlp_dim=128", "text_depth=2", "limit=256", "batch_size=128", "epochs=1", "dropout=0")
print(train(tiny(sys.argv[1], f"precision={sys.argv[2]}", *large), "run").metrics[-1]["val_loss"])
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


HOW = [(kernels, precision) for precision in ("float32", "float16", "bfloat16") for kernels in ("numpy", "auto")]


@pytest.mark.parametrize(("kernels", "precision"), quick_first(HOW, 5))
def test_products_use_one_thread_where_that_costs_little(kernels, precision) -> None:
    found = []
    with tv.use_kernels(kernels), threadpool_limits(2, "blas"):
        recipe = tiny_recipe(f"precision={precision}", "epochs=1", "limit=240")
        train(
            recipe, "run", display=Watch(lambda training, position: found.append((product_threads(), training.threads)))
        )
        assert product_threads() == 2
    one = kernels == "auto" or precision == "float16"
    assert found == [(1, 1) if one else (2, 2)]


def test_without_kernels_a_run_is_not_resumed_with_another_number_of_threads() -> None:
    recipe = tiny_recipe("epochs=1", "limit=240")
    with tv.use_kernels("numpy"):
        with threadpool_limits(2, "blas"):
            folder = train(recipe, "run").folder
        with (
            threadpool_limits(1, "blas"),
            pytest.raises(CheckpointError, match=r"products used 2 threads; here they use 1, .*TINYVIT_THREADS=2"),
        ):
            resume(folder)
        with threadpool_limits(2, "blas"):
            assert resume(folder).folder == folder


def test_a_checkpoint_of_an_earlier_version_says_nothing_of_threads() -> None:
    training = Training(tiny_recipe())
    state = training.state_dict()
    assert state.pop("threads") >= 1
    tv.save("state.safetensors", state)
    training.read_checkpoint("state.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("task", ["vqa-cross", "retrieve"])
def test_a_run_with_one_thread_and_with_two_gives_the_same_bits(task, precision) -> None:
    import tiny_run

    support = str(tiny_run.__file__).rpartition("/")[0]
    losses = set()
    for threads in "12":
        environment = ENVIRONMENT | {"TINYVIT_THREADS": threads, "PYTHONPATH": support}
        command = [sys.executable, "-c", TWICE, task, precision]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        losses.add(done.stdout)
    assert len(losses) == 1
