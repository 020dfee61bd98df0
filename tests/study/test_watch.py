"""Monitoring training: measurements are correct, warnings name what is wrong, and the run is the same as without."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_run import isolate, sha256, tiny_recipe

import tinyvit as tv
import tinyvit.functional as F
import tinyvit.run.loop as training
from tinyvit.run.display import Display
from tinyvit.study import trace
from tinyvit.study.watch.measures import alarms, attention_entropy, silent_units, spread
from tinyvit.study.watch.monitor import LINES, PAGE, PICTURE, Monitor
from tinyvit.study.watch.report import curves, draw_report


def monitored(folder: Path, *assignments: str) -> tuple[Monitor, Path]:
    monitor = Monitor(Display())
    result = training.train(tiny_recipe(*assignments), "tiny", folder, monitor)
    return monitor, result.folder


def started(folder: Path, total_steps: int, step: int = 0) -> Monitor:
    """A monitor of a run that exists only as far as the monitor needs it."""
    monitor = Monitor(Display())
    position = SimpleNamespace(step=step, loss_sum=0.0, images=0)
    run = SimpleNamespace(position=position, total_steps=total_steps, model=tv.nn.Linear(2, 2))
    monitor.started(run, folder)  # type: ignore[arg-type]
    return monitor


def test_a_monitored_run_has_the_same_weights_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    plain = training.train(tiny_recipe("dropout=0.1"), "tiny", tmp_path / "plain")
    monitor, folder = monitored(tmp_path / "monitored", "dropout=0.1")
    assert sha256(folder) == sha256(plain.folder)
    lines = [json.loads(line) for line in (folder / LINES).read_text().splitlines()]
    assert lines == monitor.lines
    assert lines[0]["step"] == 2  # the first step has no earlier parameters to compare with
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    page = (folder / PAGE).read_text("utf-8")
    assert "<svg" in page
    assert "blocks.0.attn.qkv.weight" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "").replace("https://matplotlib.org", "")


@pytest.mark.slow
def test_updates_are_those_of_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of plain gradient descent: the update is lr times the gradient."""
    isolate(tmp_path, monkeypatch)
    how = (
        "optimizer=sgd",
        "momentum=0",
        "weight_decay=0",
        "schedule=constant",
        "lr=0.1",
        "warmup_epochs=0",
        "epochs=1",
    )
    kept: dict[str, Any] = {}

    class Noting(Display):
        def started(self, run: Any, folder: Path) -> None:
            self.run = run

        def stepped(self, position: Any) -> None:
            kept["before"] = kept.get("after")
            kept["after"] = {name: p.numpy().copy() for name, p in self.run.model.named_parameters()}

    monitor = Monitor(Noting())
    training.train(tiny_recipe(*how), "tiny", tmp_path / "run", monitor)
    line = monitor.lines[-1]
    for name, norm in line["gradients"].items():
        size = np.linalg.norm(kept["before"][name])
        if size:
            assert line["updates"][name] == pytest.approx(0.1 * norm / size, rel=1e-3, abs=1e-7), name
    keys = next(iter(line["entropy"]))
    assert keys == "blocks.0.attn/attention"
    assert 0 < line["entropy"][keys][0] <= np.log(4) + 1e-6
    assert set(line["silent"]) == {"blocks.0.mlp.act/gelu"}


def test_a_warning_names_the_first_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    isolate(tmp_path, monkeypatch)
    with pytest.raises(training.TrainingFailed):
        monitored(tmp_path / "run", "lr=1e9", "warmup_epochs=0", "optimizer=sgd", "schedule=constant")
    assert "the first NaN or infinity is in " in capsys.readouterr().err
    assert "the first NaN or infinity is in" in (tmp_path / "run" / PAGE).read_text("utf-8")


def test_entropy_is_that_of_the_attention_weights() -> None:
    k = np.zeros((1, 2, 5, 4))
    k[0, 1, 3] = 1000.0  # head 1 attends to key 3 only, head 0 to all keys equally
    with trace() as recorded:
        F.scaled_dot_product_attention(tv.tensor(np.ones((1, 2, 3, 4))), tv.tensor(k), tv.tensor(k))
    even, single = attention_entropy(recorded.entries[0])
    assert even == pytest.approx(np.log(5))
    assert single == pytest.approx(0, abs=1e-6)


def test_silent_units_are_counted() -> None:
    x = np.array([[1.0, -1.0, -2.0], [2.0, -1.0, 3.0]])
    with trace() as recorded:
        F.relu(tv.tensor(x))
    assert silent_units(recorded.entries[0]) == pytest.approx(1 / 3)


def line(**changes: Any) -> dict[str, Any]:
    usual = {
        "losses": [1.0],
        "gradients": {"a.weight": 1.0, "b.weight": 0.5},
        "silent": {},
        "entropy": {"blocks.0": [1.0, 2.0]},
    }
    return usual | changes


def test_alarms_are_raised_only_where_something_is_wrong() -> None:
    assert alarms(line(), [line()] * 10) == {}
    vanishing = alarms(line(gradients={"a.weight": 1e-9, "b.weight": 1.0}), [])["vanishing"]
    assert "a.weight vanishes: it is 1.0e-09" in vanishing
    exploding = alarms(line(gradients={"a.weight": 1.0, "b.weight": 1e5}), [line()] * 5)["exploding"]
    assert "b.weight explodes: it is 1.0e+05" in exploding
    dead = alarms(line(silent={"mlp": 0.9}), [])["dead mlp"]
    assert dead.startswith("90 % of the units of mlp")
    assert "test" not in dead  # where a run holds out validation images, those are measured
    assert "head 1 of attn" in alarms(line(entropy={"attn": [1.0, 0.0]}), [])["collapsed attn"]
    assert "the gradients of all weights are zero" in alarms(line(gradients={"a.weight": 0.0}), [])["vanishing"]
    assert "of a.weight is not finite" in alarms(line(gradients={"a.weight": np.nan, "b": 1.0}), [])["finite"]
    broken = alarms(line(gradients=dict.fromkeys(("a.weight", "b"), np.nan)), [])["finite"]
    assert broken.endswith("is not finite, nor are those of 1 other parameter")
    assert "it is 4, and was 1 at the start" in alarms(line(losses=[4.0] * 10), [line()])["diverging"]
    assert "diverging" not in alarms(line(losses=[1.4] * 10), [line()])


@pytest.mark.slow
def test_a_run_that_diverges_is_not_called_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    isolate(tmp_path, monkeypatch)
    monitor, folder = monitored(tmp_path / "run", "lr=3", "warmup_epochs=0", "schedule=constant", "epochs=4")
    assert "the loss grows" in capsys.readouterr().err
    page = (folder / PAGE).read_text("utf-8")
    assert "the loss grows" in page
    assert "there are no warnings" not in page
    losses = [loss for line in monitor.lines for loss in line["losses"]]
    last = monitor.lines[-1]["step"]
    assert len(losses) == last == 4 * (last // 4)  # one for every step, and the last step is measured
    assert f"{len(monitor.lines)} of {last} steps were measured" in page


@pytest.mark.slow
def test_losses_are_those_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    monitor, folder = monitored(tmp_path / "run", "epochs=2")
    losses = [loss for line in monitor.lines for loss in line["losses"]]
    metrics = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    halves = np.array_split(np.array(losses), 2)
    for half, epoch in zip(halves, metrics, strict=True):
        assert half.min() <= epoch["train_loss"] <= half.max()


def test_measuring_keeps_to_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a measurement that takes one second, there is none for forty seconds."""
    clock = [0.0]
    monkeypatch.setattr("tinyvit.study.watch.monitor.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("tinyvit.study.watch.monitor.SAMPLES", 10_000)  # so that every step is due
    monitor = started(tmp_path, total_steps=10_000)
    measured = []

    def measure(position: Any) -> None:
        clock[0] += 1.0
        measured.append(position.step)

    monkeypatch.setattr(monitor, "measure", measure)
    for step in range(1, 401):
        clock[0] += 1.0
        monitor.stepped(SimpleNamespace(step=step, loss_sum=float(step), images=step))  # type: ignore[arg-type]
    assert 8 <= len(measured) <= 11, measured
    assert max(measured) > 350


def test_a_run_that_cannot_be_monitored_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    monkeypatch.setattr("tinyvit.study.watch.monitor.ViT", tv.nn.Linear)
    with pytest.raises(tv.errors.StudyError, match="--study works with classifiers of images only"):
        monitored(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_spread_is_the_standard_deviation() -> None:
    x = np.random.default_rng(0).standard_normal((3, 40)) + 100.0
    with trace() as recorded:
        tv.tensor(x) * 2.0
    assert spread(recorded.entries[0]) == pytest.approx(np.std(2 * x), rel=1e-6)


def test_a_resumed_run_keeps_the_lines_before_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / LINES).write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 5, 6, 7, 9)))
    monitor = started(tmp_path, total_steps=10, step=6)
    assert [line["step"] for line in monitor.lines] == [2, 5, 6]


def test_the_report_draws_the_largest_gradient_and_the_last_line(tmp_path: Path) -> None:
    def seen(step: int, norm: float) -> dict[str, Any]:
        gradients = {"blocks.0.a.weight": norm, "blocks.0.b.weight": norm / 10}
        attention = {"blocks.0/attention": [0.5, 1.5]}
        return line(
            step=step, gradients=gradients, updates=gradients, entropy=attention, spread={"blocks.0/linear": 1.0}
        )

    lines = [seen(1, 3.0), seen(2, 7.0)]
    assert curves(lines, "gradients") == {"blocks.0": [3.0, 7.0]}
    assert curves(lines, "entropy") == {"blocks.0": [1.0, 1.0]}
    draw_report(tmp_path / PAGE, tmp_path / PICTURE, "run", lines, [], steps=9)
    page = (tmp_path / PAGE).read_text("utf-8")
    assert "2 of 9 steps were measured, and the loss of every step; there are no warnings" in page
    assert "At step 2" in page
    assert "<td>0.50</td><td>1.50</td>" in page
    assert "<td>7</td>" in page
    assert 'role="img" aria-label="curves over 9 steps' in page


def test_losses_that_are_read_every_few_steps_are_not_lost(tmp_path: Path) -> None:
    """A run on a GPU reads them for three steps at once, and the rest at the end of the epoch."""
    monitor = started(tmp_path, total_steps=1000)
    for step, loss_sum, images in ((1, 0.0, 0), (2, 0.0, 0), (3, 12.0, 6), (4, 12.0, 6)):
        monitor.stepped(SimpleNamespace(step=step, loss_sum=loss_sum, images=images))  # type: ignore[arg-type]
    monitor.finished_epoch(SimpleNamespace(step=4, metrics=[{"train_loss": 1.5}]))  # type: ignore[arg-type]
    assert monitor.losses == [2.0, 2.0, 2.0, 1.5]
    monitor.stepped(SimpleNamespace(step=5, loss_sum=3.0, images=1))  # type: ignore[arg-type]
    assert monitor.losses[-1] == 3.0
