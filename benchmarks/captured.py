"""Training steps from a record of their gradients against usual ones: `python -m benchmarks.captured [SHAPE ...]`.

Two equal models are trained side by side on the same batches, one step of each in turn: forward, backward, clipping and
AdamW. The weights of both must be equal at the end, bit for bit. The ratios are those of the 20 % quantiles of all
times, and of the medians. Other programs on the machine slow both ways down, though not equally: the time of the
calling thread alone depends on them less.
"""

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.optim.clipping import Clipping
from tinyvit.run.captured_cpu import WARM_UP, CapturedGradients

from .by_operation import SHAPES
from .cases import ModelShape
from .machine import describe_machine
from .models import build_model
from .stats import LOW, quantile

CLIP = 1.0


def step_of(shape: ModelShape, dtype: str, is_captured: bool) -> tuple[Callable[[Any, Any], float], Any]:
    """Return a function that makes a training step of a new model on a batch, and the model."""
    tv.manual_seed(0)
    model = build_model(shape)
    parameters = list(model.parameters())
    optimizer = tv.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)

    def losses(images: Any, labels: Any) -> tuple[tv.Tensor, tv.Tensor]:
        with tv.autocast(dtype):
            loss = F.cross_entropy(model(tv.Tensor(images)), labels, reduction="sum")
        return loss, loss / shape.batch

    captured = CapturedGradients(losses, parameters) if is_captured else None
    clip = Clipping(parameters)

    def step(images: Any, labels: Any) -> float:
        optimizer.zero_grad()
        loss = captured((images, labels), shape.batch) if captured else None
        if loss is None:
            total, mean = losses(images, labels)
            mean.backward()
            loss = float(total.item())
        clip(CLIP)
        optimizer.step()
        if captured and captured.reason:
            raise click.ClickException(f"{shape.name}: {captured.reason}")
        return loss

    return step, model


def compare(shape: ModelShape, dtype: str, steps: int) -> dict[str, float]:
    """Return the seconds of both ways, and their ratios; raises an error if they do not compute the same bits."""
    random = np.random.default_rng(0)
    images = random.standard_normal((4, shape.batch, shape.channels, shape.image, shape.image)).astype(np.float32)
    labels = random.integers(0, shape.classes, (4, shape.batch))
    ways = {name: step_of(shape, dtype, name == "captured") for name in ("usual", "captured")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(steps + WARM_UP + 2):
        losses = []
        for name in sorted(ways, reverse=i % 2 == 0):
            start, begun = time.perf_counter(), time.thread_time()
            losses.append(ways[name][0](images[i % 4], labels[i % 4]))
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(time.thread_time() - begun)
        if losses[0] != losses[1]:
            raise click.ClickException(f"{shape.name}: the losses of step {i + 1} differ")
    both = zip(*(model.parameters() for _, model in ways.values()), strict=True)
    if any(p.numpy().tobytes() != q.numpy().tobytes() for p, q in both):
        raise click.ClickException(f"{shape.name}: the weights differ after {steps} steps")
    times = {f"{name} {what}": value for what, each in (("ms", seconds), ("cpu", cpu)) for name, value in _low(each)}
    medians = {name: float(np.median(values[WARM_UP + 2 :])) for name, values in seconds.items()}
    return {
        **times,
        "ratio": times["usual ms"] / times["captured ms"],
        "ratio of medians": medians["usual"] / medians["captured"],
        "ratio of cpu": times["usual cpu"] / times["captured cpu"],
    }


def _low(each: dict[str, list[float]]) -> list[tuple[str, float]]:
    return [(name, quantile(values[WARM_UP + 2 :], LOW)) for name, values in each.items()]


@click.command()
@click.argument("names", nargs=-1, metavar="[SHAPE]...")
@click.option("--steps", type=click.IntRange(1), default=200, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
def main(names: tuple[str, ...], steps: int, dtype: str) -> None:
    """Compare recorded training steps with usual ones; by default of digits-s and mnist-s."""
    click.echo(describe_machine())
    for name in names or ("digits-s", "mnist-s"):
        if name not in SHAPES:
            raise click.UsageError(f"SHAPE is {name}; it must be one of {', '.join(SHAPES)}")
        found = compare(SHAPES[name], dtype, steps)
        click.echo(
            f"{name} {dtype}: usual {1e3 * found['usual ms']:.2f} ms, captured {1e3 * found['captured ms']:.2f} ms: "
            f"{found['ratio']:.2f} times as fast, by medians {found['ratio of medians']:.2f}, "
            f"by time of the calling thread {found['ratio of cpu']:.2f}"
        )


if __name__ == "__main__":
    main()
