"""Arguments of a wrong type, drawn for every setting: one error that names the argument and its value."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyvit as tv
from tinyvit import optim
from tinyvit.optim import EMA, SGD, Adam, AdamW, Lion, LossScaler, Muon, clip_grad_norm, decay_groups, muon_groups

WRONG = st.one_of(
    st.text(max_size=3), st.binary(max_size=2), st.complex_numbers(), st.none(), st.dictionaries(st.text(), st.none()),
    st.lists(st.integers(), min_size=3, max_size=3), st.builds(object), st.just(len), st.just(np.zeros(3)),
)  # fmt: skip


def parameter() -> tv.nn.Parameter:
    p = tv.nn.Parameter(np.ones((2, 2)))
    p.grad = tv.tensor(np.ones((2, 2)))
    return p


ADAM = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
RATE = {"step": 1, "total_steps": 9, "warmup_steps": 2, "lr": 0.1, "min_lr": 0.01}
# For each function: how it is called, and arguments that it takes
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "SGD": (lambda **a: SGD([parameter()], **a), {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    "Adam": (lambda **a: Adam([parameter()], **a), ADAM),
    "AdamW": (lambda **a: AdamW([parameter()], **a), ADAM),
    "Lion": (lambda **a: Lion([parameter()], **a), {k: v for k, v in ADAM.items() if k != "eps"}),
    "Muon": (
        lambda **a: Muon([parameter()], **a),
        ADAM
        | {"momentum": 0.9, "nesterov": True, "ns_steps": 5, "adjust_lr_fn": "original", "use_muon": True, "parts": 1},
    ),
    "set_lr": (lambda **a: Adam([parameter()]).set_lr(**a), {"lr": 0.1}),
    "EMA": (lambda **a: EMA([parameter()], **a), {"decay": 0.9}),
    "clip_grad_norm": (lambda **a: clip_grad_norm([parameter()], **a), {"max_norm": 1.0}),
    "LossScaler": (lambda **a: LossScaler(SGD([parameter()], 0.1), **a), {"initial": 8.0, "growth": 3}),
    "LossScaler.step": (lambda **a: LossScaler(SGD([parameter()], 0.1)).step(**a), {"clip_norm": 1.0}),
    "LossScaler.load_state_dict": (
        lambda **a: LossScaler(SGD([parameter()], 0.1)).load_state_dict(a), {"scale": 2.0, "good_steps": 1},
    ),
    "decay_groups": (decay_groups, {"named_parameters": [("a", parameter())], "weight_decay": 0.1}),
    "muon_groups": (muon_groups, {"named_parameters": [("a", parameter())], "weight_decay": 0.1}),
    "cosine_with_warmup": (optim.cosine_with_warmup, RATE),
    "linear_with_warmup": (optim.linear_with_warmup, RATE),
    "constant_with_warmup": (optim.constant_with_warmup, RATE),
    "constant_with_cooldown": (optim.constant_with_cooldown, RATE | {"cooldown": 0.2}),
}  # fmt: skip
PLACES = [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments]


def test_every_setting_is_tried() -> None:
    for name, (_, arguments) in CALLS.items():
        public = getattr(optim, name, None)
        if public is not None:
            names = set(inspect.signature(public).parameters) - {"params", "parameters", "optimizer"}
            assert names == arguments.keys(), name
    kinds = (n for n, v in vars(optim).items() if n in optim.__all__ and callable(v))
    # The base class takes what its subclasses say; the last two are for this package.
    assert set(kinds) - CALLS.keys() == {"Optimizer", "NarrowWeights", "joint_norm"}


@pytest.mark.parametrize("name", CALLS)
def test_right_settings_are_taken(name: str) -> None:
    call, arguments = CALLS[name]
    call(**arguments)


@settings(max_examples=6)
@pytest.mark.parametrize(("name", "argument"), PLACES)
@given(wrong=WRONG)
def test_a_setting_of_a_wrong_type_is_refused_by_name(name: str, argument: str, wrong: Any) -> None:
    call, arguments = CALLS[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call(**(arguments | {argument: wrong}))
    text = str(error.value)
    assert argument in text
    # Of a wrong list, the first entry that is wrong may be named.
    said = (repr(wrong), str(wrong), type(wrong).__name__, "an array of shape", f"{argument}[0]", "is empty")
    assert any(each in text for each in said)


@settings(max_examples=10)
@given(wrong=WRONG)
@pytest.mark.parametrize("group", [{"lr": 0.1}, {"betas": (0.9, 0.9)}, {"use_muon": True}])
def test_a_group_is_checked_as_the_defaults_are(group: dict[str, Any], wrong: Any) -> None:
    (key,) = group
    with pytest.raises((TypeError, ValueError), match=key):
        Muon([{"params": [parameter()], key: wrong}])
