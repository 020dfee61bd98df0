"""The model of the time of a step: what it predicts, and that it can be fitted."""

import numpy as np
import pytest

from tinyvit.distributed.cost import EXACT, FAST, Measured, StepTime, fitted


def test_computation_is_shared_and_communication_is_added():
    model = StepTime(added=2e-9, sent=5e-9, each=1e-4)
    assert model.seconds(1, 8, 1_000_000, 0.8) == pytest.approx(0.8 + 8 * 2e-3)
    assert model.seconds(4, 8, 1_000_000, 0.8) == pytest.approx(0.2 + 2.75 * 2e-3 + 1.5 * 5e-3 + 6e-4)
    assert model.seconds(3, 8, 0, 0.8) == pytest.approx(0.3 + 4e-4)  # the slowest process has three shards of eight
    # shards 0-1, 2-4 and 5-7: one, two and two nodes of the tree
    assert model.seconds(3, 8, 3_000_000, 0) == pytest.approx((3 + 4 / 3) * 6e-3 + 3 * 2 / 3 * 15e-3 + 4e-4)
    assert model.seconds(3, 8, 0, 0.9, FAST) == pytest.approx(0.3 + 4e-4)  # two levels of a tree, up and down
    assert model.seconds(4, 8, 1_000_000, 0.8, FAST) == pytest.approx(0.2 + 1.75 * 2e-3 + 1.5 * 5e-3 + 4e-4)
    assert model.seconds(1, 8, 1_000_000, 0.8, FAST) == pytest.approx(0.8 + 2e-3)
    assert StepTime(0, 0, 0).efficiency(4, 8, 10, 1.0) == 1
    assert model.efficiency(4, 8, 1_000_000, 0.8) == pytest.approx(0.2 / model.seconds(4, 8, 1_000_000, 0.8))


def test_a_model_is_found_again_from_its_own_times_and_predicts_others():
    true = StepTime(added=3e-9, sent=4e-9, each=2e-4)
    points = [
        (n, 8, weights, compute, mode)
        for n in (1, 2, 4)
        for weights, compute in ((10**5, 0.01), (10**7, 0.0))
        for mode in (EXACT, FAST)
    ]
    found = fitted([Measured(*point[:4], true.seconds(*point), point[4]) for point in points])
    np.testing.assert_allclose([found.added, found.sent, found.each], [true.added, true.sent, true.each], rtol=1e-6)
    assert found.seconds(8, 8, 10**6, 0.1) == pytest.approx(true.seconds(8, 8, 10**6, 0.1))


def test_noise_of_a_tenth_leaves_errors_of_a_tenth_in_a_point_that_was_held_out():
    true = StepTime(added=3e-10, sent=1e-9, each=2e-5)
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = [
            Measured(n, 8, weights, 0.0, true.seconds(n, 8, weights, 0.0, mode) * rng.uniform(1, 1.1), mode)
            for n in (1, 2, 4)
            for weights in (10**4, 10**5, 10**6, 10**7)
            for mode in (EXACT, FAST)
        ]
        found = fitted(points)
        for mode in (EXACT, FAST):
            expected = true.seconds(3, 8, 10**6, 0.0, mode)
            assert found.seconds(3, 8, 10**6, 0.0, mode) == pytest.approx(expected, rel=0.15)


def test_no_factor_is_negative():
    points = [Measured(1, 4, 1000, 0.1, 0.1), Measured(2, 4, 1000, 0.1, 0.04), Measured(4, 4, 1000, 0.1, 0.06)]
    found = fitted(points)
    assert min(found.added, found.sent, found.each) >= 0


def test_a_network_replaces_what_is_sent():
    network = StepTime(added=2e-9, sent=5e-9, each=1e-4).over(bandwidth=1e9, latency=3e-5)
    assert network == StepTime(added=2e-9, sent=4e-9, each=3e-5)
    assert network.over(1e9, 3e-5, bytes_each=2).sent == 2e-9


def test_exact_sums_pay_until_their_messages_take_a_tenth_of_the_time():
    model = StepTime(added=0, sent=0, each=1e-4)
    # a step of 0.1 s, and 2 (n - 1) messages or 2 log2(n): 0.1126 s and 0.1012 s by 64, 0.1254 s and 0.1014 s by 128
    assert model.ratio(64, 10, 0.1) == pytest.approx(0.1012 / 0.1126)
    assert model.exact_pays_up_to(10, 0.1, 0.85) == 64
    assert model.exact_pays_up_to(10, 0.1, 0.95) == 32
    assert model.exact_pays_up_to(10, 0.1, 1.1) == 1
    assert StepTime(1e-9, 1e-9, 0).exact_pays_up_to(10**6, 0.1) == 1 << 20
