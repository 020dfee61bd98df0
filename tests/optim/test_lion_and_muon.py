"""Lion and Muon against the equations of their papers, in float64, and the schedule that cools down."""

import math
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.engine import Tensor
from tinyvit.optim import AdamW, Lion, LossScaler, Muon, constant_with_cooldown, muon_groups

RNG = np.random.default_rng(0)
START, SLOPES = RNG.standard_normal((6, 4)), RNG.standard_normal((5, 6, 4))


def moved(make: Any, start: np.ndarray = START, slopes: np.ndarray = SLOPES) -> np.ndarray:
    p = Tensor(start.copy(), requires_grad=True)
    optimizer = make([p])
    for g in slopes:
        p.grad = Tensor(g)
        optimizer.step()
    return p.numpy()


def test_lion_follows_algorithm_2() -> None:
    p, m = START.copy(), np.zeros_like(START)
    for g in SLOPES:
        c = 0.7 * m + 0.3 * g
        p = p - 0.1 * (np.where(c > 0, 1.0, -1.0) + 0.2 * p)
        m = 0.9 * m + 0.1 * g
    np.testing.assert_allclose(moved(lambda ps: Lion(ps, 0.1, (0.7, 0.9), 0.2)), p, rtol=1e-13)
    found = Lion([Tensor(START, requires_grad=True)]).groups[0]
    assert (found["lr"], found["betas"], found["weight_decay"]) == (1e-4, (0.9, 0.99), 0.0)


def near_orthogonal(g: np.ndarray, steps: int) -> np.ndarray:
    """The Newton-Schulz iteration on the singular values, which it maps one by one."""
    u, s, v = np.linalg.svd(g, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 7)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_muon_follows_its_papers(shape: tuple[int, int], nesterov: bool, adjust: str) -> None:
    start, slopes = RNG.standard_normal(shape), RNG.standard_normal((4, *shape))
    p, m = start.copy(), np.zeros(shape)
    for g in slopes:
        m = 0.9 * m + 0.1 * g
        o = near_orthogonal(0.1 * g + 0.9 * m if nesterov else m, 3)
        factor = 0.2 * math.sqrt(max(shape)) if adjust == "match_rms_adamw" else math.sqrt(max(1, shape[0] / shape[1]))
        p = p - 0.05 * (factor * o + 0.3 * p)
    make = lambda ps: Muon(ps, 0.05, 0.9, 0.3, nesterov, 3, adjust)  # noqa: E731
    np.testing.assert_allclose(moved(make, start, slopes), p, rtol=1e-6, atol=1e-7)  # of 1e-7 beside the norm


def test_singular_values_come_near_one_and_steps_are_as_large_as_those_of_adamw() -> None:
    start = np.zeros((48, 32))
    step = moved(lambda ps: Muon(ps, 1.0, weight_decay=0.0), start, RNG.standard_normal((1, 48, 32)))
    values = np.linalg.svd(step, compute_uv=False) / (0.2 * math.sqrt(48))
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert math.sqrt((step**2).mean()) == pytest.approx(0.2, rel=0.3)


def test_parts_are_matrices_of_their_own() -> None:
    def make(ps: Any) -> Muon:
        return Muon(ps, 0.1, parts=3)

    whole = moved(make, START, SLOPES)
    # Each part has two rows of four, so it is as wide as tall parts of its own would be.
    for i in range(3):
        rows = slice(2 * i, 2 * i + 2)
        np.testing.assert_allclose(whole[rows], moved(lambda ps: Muon(ps, 0.1), START[rows], SLOPES[:, rows]))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 1, 1), ()])
def test_what_is_no_matrix_is_updated_as_by_adamw(shape: tuple[int, ...]) -> None:
    start, slopes = RNG.standard_normal(shape), RNG.standard_normal((4, *shape))
    expected = moved(lambda ps: AdamW(ps, 0.1, (0.8, 0.9), 1e-3, 0.3), start, slopes)
    make = lambda ps: Muon(ps, 0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-3)  # noqa: E731
    np.testing.assert_allclose(moved(make, start, slopes), expected, rtol=1e-13)
    apart = lambda ps: Muon([{"params": ps, "use_muon": False}], 0.1, weight_decay=0.01)  # noqa: E731
    np.testing.assert_allclose(moved(apart), moved(lambda ps: AdamW(ps, 0.1)), rtol=1e-13)


def test_the_matrices_of_blocks_are_for_muon_and_nothing_else() -> None:
    model = tv.models.ViT(8, 4, 3, 8, 2, 2, mlp_layer="local", layer_scale=0.1, register_tokens=1)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = muon_groups(model.named_parameters(), 0.1)
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    for group in groups:
        for name in (names[id(p)] for p in group["params"]):
            ends = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
            assert group["use_muon"] == name.endswith(ends), name
            assert group["parts"] == (3 if name.endswith("qkv.weight") else 1)
            is_decayed = name.endswith(("weight",)) and "norm" not in name
            assert group["weight_decay"] == (0.1 if is_decayed else 0.0), name


@pytest.mark.parametrize(
    ("make", "expected"),
    [(lambda ps: Lion(ps, 1e-2), {"m"}), (lambda ps: Muon(ps, 1e-2), {"momentum", "m", "v", "updates"})],
)
def test_a_restored_state_continues_to_the_same_bits(make: Any, expected: set[str]) -> None:
    ps = [Tensor(RNG.standard_normal(s).astype(np.float32), requires_grad=True) for s in ((4, 6), (3,))]
    twins = [Tensor(p.numpy().copy(), requires_grad=True) for p in ps]
    one, state, other = make(ps), {}, make(twins)
    for i in range(6):
        for p, q in zip(ps, twins, strict=True):
            p.grad = q.grad = Tensor(np.sin(np.arange(p.size) + i).reshape(p.shape).astype(np.float32))
        one.step()
        if i < 3:
            state = one.state_dict()
            for p, q in zip(ps, twins, strict=True):
                q.assign(p.numpy())
        else:
            if i == 3:
                other.load_state_dict(state)
            other.step()
    for p, q in zip(ps, twins, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    assert {name for kept in state["arrays"].values() for name in kept} == expected
    np.testing.assert_equal(other.state_dict(), one.state_dict())


def test_states_of_others_are_refused() -> None:
    ps = [Tensor(np.ones((2, 2), np.float32), requires_grad=True)]
    with pytest.raises(ValueError, match="other arrays or shapes"):
        Lion(ps).load_state_dict(Muon(ps).state_dict())
    with pytest.raises(ValueError, match="lacks adjust_lr_fn"):
        Muon(ps, use_muon=False).load_state_dict(AdamW(ps).state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ns_steps": 0}, "ns_steps is 0; it must be an integer, at least 1"),
        ({"adjust_lr_fn": "none"}, "adjust_lr_fn is 'none'; it must be one of match_rms_adamw, original"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be below 1"), ({"lr": -1}, "lr is -1"),
        ({"parts": 4}, r"shape \(6, 4\); its rows must be 4 equal parts"), ({"betas": (0.9, 1)}, "betas is"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon([Tensor(START, requires_grad=True)], **settings)


@pytest.mark.parametrize("make", [Lion, Muon])
def test_losses_in_float16_are_scaled(make: Any) -> None:
    p = Tensor(np.ones((2, 2), np.float32), requires_grad=True)
    scaler = LossScaler(make([p]), initial=8.0)
    p.grad = Tensor(np.full((2, 2), np.inf, np.float32))
    scaler.step()
    np.testing.assert_array_equal(p.numpy(), 1)
    p.grad = Tensor(np.ones((2, 2), np.float32))
    scaler.step()
    assert (p.numpy() < 1).all()


def test_the_rate_is_constant_and_then_cools_down() -> None:
    rates = [constant_with_cooldown(step, 20, 4, 1.0, 0.1, 0.25) for step in range(22)]
    expected = [0, 0.25, 0.5, 0.75, *[1.0] * 12, 0.82, 0.64, 0.46, 0.28, 0.1, 0.1]
    np.testing.assert_allclose(rates, expected)
    assert constant_with_cooldown(4, 5, 4, 1.0, 0.0, 1.0) == 1.0
