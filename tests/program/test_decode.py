"""Programs for the steps of a text decoder write the same texts, to the bit of every logit."""

from typing import Any

import numpy as np
import pytest
from tiers import quick_first

import tinyvit as tv
from tinyvit.models import beam_search, generate, greedy
from tinyvit.program import decode

M = tv.models
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def programs_take_over_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "STEPS_BEFORE", 4)


def captioner(norm: str = "pre", tied: bool = True) -> tuple[Any, Any]:
    tv.manual_seed(0)
    vision = M.ViT(8, 4, 0, dim=8, depth=1, heads=2, pool="first")
    model = M.Captioner(vision, M.TextDecoder(12, 8, 2, 2, norm=norm, tied=tied, max_length=12)).eval()
    return model, RNG.standard_normal((3, 3, 8, 8)).astype(np.float32)


def translator() -> tuple[Any, Any]:
    tv.manual_seed(0)
    source = RNG.integers(4, 12, (3, 6))
    source[0, 4:] = 0
    return M.EncoderDecoder(12, 8, 1, 2, max_length=12).eval(), source


@pytest.mark.parametrize("kernels", ["auto", "numpy"])
@pytest.mark.parametrize("build", quick_first([captioner, translator, lambda: captioner("post", False)]))
def test_steps_by_programs_write_the_same(build: Any, kernels: str, calls: list[int]) -> None:
    model, given = build()
    logits: list[np.ndarray] = []
    with tv.use_kernels(kernels), tv.no_grad():
        for start in range(3):  # other numbers of rows
            context, mask = model.encode(given[start:])
            wanted = [write(model.decoder, context, mask) for write in (greedy, beam_search)]
            with decode.serving_steps(model):
                assert [write(model.decoder, context, mask) for write in (greedy, beam_search)] == wanted
            ids = np.ones((len(given) - start, 1), np.int64)
            for serves in (False, True):
                cache = model.decoder.new_cache()
                run = model.decoder
                with decode.serving_steps(model if serves else tv.nn.Identity()):
                    logits += [run(ids, context, mask, cache).numpy() for _ in range(5)]
            for x, y in zip(logits[:5], logits[5:], strict=True):
                np.testing.assert_array_equal(x, y)
            logits.clear()
    assert len(calls) > 20
    assert {1, 2, 3} <= set(calls)
    assert "forward" not in vars(model.decoder)


def test_changed_parameters_are_noticed_at_the_next_text(calls: list[int]) -> None:
    model, given = captioner()
    with tv.no_grad():
        context, mask = model.encode(given)
        with decode.serving_steps(model):
            for _ in range(3):
                greedy(model.decoder, context, mask)
            model.decoder.embedding.words.weight.data *= -1
            after = greedy(model.decoder, context, mask)
        assert after == greedy(model.decoder, context, mask)
    assert calls


def test_training_and_whole_texts_are_left_to_the_decoder(calls: list[int]) -> None:
    model, given = captioner()
    with decode.serving_steps(model):
        assert model(given, np.ones((3, 4), np.int64)).requires_grad
        with tv.no_grad():
            model.train()
            for _ in range(3):
                generate.greedy(model.decoder, model.encode(given)[0])
    assert calls == []
