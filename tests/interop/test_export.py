"""Written folders: read back without a loss here, and loaded by timm and transformers with the same logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import peer

import tinyvit as tv
from tinyvit.data import Preprocessing, Resize
from tinyvit.errors import TinyvitError
from tinyvit.models import ViT

SMALL: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "num_classes": 3, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32,
}  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {}, {"pool": "mean"}, {"pool": "mean", "class_token": True}, {"layer_scale": 0.1}, {"register_tokens": 2},
    {"pool": "mean", "class_token": True, "last_norm": "norm"}, {"register_tokens": 2, "no_embed_class": True},
    {"no_embed_class": True}, {"distilled": True}, {"qk_norm": True}, {"qkv_bias": False}, {"proj_bias": False},
    {"pre_norm": True}, {"act": "gelu_tanh"}, {"act": "quick_gelu"}, {"act": "relu"}, {"act": "silu"}, {"eps": 1e-5},
    {"last_norm": "none"}, {"last_norm": "fc_norm"}, {"num_classes": 0}, {"mlp_dim": 24}, {"pos_embed": "sincos2d"},
    {"pos_embed": "none"}, {"pool": "cls_mean"}, {"image_size": (16, 24), "in_channels": 1}, {"eps": 1e-12},
    {"image_size": 8}, {"image_size": 32, "patch_size": 8},
]  # fmt: skip
REFUSED = {
    "timm": [{"pool": "cls_mean"}],
    "hf": [
        {"pool": "mean"}, {"pool": "mean", "class_token": True}, {"qk_norm": True}, {"proj_bias": False},
        {"pre_norm": True}, {"last_norm": "none"}, {"pos_embed": "none"}, {"image_size": (16, 24), "in_channels": 1},
    ],
}  # fmt: skip
CASES = [
    pytest.param(style, options, id=f"{style}-{options}")
    for style in ("timm", "hf") for options in OPTIONS if options not in REFUSED[style]
]  # fmt: skip


def random_model(options: dict[str, Any]) -> ViT:
    model, rng = ViT(**SMALL | options), np.random.default_rng(2)
    for parameter in model.parameters():
        parameter.assign(0.3 * rng.standard_normal(parameter.shape))
    return model.eval()


def images_for(model: ViT, count: int = 2) -> np.ndarray:
    shape = (count, model.patch_embed.in_channels, *model.patch_embed.image_size)
    return np.random.default_rng(4).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("style", "options"), CASES)
def test_a_written_folder_is_read_back(style: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(options)
    model.preprocessing = Preprocessing((0.4,) * 3, (0.2,) * 3, Resize("lanczos", 0.8))
    if options.get("in_channels") == 1:
        model.preprocessing = Preprocessing((0.4,), (0.2,), Resize("lanczos", 0.8))
    labels = ("cat", "dog", "häher")[: model.num_classes]
    tv.models.save_pretrained(model, tmp_path / "out", style, labels)
    found = tv.models.from_pretrained(tmp_path / "out")
    images = images_for(model)
    np.testing.assert_allclose(found(images).numpy(), model(images).numpy(), atol=1e-5)
    assert found.labels == labels
    assert found.preprocessing == model.preprocessing


@pytest.mark.slow
@pytest.mark.parametrize(("style", "options"), [case for case in CASES if case.values[0] == "timm"])
def test_timm_loads_what_is_written_with_equal_logits_and_gradients(
    style: str, options: dict[str, Any], tmp_path: Path
) -> None:
    timm, torch = peer("timm"), peer("torch")
    model = random_model(options)
    tv.models.save_pretrained(model, tmp_path / "out", style)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert {n for n, _ in theirs.named_parameters()} == {
        n for n, _ in tv.models.from_pretrained(tmp_path / "out").named_parameters()
    }
    images = images_for(model)
    logits, expected = model(images), theirs(torch.tensor(images))
    np.testing.assert_allclose(logits.numpy(), expected.detach().numpy(), atol=1e-5)
    weights = np.random.default_rng(6).standard_normal(logits.shape).astype(np.float32)
    (logits * tv.tensor(weights)).sum().backward()
    (expected * torch.tensor(weights)).sum().backward()
    own = dict(model.named_parameters())
    for name, parameter in theirs.named_parameters():
        if name in own:  # positions that are not learned here are constants
            gradient = parameter.grad.numpy()
            np.testing.assert_allclose(own[name].grad.numpy(), gradient, atol=1e-4 * max(1e-2, abs(gradient).max()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("style", "options"), [case for case in CASES if case.values[0] == "hf"])
def test_transformers_loads_what_is_written_with_equal_logits(
    style: str, options: dict[str, Any], tmp_path: Path
) -> None:
    transformers, torch = peer("transformers"), peer("torch")
    peer("transformers.models.vit.modeling_vit", "transformers")  # it imports models late
    model = random_model(options)
    tv.models.save_pretrained(model, tmp_path / "out", style)
    kind = transformers.AutoModelForImageClassification if model.num_classes else transformers.AutoModel
    if options.get("distilled"):
        kind = transformers.DeiTForImageClassificationWithTeacher
    theirs, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        found = theirs.eval()(torch.tensor(images_for(model)))
    expected = found.logits if model.num_classes else found.last_hidden_state[:, 0]
    np.testing.assert_allclose(model(images_for(model)).numpy(), expected.numpy(), atol=1e-5)


@pytest.mark.slow
def test_timm_resamples_as_we_do(tmp_path: Path) -> None:
    timm = peer("timm")
    for options in ({}, {"register_tokens": 2, "no_embed_class": True}, {"pool": "mean"}):
        tv.models.save_pretrained(random_model(options | {"image_size": 24}), tmp_path / "out")
        for size in (16, 32, (8, 40)):
            theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, img_size=size)
            ours = tv.models.from_pretrained(tmp_path / "out", image_size=size)
            np.testing.assert_allclose(ours.pos_embed.numpy(), theirs.pos_embed.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("style", "options", "says"),
    [(style, options, "") for style, refused in REFUSED.items() for options in refused]
    + [
        ("timm", {"stem": "conv"}, "stem is 'conv'"),
        ("timm", {"norm": "post"}, "norm is 'post'"),
        ("timm", {"pool": "first"}, "pool is 'first'"),
        ("timm", {"depth": 0}, "depth is 0"),
        ("timm", {"eps": 1e-3}, "eps is 0.001; timm's architectures of this form have 1e-06 or 1e-05"),
        ("timm", {"eps": 1e-5, "distilled": True}, "eps is 1e-05; timm's architectures of this form have 1e-06"),
        ("timm", {"image_size": (4, 16, 16), "patch_size": (2, 4, 4)}, "the model takes videos"),
        ("hf", {"layer_scale": 0.1, "mlp_dim": 24}, "mlp_dim is 24, no multiple of dim, 16"),
        ("hf", {"layer_scale": 0.1, "distilled": True}, "distilled with layer scale"),
        ("onnx", {}, "style is 'onnx'; it must be one of timm, hf"),
    ],
)  # fmt: skip
def test_what_others_cannot_express_is_named_and_nothing_is_written(
    style: str, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    model = ViT(**SMALL | options)
    with pytest.raises(ValueError, match=says or r"(is True|is False|'none'|'fc_norm'|'cls_mean'|16, 24\)), which"):
        tv.models.save_pretrained(model, tmp_path / "out", style)
    assert not (tmp_path / "out").exists()


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TinyvitError, match="the model is a Linear; only a ViT is exported"):
        tv.models.save_pretrained(tv.nn.Linear(2, 2), tmp_path)
    model = random_model({})
    model.blocks[1].mlp.fc1 = tv.nn.LoRALinear(model.blocks[1].mlp.fc1, 2)
    with pytest.raises(TinyvitError, match=r"blocks\.1\.mlp\.fc1 is a LoRALinear; merge adapters first"):
        tv.models.save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match="there are 2 labels; the model has 3 classes"):
        tv.models.save_pretrained(random_model({}), tmp_path, labels=["a", "b"])


def test_files_say_how_images_are_prepared(tmp_path: Path) -> None:
    """Both libraries read the size of the resized image from them, and crop the same centre."""
    model = random_model({"image_size": 224, "patch_size": 32})
    for mode, expected in (("center", {"shortest_edge": 256}), ("squash", {"height": 256, "width": 256})):
        model.preprocessing = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), Resize("bicubic", 0.875, mode))
        tv.models.save_pretrained(model, tmp_path, "hf")
        content = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert content["size"] == expected
        assert content["crop_size"] == {"height": 224, "width": 224}
        assert (content["image_mean"], content["image_std"], content["resample"]) == (
            [0.1, 0.2, 0.3],
            [0.4, 0.5, 0.6],
            3,
        )
        tv.models.save_pretrained(model, tmp_path, "timm")
        config = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
        assert (config["crop_pct"], config["crop_mode"], config["interpolation"]) == (0.875, mode, "bicubic")
    model.preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3, Resize("bicubic", 1.0, "border"))
    with pytest.raises(ValueError, match="crop_mode is 'border'"):
        tv.models.save_pretrained(model, tmp_path, "hf")
