"""Whatever takes parameters does the right thing with what it is given, or says what is wrong with it: nothing is
optimized, clipped or averaged in name only."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
import tinyvit.functional as F
from tinyvit import nn
from tinyvit.optim import EMA, SGD, Adam, AdamW, LossScaler, clip_grad_norm, decay_groups


def leaf(requires_grad: bool = True) -> tv.Tensor:
    return tv.tensor(np.ones((2, 2), np.float32), requires_grad=requires_grad)


def used_up() -> Any:
    parameters = nn.Linear(2, 2).parameters()
    list(parameters)
    return parameters


TAKERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda given: SGD(given, lr=0.1),
    "Adam": Adam,
    "AdamW": AdamW,
    "clip_grad_norm": lambda given: clip_grad_norm(given, 1.0),
    "EMA": EMA,
}
OPTIMIZERS = ("SGD", "Adam", "AdamW")
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "used-up generator": (used_up, ValueError, "there are no parameters in .*; a generator can be used once"),
    "empty list": (list, ValueError, "there are no parameters in"),
    "module": (lambda: nn.Linear(2, 2), TypeError, r"is a Linear; give its parameters: model\.parameters\(\)"),
    "list of modules": (lambda: [nn.Linear(2, 2)], TypeError, r"\[0\] is a Linear; give its parameters"),
    "array": (lambda: np.ones((2, 2)), TypeError, "is a ndarray; give a list of tensors"),
    "arrays": (lambda: [leaf(), np.ones(2)], TypeError, r"\[1\] is an array; give a tensor with requires_grad=True"),
    "pairs": (lambda: nn.Linear(2, 2).named_parameters(), TypeError, r"\[0\] is the pair \('weight', tensor\); give"),
    "pairs in a list": (lambda: [("w", leaf())], TypeError, r"not model\.named_parameters\(\)"),
    "state_dict": (lambda: nn.Linear(2, 2).state_dict(), TypeError, r"is a mapping with the keys \['weight', 'bias'\]"),
    "result": (lambda: [leaf() * 2], ValueError, r"\[0\] is the result of an operation \(multiply\)"),
    "result among others": (lambda: [leaf(), F.exp(leaf())], ValueError, r"\[1\] is the result of an operation"),
    "rows": (lambda: list(leaf()), ValueError, r"\[0\] is the result of an operation"),
    "text": (lambda: "weights", TypeError, "is a str; give a list of tensors"),
    "number": (lambda: 3, TypeError, "is a int; give a list of tensors"),
    "none": (lambda: None, TypeError, "is a NoneType"),
    "nones": (lambda: [leaf(), None], TypeError, r"\[1\] is a NoneType; give tensors"),
    "set": (lambda: {leaf()}, TypeError, "is a set; give a list"),
    "nested": (lambda: [[leaf()]], TypeError, r"\[0\] is a list; give tensors"),
    "tensors, then a group": (lambda: [leaf(), {"params": [leaf()]}], TypeError, r"\[1\] is a group; give either"),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_used_is_refused_by_name(taker, wrong) -> None:
    make, error, message = WRONG[wrong]
    with pytest.raises(error, match=message) as caught:
        TAKERS[taker](make())
    assert str(caught.value).startswith(f"{taker}: ")


def grouped(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: [{"params": [leaf()]}, {"params": make()}]


WRONG_GROUPS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    **{f"a group with {name}": (grouped(make), error, message) for name, (make, error, message) in WRONG.items()},
    "one group": (lambda: {"params": [leaf()]}, TypeError, r"params is one group; give a list of groups: \[group\]"),
    "a group without params": (
        lambda: [{"lr": 1.0}],
        ValueError,
        r"params\[0\] is a group without 'params'; .*\['lr'\]",
    ),
    "a group, then tensors": (
        lambda: [{"params": [leaf()]}, leaf()],
        TypeError,
        r"params\[1\] is a Tensor among groups",
    ),
    "the same twice": (lambda: [{"params": (p := leaf())}, {"params": [p]}], ValueError, "a parameter appears twice"),
    "no gradient": (lambda: [leaf(), leaf(False)], ValueError, r"params\[1\] requires no gradient"),
    "integers": (lambda: [tv.tensor([1, 2])], ValueError, r"params\[0\] requires no gradient"),
    "all frozen": (lambda: nn.Linear(2, 2).requires_grad_(False).parameters(), ValueError, "every parameter is frozen"),
}


@pytest.mark.parametrize("taker", OPTIMIZERS)
@pytest.mark.parametrize("wrong", WRONG_GROUPS)
def test_groups_that_cannot_be_used_are_refused_by_name(taker, wrong) -> None:
    make, error, message = WRONG_GROUPS[wrong]
    with pytest.raises(error, match=message) as caught:
        TAKERS[taker](make())
    assert str(caught.value).startswith(f"{taker}: ")


RIGHT: dict[str, Callable[[list[tv.Tensor]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": iter,
    "values of a dict": lambda ps: {str(i): p for i, p in enumerate(ps)}.values(),
    "one group": lambda ps: [{"params": ps}],
    "groups of a generator": lambda ps: ({"params": iter([p])} for p in ps),
    "groups of one tensor": lambda ps: [{"params": p, "lr": 0.2} for p in ps],
}


@pytest.mark.parametrize("taker", OPTIMIZERS)
@pytest.mark.parametrize("form", RIGHT)
def test_every_parameter_that_is_given_is_trained(taker, form) -> None:
    ps = [leaf(), nn.Parameter(np.ones(3, np.float32)), leaf()]
    optimizer = TAKERS[taker](RIGHT[form](ps))
    for p in ps:
        p.grad = tv.tensor(np.full(p.shape, 0.5, np.float32))
    optimizer.step()
    assert all((p.numpy() != 1).all() for p in ps)
    optimizer.zero_grad()
    assert all(p.grad is None for p in ps)


def test_a_frozen_parameter_beside_others_is_trained_when_it_is_thawed() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad = False
    optimizer = SGD(layer.parameters(), lr=0.1)
    layer.bias.requires_grad = True
    layer(np.ones((1, 2), np.float32)).sum().backward()
    before = layer.bias.numpy().copy()
    optimizer.step()
    assert (layer.bias.numpy() != before).all()


@pytest.mark.parametrize("form", [lambda p: p, lambda p: [p], lambda p: iter([p]), lambda p: [p, p]])
def test_clipping_scales_what_it_is_given_once(form) -> None:
    p = nn.Parameter(np.ones((2, 2), np.float32))
    p.grad = tv.Tensor(np.full((2, 2), 100.0, np.float32))
    assert clip_grad_norm(form(p), 1.0) == pytest.approx(200)
    np.testing.assert_allclose(p.grad.numpy(), 0.5)


def test_a_result_whose_gradient_is_kept_may_be_clipped() -> None:
    y = leaf() * 3
    y.retain_grad()
    (y * 2).sum().backward()
    assert clip_grad_norm([y], 1.0) == pytest.approx(4)
    np.testing.assert_allclose(y.grad.numpy(), 0.5)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (lambda: nn.Linear(2, 2), TypeError),
        (lambda: nn.Linear(2, 2).parameters(), TypeError),
        (lambda: [], ValueError),
        (lambda: iter(()), ValueError),
        (leaf, TypeError),
        (lambda: [("w", leaf() * 2)], ValueError),
        (lambda: [("w", np.ones(2))], TypeError),
    ],
)
def test_decay_groups_takes_names_and_tensors(given, error) -> None:
    with pytest.raises(error, match=r"decay_groups: (named_parameters|there are no)"):
        decay_groups(given(), 0.1)
    assert len(decay_groups(dict(nn.Linear(2, 2).named_parameters()), 0.1)) == 2


STATES = [None, 3, "state", [1, 2], {}, {"weight": np.ones(2)}, {"steps": 1}, {"groups": {}, "averages": {}}]


@pytest.mark.parametrize("state", STATES, ids=str)
def test_a_state_of_something_else_is_refused_and_changes_nothing(state) -> None:
    optimizer = AdamW([leaf()])
    for owner in (SGD([leaf()], lr=0.1), optimizer, EMA([leaf()]), LossScaler(optimizer)):
        before = str(owner.state_dict())
        with pytest.raises((TypeError, ValueError), match=type(owner).__name__):
            owner.load_state_dict(state)
        assert str(owner.state_dict()) == before


@pytest.mark.parametrize(
    "change", [{"lr": -1.0}, {"lr": "fast"}, {"betas": [0.9]}, {"betas": [0.9, 2.0]}, {"rate": 1.0}, {"params": []}]
)
def test_a_state_with_settings_that_do_not_fit_is_refused(change) -> None:
    optimizer = AdamW([leaf()])
    state = optimizer.state_dict()
    state["groups"]["0"] |= change
    with pytest.raises((TypeError, ValueError), match="AdamW"):
        optimizer.load_state_dict(state)
    assert optimizer.groups[0]["lr"] == 1e-3


def test_a_scaler_takes_an_optimizer_and_a_norm() -> None:
    with pytest.raises(TypeError, match="LossScaler: optimizer is a Linear"):
        LossScaler(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"clip_norm is -1\.0"):
        LossScaler(SGD([leaf()], lr=0.1)).step(-1.0)


def test_gradients_of_nothing_are_refused() -> None:
    p = leaf()
    with pytest.raises(ValueError, match="grad: inputs"):
        tv.grad((p * 2).sum(), used_up())
    with pytest.raises(ValueError, match="gradcheck: no input"):
        tv.gradcheck(lambda: p.sum(), used_up())
