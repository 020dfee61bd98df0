"""Gradients from a record of a step on the CPU are those of a usual step, bit for bit, or the reason is shown."""

import gc
import weakref

import numpy as np
import pytest
from tiny_run import Watch, tiny_recipe
from tiny_tasks import KINDS, tiny
from tinyvit.kernels.cpu.compiler import entry
from tinyvit.kernels.program.calls import Calls

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.backend import default_generator
from tinyvit.nn import Module
from tinyvit.run.captured_cpu import MOST_SEEN, MOST_SHAPES, CapturedGradients
from tinyvit.run.display import Lines
from tinyvit.run.folder import load_run
from tinyvit.run.loop import train
from tinyvit.run.state import Training
from tinyvit.study import trace

pytestmark = pytest.mark.usefixtures("few_scenes")
WARM_UP = 2


@pytest.fixture(autouse=True)
def early_record(monkeypatch):
    """Record a step as soon as two others were made."""
    monkeypatch.setattr("tinyvit.run.captured_cpu.WARM_UP", WARM_UP)


def trained(recipe, is_recorded, epochs=3):
    """Train for some epochs without measuring; return the state of the run and the losses of all epochs."""
    training = Training(recipe)
    if not is_recorded:
        training.steps.gradients = None
    losses = []
    for _ in range(epochs):
        for group in training.groups():
            training.step(group)
        losses.append(training.position.loss_sum)
        training.position.batch, training.position.epoch = 0, training.position.epoch + 1
    return training, losses


def assert_same(one, other):
    """Check that weights and moments of two runs are equal, bit for bit."""
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert p.numpy().tobytes() == q.numpy().tobytes()
    a, b = one.optimizer.state_dict()["arrays"], other.optimizer.state_dict()["arrays"]
    for key in a:
        for name, array in a[key].items():
            np.testing.assert_array_equal(array, b[key][name])


# Why steps of these kinds are not recorded; "" where hardly any two batches have as many images.
NOT_RECORDED = {
    **dict.fromkeys(("vqa-cnn", "vqa-cross", "vqa-joint"), ""),
    "caption": "reads the values",  # of the words before, to look up their prior
    "detect": "TypeError",  # queries and things are matched outside the package's operations
}
QUICK = ("caption", "detect", "masked-both", "retrieve")


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=[] if name in QUICK and precision == "float32" else [pytest.mark.slow])
        for name in KINDS
        for precision in ("float32", "bfloat16")
    ],
)
def test_runs_of_every_kind_compute_the_same_bits_with_and_without_a_record(name, precision):
    recipe = tiny(name, "dropout=0", f"precision={precision}", "epochs=9")
    recorded, losses = trained(recipe, True)
    usual, expected = trained(recipe, False)
    assert losses == expected
    assert_same(recorded, usual)
    if name in NOT_RECORDED:
        assert NOT_RECORDED[name] in recorded.steps.why_not_recorded
    else:
        assert recorded.steps.gradients.is_captured, recorded.steps.why_not_recorded


OPTIONS = [
    ("pool=cls", "depth=2", "clip_norm=0.5", "weight_decay=0.05", "ema=0.9"),
    ("accumulate=2", "label_smoothing=0.1", "depth=2"),
    ("stem=conv", "patch_size=2", "pos_embed=sincos2d"),
    ("optimizer=sgd", "momentum=0.9", "layer_scale=0.1", "qk_norm=true"),
    ("mixup=0.5", "clip_norm=1", "optimizer=adam"),
    ("norm=post", "qkv_bias=false", "layer_decay=0.8", "precision=bfloat16"),
    ("register_tokens=2", "pool=cls", "precision=bfloat16", "accumulate=3"),
]


@pytest.mark.parametrize(
    "options",
    [pytest.param(options, id=options[0], marks=[pytest.mark.slow] * (i > 2)) for i, options in enumerate(OPTIONS)],
)
def test_runs_with_many_options_compute_the_same_bits_with_and_without_a_record(options):
    recipe = tiny_recipe("epochs=9", "data.limit=700", "data.batch_size=200", *options)
    recorded, losses = trained(recipe, True, 4)
    usual, expected = trained(recipe, False, 4)
    assert losses == expected
    assert_same(recorded, usual)
    assert recorded.steps.gradients.is_captured, recorded.steps.why_not_recorded


def test_a_resumed_run_computes_the_same_bits():
    recipe = tiny_recipe("epochs=4", "ema=0.9")
    whole = train(recipe, "whole")
    training = Training(recipe)
    for group in training.groups():
        training.step(group)
    training.finish_epoch(lambda: None)
    tv.save("middle.safetensors", training.state_dict())
    other = Training(recipe)
    other.read_checkpoint("middle.safetensors")
    for _ in range(3):
        for group in other.groups():
            other.step(group)
        other.finish_epoch(lambda: None)
    assert other.steps.gradients.is_captured, other.steps.why_not_recorded
    with other.averaged():
        state = other.model.state_dict()
    for key, value in load_run(whole.folder).model.state_dict().items():
        np.testing.assert_array_equal(state[key], value)


def test_large_steps_are_not_recorded_with_the_reason(monkeypatch):
    monkeypatch.setattr("tinyvit.run.captured_cpu.MOST_BYTES", 1000)
    model = Small()
    captured, losses = captured_of(model)
    assert not any(gradients(model, captured, losses, batch) for batch in batches(WARM_UP + 2))
    assert "small part" in captured.reason


def test_batches_of_ever_other_shapes_are_not_recorded_with_the_reason():
    model = Small()
    captured, _ = captured_of(model)
    for rows in range(1, MOST_SEEN + 2):
        assert captured(batches(1, rows)[0], rows) is None
    assert "same shape" in captured.reason


# One model ----------------------------------------------------------------------------------------------------------


class Small(Module):
    """A small classifier with a residual sum and a layer norm."""

    def __init__(self):
        self.first, self.second = tv.nn.Linear(6, 6), tv.nn.Linear(6, 3)
        self.norm = tv.nn.LayerNorm(6)

    def forward(self, x):
        return self.second(self.norm(x + F.gelu(self.first(x))))


def captured_of(model, change=lambda y: y):
    def losses(x, labels):
        loss = F.cross_entropy(change(model(tv.Tensor(x))), labels, reduction="sum")
        return loss, loss / len(labels)

    return CapturedGradients(losses, list(model.parameters())), losses


def batches(count, rows=5):
    random = np.random.default_rng(1)
    return [(random.standard_normal((rows, 6)).astype(np.float32), random.integers(0, 3, rows)) for _ in range(count)]


def gradients(model, captured, losses, batch):
    """Return the gradients by a record, if there is one, and whether there was; checks them against usual ones."""
    for p in model.parameters():
        p.grad = None
    loss = captured(batch, len(batch[1]))
    found = [None if p.grad is None else p.grad.numpy().copy() for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    total, mean = losses(*batch)
    mean.backward()
    if loss is not None:
        assert loss == total.item()
        for p, g in zip(model.parameters(), found, strict=True):
            assert (g is None) == (p.grad is None)
            assert g is None or g.tobytes() == p.grad.numpy().tobytes()
    return loss is not None


def test_the_first_steps_are_usual_ones_and_the_others_are_recorded():
    model = Small()
    captured, losses = captured_of(model)
    served = [gradients(model, captured, losses, batch) for batch in batches(6)]
    assert served == [False] * WARM_UP + [True] * (6 - WARM_UP)


def test_steps_are_recorded_for_a_few_shapes_only():
    model = Small()
    captured, losses = captured_of(model)
    for rows in range(3, 3 + MOST_SHAPES + 2):
        served = [gradients(model, captured, losses, batch) for batch in batches(WARM_UP + 2, rows)]
        assert served[-1] == (rows < 3 + MOST_SHAPES)


def test_weights_that_are_loaded_are_used_and_weights_elsewhere_are_recorded_anew():
    model = Small()
    captured, losses = captured_of(model)
    for batch in batches(5):
        gradients(model, captured, losses, batch)
    model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})
    assert gradients(model, captured, losses, batches(1)[0])
    model.first.weight.data = model.first.weight.data * 2
    assert [gradients(model, captured, losses, batch) for batch in batches(2)] == [False, True]


def test_a_hook_on_a_gradient_is_called():
    model = Small()
    captured, losses = captured_of(model)
    for batch in batches(4):
        gradients(model, captured, losses, batch)
    seen = []
    remove = model.first.weight.register_hook(lambda g: seen.append(1))
    assert not gradients(model, captured, losses, batches(1)[0])
    assert seen
    remove()
    assert gradients(model, captured, losses, batches(1)[0])


class Images(Small):
    """The same behind a convolution, in whose gradient NumPy has a part, and a slice."""

    def __init__(self):
        super().__init__()
        self.conv = tv.nn.Conv2d(1, 4, 2)

    def forward(self, x):
        y = F.relu(self.conv(x.reshape(len(x.data), 1, 2, 3)))
        return super().forward(y.reshape(len(x.data), 8)[:, 1:7])


def test_kernels_in_which_numpy_has_a_part_are_called_as_usual():
    model = Images()
    captured, losses = captured_of(model)
    assert [gradients(model, captured, losses, batch) for batch in batches(WARM_UP + 3)][-1], captured.reason
    (replay,) = captured.replays
    assert replay.python_calls


def test_frozen_and_unused_parameters_get_no_gradient():
    model = Small()
    model.unused = tv.nn.Linear(2, 2)
    model.first.weight.requires_grad = False
    captured, losses = captured_of(model)
    assert [gradients(model, captured, losses, batch) for batch in batches(4)][-1]
    model.first.weight.requires_grad = True
    assert [gradients(model, captured, losses, batch) for batch in batches(2)] == [False, True]


def test_steps_within_a_trace_are_usual_ones():
    model = Small()
    captured, losses = captured_of(model)
    for batch in batches(4):
        gradients(model, captured, losses, batch)
    with trace() as recorded:
        assert not gradients(model, captured, losses, batches(1)[0])
    assert recorded is not None


def drops(y):
    return F.dropout(y, 0.5)


def reads(y):
    return y * float(y.data[0, 0] > 0)


def hooks(y):
    y.register_hook(lambda g: g * 2)
    return y * 1.0


class Counts:
    """Multiplies with another number in each step."""

    count = 0

    def __call__(self, y):
        self.count += 1
        return y * float(self.count)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drops, "random numbers (dropout"),
        (reads, "reads the values"),
        (hooks, "hook"),
        (Counts(), "did not give the same bits"),
    ],
)
def test_what_cannot_be_recorded_is_made_as_usual_with_the_reason(change, words):
    model = Small()
    captured, losses = captured_of(model, change)
    for batch in batches(WARM_UP + 2):
        before = default_generator.offset
        assert captured(batch, len(batch[1])) is None
        assert default_generator.offset == before
        assert all(p.grad is None for p in model.parameters())
        losses(*batch)
    assert words in captured.reason


def test_without_kernels_steps_are_usual_ones():
    model = Small()
    with tv.use_kernels("numpy"):
        captured, _ = captured_of(model)
    assert "kernels" in captured.reason


def test_ids_that_are_not_allowed_are_refused_by_a_recorded_step_too():
    model = Small()
    captured, losses = captured_of(model)
    for batch in batches(4):
        gradients(model, captured, losses, batch)
    x, labels = batches(1)[0]
    with pytest.raises(ValueError, match="target go from"):
        captured((x, np.full_like(labels, 7)), 5)


@pytest.mark.usefixtures("few_objects")
def test_a_record_keeps_nothing_but_its_own_memory():
    model = Small()
    captured, losses = captured_of(model)
    for batch in batches(4):
        gradients(model, captured, losses, batch)
    gc.collect()
    (replay,) = captured.replays
    assert replay.bytes < 20_000
    alive = weakref.ref(replay)
    del replay, captured
    gc.collect()
    assert alive() is None


# Runs ---------------------------------------------------------------------------------------------------------------


def test_a_run_says_once_why_its_steps_are_not_recorded(capsys):
    train(tiny_recipe("dropout=0.1"), "run", display=Lines())
    out = capsys.readouterr().out
    reason = "because the model draws random numbers"
    assert out.count(f"recorded steps, which make small models faster, are not used, {reason}") == 1


def test_a_run_whose_steps_are_recorded_says_nothing(capsys):
    seen = []
    train(tiny_recipe(), "run", display=Watch(lambda training, _: seen.append(training.steps.gradients.is_captured)))
    assert seen[-1]
    assert "recorded steps" not in capsys.readouterr().out


def test_float16_steps_are_usual_ones_with_the_reason():
    training = Training(tiny_recipe("precision=float16"))
    assert training.steps.gradients is None
    assert "float16" in training.steps.why_not_recorded


def test_a_record_compiles_what_no_call_has_compiled_before():
    @entry
    def double(x):
        for i in range(x.size):
            x[i] *= 2

    x, y = np.ones(3, np.float32), np.ones(3, np.float64)
    for _ in range(2):  # each type of argument has compiled code of its own
        Calls([(double.compiled, (x,)), (double.compiled, (y,))]).run(0, 2)
    assert x.tolist() == y.tolist() == [4, 4, 4]
    assert len(double.compiled.overloads) == 2


@pytest.mark.parametrize("how", ["hard", "soft"])
def test_steps_with_a_teacher_are_recorded_to_the_same_bits(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = train(tiny_recipe("epochs=1"), "teacher").folder
    recipe = tiny_recipe(f"teacher={teacher}", f"distill={how}", "epochs=9")
    (recorded, losses), (usual, expected) = (trained(recipe, is_recorded) for is_recorded in (True, False))
    assert recorded.steps.gradients.is_captured, recorded.steps.why_not_recorded
    assert losses == expected
    assert_same(recorded, usual)
