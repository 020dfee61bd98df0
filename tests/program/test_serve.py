"""Programs that take over from a model by themselves: the same bits, and the model's own parameters at each call."""

import gc
import weakref

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.program import serve

RNG = np.random.default_rng(0)


def model() -> tv.models.ViT:
    tv.manual_seed(0)
    return tv.models.ViT(8, 4, 5, 8, 1, 2, in_channels=1).eval()


def images(batch: int) -> np.ndarray:
    return RNG.standard_normal((batch, 1, 8, 8)).astype(np.float32)


def test_a_program_takes_over_after_a_few_calls(calls: list[int]) -> None:
    vit = model()
    compute = serve.served(vit)
    with tv.no_grad():
        for batch in range(1, 8):
            x = images(batch)
            y = compute(x)
            assert isinstance(y, tv.Tensor)
            np.testing.assert_array_equal(y.numpy(), vit(x).numpy())
    assert calls == [5, 6, 7]


def test_attention_weights_are_results_of_a_program(calls: list[int]) -> None:
    tv.manual_seed(0)
    vit = tv.models.ViT(8, 4, 5, 8, 2, 2, in_channels=1).eval()
    compute, without = serve.served_with_attention(vit), serve.served(vit)
    with tv.no_grad():
        for batch in range(1, 7):
            x = images(batch)
            logits, weights = compute(x)
            with tv.nn.keep_attention(vit) as kept:
                expected = vit(x)
            np.testing.assert_array_equal(logits.numpy(), expected.numpy())
            plain = without(x)
            assert isinstance(plain, tv.Tensor)
            np.testing.assert_array_equal(plain.numpy(), expected.numpy())
            assert list(weights) == list(kept)
            for name, (maps,) in kept.items():
                np.testing.assert_array_equal(weights[name], maps)
    assert calls == [5, 5, 6, 6]


@pytest.mark.parametrize("change", ["assign", "data", "array", "step"])
def test_changed_parameters_are_noticed(change: str) -> None:
    vit, x = model(), images(2)
    compute = serve.served(vit)
    with tv.no_grad():
        for _ in range(6):
            before = compute(x).numpy()
    bias = vit.head.bias
    if change == "assign":
        bias.assign(np.ones(5))
    elif change == "data":
        bias.data[2] += 1
    elif change == "array":
        bias.data = np.ones(5, np.float32)
    else:
        optimizer = tv.optim.SGD(vit.parameters(), 0.1)
        vit(x).sum().backward()
        optimizer.step()
    with tv.no_grad():
        after = compute(x).numpy()
        assert not np.array_equal(after, before)
        np.testing.assert_array_equal(after, vit(x).numpy())


def test_gradients_training_and_other_forms_are_left_to_the_model(calls: list[int]) -> None:
    vit, x = model(), images(2)
    compute = serve.served(vit)
    for _ in range(6):
        assert compute(x).requires_grad
    with tv.no_grad():
        vit.train()
        for _ in range(6):
            compute(x)
        vit.eval()
        for _ in range(3):
            compute(x)
        with pytest.raises(ValueError, match="this model takes"):
            compute(x[:, :, :4])
    assert calls == []


def test_a_model_that_cannot_be_frozen_computes_itself(calls: list[int]) -> None:
    class Deciding(tv.nn.Module):
        def __init__(self) -> None:
            self.layer = tv.nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else -self.layer(x)

    net = Deciding().eval()
    with tv.no_grad(), serve.serving(net, "forward", "encode"):
        for sign in (1, -1) * 4:
            x = tv.Tensor(np.full((1, 2), sign, np.float32))
            np.testing.assert_array_equal(net(x).numpy(), sign * net.layer(x).numpy())
    assert calls == []
    assert "forward" not in vars(net)


def test_several_choices_of_kernels_and_precision_have_programs_of_their_own(calls: list[int]) -> None:
    vit, x = model(), images(3)
    compute = serve.served(vit)
    with tv.no_grad():
        for _ in range(6):
            for precision in ("float32", "bfloat16"):
                with tv.autocast(precision):
                    np.testing.assert_array_equal(compute(x).numpy(), vit(x).numpy())
    assert len(calls) == 4


@pytest.mark.usefixtures("few_objects")
def test_a_model_that_nobody_needs_is_let_go() -> None:
    vit = model()
    with tv.no_grad():
        for _ in range(6):
            serve.served(vit)(images(1))
    reference = weakref.ref(vit)
    del vit
    gc.collect()
    assert reference() is None
