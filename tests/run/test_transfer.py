"""Runs that start from the encoders of another run, frozen or not."""

import dataclasses

import numpy as np
import pytest
from tiny_tasks import tiny

from tinyvit.errors import RecipeError
from tinyvit.run.folder import RunError, load_run
from tinyvit.run.loop import train
from tinyvit.run.state import Training
from tinyvit.run.transfer import encoders_of, transfer_encoders

pytestmark = pytest.mark.usefixtures("few_scenes")


def test_encoders_start_with_the_weights_of_another_run_and_may_be_frozen():
    source = load_run(train(tiny("masked-both"), "first").folder)
    for name in ("caption", "retrieve", "vqa-cross"):
        recipe = tiny(name, "start_from=runs/first", "freeze=both", "epochs=1", "ema=0")
        run = load_run(train(recipe, name).folder)
        for part, encoder in encoders_of(run.model).items():
            theirs = encoders_of(source.model)[part].state_dict()
            for key, value in encoder.state_dict().items():
                if key.startswith(("blocks", "patch_embed", "pos_embed", "embedding", "encoder.blocks")):
                    np.testing.assert_array_equal(value, theirs[key])
    with pytest.raises(RunError, match="no encoder of images, or of texts of this vocabulary"):
        train(tiny("translate", "start_from=runs/first"), "x")
    with pytest.raises(RunError, match="the vision encoder of runs/first is of another form"):
        train(tiny("caption", "start_from=runs/first", "dim=16"), "x")


def test_a_text_encoder_of_another_vocabulary_is_not_taken_over():
    source = load_run(train(tiny("masked-both"), "first").folder)
    recipe = tiny("vqa-cross", "start_from=runs/first")
    for words, is_taken in ((source.data.words, True), (source.data.words[::-1], False)):
        training = Training(recipe)
        transfer_encoders(training.model, dataclasses.replace(training.data, words=words), recipe)
        for part, expected in (("vision", True), ("text", is_taken)):
            mine, theirs = (next(encoders_of(m)[part].parameters()).numpy() for m in (training.model, source.model))
            assert np.array_equal(mine, theirs) == expected


@pytest.mark.parametrize("change", ["depth=2", "pos_embed=none", "layer_scale=0.1", "register_tokens=1"])
def test_an_encoder_that_has_other_weights_is_not_taken_over_in_part(change):
    train(tiny("masked-patches", "epochs=1"), "first")
    with pytest.raises(RunError, match="vision encoder of runs/first is of another form: only one of the two has"):
        train(tiny("masked-patches", "kind=classify", "start_from=runs/first", change), "second")


def test_a_classifier_starts_with_the_weights_of_a_masked_run():
    source = load_run(train(tiny("masked-patches"), "first").folder)
    recipe = tiny("masked-patches", "kind=classify", "start_from=runs/first", "pool=mean", "lr=1e-30", "ema=0")
    state = load_run(train(recipe, "second").folder).model.state_dict()
    np.testing.assert_array_equal(state["pos_embed"], source.model.vision.state_dict()["pos_embed"])


def test_only_the_head_of_a_frozen_classifier_learns():
    train(tiny("masked-patches"), "first")
    recipe = tiny("masked-patches", "kind=classify", "start_from=runs/first", "freeze=vision")
    model = Training(recipe).model
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        *("norm.weight", "norm.bias", "head.weight", "head.bias")
    }
    assert train(recipe, "second").folder.is_dir()


def test_encoders_that_cannot_be_frozen_are_refused():
    train(tiny("masked-both"), "first")
    for name, assignments, message in [
        ("vqa-cross", ["freeze=vision"], "name the run to start from in task.start_from"),
        ("caption", ["start_from=runs/first", "freeze=text"], "this model's encoders are vision"),
        ("vqa-cnn", ["start_from=runs/first"], "the vision encoder of runs/first is of another form"),
    ]:
        with pytest.raises((RunError, RecipeError), match=message):
            train(tiny(name, *assignments), "x")
    train(tiny("masked-words"), "texts")
    with pytest.raises(RunError, match="runs/texts has no such encoder"):
        train(tiny("vqa-cross", "start_from=runs/texts", "freeze=vision"), "x")
