"""What is not random leaves the default random stream as it is, so that no call changes the draws after it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyvit as tv
from tinyvit import nn
from tinyvit.backend import default_generator

IMAGES = np.zeros((1, 3, 8, 8), np.float32)


def vit(**options: Any) -> tv.models.ViT:
    return tv.models.ViT(8, 4, 3, 16, 2, 2, **options)


def lora() -> tv.models.ViT:
    model = vit()
    nn.add_lora(model, 1)
    return model


def program() -> Any:
    return tv.freeze(vit().eval(), IMAGES)


def saved(folder: Path) -> Path:
    tv.models.save_pretrained(vit(), folder / "saved")
    return folder / "saved"


Make = Callable[[Path], Any]
Call = Callable[[Any, Path], Any]
NOT_RANDOM: dict[str, tuple[Make, Call]] = {
    "LoRALinear.merged": (lambda _: nn.LoRALinear(nn.Linear(2, 3), 1), lambda layer, _: layer.merged()),
    "merge_lora": (lambda _: lora(), lambda model, _: nn.merge_lora(model)),
    "deepcopy": (lambda _: lora(), lambda model, _: copy.deepcopy(model)),
    "to": (lambda _: lora(), lambda model, _: model.to("float64").to("cpu")),
    "load_state_dict": (lambda _: lora(), lambda model, _: model.load_state_dict(model.state_dict())),
    "save and load": (
        lambda _: lora().state_dict(),
        lambda state, folder: (tv.save(folder / "x.safetensors", state), tv.load(folder / "x.safetensors")),
    ),
    "repr": (lambda _: vit(), lambda model, _: repr(model)),
    "forward without dropout": (lambda _: vit(), lambda model, _: model(IMAGES)),
    "forward of eval": (lambda _: vit(dropout=0.5, drop_path=0.5).eval(), lambda model, _: model(IMAGES)),
    "forward_intermediates": (lambda _: vit(), lambda model, _: model.forward_intermediates(IMAGES)),
    "attention_rollout": (lambda _: vit(), lambda model, _: tv.models.attention_rollout(model, IMAGES)),
    "set_input_size": (lambda _: vit(), lambda model, _: model.set_input_size(16, 8)),
    "set_input_size with constants": (
        lambda _: vit(pos_embed="sincos2d", rope=True, mlp_layer="local"),
        lambda model, _: model.set_input_size(16),
    ),
    "reset_classifier(0)": (lambda _: vit(), lambda model, _: model.reset_classifier(0)),
    "optimizers": (
        lambda _: vit(),
        lambda model, _: [kind(model.parameters()) for kind in (tv.optim.AdamW, tv.optim.Muon, tv.optim.Lion)],
    ),
    "EMA": (lambda _: vit(), lambda model, _: tv.optim.EMA(model.parameters(), 0.9)),
    "gradcheck": (
        lambda _: tv.tensor(np.ones(2), requires_grad=True),
        lambda x, _: tv.gradcheck(lambda a: (a * a).sum(), [x]),
    ),
    "freeze": (lambda _: vit().eval(), lambda model, _: tv.freeze(model, IMAGES)),
    "export_onnx": (lambda _: program(), lambda ready, folder: ready.export_onnx(folder / "model.onnx")),
    "export_c": (lambda _: program(), lambda ready, folder: ready.export_c(folder / "c")),
    "save_pretrained": (
        lambda _: vit(),
        lambda model, folder: [
            tv.models.save_pretrained(model, folder / style, style=style) for style in ("timm", "hf")
        ],
    ),
    "from_pretrained": (saved, lambda folder, _: tv.models.from_pretrained(folder)),
    "from_pretrained of another size": (saved, lambda folder, _: tv.models.from_pretrained(folder, image_size=16)),
    "load_run of pretrained weights": (saved, lambda folder, _: tv.load_run(folder)),
    "load_run of digits": (lambda _: "digits", lambda name, _: tv.load_run(name)),
    "load_run of vqa": (lambda _: "vqa", lambda name, _: tv.load_run(name)),
    "predict": (lambda _: tv.load_run("digits"), lambda run, _: run.predict([np.zeros((8, 8), np.uint8)])),
}
RANDOM: dict[str, tuple[Make, Call]] = {
    "a new layer": (lambda _: None, lambda _, folder: nn.Linear(1, 1)),
    "reset_classifier": (lambda _: vit(), lambda model, _: model.reset_classifier(5)),
    "from_pretrained with a new head": (saved, lambda folder, _: tv.models.from_pretrained(folder, num_classes=5)),
    "forward with dropout": (lambda _: vit(dropout=0.5), lambda model, _: model(IMAGES)),
}


def drawn(case: tuple[Make, Call], folder: Path) -> int:
    make, call = case
    thing = make(folder)
    before = default_generator.state_dict()
    call(thing, folder)
    after = default_generator.state_dict()
    assert after["seed"] == before["seed"]
    return after["offset"] - before["offset"]


@pytest.mark.parametrize("name", NOT_RANDOM)
def test_what_is_not_random_draws_nothing(name, tmp_path) -> None:
    assert drawn(NOT_RANDOM[name], tmp_path) == 0


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_draws(name, tmp_path) -> None:
    assert drawn(RANDOM[name], tmp_path) > 0
