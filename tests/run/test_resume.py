"""Stop and resume: a run that ends anywhere, for any reason, resumes to the same bits as a run that never ended."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiers import quick_first
from tiny_run import ALL_STREAMS, ENVIRONMENT, command, isolate, metrics_of, sha256, start, timeless, tiny_recipe

import tinyvit.run.loop
from tinyvit.checkpoint import load
from tinyvit.errors import CheckpointError, RecipeError, TinyvitError
from tinyvit.run.display import Display
from tinyvit.run.folder import RunError, new_run
from tinyvit.run.loop import Result, resume, train
from tinyvit.run.signals import Interrupted
from tinyvit.tasks import Classify

RECIPE = tiny_recipe(*ALL_STREAMS, "epochs=3", "batch_size=200")  # 3 epochs of 8 batches: 4 steps each
STEPS, RUN = 4, Path("runs/run")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Result:
    """A run that is not interrupted."""
    return train(RECIPE, "run", tmp_path_factory.mktemp("uninterrupted") / "run")


def assert_same_run(folder: Path, uninterrupted: Result) -> None:
    assert sha256(folder) == sha256(uninterrupted.folder)
    assert timeless(folder) == timeless(uninterrupted.folder)
    assert (folder / "recipe.toml").read_bytes() == (uninterrupted.folder / "recipe.toml").read_bytes()
    assert (folder / "curves.png").exists()


class Signals(Display):
    """Send a signal to this process at one place of the run: "started", "step 3", "epoch 2"."""

    def __init__(self, place: str, *numbers: int) -> None:
        self.place, self.numbers = place, numbers or (signal.SIGINT,)

    def _send(self, place: str) -> None:
        if place == self.place:
            for number in self.numbers:
                signal.raise_signal(number)

    def started(self, training, folder):
        self._send("started")

    def stepped(self, position):
        self._send(f"step {position.step}")

    def finished_epoch(self, position):
        self._send(f"epoch {position.epoch}")


# Ctrl-C -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("place", "step"),
    quick_first(
        [
            ("started", 1),  # the current step is finished first
            ("step 4", 4),  # the last of an epoch, before its test
            ("epoch 1", 5),
            ("step 1", 1),
            ("step 3", 3),
            ("step 11", 11),
            ("step 12", 12),
        ],
        3,
    ),
)
def test_a_signal_stops_the_run_after_the_step_and_it_resumes_exactly(uninterrupted, place, step, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught:
        train(RECIPE, "run", display=Signals(place, number))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    epoch = (step - 1) // STEPS + 1
    assert str(caught.value) == (
        f"stopped in epoch {epoch} of 3, after step {step}; continue with: tinyvit train --resume runs/run"
    )
    assert load(RUN / "checkpoint.safetensors")["position"]["step"] == step
    assert len(metrics_of(RUN)) == epoch - 1
    assert (RUN / "curves.png").exists() == (epoch > 1)
    resumed = resume(RUN)
    assert_same_run(resumed.folder, uninterrupted)


def test_a_signal_during_the_test_of_an_epoch_stops_there(uninterrupted, monkeypatch):
    measure = Classify.measure

    def interrupted(task, model, batch, start):
        signal.raise_signal(signal.SIGINT)
        return measure(task, model, batch, start)

    with monkeypatch.context() as patch:
        patch.setattr(Classify, "measure", interrupted)
        with pytest.raises(Interrupted, match="in epoch 1 of 3, after step 4"):
            train(RECIPE, "run")
    resume(RUN)
    assert_same_run(RUN, uninterrupted)


def test_a_signal_at_the_very_end_comes_too_late(uninterrupted):
    train(RECIPE, "run", display=Signals("epoch 3"))
    assert_same_run(RUN, uninterrupted)


def test_a_run_stopped_after_every_step_ends_the_same(uninterrupted):
    with pytest.raises(Interrupted):
        train(RECIPE, "run", display=Signals("step 1"))
    for step in range(2, 3 * STEPS + 1):
        with pytest.raises(Interrupted):
            resume(RUN, Signals(f"step {step}"))
    resume(RUN)
    assert_same_run(RUN, uninterrupted)


def test_a_second_ctrl_c_stops_at_once_and_the_last_checkpoint_stays(uninterrupted):
    with pytest.raises(KeyboardInterrupt) as caught:
        train(RECIPE, "run", display=Signals("step 7", signal.SIGINT, signal.SIGINT))
    assert not isinstance(caught.value, Interrupted)
    assert load(RUN / "checkpoint.safetensors")["position"]["step"] == STEPS
    resume(RUN)
    assert_same_run(RUN, uninterrupted)


@pytest.fixture
def terminal():
    """Give SIGHUP its default handler: these tests may themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_stops_the_run_with_a_checkpoint_even_if_it_sends_two_signals(uninterrupted, terminal):
    before = signal.getsignal(signal.SIGHUP)
    with pytest.raises(Interrupted):
        train(RECIPE, "run", display=Signals("step 7", signal.SIGHUP, signal.SIGHUP))
    assert signal.getsignal(signal.SIGHUP) == before
    assert load(RUN / "checkpoint.safetensors")["position"]["step"] == 7
    resume(RUN)
    assert_same_run(RUN, uninterrupted)


def test_under_nohup_a_closed_terminal_changes_nothing(uninterrupted):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(RECIPE, "run", display=Signals("step 7", signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_same_run(RUN, uninterrupted)


@pytest.mark.parametrize("numbers", ["SIGINT, SIGTERM", "SIGHUP, SIGTERM"])
def test_the_second_of_two_simultaneous_signals_acts_at_once(numbers, terminal):
    script = f"""
import os, signal
from signal import SIGHUP, SIGINT, SIGTERM
signal.pthread_sigmask(signal.SIG_BLOCK, [{numbers}])  # before other threads start, which would receive the signals
from tinyvit.run.signals import StopRequest
with StopRequest():
    for number in [{numbers}]:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [{numbers}])
    print("goes on")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGTERM, "", "")


def test_training_outside_of_the_main_thread_leaves_signals_alone(uninterrupted):
    before, results = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: results.append(train(RECIPE, "run")))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) == before
    assert_same_run(results[0].folder, uninterrupted)


# SIGKILL ------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """An exception that no code catches, because no process survives SIGKILL."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("writes", quick_first([0, 2, 11, 1, 3, 7, 12], 3))
def test_a_run_killed_at_any_write_resumes_exactly(uninterrupted, monkeypatch, writes, when):
    """A run renames 13 files after its recipe: 4 times the checkpoint, the weights and the metrics, then the curves."""
    replace, left = os.replace, [writes]

    def killed(source, target):
        left[0] -= 1
        if left[0] >= 0 or when == "after":
            replace(source, target)
        if left[0] < 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            train(RECIPE, "run")
    resume(RUN)
    assert_same_run(RUN, uninterrupted)


def kill_until_finished(recipe: str, folder: Path, kills: int, seed: int) -> int:
    """Kill a run `kills` times at random moments, resume it until it ends, and return how often it was running."""
    chance, hits, arguments = random.Random(seed), 0, [recipe, "--out", folder]
    for _ in range(kills):
        with start("train", *arguments, env=ENVIRONMENT) as process:
            assert process.stdout.readline().endswith(f"-> {folder}\n")  # training is about to begin
            time.sleep(chance.uniform(0, 0.5))
            process.kill()
        hits += process.returncode == -signal.SIGKILL
        arguments = ["--resume", folder]
    status, _, err = command("train", *arguments, env=ENVIRONMENT)
    assert (status, err) == (0, "")
    return hits


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 20])
def test_a_run_killed_at_random_ends_with_the_same_bits(kills):
    recipe = RECIPE.override([f"epochs={6 + 6 * kills}"])
    Path("recipe.toml").write_text(recipe.override(["checkpoint_minutes=1e-9"]).to_toml())
    assert kill_until_finished("recipe.toml", Path("killed"), kills, seed=kills) == kills
    uninterrupted = train(recipe, "run")
    assert sha256(Path("killed")) == sha256(uninterrupted.folder)
    assert timeless(Path("killed")) == timeless(uninterrupted.folder)


# Two processes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_trained_by_one_process_at_a_time(uninterrupted):
    pytest.importorskip("fcntl", reason="this system has no locks on folders")

    answers = []

    class Second(Display):
        def stepped(self, position):
            if position.step == STEPS + 1:
                answers.append(command("train", "--resume", RUN, env=ENVIRONMENT))

    train(RECIPE, "run", display=Second())
    says = "runs/run is being trained by another process; wait for it, or stop it first"
    assert answers == [(2, "", f"tinyvit: error: {says}\n")]
    assert_same_run(RUN, uninterrupted)


def test_a_failed_run_releases_its_folder(uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tinyvit.run.loop, "_train_epochs", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(RECIPE, "run")
    resume(RUN)
    assert_same_run(RUN, uninterrupted)


def test_a_file_system_without_locks_does_not_prevent_training(uninterrupted, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="this system has no locks on folders")

    def refused(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    train(RECIPE, "run")
    assert_same_run(RUN, uninterrupted)


# Resuming -----------------------------------------------------------------------------------------------------------


def stopped_run() -> Path:
    with pytest.raises(Interrupted):
        train(RECIPE, "run", display=Signals("step 6"))
    return RUN


def test_a_finished_run_is_reported_and_not_changed(uninterrupted, capsys):
    finished = train(RECIPE, "run")
    again = resume(RUN, tinyvit.run.display.Lines())
    assert again == finished
    assert capsys.readouterr().out == "runs/run is finished: all 3 epochs are trained\n"
    assert_same_run(RUN, uninterrupted)


def test_the_metrics_are_cut_back_to_the_checkpoint(uninterrupted):
    metrics = stopped_run() / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"epoch": 2}\n{"ep')
    resume(RUN)
    assert_same_run(RUN, uninterrupted)


def test_the_time_of_a_resumed_run_continues():
    folder = stopped_run()
    before = load(folder / "checkpoint.safetensors")["position"]["seconds"]
    seconds = [line["seconds"] for line in resume(folder).metrics]
    assert 0 < seconds[0] < before < seconds[1] < seconds[2]


def test_a_run_killed_before_its_first_checkpoint_starts_over(uninterrupted):
    new_run(RECIPE, "run")
    resume(RUN)
    assert_same_run(RUN, uninterrupted)


def test_earlier_use_of_the_random_stream_does_not_matter(uninterrupted):
    folder = stopped_run()
    tinyvit.manual_seed(1234)
    resume(folder)
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("key", ["train.lr", "data.shift", "model.heads"])
def test_a_run_is_not_resumed_with_another_recipe(key):
    folder = stopped_run()
    name = key.partition(".")[2]
    value = {"lr": "1e-3", "shift": "0", "heads": "1"}[name]
    (folder / "recipe.toml").write_text(RECIPE.override([f"{key}={value}"]).to_toml())
    with pytest.raises(CheckpointError, match=rf"was written with another {key} than recipe\.toml now says"):
        resume(folder)


def test_the_description_of_a_recipe_may_change(uninterrupted):
    folder = stopped_run()
    (folder / "recipe.toml").write_text(RECIPE.override(["title=mine", "minutes=3"]).to_toml())
    resume(folder)
    assert sha256(folder) == sha256(uninterrupted.folder)


def test_a_run_is_not_resumed_with_other_images():
    for split in ("train", "test"):
        for name in ("a", "b"):
            Path("mine", split, name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(Path("mine", split, name, f"{i}.png"))
    recipe = tiny_recipe("name=folder:mine", "batch_size=2")
    with pytest.raises(Interrupted):
        train(recipe, "run", display=Signals("step 3"))
    Path("mine/train/a/3.png").unlink()
    with pytest.raises(CheckpointError, match="other images than folder:mine now holds"):
        resume(RUN)


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda run: (run / "recipe.toml").unlink(), RunError, "is not a run folder"),
        (lambda run: (run / "recipe.toml").write_text("x"), RecipeError, "not valid TOML"),
        (lambda run: (run / "checkpoint.safetensors").unlink(), RunError, "has no checkpoint"),
        (lambda run: (run / "checkpoint.safetensors").write_bytes(b"\0" * 99), CheckpointError, "safetensors"),
        (
            lambda run: (run / "model.safetensors").replace(run / "checkpoint.safetensors"),
            CheckpointError,
            "is not the checkpoint of a run",
        ),
    ],
)
def test_a_folder_that_cannot_be_resumed_is_named_and_not_changed(spoil, error, says):
    folder = stopped_run()
    spoil(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(error, match=says) as caught:
        resume(folder)
    assert str(folder) in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["missing", "file"])
def test_an_error_about_a_path_without_a_run_names_it(name):
    Path("file").write_text("")
    with pytest.raises(TinyvitError, match=f"{name} is not a run folder"):
        resume(Path(name))
