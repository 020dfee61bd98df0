"""A trace records what ran; the tests compare it with the tape and with the arrays themselves."""

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import peer

import tinyvit as tv
import tinyvit.functional as F
from tinyvit import context
from tinyvit.engine import Tensor
from tinyvit.study import Trace, trace
from tinyvit.study.check.differences import check
from tinyvit.study.record.values import Statistics

RNG = np.random.default_rng(0)


def tiny_model() -> tv.models.ViT:
    tv.manual_seed(0)
    return tv.models.ViT(image_size=4, patch_size=2, num_classes=3, dim=8, depth=2, heads=2, in_channels=1)


def step(model: tv.nn.Module, images: Tensor) -> Tensor:
    loss = F.cross_entropy(model(images), np.array([0, 2]))
    loss.backward()
    return loss


def traced(**options: int) -> tuple[Trace, tv.models.ViT, Tensor]:
    model = tiny_model()
    images = Tensor(np.random.default_rng(1).standard_normal((2, 1, 4, 4), np.float32), requires_grad=True)
    with tv.use_kernels("numpy"), trace(names={"image": images}, **options) as recorded:
        step(model, images)
    return recorded, model, images


def test_every_operation_of_the_tape_is_recorded_with_its_edges() -> None:
    model = tiny_model()
    with trace() as recorded:
        loss = F.cross_entropy(model(np.ones((2, 1, 4, 4), np.float32)), np.array([0, 2]))
    found, stack = set(), [loss.node]
    while stack:
        found.add(node := stack.pop())
        stack += [edge[0] for edge in node.edges if isinstance(edge, tuple) and edge[0] not in found]
    nodes = sorted(found, key=lambda node: node.sequence)
    entries = [entry for entry in recorded if True in entry.needs]
    assert [entry.op for entry in entries] == [node.op for node in nodes]
    for node, entry in zip(nodes, entries, strict=True):
        assert entry.needs == node.needs
        for edge, value in zip(node.edges, entry.inputs, strict=True):
            if isinstance(edge, tuple):
                assert value is entries[nodes.index(edge[0])].outputs[edge[1]]
                origin = value.origin
                assert (origin.kind, origin.source, origin.index) == ("output", entries[nodes.index(edge[0])], edge[1])
            elif edge is not None:
                assert value.origin.kind == "leaf"
                np.testing.assert_array_equal(value.array, edge.data)


def test_gradients_are_those_of_the_leaves() -> None:
    recorded, model, images = traced()
    leaves = dict(model.named_parameters()) | {"image": images}
    assert recorded.gradients.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert recorded.gradients[name].array.tobytes() == leaf.grad.numpy().tobytes()
    assert len(recorded.backwards) == len([e for e in recorded if True in e.needs])


def test_incoming_gradients_are_the_outgoing_ones_or_sums_of_them() -> None:
    recorded, *_ = traced()
    kinds = set()
    for backward in recorded.backwards:
        for value in backward.incoming:
            if value is None:
                continue
            kinds.add(value.origin.kind)
            if value.origin.kind == "gradient":
                assert value is value.origin.source.outgoing[value.origin.index]
            elif value.origin.kind == "sum":
                np.testing.assert_array_equal(value.array, sum(v.array for v in value.origin.source))
    assert kinds == {"seed", "gradient", "sum"}
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    with trace() as twice:
        y = 3 * x
        (2 * y + 5 * y).sum().backward()
    assert [v.origin.kind for b in twice.backwards for v in b.incoming].count("sum") == 1
    np.testing.assert_array_equal(twice.gradients["x"].array, [21, 21])


def test_modules_and_parameters_have_their_names() -> None:
    recorded, *_ = traced()
    assert recorded["blocks.1.attn/attention"].module == "blocks.1.attn"
    linear = recorded["blocks.0.mlp.fc2/linear"]
    assert [v.name for v in linear.inputs[1:]] == ["blocks.0.mlp.fc2.weight", "blocks.0.mlp.fc2.bias"]
    assert recorded["cross_entropy"].module is None
    assert len({e.key for e in recorded}) == len(recorded)
    assert Path(recorded[0].line.split(":")[0]).name == "test_trace.py"
    with pytest.raises(KeyError, match=r"blocks\.0\.attn/attention"):
        recorded["attention"]


def test_the_error_for_a_wrong_key_names_available_keys() -> None:
    recorded, *_ = traced()
    with pytest.raises(KeyError, match=r"available: cross_entropy"):
        recorded["cross_entropi"]
    with pytest.raises(KeyError, match=r"available: .*/.* in all"):
        recorded["zzz"]


def test_a_check_has_a_short_description() -> None:
    recorded, *_ = traced()
    found = check(recorded["cross_entropy"].backward)
    assert repr(found) == f"Check: agrees, {len(found.rows)} numbers"


def test_saved_bytes_are_held_until_backward() -> None:
    recorded, *_ = traced()
    attention = recorded["blocks.0.attn/attention"]
    assert attention.saved == dict.fromkeys(("q", "k", "v", "out"), 2 * 2 * 5 * 4 * 4)
    assert recorded["blocks.0.norm1/layer_norm"].saved == {"x": 2 * 5 * 8 * 4, "weight": 0}
    assert recorded.held == sorted(recorded.held)
    held = [b.held for b in recorded.backwards]
    assert held == sorted(held, reverse=True)
    assert held[-1] == 0


def test_memory_that_several_operations_save_counts_once_and_until_the_last_of_them() -> None:
    x, w = (tv.tensor(np.ones(100), requires_grad=True) for _ in range(2))
    with trace() as recorded:
        h = F.exp(x)  # saves h
        y = h * w  # saves h again, and a parameter
        (y * h).sum().backward()  # saves y, and h for the third time
    assert recorded.held == [800, 800, 1600, 1600]
    assert [b.held for b in recorded.backwards] == [1600, 800, 800, 0]


def test_an_entry_names_the_kernel_that_served_it() -> None:
    assert {e.kernel for e in traced()[0]} == {"plain"}
    x = tv.tensor([[1.0, 2.0]], requires_grad=True)
    peer("numba")
    with tv.use_kernels("numba"), trace() as recorded:
        F.exp(F.softmax(x))
        with tv.no_grad():
            F.softmax(x)
    assert recorded["softmax"].kernel.startswith("numba v")
    assert recorded["softmax#2"].kernel.startswith("numba v")
    assert recorded["exp"].kernel == "plain"


def test_beyond_its_memory_a_trace_stores_statistics_and_some_elements() -> None:
    small, *_ = traced(max_bytes=1000)
    complete, *_ = traced()
    kept = sum(v.array.nbytes for e in small for v in e.outputs if v.array is not None)
    assert kept <= 1000
    for a, b in zip(small, complete, strict=True):
        for v, w in zip(a.outputs, b.outputs, strict=True):
            assert v.statistics == w.statistics
            if v.array is None:
                flat, values = v.sampled
                assert len(flat) <= 64
                np.testing.assert_array_equal(values, w.array.ravel()[flat])
                assert np.abs(values).max() == np.abs(w.array).max()


def test_arrays_are_recorded_as_they_were_when_read() -> None:
    x = tv.tensor([1.0, 2.0])
    with trace() as recorded:
        x * 2
        x += 1
        x * 2
    assert [e.inputs[0].array.tolist() for e in recorded if e.op.name == "multiply"] == [[1, 2], [2, 3]]


def test_the_first_nan_is_found() -> None:
    x = tv.tensor([0.0, 1.0], requires_grad=True)
    with np.errstate(all="ignore"), trace() as recorded:
        F.sqrt(x).sum().backward()
    found = recorded.first_not_finite()
    assert (found.place, found.is_input) == (recorded["sqrt"].backward, False)
    assert traced()[0].first_not_finite() is None
    with np.errstate(all="ignore"), trace() as recorded:
        F.log(x)
    assert str(recorded.first_not_finite()) == "log"
    with np.errstate(all="ignore"), trace() as recorded:
        F.log(x).sum().backward()  # an infinite gradient too
    assert recorded.first_not_finite().place is recorded["log"]


def test_a_nan_among_the_inputs_is_not_attributed_to_the_operation() -> None:
    x = tv.tensor([np.nan, 1.0], requires_grad=True)
    mask = tv.tensor([-np.inf, 0.0])
    with trace() as recorded:
        F.softmax(mask)  # an infinity that does not reach the result is not reported
        (x * 2.0).sum().backward()
    assert str(recorded.first_not_finite()) == "multiply, whose input x contains it"
    y = tv.tensor([1.0, 2.0], requires_grad=True)
    with trace() as recorded:
        F.exp(y).backward(np.array([np.nan, 1.0]))
    found = recorded.first_not_finite()
    assert (found.place, found.is_input) == (recorded["exp"].backward, True)


def test_statistics_show_nan_and_infinity() -> None:
    with np.errstate(all="ignore"), trace() as recorded:
        F.log(tv.tensor([-1.0, 0.0, 1.0]))
        F.log(tv.tensor([0.0, 1.0]))
    broken, infinite = (entry.outputs[0] for entry in recorded)
    assert np.isnan([broken.statistics.norm, broken.statistics.mean]).all()
    assert repr(broken) == "y float32[3] norm nan, 1 NaN, 1 infinite"
    assert (infinite.statistics.norm, infinite.statistics.largest) == (np.inf, 0)


def test_without_a_trace_nothing_is_recorded() -> None:
    with pytest.raises(ZeroDivisionError), trace():
        _ = 1 / 0
    assert context.now().recorder is None
    _, recorded_model, _ = traced()
    model = tiny_model()
    step(model, Tensor(np.random.default_rng(1).standard_normal((2, 1, 4, 4), np.float32)))
    for a, b in zip(recorded_model.parameters(), model.parameters(), strict=True):  # recording changed no number
        assert a.grad.numpy().tobytes() == b.grad.numpy().tobytes()


def test_gradients_of_gradients_are_recorded_as_operations() -> None:
    x = tv.tensor(np.array([0.5, 1.0]), requires_grad=True)
    with trace() as recorded:
        (g,) = tv.grad(F.exp(x).sum(), x, create_graph=True)
        g.sum().backward()
    np.testing.assert_allclose(recorded.gradients["x"].array, np.exp(x.data))
    assert "multiply" in {e.op.name for e in recorded}


def test_leaves_of_one_name_have_gradients_of_their_own() -> None:
    first, second = tv.nn.Linear(3, 4), tv.nn.Linear(4, 2)
    with trace() as recorded:
        second(first(np.ones((2, 3), np.float32))).sum().backward()
    assert set(recorded.gradients) == {"weight", "bias", "weight#2", "bias#2"}
    for name, parameter in (("weight", first.weight), ("weight#2", second.weight), ("bias", first.bias)):
        np.testing.assert_array_equal(recorded.gradients[name].array, parameter.grad.numpy())


def test_gradients_are_those_of_the_last_backward_even_if_its_entries_are_older() -> None:
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    with trace() as recorded:
        early, late = (x * 2.0).sum(), (x * 5.0).sum()
        late.backward()
        early.backward()
    assert recorded.gradients["x"].array.tolist() == [2, 2]
    with trace() as recorded:
        y = x * 2.0
        tv.grad([y.sum(), (y * y).sum(), (x * 3.0).sum()], x)
    assert recorded.gradients["x"].array.tolist() == [13, 21]
    assert recorded.gradients["x"].origin.kind == "sum"


@pytest.mark.parametrize("wanted", range(3))
def test_a_rule_shows_the_gradients_that_are_wanted_and_no_others(wanted: int) -> None:
    x, weight, bias = (Tensor(RNG.standard_normal(shape), i == wanted) for i, shape in enumerate([(2, 3), 3, 3]))
    with tv.use_kernels("numpy"), trace() as recorded:
        (F.layer_norm(x, weight, bias) * weight + bias).sum().backward()
    for backward in recorded.backwards:
        assert tuple(value is not None for value in backward.outgoing) == backward.entry.needs


def test_a_gradient_is_the_sum_of_all_its_parts() -> None:
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    with trace() as recorded:
        (x * 2.0 + x * 3.0 + x * 4.0 + x * 5.0).sum().backward()
    assert recorded.gradients["x"].array.tolist() == [14, 14]
    assert len(recorded.gradients["x"].origin.source) == 4


def test_a_gradient_that_a_hook_replaced_has_a_hook_as_origin() -> None:
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    x.register_hook(lambda g: g * 10.0)
    with trace() as recorded:
        y = x * 3.0
        y.register_hook(lambda g: g * 7.0)
        (y * 2.0).sum().backward()
    (incoming,) = recorded["multiply"].backward.incoming
    assert (incoming.origin.kind, incoming.array.tolist()) == ("hook", [14, 14])
    assert (recorded.gradients["x"].origin.kind, recorded.gradients["x"].array.tolist()) == ("hook", [420, 420])


def test_a_trace_within_a_trace_is_refused() -> None:
    with trace() as outer:
        with pytest.raises(RuntimeError, match="a trace is already open"), trace():
            pass
        tv.tensor([1.0]) * 2
    assert len(outer) == 1


def test_statistics_agree_with_numpy() -> None:
    array = np.random.default_rng(0).standard_normal((5, 7)) * (np.arange(7) > 1)
    s = Statistics.of(array)
    np.testing.assert_allclose(
        [s.smallest, s.largest, s.mean, s.norm], [array.min(), array.max(), array.mean(), np.linalg.norm(array)]
    )
    assert (s.zeros, s.nans, s.infinities) == (10, 0, 0)
    assert Statistics.of(np.array([3e200, 4e200])).norm == pytest.approx(5e200)
    assert Statistics.of(np.zeros((0, 3))).norm == 0


def test_the_cost_of_a_trace_grows_with_its_length_alone() -> None:
    """Cost is the number of lines of Python that run, which no other process can change."""

    def lines(count: int) -> int:
        total = 0

        def count_lines(frame: Any, event: str, argument: Any) -> Any:
            nonlocal total
            total += event == "line"
            return count_lines

        x = tv.tensor([1.0], requires_grad=True)
        before = sys.gettrace()
        with trace():
            sys.settrace(count_lines)
            for _ in range(count):
                x = x * 1.0
            sys.settrace(before)
        return total

    lines(10)
    assert lines(800) < 11 * lines(100)


def test_the_first_of_two_broken_rules_is_named() -> None:
    x = tv.tensor([0.0, 1.0], requires_grad=True)
    with np.errstate(all="ignore"), trace() as recorded:
        F.sqrt(F.sqrt(x)).sum().backward()
    assert str(recorded.first_not_finite()) == "sqrt#2/backward"


def test_a_trace_records_its_own_thread_only() -> None:
    def compute() -> None:
        tv.tensor([1.0]) * 2

    with trace() as recorded:
        other = threading.Thread(target=compute)
        other.start()
        other.join()
        compute()
    assert len(recorded) == 1


def test_a_small_matrix_is_printed_as_rows() -> None:
    with trace() as recorded, tv.use_kernels("numpy"):
        F.exp(tv.tensor([[0.0, 1.0], [-2.0, 0.5]], requires_grad=True)).sum().backward()
    lines = recorded.text("exp").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("   x float32[2, 2]"))
    assert [line.split() for line in lines[at + 1 : at + 3]] == [["0", "1"], ["-2", "0.5"]]
    assert "in all" not in recorded.text("exp")
