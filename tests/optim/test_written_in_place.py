"""Whatever writes into the array of a tensor is noticed by gradients that need the values before."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor
from tinyvit.nn.layers import initialize_linear
from tinyvit.optim import EMA, SGD, Adam, AdamW, Lion, LossScaler, Muon, clip_grad_norm
from tinyvit.optim.clipping import Clipping
from tinyvit.run.captured_cpu import CapturedGradients

PACKAGE = Path(tv.__file__).parent
WRITING = r"\.data(\[.*\])? *[-+*/]?=|_update\(|scale_in_place\("


class One(tv.nn.Module):
    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


def with_gradient(p: Tensor) -> Tensor:
    p.grad = Tensor(np.ones_like(p.data))
    return p


def often(p: Tensor, write: Callable[[], object]) -> None:
    """Kernels know arrays again that they were given twice."""
    for _ in range(4):
        loss, before = (p * p).sum(), p.numpy().copy()
        write()
        assert refused_or_right(loss, p, 2 * before)


def in_place(change: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
    def write(p: Tensor) -> None:
        with tv.no_grad():
            change(p)

    return write


def averaged(p: Tensor) -> None:
    average, loss, before = EMA([p]), (p * p).sum(), 2 * p.numpy()
    average.averages[0] += 1
    with average.applied():
        within = (p * p).sum()
        assert refused_or_right(loss, p, before)
    assert refused_or_right(within, p, before + 2)


WRITERS: dict[str, Callable[[Tensor], object]] = {
    "SGD": lambda p: often(p, SGD([with_gradient(p)], 0.1).step),
    "SGD with momentum": lambda p: often(p, SGD([with_gradient(p)], 0.1, momentum=0.9, weight_decay=0.1).step),
    "Adam": lambda p: often(p, Adam([with_gradient(p)]).step),
    "AdamW": lambda p: often(p, AdamW([with_gradient(p)]).step),
    "Lion": lambda p: often(p, Lion([with_gradient(p)]).step),
    "Muon": lambda p: often(p, Muon([with_gradient(p)]).step),
    "Muon as AdamW": lambda p: often(p, Muon([{"params": [with_gradient(p)], "use_muon": False}]).step),
    "a scaled step": lambda p: LossScaler(SGD([with_gradient(p)], 0.1)).step(),
    "the average of the weights": averaged,
    "assign": lambda p: p.assign(np.zeros(p.shape)),
    "load_state_dict": lambda p: One(p).load_state_dict({"weight": np.zeros(p.shape, np.float32)}),
    "an initialization": lambda p: initialize_linear(linear_with(p)),
    "+=": in_place(lambda p: p.__iadd__(1.0)),
    "*=": in_place(lambda p: p.__imul__(2.0)),
    "a slice": in_place(lambda p: p.__setitem__(slice(0, 1), 0.0)),
    "a view": in_place(lambda p: p.reshape(-1).__iadd__(1.0)),
}
GRADIENT_WRITERS: dict[str, Callable[[Tensor], object]] = {
    "clip_grad_norm": lambda p: clip_grad_norm([p], 0.1),
    "clipping again and again": lambda p: clipped_often(Clipping([p]), p),
    "a scaled step": lambda p: LossScaler(SGD([p], 0.0)).step(),
    "a scaled and clipped step": lambda p: LossScaler(SGD([p], 0.0), initial=1.0).step(clip_norm=0.1),
    "another backward": lambda p: (p * 1.0).sum().backward(),
    "assign": lambda p: p.grad.assign(np.zeros(p.shape)),
}


def linear_with(p: Tensor) -> tv.nn.Linear:
    linear = tv.nn.Linear(2, 2)
    linear.weight = p
    return linear


def clipped_often(clipping: Clipping, p: Tensor) -> None:
    for bound in (2.0, 1.5, 1.0, 0.5):
        clipping(bound)


def refused_or_right(loss: Tensor, p: Tensor, expected: np.ndarray) -> bool:
    """Whether the gradient of `loss` is refused, because values that it needs are gone, or is right all the same."""
    try:
        (found,) = tv.grad(loss, [p])
    except RuntimeError as error:
        return "modified in place" in str(error)
    return bool(np.allclose(found.numpy(), expected))


@pytest.fixture(params=["auto", "numpy"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    with tv.use_kernels(request.param):
        yield


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", WRITERS)
def test_a_parameter_that_was_written_to(name: str, dtype: type) -> None:
    p = tv.nn.Parameter(np.full((2, 2), 3, dtype))
    before = p.numpy().copy()
    loss = (p * p).sum()
    WRITERS[name](p)
    assert name == "the average of the weights" or not np.array_equal(p.numpy(), before)
    assert refused_or_right(loss, p, 2 * before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", GRADIENT_WRITERS)
def test_a_gradient_that_was_written_to(name: str, dtype: type) -> None:
    p = tv.nn.Parameter(np.full((2, 2), 3, dtype))
    (p * p * p).sum().backward(create_graph=True)
    penalty = (p.grad * p.grad).sum()  # 9 p^4, whose gradient is 36 p^3
    constant = tv.nn.Parameter(np.ones((2, 2), dtype))
    weighted = (constant * p.grad.detach()).sum()
    before = p.grad.numpy().copy()
    GRADIENT_WRITERS[name](p)
    assert refused_or_right(penalty, p, 36 * p.numpy() ** 3)
    assert refused_or_right(weighted, constant, before)


def test_the_gradients_of_a_recorded_step() -> None:
    with tv.use_kernels("auto"):
        linear, factor = tv.nn.Linear(2, 2), tv.tensor(2.0, requires_grad=True)
        step = CapturedGradients(
            lambda x: (F.linear(x, linear.weight, linear.bias).sum(),) * 2, list(linear.parameters())
        )
        if step.reason is not None:
            pytest.skip(step.reason)
        batch = (np.ones((3, 2), np.float32),)
        while step(batch, 3) is None:
            assert step.reason is None
        loss = (factor * linear.weight.grad).sum()
        linear.weight.grad = None
        assert step(batch, 3) is not None
        with pytest.raises(RuntimeError, match="modified in place"):
            tv.grad(loss, [factor])


def test_gradients_that_clipping_leaves_alone_can_be_differentiated() -> None:
    p = tv.nn.Parameter(np.array([3.0, 1.0]))
    (p * p * p).sum().backward(create_graph=True)
    penalty = (p.grad * p.grad).sum()
    clip_grad_norm([p], 1000.0)
    np.testing.assert_allclose(tv.grad(penalty, [p])[0].numpy(), 36 * p.numpy() ** 3)


def test_what_writes_to_the_data_of_a_tensor_says_so() -> None:
    """A function that assigns to a part of `.data`, or changes it with +=, also calls `mark_modified`."""
    silent = []
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text("utf-8")
        for function in ast.walk(ast.parse(text)) if re.search(WRITING, text) else ():
            if isinstance(function, ast.FunctionDef) and any(map(writes_data, ast.walk(function))):
                calls = [n.func.attr for n in ast.walk(function) if isinstance(n, ast.Call) and hasattr(n.func, "attr")]
                if "mark_modified" not in calls:
                    silent.append(f"{file.relative_to(PACKAGE)}: {function.name}")
    assert silent == []


def writes_data(node: ast.AST) -> bool:
    if isinstance(node, ast.AugAssign):
        targets = [node.target]
    elif isinstance(node, ast.Assign):
        targets = [t for t in node.targets if isinstance(t, ast.Subscript)]
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("_update", "scale_in_place"):
        targets = node.args[:1]  # which it changes
    else:
        return False
    return any(is_data(t.value if isinstance(t, ast.Subscript) else t) for t in targets)


def is_data(node: ast.AST) -> bool:
    """Whether this is an attribute `data`, as tensors have one."""
    return isinstance(node, ast.Attribute) and node.attr == "data"
