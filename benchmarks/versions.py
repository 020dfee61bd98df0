"""What each version of a CPU kernel gains over the one before: `python -m benchmarks.versions [OPERATION ...]`.

The shapes are those of the model vit-s in a batch of 128. All versions of a kernel, and the plain rule, take turns in
one process, so that they meet the same noise, and the shortest time of each counts. The version tables at the top of
the kernels quote these gains.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from tinyvit.kernels import registry
from tinyvit.kernels.cpu.threads import thread_count

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.backend import BFLOAT16
from tinyvit.backend.words import counted
from tinyvit.engine import Tensor
from tinyvit.functional.elementwise import AddNarrow
from tinyvit.optim.clipping import Clipping

from .inputs import DROPOUT_P
from .machine import describe_machine

MEASURED = (
    *("attention", "linear", "bias_gelu", "layer_norm", "softmax", "cross_entropy", "dropout", "patches", "embedding"),
    *("conv2d", "depthwise_conv", "max_pool2d", "cast", "gelu", "add", "add_narrow", "adamw", "clip"),
)
UPDATES = ("adamw", "clip")  # of weights and gradients, which are no operations on the tape
VERSIONS = {spec.operation: spec.versions for spec in registry.SPECS if spec.technology == "numba"}
CHOICES = ("numpy", *(f"numba:v{version}" for version in range(1, max(VERSIONS.values()) + 1)))


@dataclass(frozen=True)
class Work:
    """A call of an operation.

    Attributes
    ----------
    shape : what is measured, for the reader.
    operands : arrays that have gradients.
    run : the operation, given the operands as tensors.
    """

    shape: str
    operands: tuple[np.ndarray, ...]
    run: Callable[..., Any]


def _work(operation: str) -> Work:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    batch, tokens, heads, dim = 128, 65, 3, 192
    match operation:
        case "attention":
            qkv = normal(batch, tokens, 3, heads, dim // heads).transpose(2, 0, 3, 1, 4)
            return Work("(128, 3, 65, 64)", tuple(qkv), F.scaled_dot_product_attention)
        case "linear":
            operands = normal(batch, tokens, dim), normal(4 * dim, dim), normal(4 * dim)
            return Work("(8320, 192) to 768", operands, F.linear)
        case "bias_gelu":
            return Work("(8320, 768)", (normal(batch, tokens, 4 * dim), normal(4 * dim)), F.bias_gelu)
        case "layer_norm":
            return Work("(8320, 192)", (normal(batch, tokens, dim), normal(dim), normal(dim)), F.layer_norm)
        case "softmax":
            return Work("(24960, 65)", (normal(batch * heads * tokens, tokens),), F.softmax)
        case "cross_entropy":
            classes = random.integers(0, 1000, 1024)
            return Work("(1024, 1000)", (normal(1024, 1000),), lambda x: F.cross_entropy(x, classes))
        case "dropout":
            return Work("(8320, 768), p = 0.1", (normal(batch, tokens, 4 * dim),), lambda x: F.dropout(x, DROPOUT_P))
        case "patches":
            return Work("128 images 3 x 32 x 32, P = 4", (normal(batch, 3, 32, 32),), lambda x: F.patches(x, 4))
        case "embedding":
            ids = random.integers(0, 1000, (batch, tokens))
            return Work("(1000, 192), 8320 ids", (normal(1000, dim),), lambda weight: F.embedding(ids, weight))
        case "conv2d":
            operands = normal(batch, 3, 32, 32), normal(24, 3, 3, 3), normal(24)
            shape = "128 images 3 x 32 x 32 to 24 x 16 x 16, weights 3 x 3"
            return Work(shape, operands, lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1))
        case "depthwise_conv":
            operands = normal(batch, 8, 8, 144), normal(144, 1, 3, 3), normal(144)
            return Work("128 grids 8 x 8 x 144, weights 3 x 3", operands, F.depthwise_conv)
        case "max_pool2d":
            shape = "128 images 24 x 32 x 32, windows 2 x 2"
            return Work(shape, (normal(batch, 24, 32, 32),), lambda x: F.max_pool2d(x, 2))
        case "gelu":
            return Work("(8320, 768)", (normal(batch, tokens, 4 * dim),), F.gelu)
        case "add":
            return Work("(8320, 192)", (normal(batch, tokens, dim), normal(batch, tokens, dim)), F.add)
        case "add_narrow":
            stream, branch = normal(batch, tokens, dim), normal(batch, tokens, dim).astype(BFLOAT16)
            return Work("(8320, 192)", (stream, branch), AddNarrow.apply)
        case "cast":
            return Work("(8320, 192) to bfloat16", (normal(batch, tokens, dim),), lambda x: F.cast(x, BFLOAT16))
    raise ValueError(f"no shape is known for {operation!r}")


def _calls(work: Work) -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    """Yield the calls of every implementation, forward and then backward."""
    forward, backward = {}, {}
    for choice in CHOICES:
        with tv.use_kernels(choice):
            operands = [Tensor(array, requires_grad=True) for array in work.operands]
            out = work.run(*operands)
        dout = Tensor(np.ones(out.shape, out.dtype))
        forward[choice] = _under(choice, lambda operands=operands: work.run(*operands))
        backward[choice] = lambda out=out, operands=operands, dout=dout: tv.grad(out, operands, dout, retain_graph=True)
    yield "forward", forward
    yield "backward", backward


def _under(choice: str, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with tv.use_kernels(choice), tv.no_grad():
            return call()

    return run


def _update_calls(update: str) -> dict[str, Callable[[], Any]]:
    """Return a step of AdamW, or a clipping, for the parameters of vit-s by every implementation."""
    calls = {}
    for choice in CHOICES:
        model = tv.models.ViT(32, 4, 10, dim=192, depth=6, heads=3)
        for p in model.parameters():
            p.grad = Tensor(np.full(p.shape, 0.1, np.float32))
        call = _clipping(model) if update == "clip" else tv.optim.AdamW(model.parameters()).step
        calls[choice] = _under(choice, call)
    return calls


def _clipping(model: tv.nn.Module) -> Callable[[], Any]:
    """Return a function that always has something to clip: each call makes the gradients a little shorter."""
    clip = Clipping(model.parameters())
    norm = clip(np.inf)

    def run() -> None:
        nonlocal norm
        norm = 0.999 * clip(0.999 * norm)

    return run


def shortest(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Time some calls in turns for `seconds`, at least 5 times each, and return the shortest time of each."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 5 or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
        rounds += 1
    return best


def gains(operation: str, seconds: float) -> Iterator[str]:
    """Yield a line for each direction: the times of the plain rule and of all versions, and what each version gains."""
    if operation in UPDATES:
        directions, shape = [("step", _update_calls(operation))], "2.7 million weights of vit-s"
    else:
        work = _work(operation)
        directions, shape = list(_calls(work)), work.shape
    for direction, calls in directions:
        used = {name: call for name, call in calls.items() if name == "numpy" or int(name[7:]) <= VERSIONS[operation]}
        best = shortest(used, seconds)
        described = [f"numpy {1e3 * best['numpy']:.3g} ms"]
        for before, now in itertools.pairwise(best):
            described.append(f"{now} {1e3 * best[now]:.3g} ms ({best[before] / best[now]:.3g} x)")
        yield f"{operation} {direction}, {shape}: {', '.join(described)}"


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("operations", nargs=-1, type=click.Choice(MEASURED))
@click.option("--seconds", default=3.0, show_default=True, help="Time for one operation in one direction.")
def main(operations: tuple[str, ...], seconds: float) -> None:
    click.echo(f"{describe_machine().device}, {counted(thread_count(), 'threads')}")
    for operation in operations or MEASURED:
        for line in gains(operation, seconds):
            click.echo(line)


if __name__ == "__main__":
    main()
