"""Pretrained folders are used like runs, and runs start from them."""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import isolate

import tinyvit as tv
from tinyvit.data import Preprocessing, Resize
from tinyvit.errors import CheckpointError, DataError, RecipeError, StudyError, TinyvitError
from tinyvit.interop.hub import split_name
from tinyvit.interop.save import export_folder
from tinyvit.nn import LoRALinear
from tinyvit.recipe import Recipe, load_recipe
from tinyvit.run.features import probe, write_features
from tinyvit.run.folder import TrainedModel, load_run
from tinyvit.run.groups import parameter_groups
from tinyvit.run.loop import resume, train
from tinyvit.run.own_images import chosen_recipe
from tinyvit.run.pretrained import adopted
from tinyvit.run.state import Training
from tinyvit.study.subject import study_run
from tinyvit.use import evaluate, predict

RESIZE = Resize("bicubic", 0.9)
COLOURS = {"blue": (30, 30, 200), "red": (200, 30, 30)}


@pytest.fixture(autouse=True)
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tv.models.ViT:
    """Work in a folder with pretrained weights in `pre`, and images of two colours in `images`."""
    isolate(tmp_path, monkeypatch)
    tv.manual_seed(0)
    model = tv.models.ViT(16, 4, 3, 8, 2, 2, layer_scale=0.5, register_tokens=1, act="gelu_tanh")
    model.preprocessing = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), RESIZE)
    tv.models.save_pretrained(model, "pre", labels=["a", "b", "c"])
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for name, colour in COLOURS.items():
            folder = Path("images", split, name)
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.normal(0, 40, (20 + i, 31 - i, 3))
                Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return model.eval()


def finetune(*changes: str) -> Recipe:
    own = ("data.name=folder:images", "start_from=pre", "epochs=1", "batch_size=4", *changes)
    return load_recipe("finetune").override(own)


def picture() -> Path:
    return Path("images/test/red/1.png")


# Used as it is --------------------------------------------------------------------------------------------------------


def test_an_image_is_named_by_a_pretrained_folder_as_it_was_trained(pretrained: tv.models.ViT) -> None:
    trained = load_run("pre")
    with Image.open(picture()) as image:
        pixels = np.asarray(RESIZE(image, (16, 16))).transpose(2, 0, 1) / 255
    x = (pixels - np.array([0.4, 0.5, 0.6])[:, None, None]) / np.array([0.2, 0.3, 0.4])[:, None, None]
    logits = pretrained(x[None].astype(np.float32)).numpy()[0]
    name, probability = predict(trained, picture())
    assert name == "abc"[logits.argmax()]
    assert probability == pytest.approx(np.exp(logits.max()) / np.exp(logits).sum(), rel=1e-4)


def test_it_is_studied_with_an_image() -> None:
    subject = study_run("pre", picture())
    assert subject.classes == ("a", "b", "c")
    assert len(subject.trace.entries) > 20
    for use in (lambda: study_run("pre"), lambda: evaluate(load_run("pre"))):
        with pytest.raises(DataError, match="this is a pretrained model without a data set: name an image"):
            use()


def test_a_model_without_a_head_names_nothing() -> None:
    tv.models.save_pretrained(tv.models.from_pretrained("pre", num_classes=0), "headless")
    with pytest.raises(DataError, match="this model has no head, so it names no classes"):
        predict(load_run("headless"), picture())


def test_classes_without_names_are_numbered() -> None:
    config = json.loads(Path("pre/config.json").read_text())
    Path("pre/config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "label_names"}))
    assert load_run("pre").data.classes == ("0", "1", "2")


# As the start of a run ------------------------------------------------------------------------------------------------


def test_the_weights_decide_the_model_and_how_images_are_prepared() -> None:
    recipe = adopted(finetune("model.drop_path=0.1"))
    assert (recipe.model.dim, recipe.model.patch_size, recipe.model.act) == (8, 4, "gelu_tanh")
    assert (recipe.model.register_tokens, recipe.model.drop_path) == (1, 0.1)
    assert recipe.data.image_size == 16
    assert recipe.data.normalize == "0.4 0.5 0.6 / 0.2 0.3 0.4"
    assert recipe.data.resize == "bicubic 0.9 center"
    assert adopted(finetune("data.image_size=32", "data.resize=bilinear 1.0 squash")).data.resize.startswith("bilinear")
    own = load_recipe("digits")
    assert adopted(own) is own


@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_a_run_starts_from_pretrained_weights(freeze: str, pretrained: tv.models.ViT) -> None:
    result = train(finetune(f"freeze={freeze}"), "run")
    trained = load_run(result.folder)
    before, after = pretrained.state_dict(), trained.model.state_dict()
    changed = {
        name for name in before if not name.startswith("head.") and not np.array_equal(before[name], after[name])
    }
    assert bool(changed) == (freeze == "none")
    assert all(abs(before[name] - after[name]).max() < 0.02 for name in changed)
    assert trained.data.classes == ("blue", "red")
    assert trained.data.preprocessing == pretrained.preprocessing


def test_images_of_another_size_resample_the_positions(pretrained: tv.models.ViT) -> None:
    result = train(finetune("data.image_size=24", "lr=1e-30", "min_lr=0"), "run")
    pretrained.set_input_size(24)
    found = load_run(result.folder).model.state_dict()["pos_embed"]
    np.testing.assert_allclose(found, pretrained.state_dict()["pos_embed"], atol=1e-6)


def test_grey_images_become_colour_for_weights_that_take_colour() -> None:
    for file in Path("images").rglob("*.png"):
        with Image.open(file) as image:
            image.convert("L").save(file)
    made, name = chosen_recipe("images", None, ["start_from=pre", "epochs=1"])  # as `tinyvit train images` does
    assert load_run(train(made, name).folder).data.shape[0] == 3
    result = train(finetune("validation=0"), "x")
    assert load_run(result.folder).data.shape == (3, 16, 16)
    name, _ = predict(load_run(result.folder), picture())
    assert name in COLOURS


def test_a_run_is_resumed_and_used_after_the_weights_are_gone(tmp_path: Path) -> None:
    result = train(finetune("epochs=2", "freeze=backbone"), "run")
    (tmp_path / "pre").rename(tmp_path / "gone")
    (result.folder / "curves.png").unlink()
    assert resume(result.folder).metrics == result.metrics
    name, _ = predict(load_run(result.folder), picture())
    assert name in COLOURS


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["data.image_size=18"], "does not divide"),
        (["task.kind=masked"], "only a 'classify' run starts from pretrained weights"),
        (["start_from=images", "data.image_size=16"], "images is not a run folder"),
        (["data.resize=bicubic"], "data.resize is 'bicubic'; it must be like 'bicubic 0.9 center'"),
        (["data.normalize=0.5 / 0.5"], "data.normalize is '0.5 / 0.5'; it must be the means of 3 channels"),
        (["data.name=digits", "data.normalize=0.5 / 0.5"], "takes images of 3 channels; digits has 1"),
        (["data.name=digits", "data.resize=bicubic 0.9 center"], "the images of digits have a fixed size"),
        (["lora_targets=*.qkv"], "task.lora_targets is '*.qkv', but task.lora_rank is 0"),
        (["lora_rank=2", "freeze=backbone"], "task.lora_rank is 2; adapters need weights to start from"),
        (["lora_rank=2", "lora_targets=*.nothing"], "which no linear map matches"),
        (["freeze=text"], "task.freeze is 'text'; this model's encoders are vision"),
    ],
)  # fmt: skip
def test_recipes_that_do_not_fit_are_refused_before_a_folder_is_made(changes: list[str], says: str) -> None:
    with pytest.raises(TinyvitError) as caught:
        train(finetune(*changes), "run")
    assert says in str(caught.value)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("few_scenes")
def test_other_tasks_have_no_use_for_these_keys() -> None:
    for change in ("task.lora_rank=2", "data.normalize=0.5 / 0.5"):
        with pytest.raises(RecipeError, match=change.partition("=")[0].replace(".", r"\.")):
            Training(load_recipe("caption").override([change, "data.batch_size=8"]))


# Adapters -------------------------------------------------------------------------------------------------------------


def test_only_adapters_and_the_head_learn_and_they_are_merged_on_export(pretrained: tv.models.ViT) -> None:
    result = train(finetune("lora_rank=2", "epochs=2", "lr=1e-2"), "run")
    trained = load_run(result.folder)
    state, before = trained.model.state_dict(), pretrained.state_dict()
    for name, value in before.items():
        if not name.startswith("head."):
            np.testing.assert_array_equal(state[name], value)
    assert state["blocks.1.attn.qkv.lora_b"].any()
    assert sum("lora_a" in name for name in state) == 2 * 2
    said = export_folder(trained.model, Path("out"), "timm")
    assert said.endswith("-> out")
    merged = tv.models.from_pretrained("out")
    assert not any("lora" in name for name in merged.state_dict())
    assert merged.labels == ("blue", "red")
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(merged(images).numpy(), trained.model(images).numpy(), atol=1e-5)
    assert isinstance(trained.model.blocks[0].attn.qkv, LoRALinear)  # the run itself is not changed
    with pytest.raises(TinyvitError, match="out is not empty"):
        export_folder(trained.model, Path("out"), "hf")


def test_an_adapter_changes_nothing_at_first_and_has_the_gradient_of_its_formula() -> None:
    tv.manual_seed(1)
    layer = tv.nn.Linear(5, 4)
    adapter = LoRALinear(layer, 2, alpha=6).to("float64")
    x = tv.tensor(np.random.default_rng(0).standard_normal((3, 5)))
    np.testing.assert_array_equal(adapter(x).numpy(), layer(x).numpy())
    adapter.lora_b.assign(np.random.default_rng(1).standard_normal((4, 2)))
    w = layer.weight.numpy() + 3 * adapter.lora_b.numpy() @ adapter.lora_a.numpy()
    np.testing.assert_allclose(adapter(x).numpy(), x.numpy() @ w.T + layer.bias.numpy(), rtol=1e-12)
    np.testing.assert_allclose(adapter.merged()(x).numpy(), adapter(x).numpy(), rtol=1e-12)
    y = adapter(x)
    (y * y).sum().backward()
    change = 2 * y.numpy().T @ x.numpy()  # the gradient of W, which is that of 3 B A
    np.testing.assert_allclose(adapter.lora_b.grad.numpy(), 3 * change @ adapter.lora_a.numpy().T, rtol=1e-10)
    np.testing.assert_allclose(adapter.lora_a.grad.numpy(), 3 * adapter.lora_b.numpy().T @ change, rtol=1e-10)


# Learning rates -------------------------------------------------------------------------------------------------------


def test_learning_rates_fall_from_the_head_to_the_embeddings() -> None:
    model = tv.models.ViT(8, 4, 3, 8, 3, 2)
    groups, factors = parameter_groups(model, 0.1, 0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: f for group, f in zip(groups, factors, strict=True) for p in group["params"]}
    assert found.keys() == dict(model.named_parameters()).keys()
    assert found["head.weight"] == found["norm.bias"] == 1
    assert [found[f"blocks.{i}.mlp.fc1.weight"] for i in range(3)] == [1 / 8, 1 / 4, 1 / 2]
    assert found["patch_embed.proj.weight"] == found["pos_embed"] == found["cls_token"] == 1 / 16
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert (decays["head.weight"], decays["head.bias"], decays["pos_embed"]) == (0.1, 0, 0)
    plain, ones = parameter_groups(model, 0.1, 1.0)
    assert len(plain) == len(ones) == 2


def test_a_step_uses_the_rates_of_its_layers() -> None:
    training = Training(adopted(finetune("layer_decay=0.5", "warmup_epochs=0", "optimizer=sgd", "schedule=constant")))
    training.step(next(training.groups()))
    rates = {p.size: group["lr"] for group in training.optimizer.groups for p in group["params"]}
    assert max(rates.values()) == pytest.approx(5e-4)
    assert min(rates.values()) == pytest.approx(5e-4 / 8)


# Features -------------------------------------------------------------------------------------------------------------


def test_features_are_written_with_the_names_of_their_files(pretrained: tv.models.ViT) -> None:
    said = write_features("pre", ["images/test/red", "images/test/blue/0.png"], Path("f.safetensors"))
    assert said == "4 images, 8 features each -> f.safetensors"
    state = tv.load("f.safetensors")
    assert state["files"] == [*(f"images/test/red/{i}.png" for i in range(3)), "images/test/blue/0.png"]
    trained = load_run("pre")
    x = tv.tensor((trained.data.read_image(picture())[None] / 255).astype(np.float32))
    mean, std = (tv.tensor(np.array(v, np.float32).reshape(-1, 1, 1)) for v in (trained.data.mean, trained.data.std))
    expected = pretrained.forward_head(pretrained.forward_features((x - mean) / std), pre_logits=True).numpy()[0]
    np.testing.assert_allclose(state["features"][1], expected, atol=1e-5)
    write_features("pre", [str(picture())], Path("last.safetensors"), layer=-1)
    np.testing.assert_allclose(tv.load("last.safetensors")["features"][0], expected, atol=1e-5)
    write_features("pre", [str(picture())], Path("first.safetensors"), layer=0)
    assert abs(tv.load("first.safetensors")["features"][0] - expected).max() > 1e-3
    with pytest.raises(StudyError, match="--layer is 2; this model has the blocks 0 to 1"):
        write_features("pre", [str(picture())], Path("x"), layer=2)
    with pytest.raises(DataError, match=r"some images cannot be read: none\.png \(there is no file .*\)"):
        write_features("pre", ["none.png"], Path("x"))
    assert not Path("x").exists()


def test_a_probe_tells_two_colours_apart() -> None:
    said = probe("pre", "folder:images", 18)
    assert said.splitlines()[0] == "folder:images: 2 classes, 12 images to learn from, 3 to test"
    assert "linear classifier: accuracy 100.00 %" in said
    assert "10 classes" in probe("pre", "digits", 50, image_size=8)
    with pytest.raises(StudyError, match="--image-size is 18"):
        probe("pre", "digits", 50, image_size=18)


# The hub --------------------------------------------------------------------------------------------------------------


class Hub(types.ModuleType):
    """Stands for the client of the hub: one model, a network that may be down, and a cache that may be empty."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.online, self.cached, self.asked = folder, True, True, []  # type: ignore[var-annotated]

    def snapshot_download(
        self, name: str, revision: Any, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        self.asked.append((name, revision))
        if local_files_only and self.cached:
            return str(self.folder)
        if local_files_only or not self.online:
            raise ConnectionError("no route to the hub\nand more")
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    commit = tmp_path / ("c0ffee" * 6 + "c0ff")
    (tmp_path / "pre").rename(commit)
    module = Hub(commit)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_a_model_of_the_hub_is_pinned_in_the_recipe(hub: Hub) -> None:
    assert tv.models.from_pretrained("hf-hub:owner/tiny").num_classes == 3
    recipe = adopted(finetune("start_from=hf-hub:owner/tiny"))
    assert recipe.task.start_from == f"hf-hub:owner/tiny@{hub.folder.name}"
    assert hub.asked[-1] == ("owner/tiny", hub.folder.name)


def test_without_a_network_the_cache_is_used(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.online = False
    caplog.set_level("WARNING", "tinyvit")
    assert tv.models.from_pretrained("hf-hub:owner/tiny@main").num_classes == 3
    assert "cannot be downloaded (no route to the hub); the copy in the cache is used" in caplog.text
    hub.cached = False
    with pytest.raises(CheckpointError, match=r"ConnectionError: no route to the hub\), and is not in the cache"):
        tv.models.from_pretrained("hf-hub:owner/tiny")


def test_without_the_client_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r'install it with `pip install "tinyvit\[hub\]"`'):
        load_run("hf-hub:owner/tiny")


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:a/b@"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="is no name of the hub"):
        split_name(name)


# Export of runs -------------------------------------------------------------------------------------------------------


def test_a_run_of_our_own_keeps_its_normalization_when_it_is_exported() -> None:
    shipped = load_run("digits")
    assert shipped.model.preprocessing.mean == shipped.data.mean
    with pytest.raises(TinyvitError, match="stem is 'conv'"):
        export_folder(shipped.model, Path("out"), "hf")
    assert not Path("out").exists()


def test_facts_about_data_are_stored_with_the_rule_of_resizing() -> None:
    data = load_run("pre").data
    assert TrainedModel(load_recipe("digits"), tv.nn.Identity(), data).data.resize == ("bicubic", 0.9, "center")
    assert type(data).from_state(data.state_dict()) == data
    for wrong in (("bicubic",), ("cubic", 0.9, "center"), ("bicubic", "x", "center")):
        with pytest.raises((TypeError, ValueError, DataError)):
            type(data).from_state(dataclasses.replace(data, resize=wrong).state_dict())
