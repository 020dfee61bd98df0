"""A ViT, its optimizer and mixed precision on the device, compared with the host.

`test_emulated.py` and `test_gpu.py` run this file.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from unittest import mock

import numpy as np
import pytest
from fake_cupy import CapturableDevice, installed
from kernel_trials import ON_GPU
from tinyvit.kernels.cuda import device
from tinyvit.kernels.linear import lt

import tinyvit as tv
import tinyvit.functional as F
from tinyvit import backend
from tinyvit.engine import Tensor
from tinyvit.errors import TrainingFailed
from tinyvit.functional import indexing
from tinyvit.recipe import load_recipe
from tinyvit.run.captured import WARM_UP, CapturedStep
from tinyvit.run.display import Display, heading
from tinyvit.run.loop import train
from tinyvit.run.state import Training

RNG = np.random.default_rng(1)
IMAGES = np.random.default_rng(0).standard_normal((6, 1, 8, 8)).astype(np.float32)
LABELS = np.arange(6) % 5


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[Any]:
    if ON_GPU:
        with tv.use_kernels("auto"):
            yield
        return
    with installed(), tv.use_kernels("auto"):
        device.DEVICES[0] = CapturableDevice()
        yield device.DEVICES[0]
        device.DEVICES.clear()


def model_on(where: str, **settings: Any) -> tv.models.ViT:
    tv.manual_seed(3)
    model = tv.models.ViT(8, 4, 5, dim=32, depth=2, heads=2, in_channels=1, **settings)
    return model.to(where)


def losses(where: str, precision: str = "float32", steps: int = 4, **settings: Any) -> list[float]:
    """Return the losses of some training steps."""
    model, found = model_on(where, **settings), []
    optimizer = tv.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = tv.LossScaler(optimizer, initial=1024) if precision == "float16" else None
    for _ in range(steps):
        optimizer.zero_grad()
        with tv.autocast(precision):
            loss = F.cross_entropy(model(IMAGES), LABELS)
        (scaler.scaled(loss) if scaler else loss).backward()
        if scaler:
            scaler.step(clip_norm=1.0)
        else:
            tv.optim.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("pos_embed", ["learned", "sincos2d"])
def test_training_on_the_device_follows_training_on_the_host(pos_embed: str) -> None:
    settings = {"pos_embed": pos_embed, "dropout": 0.1}
    np.testing.assert_allclose(losses("cuda", **settings), losses("cpu", **settings), rtol=2e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_stays_near_float32(precision: str) -> None:
    np.testing.assert_allclose(losses("cuda", precision), losses("cpu"), rtol=0.05)


def test_training_on_the_device_uses_its_kernels(on_the_device: Any) -> None:
    losses("cuda", "bfloat16", steps=1)
    if not ON_GPU:
        used = {kernel.expression for kernel in on_the_device.launched}
        names = ("attention_forward_5<bfloat_t", "attention_backward_5<bfloat_t", "layer_norm_forward_2<float")
        for name in (*names, "cross_entropy_backward_2<float", "adamw_step_2"):
            assert any(name in expression for expression in used), (name, used)


@pytest.mark.parametrize("rule", [tv.optim.AdamW, tv.optim.Adam])
@pytest.mark.parametrize("version", ["cupy:v1", "cupy:v2"])
def test_the_optimizer_on_the_device_agrees_with_the_plain_one(rule: Any, version: str) -> None:
    rng = np.random.default_rng(1)
    shapes = [(3,), (9000,), (40, 5), (1,), (8192,)]
    start = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    gradients = [[rng.standard_normal(s).astype(np.float32) for s in shapes] for _ in range(3)]

    def trained(where: str, choice: str) -> list[np.ndarray]:
        with tv.use_kernels(choice):
            ps = [tv.tensor(x, device=where, requires_grad=True) for x in start]
            groups = [{"params": ps[:2], "weight_decay": 0.1}, {"params": ps[2:], "lr": 1e-2}]
            optimizer = rule(groups, lr=1e-3)
            for step in gradients:
                for p, g in zip(ps, step, strict=True):
                    p.grad = tv.tensor(g, device=where)
                ps[3].grad = None
                if step is not gradients[-1]:
                    ps[4].grad = None  # it gets its first gradient late
                optimizer.step()
            state = optimizer.state_dict()
        assert state["steps"] == 3
        return [p.numpy() for p in ps] + [a for kept in state["arrays"].values() for a in kept.values()]

    for found, expected in zip(trained("cuda", version), trained("cpu", "numpy"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)


def test_a_norm_that_is_not_finite_skips_the_step_on_the_device() -> None:
    p = tv.tensor(np.ones(5, np.float32), device="cuda", requires_grad=True)
    optimizer = tv.optim.AdamW([p], lr=0.1)
    (bundle,) = optimizer.device_bundles
    bundle["scale"], bundle["growth"] = 1024, 2
    for gradient, scale, steps in ((np.inf, 512, 0), (1.0, 512, 1), (1.0, 1024, 2), (np.nan, 512, 2)):
        before = p.numpy().copy()
        p.grad = tv.tensor(np.full(5, gradient, np.float32), device="cuda")
        optimizer.step()
        assert (bundle["scale"], bundle["step"]) == (scale, steps)
        assert np.array_equal(p.numpy(), before) == (not np.isfinite(gradient))


def test_clipping_on_the_device_divides_by_norms_whose_square_is_no_float32() -> None:
    p = tv.tensor(np.ones(9000, np.float32), device="cuda", requires_grad=True)
    optimizer = tv.optim.AdamW([p], lr=0.1)
    (bundle,) = optimizer.device_bundles
    bundle["max_norm"] = 1.0
    p.grad = tv.tensor(np.full(9000, 1e25, np.float32), device="cuda")
    optimizer.step()
    assert bundle["norm"] == pytest.approx(1e25 * 9000**0.5)
    np.testing.assert_allclose(optimizer.state_dict()["arrays"]["0"]["m"], 0.1 / 9000**0.5, rtol=1e-5)


def test_clipping_on_the_device_divides_by_the_norm() -> None:
    def stepped(gradient: float, max_norm: float) -> np.ndarray:
        p = tv.tensor(np.ones(4, np.float32), device="cuda", requires_grad=True)
        optimizer = tv.optim.AdamW([p], lr=0.1, eps=1.0)  # with a large eps the size of a gradient matters
        (bundle,) = optimizer.device_bundles
        bundle["max_norm"] = max_norm
        p.grad = tv.tensor(np.full(4, gradient, np.float32), device="cuda")
        optimizer.step()
        assert bundle["norm"] == pytest.approx(2 * gradient)
        return p.numpy()

    np.testing.assert_allclose(stepped(5.0, 1.0), stepped(0.5, 0.0), rtol=1e-6)


def test_devices_are_never_mixed() -> None:
    there, here = tv.tensor([1.0], device="cuda"), tv.tensor([1.0])
    with pytest.raises(ValueError, match=r"add: its inputs are on cpu, cuda:0; move them to one device"):
        here + there
    with pytest.raises(ValueError, match="layer_norm: its inputs are on cuda:0, cpu"):
        F.layer_norm(there, here, here)
    assert (there + 1).device == "cuda:0"
    assert (1 - there).device == "cuda:0"
    assert (there + here.to("cuda")).to("cpu").numpy() == 2


def test_gradients_pass_through_a_transfer() -> None:
    x = tv.tensor([1.0, 2.0], requires_grad=True)
    (x.to("cuda") * 3).sum().backward()
    assert x.grad is not None
    assert x.grad.device == "cpu"
    np.testing.assert_array_equal(x.grad.numpy(), 3)


def test_states_can_move_between_devices() -> None:
    there, here = model_on("cuda"), model_on("cpu")
    here.load_state_dict({name: 0 * a for name, a in here.state_dict().items()})
    here.load_state_dict(there.state_dict())
    there.load_state_dict(here.state_dict())
    for name, array in there.state_dict().items():
        np.testing.assert_array_equal(array, here.state_dict()[name])


def test_repeated_rows_are_added_in_a_fixed_order() -> None:
    """Products add them in a fixed order; where a product would need too large a matrix, they are sorted."""
    weight = RNG.standard_normal((5, 2, 3)).astype(np.float32)
    ids, dy = np.array([[0, 4, 4], [-1, 0, 2]]), RNG.standard_normal((2, 3, 2, 3)).astype(np.float32)
    expected = np.zeros_like(weight)
    np.add.at(expected, ids, dy)
    x = tv.tensor(weight, device="cuda", requires_grad=True)
    with mock.patch("tinyvit.functional.indexing._add_rows", wraps=indexing._add_rows) as by_product:
        x[ids].backward(tv.tensor(dy, device="cuda"))
    by_product.assert_called_once()
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6, atol=1e-6)
    with mock.patch("tinyvit.functional.indexing._LARGEST", 1):
        x.grad = None
        x[ids].backward(tv.tensor(dy, device="cuda"))
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6, atol=1e-6)
    pairs, x.grad = (np.array([0, 4, 4, 0]), np.array([1, 0, 0, 1])), None
    x[pairs].backward(tv.tensor(dy.reshape(4, 9)[:, :3], device="cuda"))
    expected[...] = 0
    np.add.at(expected, pairs, dy.reshape(4, 9)[:, :3])
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6, atol=1e-6)
    x[np.zeros(0, int)].sum().backward()


def test_rows_taken_from_each_matrix_are_added_in_a_fixed_order() -> None:
    x, rows = RNG.standard_normal((2, 4, 3)).astype(np.float32), np.array([[3, 0, 3], [1, 1, 1]])
    dy, found = RNG.standard_normal((2, 3, 3)).astype(np.float32), []
    for where in ("cuda", "cpu"):
        matrices = tv.tensor(x, device=where, requires_grad=True)
        taken = F.take_rows(matrices, rows)
        taken.backward(tv.tensor(dy, device=where))
        found.append((taken.numpy(), matrices.grad.numpy()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)


def test_plain_rules_serve_what_no_kernel_serves() -> None:
    x = tv.tensor(np.ones((2, 3)), device="cuda")
    w = tv.tensor(np.ones(3), device="cuda")
    assert F.layer_norm(x, w, w).dtype == np.float64
    with tv.use_kernels("cupy"), pytest.raises(RuntimeError, match="the inputs are float64, and cupy computes in"):
        F.layer_norm(x, w, w)
    with tv.use_kernels("numba"), pytest.raises(RuntimeError, match="on 'cuda', and numba computes on 'cpu'"):
        F.softmax(Tensor(x.data.astype("float32")))


# CUDA graphs --------------------------------------------------------------------------------------------------------


def run_of(captured: bool, precision: str, small: int = 5) -> tuple[Any, CapturedStep]:
    """Return the losses and the weights after some steps; the batch of step number `small` is smaller."""
    model = model_on("cuda", dropout=0.2)
    optimizer = tv.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    step = CapturedStep(
        lambda images, labels: F.cross_entropy(model(Tensor(images)), labels), optimizer, precision, clip_norm=0.5
    )
    if not captured:
        step.reason = "the test switches it off"
    losses = []
    for i in range(7):
        optimizer.set_lr(1e-2 / (i + 1))
        size = 4 if i == small else 6
        images = np.roll(IMAGES, i, axis=0)[:size]
        losses.append(step((images, np.roll(LABELS, i)[:size])).item())
    return (losses, [p.numpy().tobytes() for p in model.parameters()], optimizer.state_dict()["steps"]), step


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_captured_steps_give_the_bits_of_uncaptured_ones(precision: str) -> None:
    found, step = run_of(True, precision)
    assert step.reason is None
    assert step.is_captured
    expected, other = run_of(False, precision)
    assert not other.is_captured
    assert found == expected
    assert len(set(found[0])) == len(found[0])


def test_steps_are_captured_also_after_a_smaller_first_batch() -> None:
    found, step = run_of(True, "float32", small=0)
    assert step.is_captured
    assert found == run_of(False, "float32", small=0)[0]


def _transferred(loss: Tensor) -> None:
    loss.item()  # CuPy refuses this before it asks CUDA, so the capture stays valid


def _synchronized(loss: Tensor) -> None:
    backend.gpu()[0].cuda.get_current_stream().synchronize()  # this makes the capture invalid


def _swallowed(loss: Tensor) -> None:
    with suppress(Exception):  # the next operation fails, and asking whether the stream captures
        _synchronized(loss)


@pytest.mark.parametrize("wait", [_transferred, _synchronized, _swallowed])
def test_a_step_that_cannot_be_captured_runs_uncaptured_and_says_why(wait: Any) -> None:
    model = model_on("cuda")
    optimizer = tv.optim.AdamW(model.parameters(), lr=1e-2)

    def loss_of(images: Any, labels: Any) -> Tensor:
        loss = F.cross_entropy(model(Tensor(images)), labels)
        wait(loss)
        return loss

    step = CapturedStep(loss_of, optimizer)
    with pytest.warns(RuntimeWarning, match="cannot be captured in a CUDA graph .* launched one by one"):
        losses = [step((IMAGES, LABELS)).item() for _ in range(5)]
    assert step.reason is not None
    assert "captur" in step.reason.partition(" (")[2]
    assert losses[-1] < losses[0]
    assert optimizer.steps == 5


def test_a_capture_that_is_interrupted_leaves_no_stream_that_captures() -> None:
    model = model_on("cuda")
    calls = []

    def loss_of(images: Any, labels: Any) -> Tensor:
        calls.append(1)
        if len(calls) == WARM_UP + 1:  # the capture
            raise KeyboardInterrupt
        return F.cross_entropy(model(Tensor(images)), labels)

    step = CapturedStep(loss_of, tv.optim.AdamW(model.parameters(), lr=1e-2))
    for _ in range(WARM_UP):
        step((IMAGES, LABELS))
    with pytest.raises(KeyboardInterrupt):
        step((IMAGES, LABELS))
    assert all(np.isfinite(p.numpy()).all() for p in model.parameters())  # as a run saves its state


def test_only_parameters_on_a_gpu_are_captured() -> None:
    optimizer = tv.optim.AdamW(model_on("cpu").parameters())
    with pytest.raises(ValueError, match="all of them on one GPU"):
        CapturedStep(lambda: tv.tensor(1.0), optimizer)


# Runs ---------------------------------------------------------------------------------------------------------------


def run_by(tmp_path: Any, *assignments: str, epochs: int = 2) -> tuple["Seen", Any]:
    """Train a tiny ViT on some digits, 5 steps an epoch, on the device; return its display and its result."""
    size = ("model.dim=16", "model.depth=1", "model.heads=2", "data.limit=120", "data.batch_size=25")
    size += ("model.stem=linear", "train.optimizer=adamw", "train.lr=3e-3")  # Muon has no kernels for a device
    recipe = load_recipe("digits").override([*size, f"epochs={epochs}", *assignments])
    seen = Seen()
    tv.backend.set_default_device("cuda")
    try:
        return seen, train(recipe, "tiny", tmp_path / f"run{len(list(tmp_path.iterdir()))}", seen)
    finally:
        tv.backend.set_default_device("cpu")


class Seen(Display):
    def started(self, training: Training, folder: Any) -> None:
        self.training, self.heading = training, heading(training, folder)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_captured_run_gives_the_metrics_of_an_uncaptured_one(tmp_path: Any, precision: str, monkeypatch: Any) -> None:
    seen, result = run_by(tmp_path, f"precision={precision}")
    assert "each one CUDA graph" in seen.heading
    assert seen.training.steps.graph.is_captured
    monkeypatch.setattr("tinyvit.run.captured.WARM_UP", 1000)
    other, expected = run_by(tmp_path, f"precision={precision}")
    assert not other.training.steps.graph.is_captured
    for line, uncaptured in zip(result.metrics, expected.metrics, strict=True):
        for name in ("step", "train_loss", "val_loss", "val_accuracy"):
            assert line[name] == uncaptured[name], name
    assert result.metrics[-1]["train_loss"] < result.metrics[0]["train_loss"]


def test_a_run_that_cannot_be_captured_says_why(tmp_path: Any) -> None:
    seen, result = run_by(tmp_path, "train.optimizer=sgd", epochs=1)
    assert "operation by operation because train.optimizer is 'sgd'" in seen.heading
    assert seen.training.steps.graph is None
    assert result.metrics[0]["step"] == 5


def test_a_run_without_cublaslt_says_what_is_lost_and_how_to_get_it(tmp_path: Any) -> None:
    with mock.patch.object(lt, "why_not", return_value="cuBLASLt is not found (no such file)"):
        seen, result = run_by(tmp_path, epochs=1)
    assert "operation by operation because CuPy's own products cannot be captured, but matrix products" in seen.heading
    assert "because cuBLASLt is not found (no such file); install tinyvit with its extra cuda12" in seen.heading
    assert result.metrics[0]["step"] == 5


def test_a_loss_that_is_not_finite_ends_a_captured_run(tmp_path: Any) -> None:
    with pytest.raises(TrainingFailed, match=r"the loss of step \d+ is nan.* of the last good step"):
        run_by(tmp_path, "lr=1e30", "train.clip_norm=0", "train.warmup_epochs=0", epochs=30)


def test_a_scaler_on_the_device_agrees_with_one_on_the_host() -> None:
    """Both get the same gradients, one of which is not finite; a state moves from one to the other."""
    found = []
    for where in ("cuda", "cpu"):
        p = tv.tensor(np.ones(5, np.float32), device=where, requires_grad=True)
        optimizer = tv.optim.AdamW([p], lr=0.1)
        scaler = tv.LossScaler(optimizer, initial=64, growth=2)
        seen = []
        for gradient in (64.0, np.inf, 3.0, 5.0, 1.0):
            p.grad = tv.tensor(np.full(5, gradient, np.float32), device=where)
            norm = float(scaler.step(clip_norm=1.0))
            seen.append((norm, scaler.scale, scaler.good_steps, *p.numpy()))
        other = tv.LossScaler(tv.optim.AdamW([tv.tensor([1.0], requires_grad=True)]))
        other.load_state_dict(scaler.state_dict())
        assert (other.scale, other.good_steps) == (scaler.scale, scaler.good_steps)
        found.append(seen)
    np.testing.assert_allclose(*found, rtol=1e-5)
