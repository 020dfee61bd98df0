"""Wrong calls of operations: the error names the operation and what it was given, and has NumPy's as its cause."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Op, Tensor


def t(*shape: int) -> Tensor:
    return Tensor(np.ones(shape, np.float32), requires_grad=True)


def ids(*shape: int) -> np.ndarray:
    return np.zeros(shape, int)


CALLS: dict[str, list[Callable[[], Any]]] = {
    "add": [lambda: t(2, 3) + t(4), lambda: t(2) + "a", lambda: t(2) + 1j, lambda: F.add(t(2), [1.0])],
    "subtract": [lambda: t(2, 3) - t(2), lambda: tv.tensor([True]) - tv.tensor([True])],
    "multiply": [lambda: t(2, 3) * t(3, 2), lambda: t(2) * np.array(["a", "b"])],
    "divide": [lambda: t(2, 3) / t(2, 2)],
    "power": [lambda: t(2) ** t(3), lambda: t(2) ** "a"],
    "matmul": [lambda: t(2, 3) @ t(4, 5), lambda: t() @ t(2), lambda: t(2, 3, 4) @ t(3, 4, 5)],
    "maximum": [lambda: F.maximum(t(2), t(3)), lambda: F.maximum(t(2), None)],
    "where": [lambda: F.where(np.ones(3, bool), t(2), 0.0), lambda: F.where("a", t(2), 0.0)],
    "clip": [lambda: t(2).clip(), lambda: t(2).clip("a"), lambda: t(2).clip(t(2)), lambda: t(2).clip(np.ones(3))],
    "sum": [lambda: t(2, 3).sum(5), lambda: t(2).sum("x"), lambda: t(2, 2).sum(1.0), lambda: t(2, 2).sum((0, 0))],
    "mean": [lambda: t(2, 3).mean((0, 2)), lambda: t(2).mean([0, 0])],
    "max": [lambda: t(0, 3).max(), lambda: t(2).max(-2), lambda: t().max(1)],
    "min": [lambda: t(3, 0).min(1), lambda: t(2).min(1.5)],
    "var": [lambda: t(3).var(1), lambda: t(3).var(correction="a")],
    "logsumexp": [lambda: t(2).logsumexp(-3)],
    "cumsum": [lambda: t(2).cumsum(3), lambda: t(2).cumsum(0.5)],
    "reshape": [lambda: t(2, 3).reshape(4), lambda: t(2, 3).reshape(-1, -1), lambda: t(2).reshape(2.0)],
    "transpose": [lambda: t(2, 3).transpose(0, 0), lambda: t(2, 3).transpose(0)],
    "swapaxes": [lambda: t(2, 3).swapaxes(0, 7)],
    "concatenate": [
        lambda: F.concatenate([t(2, 3), t(2, 4)]), lambda: F.concatenate([t(2), t(2)], 3), lambda: F.concatenate([]),
        lambda: F.concatenate([t(2, 3), t(2)]), lambda: F.concatenate([t(), t()]), lambda: F.concatenate(3),
    ],
    "stack": [lambda: F.stack([t(2), t(3)]), lambda: F.stack([t(2)], 4), lambda: F.stack([])],
    "split": [lambda: t(5).split(2), lambda: t(4).split(2.0), lambda: t(4).split(2, 1), lambda: t(4).split([3, 1])],
    "unbind": [lambda: t(2).unbind(1), lambda: t().unbind()],
    "pad": [lambda: F.pad(t(2), [[1, 2, 3]]), lambda: F.pad(t(2), -1), lambda: F.pad(t(2), 0.5)],
    "flip": [lambda: t(2).flip(2)],
    "broadcast_to": [lambda: t(2, 3).broadcast_to(3, 3), lambda: t(3).broadcast_to(-1, 3)],
    "take": [lambda: t(3).take([0], 2)],
    "index": [
        lambda: t(2, 3)[5], lambda: t(2, 3)[0, 0, 0], lambda: t(2, 3)[np.array([7])], lambda: t(3)[1.0],
        lambda: t(3)[np.array([True, False])], lambda: t(3)["a"], lambda: t(3, 3)[ids(2), ids(3)],
        lambda: t(3).take([5]),
    ],
    "index_put": [lambda: F.index_put(t(3), t(2), slice(0, 3)), lambda: F.index_put(t(3), 1.0, 7)],
    "linear": [lambda: F.linear(t(2, 3), t(4, 5)), lambda: F.linear(t(2, 3), t(4, 3), t(3))],
    "einsum": [lambda: F.einsum("ij,jk", t(2, 3), t(4, 5)), lambda: F.einsum("ii", t(2, 2)),
               lambda: F.einsum("?", t(2))],
    "conv2d": [
        lambda: F.conv2d(t(1, 2, 5, 5), t(3, 1, 2, 2)), lambda: F.conv2d(t(1, 1, 5, 5), t(1, 1, 2, 2), stride="a"),
        lambda: F.conv2d(t(1, 1, 5, 5), t(1, 1, 2, 2), padding=-1), lambda: F.conv2d(t(1, 1, 2, 2), t(1, 1, 5, 5)),
        lambda: F.conv2d(t(1, 1, 5, 5), t(1, 1, 2, 2), stride=0), lambda: F.conv2d(t(1, 1, 5), t(1, 1, 2, 2)),
    ],
    "max_pool2d": [lambda: F.max_pool2d(t(1, 1, 4, 4), 0), lambda: F.max_pool2d(t(4, 4), 2),
                   lambda: F.max_pool2d(t(1, 1, 4, 4), 2, padding=2)],
    "avg_pool2d": [lambda: F.avg_pool2d(t(1, 1, 4, 4), (2, 2, 2)), lambda: F.avg_pool2d(t(1, 1, 4, 4), 2.5)],
    "gelu": [lambda: F.gelu(t(2), "fast")],
    "bias_gelu": [lambda: F.bias_gelu(t(2, 3), t(2))],
    "softmax": [lambda: t(2, 3).softmax(2), lambda: t(2, 3).softmax((0, 1)), lambda: t(2).softmax("a")],
    "log_softmax": [lambda: t(2).log_softmax(-3)],
    "layer_norm": [lambda: F.layer_norm(t(2, 3), t(2), t(2)), lambda: F.layer_norm(t(2, 3), t(3), t(3), eps="a")],
    "add_layer_norm": [lambda: F.add_layer_norm(t(2, 3), t(3), t(3), t(3))],
    "embedding": [lambda: F.embedding([7], t(3, 2)), lambda: F.embedding([0.5], t(3, 2)),
                  lambda: F.embedding([0], t())],
    "attention": [
        lambda: F.scaled_dot_product_attention(t(1, 1, 2, 3), t(1, 1, 4, 5), t(1, 1, 4, 5)),
        lambda: F.scaled_dot_product_attention(t(1, 1, 2, 3), *[t(1, 1, 4, 3)] * 2, attn_mask=np.ones((3, 3), bool)),
        lambda: F.scaled_dot_product_attention(t(1, 1, 2, 3), *[t(1, 1, 4, 3)] * 2, attn_mask=ids(2, 4)),
        lambda: F.scaled_dot_product_attention(t(1, 1, 2, 3), *[t(1, 1, 4, 3)] * 2, scale="a"),
        lambda: F.scaled_dot_product_attention(t(3), t(3), t(3)),
    ],
    "cross_entropy": [
        lambda: F.cross_entropy(t(2, 3), ids(3)), lambda: F.cross_entropy(t(2, 3), np.array([0, 3])),
        lambda: F.cross_entropy(t(2, 3), np.ones((2, 4), np.float32)), lambda: F.cross_entropy(t(), ids()),
        lambda: F.cross_entropy(t(2, 3), ids(2), label_smoothing=1.5), lambda: F.cross_entropy(t(2, 0), ids(2)),
        lambda: F.cross_entropy(t(2, 3), ids(2), reduction="max"),
        lambda: F.cross_entropy(t(2), np.array([True, False])),
    ],
    "mse_loss": [lambda: F.mse_loss(t(2, 3), t(3)), lambda: F.mse_loss(t(2), None)],
    "contrastive_loss": [lambda: F.contrastive_loss(t(2, 3), t(3, 3), 1.0)],
    "split_heads": [lambda: F.split_heads(t(2, 3, 5), 2)],
    "merge_heads": [lambda: F.merge_heads(t(2))],
    "patches": [lambda: F.patches(t(1, 1, 4, 4), 3), lambda: F.patches(t(1, 1, 4, 4), 2.0)],
    "take_rows": [lambda: F.take_rows(t(2, 3, 4), ids(2))],
    "dropout": [lambda: F.dropout(t(2), 1.5), lambda: F.dropout(t(2), float("nan")), lambda: F.dropout(t(2), "a")],
}  # fmt: skip
TABLE = [pytest.param(name, call, id=f"{name}-{i}") for name, calls in CALLS.items() for i, call in enumerate(calls)]


@pytest.mark.parametrize("choice", ["auto", "numpy"])
@pytest.mark.parametrize(("name", "call"), TABLE)
def test_a_wrong_call_gets_an_error_that_names_the_operation(name: str, call: Callable[[], Any], choice: str) -> None:
    refused = pytest.raises((ValueError, TypeError, IndexError))
    with tv.use_kernels(choice), np.errstate(all="ignore"), refused as caught:
        call()
    text = str(caught.value)
    start = text.partition(" ")[0].rstrip(":").removeprefix("basic_").removeprefix("advanced_")
    assert start == name
    assert len(text) > len(name) + 12


def test_numpys_error_is_the_cause_and_keeps_its_kind() -> None:
    with pytest.raises(ValueError, match=r"reshape: cannot .*given x of shape \(2, 3\).*shape \(4,\)") as caught:
        t(2, 3).reshape(4)
    assert type(caught.value) is ValueError
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(IndexError, match=r"basic_index: .*index \(7,\)"):
        t(2)[7]
    with pytest.raises(np.exceptions.AxisError, match=r"stack: axis 4 .*parts of shape"):
        F.stack([t(2)], 4)


def test_an_error_that_names_the_operation_already_is_left_as_it_is() -> None:
    def forward(xp: Any, x: Any) -> Any:
        raise ValueError("own_words: x is too red")

    try:
        op: Any = type("OwnWords", (Op,), {"forward": staticmethod(forward), "backward": lambda ctx, xp, dy: dy})
        with pytest.raises(ValueError, match=r"^own_words: x is too red$"):
            op.apply(t(2))
    finally:
        Op.registry.pop("own_words", None)
