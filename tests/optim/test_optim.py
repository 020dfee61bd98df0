"""Optimizers against the equations of their papers, one number at a time; schedules, clipping and averages."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.engine import Tensor
from tinyvit.optim import (
    EMA,
    SGD,
    Adam,
    AdamW,
    Optimizer,
    clip_grad_norm,
    decay_groups,
)

START = [1.0, -2.0, 0.5]
GRADIENTS = [[0.1, -0.2, 3.0], [0.3, 0.0, -1.0], [-0.5, 0.4, 0.0], [0.0, 0.1, 2.0]]


def parameter(values: Any = START) -> Tensor:
    return Tensor(np.array(values, np.float64), requires_grad=True)


def after_steps(make: Callable[[list[Tensor]], Optimizer]) -> list[float]:
    p = parameter()
    optimizer = make([p])
    for g in GRADIENTS:
        p.grad = tv.tensor(np.array(g))
        optimizer.step()
    return p.numpy().tolist()


# The papers' equations for one scalar -------------------------------------------------------------------------------


def sgd(
    p: float, gradients: list[float], lr: float, m: float = 0.0, decay: float = 0.0, nesterov: bool = False
) -> float:
    v = 0.0
    for g in gradients:
        g = g + decay * p
        v = m * v + g
        p = p - lr * (g + m * v if nesterov else v)
    return p


def adam(
    p: float,
    gradients: list[float],
    lr: float = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    l2: float = 0.0,
    decay: float = 0.0,
) -> float:
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        g = g + l2 * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        p = p - lr * m_hat / (math.sqrt(v_hat) + eps) - lr * decay * p
    return p


@pytest.mark.parametrize(
    ("make", "paper"),
    [
        (lambda ps: SGD(ps, lr=0.1), lambda p, g: sgd(p, g, 0.1)),
        (lambda ps: SGD(ps, 0.1, momentum=0.9), lambda p, g: sgd(p, g, 0.1, 0.9)),
        (lambda ps: SGD(ps, 0.1, momentum=0.9, nesterov=True), lambda p, g: sgd(p, g, 0.1, 0.9, nesterov=True)),
        (lambda ps: SGD(ps, 0.1, weight_decay=0.3), lambda p, g: sgd(p, g, 0.1, decay=0.3)),
        (lambda ps: SGD(ps, 0.1, 0.8, 0.3, nesterov=True), lambda p, g: sgd(p, g, 0.1, 0.8, 0.3, nesterov=True)),
        (Adam, adam),
        (
            lambda ps: Adam(ps, lr=0.1, betas=(0.5, 0.7), eps=0.1, weight_decay=0.2),
            lambda p, g: adam(p, g, 0.1, 0.5, 0.7, 0.1, l2=0.2),
        ),
        (AdamW, lambda p, g: adam(p, g, decay=0.01)),
        (
            lambda ps: AdamW(ps, lr=0.1, betas=(0.5, 0.7), eps=0.1, weight_decay=0.2),
            lambda p, g: adam(p, g, 0.1, 0.5, 0.7, 0.1, decay=0.2),
        ),
    ],
)
def test_steps_follow_the_papers(make: Any, paper: Callable[[float, list[float]], float]) -> None:
    expected = [paper(p, list(g)) for p, g in zip(START, zip(*GRADIENTS, strict=True), strict=True)]
    np.testing.assert_allclose(after_steps(make), expected, rtol=1e-13)


@pytest.mark.parametrize("choice", ["numpy", "auto"])
@pytest.mark.parametrize("make", [Adam, AdamW])
def test_a_parameter_with_gradients_now_and_then_follows_the_paper_from_its_own_first_step(make, choice) -> None:
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=(40, 5))
    given = rng.random((40, 5)) < [1.0, 0.5, 0.5, 0.1, 0.0]
    given[:20, 2] = False  # a layer that is thawed
    ps = [parameter([1.0]) for _ in range(5)]
    groups = [{"params": ps[:2], "lr": 0.1}, {"params": ps[2:], "betas": (0.5, 0.8)}]
    with tv.use_kernels(choice):
        optimizer = make(groups, weight_decay=0.1)
        for step, (row, is_given) in enumerate(zip(slopes, given, strict=True)):
            if step == 25:  # resumed in between
                optimizer, state = make(groups, weight_decay=0.1), optimizer.state_dict()
                optimizer.load_state_dict(state)
            for p, g, has in zip(ps, row, is_given, strict=True):
                p.grad = Tensor(np.array([g])) if has else None
            optimizer.step()
    for i, p in enumerate(ps):
        own = slopes[given[:, i], i].tolist()
        decay = {"decay" if make is AdamW else "l2": 0.1}
        settings = {"lr": 0.1} if i < 2 else {"b1": 0.5, "b2": 0.8}
        assert p.item() == pytest.approx(adam(1.0, own, **settings, **decay), rel=1e-12)
    assert [int(optimizer.state_dict()["arrays"][str(i)]["updates"]) for i in range(5)] == given.sum(axis=0).tolist()


def test_a_state_without_updates_of_each_parameter_counts_the_steps() -> None:
    early, late = parameter(), parameter()
    optimizer = Adam([early, late])
    for _ in range(3):
        early.grad = tv.tensor(np.ones(3))
        optimizer.step()
    state = optimizer.state_dict()
    for kept in state["arrays"].values():
        del kept["updates"]  # as earlier versions wrote it
    restored = Adam([parameter(), parameter()])
    restored.load_state_dict(state)
    assert [int(restored.state_dict()["arrays"][key]["updates"]) for key in ("0", "1")] == [3, 0]
    state["arrays"]["0"]["updates"] = np.array(-1)
    with pytest.raises(ValueError, match="parameter 0 has a negative number of updates"):
        restored.load_state_dict(state)


EVERY = [
    lambda ps: SGD(ps, 0.1),
    lambda ps: SGD(ps, 0.1, momentum=0.9, nesterov=True),
    Adam,
    lambda ps: AdamW(ps, lr=0.1),
]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_change_values_in_place_and_nothing_else(make: Any, dtype: Any) -> None:
    p, idle = (Tensor(np.ones(3, dtype), requires_grad=True) for _ in range(2))
    array, gradient = p.data, np.array([1.0, -1.0, 2.0], dtype)
    p.grad = Tensor(gradient.copy())
    make([p, idle]).step()
    assert p.data is array
    assert p.dtype == dtype
    assert (array != 1).all()
    np.testing.assert_array_equal(p.grad.numpy(), gradient)
    np.testing.assert_array_equal(idle.numpy(), 1)  # it has no gradient, so not even its weight decays


@pytest.mark.parametrize("kernels", ["numpy", "auto"])
@pytest.mark.parametrize("make", EVERY)
def test_a_backward_that_needs_the_values_before_a_step_is_refused(make: Any, kernels: str) -> None:
    p = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    with tv.use_kernels(kernels):
        loss = (p * p).sum()
        p.grad = Tensor(np.ones((2, 3), np.float32))
        make([p]).step()
        with pytest.raises(RuntimeError, match="modified in place"):
            loss.backward()


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda ps: SGD(ps, lr=-0.1), ValueError, r"SGD: lr is -0.1; it must be finite and at least 0"),
        (lambda ps: AdamW(ps, lr=math.nan), ValueError, "AdamW: lr is nan; it must be finite and at least 0"),
        (lambda ps: Adam(ps, lr=math.inf), ValueError, "lr is inf"),
        (lambda ps: Adam(ps, lr="1e-3"), TypeError, "Adam: lr is '1e-3'; it must be a number"),
        (
            lambda ps: Adam(ps, betas=(0.9, 1.0)),
            ValueError,
            r"betas is \(0.9, 1.0\); it must be two numbers in",
        ),
        (lambda ps: Adam(ps, betas=(-0.1, 0.9)), ValueError, "two numbers"),
        (lambda ps: Adam(ps, betas=(0.9,)), ValueError, "two numbers"),
        (lambda ps: Adam(ps, betas=(0.9, None)), ValueError, r"betas is \(0.9, None\)"),
        (lambda ps: Adam(ps, eps=-1e-8), ValueError, "eps is -1e-08"),
        (lambda ps: AdamW(ps, weight_decay=-1), ValueError, "weight_decay is -1"),
        (lambda ps: SGD(ps, 0.1, momentum=-0.9), ValueError, "momentum is -0.9"),
        (lambda ps: SGD([{"params": ps, "lr": -1}], 0.1), ValueError, "lr is -1"),
    ],
)
def test_an_error_about_a_setting_states_its_name_and_value(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make([parameter()])


@pytest.mark.parametrize("lr", [0, 0.0, 1, np.float32(0.1)])
def test_a_learning_rate_is_any_number_of_at_least_0(lr: Any) -> None:
    assert SGD([parameter()], lr=lr).groups[0]["lr"] == lr


@pytest.mark.parametrize(("make", "lr"), [(SGD, 0.1), (Adam, 0.1), (AdamW, 0.1)])
def test_a_quadratic_is_minimized(make: Any, lr: float) -> None:
    x, target = parameter(), np.array([3.0, 0.0, -1.0])
    optimizer = make([x], lr=lr, **({"weight_decay": 0.0} if make is AdamW else {}))
    for _ in range(500):
        optimizer.zero_grad()
        ((x - target) ** 2 * np.array([1.0, 0.5, 2.0])).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(x.numpy(), target, atol=1e-4)


def test_zero_grad_deletes_gradients() -> None:
    p = parameter()
    p.grad = tv.tensor(np.ones(3))
    SGD([p], lr=1.0).zero_grad()
    assert p.grad is None


# Groups -------------------------------------------------------------------------------------------------------------


def test_groups_have_their_own_settings() -> None:
    a, b = parameter([1.0]), parameter([1.0])
    optimizer = SGD([{"params": [a], "lr": 1.0}, {"params": iter([b]), "weight_decay": 0.5}], lr=0.1)
    a.grad = b.grad = tv.tensor(np.array([2.0]))
    optimizer.step()
    assert a.item() == 1 - 1.0 * 2
    assert b.item() == pytest.approx(1 - 0.1 * (2 + 0.5))
    values = a.item(), b.item()
    optimizer.set_lr(0.0)  # of every group
    optimizer.step()
    assert (a.item(), b.item()) == values


def test_norms_biases_and_positions_do_not_decay() -> None:
    model = tv.models.ViT(8, 4, 3, 8, 1, 2, register_tokens=1)
    names = {id(p): name for name, p in model.named_parameters()}
    decaying, resting = ({names[id(p)] for p in g["params"]} for g in decay_groups(model.named_parameters(), 0.1))
    assert decaying == {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
    }
    assert decaying | resting == set(names.values())
    assert [g["weight_decay"] for g in decay_groups(model.named_parameters(), 0.1)] == [0.1, 0.0]


def test_tables_of_embeddings_do_not_decay() -> None:
    model = tv.models.EncoderDecoder(9, 8, 1, 2, tied=False, positions="learned")
    tables = [model.encoder.embedding.words.weight, model.decoder.embedding.words.weight]
    decaying, resting = ({id(p) for p in g["params"]} for g in decay_groups(model.named_parameters(), 0.1))
    assert {id(p) for p in tables} <= resting
    assert id(model.decoder.head.weight) in decaying


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGD([], lr=0.1), ValueError, "SGD: there are no parameters"),
        (lambda: Adam(p for p in ()), ValueError, "Adam: there are no parameters"),
        (lambda: SGD(parameter(), lr=0.1), TypeError, r"SGD: params is one tensor; .*\[tensor\]"),
        (lambda: SGD([p := parameter(), p], lr=0.1), ValueError, "appears twice"),
        (lambda: Adam([{"params": [parameter()], "rate": 1}]), ValueError, r"unknown settings \['rate'\].*'lr'"),
        (lambda: SGD([parameter()], 0.1, nesterov=True), ValueError, "nesterov=True needs a momentum"),
        (lambda: clip_grad_norm([], 0.0), ValueError, "max_norm is 0.0"),
        (lambda: EMA([parameter()], 1.0), ValueError, "decay is 1.0"),
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# State --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", EVERY)
def test_a_restored_optimizer_makes_the_same_steps(make: Any) -> None:
    def run(ps: list[Tensor], optimizer: Optimizer, gradients: list[list[float]]) -> None:
        for g in gradients:
            for p in ps:
                p.grad = tv.tensor(np.array(g))
            optimizer.step()

    ps = [parameter(), parameter([0.1, 0.2, 0.3])]
    optimizer = make(ps)
    optimizer.set_lr(0.05)
    run(ps, optimizer, GRADIENTS[:2])
    state, copies = optimizer.state_dict(), [parameter(p.numpy()) for p in ps]
    run(ps, optimizer, GRADIENTS[2:])  # the state is a copy
    restored = make(copies)
    restored.load_state_dict(state)
    run(copies, restored, GRADIENTS[2:])
    for p, copy in zip(ps, copies, strict=True):
        assert p.numpy().tobytes() == copy.numpy().tobytes()


def test_the_state_can_be_saved_to_a_file_and_loaded(tmp_path: Any) -> None:
    p = parameter()
    optimizer = Adam([p], betas=(0.8, 0.9))
    p.grad = tv.tensor(np.ones(3))
    optimizer.step()
    tv.save(tmp_path / "state.safetensors", optimizer.state_dict())
    restored = Adam([parameter()])
    restored.load_state_dict(tv.load(tmp_path / "state.safetensors"))
    assert restored.steps == 1
    assert restored.groups[0]["betas"] == (0.8, 0.9)
    for name, array in optimizer.state_dict()["arrays"]["0"].items():
        np.testing.assert_array_equal(restored.state_dict()["arrays"]["0"][name], array)


def test_a_state_of_other_parameters_is_refused() -> None:
    state = Adam([parameter()]).state_dict()
    for other in (Adam([parameter(), parameter()]), Adam([parameter([1.0])]), SGD([parameter()], 0.1)):
        with pytest.raises(ValueError, match="optimizer state"):
            other.load_state_dict(state)
        assert other.steps == 0
