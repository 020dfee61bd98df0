"""The comparison of several processes with one: what is timed, and what is printed."""

import sys

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import processes
from benchmarks.by_operation import SHAPES
from benchmarks.cli import main
from tinyvit.backend import Group


def test_a_ratio_is_the_median_of_those_of_the_rounds():
    medians = {each.name: [1.0, 1.0, 1.0] for each in processes.CONTENDERS}
    medians |= {"exact": [0.5, 1.0, 0.1], "fast": [0.4, 0.9, 0.1], "8 shards": [2.0, 2.0, 2.0]}
    lines = processes.report(medians)
    assert "| exact | 2 | 1 | 500.0 ms | 100.0 ms | 1000.0 ms |" in lines
    assert "exact has 0.90 of the speed of fast (0.80 to 1.00 in 3 rounds)" in lines
    assert "exact has 2.00 of the speed of two threads (1.00 to 10.00 in 3 rounds)" in lines
    assert "8 shards has 0.50 of the speed of whole batches (0.50 to 0.50 in 3 rounds)" in lines


def test_contenders_are_started_in_turn_and_every_other_round_in_reverse(monkeypatch):
    order = []

    def started(contender, shape, batch, steps):
        order.append((contender.name, shape, batch, steps))
        return [3.0, 1.0, 2.0]

    monkeypatch.setattr(processes, "started", started)
    result = CliRunner().invoke(main, ["processes", "--rounds", "2", "--batch", "6", "--steps", "3"])
    assert result.exit_code == 0, result.output
    names = [each.name for each in processes.CONTENDERS]
    assert order == [(name, "vit-s", 6, 3) for name in [*names, *reversed(names)]]
    assert "| fast | 2 | 1 | 2000.0 ms | 2000.0 ms | 2000.0 ms |" in result.output


def test_every_contender_makes_the_same_step_of_a_whole_batch():
    norms = []
    for contender in processes.CONTENDERS:
        make, loader = processes.steps_of(SHAPES["digits-s"], contender, Group())
        if contender.shards:
            shards = processes.number_of_shards(make.settings, Group())
            batch = next(loader.sharded_batches(0, 0, shards, range(shards)))
        else:
            batch = next(loader.batches(0))
        ((loss, count),) = make([batch], 1, 1)
        assert count == SHAPES["digits-s"].batch
        norms.append(loss)
    np.testing.assert_allclose(norms, norms[0], rtol=1e-5)


def test_a_worker_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Exception, match="whole batches failed"):
        processes.started(processes.CONTENDERS[0], "digits-s", 8, 1)
