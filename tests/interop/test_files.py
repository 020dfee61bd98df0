"""Damaged, partial and foreign files: one error that says what is wrong, by name; nothing is guessed."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tinyvit as tv
from tinyvit.errors import CheckpointError

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(RECORDED / "timm-plain", tmp_path / "plain"))
    (folder / "expected.safetensors").unlink()
    return folder


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def rewritten(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    arrays = arrays_of(folder)
    change(arrays)
    save_file(arrays, folder / "model.safetensors")
    return folder


def reconfigured(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        tv.models.from_pretrained(path)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=lambda t: np.dtype(t).name)
def test_other_widths_become_float32(plain: Path, dtype: Any) -> None:
    before = arrays_of(plain)
    rewritten(plain, lambda arrays: arrays.update({name: a.astype(dtype) for name, a in arrays.items()}))
    for name, array in tv.models.from_pretrained(plain).state_dict().items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, before[name].astype(dtype).astype(np.float32))


def test_names_that_do_not_fit_are_listed(plain: Path) -> None:
    rewritten(plain, lambda a: (a.pop("blocks.1.norm1.bias"), a.update({"rope.freqs": np.zeros(3, np.float32)})))
    message = refused(plain)
    assert "names 1 missing: blocks.1.norm1.bias; 1 unexpected: rope.freqs" in message


def test_shapes_that_do_not_fit_are_listed(plain: Path) -> None:
    rewritten(plain, lambda a: a.update({"blocks.1.mlp.fc1.bias": np.zeros(5, np.float32)}))
    assert "blocks.1.mlp.fc1.bias has the shape (5,) instead of (16,)" in refused(plain)


def test_one_of_three_projections_is_missing(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RECORDED / "hf-vit", tmp_path / "vit"))
    rewritten(folder, lambda a: a.pop("vit.encoder.layer.1.attention.attention.key.weight"))
    assert "blocks.1.attn.qkv.weight has the shape (16, 8) instead of (24, 8)" in refused(folder)


def test_values_that_are_not_finite_are_refused(plain: Path) -> None:
    rewritten(plain, lambda a: a["blocks.0.norm1.bias"].__setitem__(3, np.nan))
    assert "blocks.0.norm1.bias holds values that are not finite" in refused(plain)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_never_opened(plain: Path, name: str) -> None:
    (plain / "model.safetensors").unlink()
    (plain / name).write_bytes(b"\x80\x04this would run code")
    for path in (plain, plain / name):
        message = refused(path)
        assert "is never opened" in message
        assert "safetensors.torch.save_file" in message
    (plain / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert "a pickle, which tinyvit never opens" in refused(plain)
    with (plain / "model.npz").open("wb") as file:
        np.savez(file, a=np.array([{"code": 1}], dtype=object))
    assert "is no npz file of plain arrays" in refused(plain / "model.npz")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_refused(plain: Path, share: float) -> None:
    data = (plain / "model.safetensors").read_bytes()
    (plain / "model.safetensors").write_bytes(data[: int(share * len(data))])
    assert "model.safetensors is " in refused(plain)
    npz = (RECORDED / "google" / "model.npz").read_bytes()
    (plain / "model.npz").write_bytes(npz[: int(share * len(npz))])
    assert "model.npz" in refused(plain / "model.npz")


def test_shards_must_all_be_there(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RECORDED / "hf-deit", tmp_path / "deit"))
    index = folder / "model.safetensors.index.json"
    tables = json.loads(index.read_text())
    first = sorted(set(tables["weight_map"].values()))[0]
    (folder / first).rename(tmp_path / "away")
    assert f"names files that are not there: {first}" in refused(folder)
    (tmp_path / "away").rename(folder / first)
    for wrong, says in (
        ({"weight_map": {"a": "../other.safetensors"}}, "the files must lie in the same folder"),
        ({"weight_map": {"a": first}}, "names arrays that its files lack: a"),
        ({"weight_map": 3}, "has no table 'weight_map'"),
        ([1], "holds a list"),
    ):
        index.write_text(json.dumps(wrong))
        assert says in refused(folder)


CONFIGS: list[tuple[str, Any, str]] = [
    ("timm-plain", lambda c: c["model_args"].update(scale_attn_norm=True), "scale_attn_norm=True, which this ViT"),
    ("timm-plain", lambda c: c["model_args"].update(wings=2), "model_args has 'wings', an argument that is not known"),
    ("timm-plain", lambda c: c["model_args"].update(act_layer="mish"), "act_layer is 'mish', which this ViT lacks"),
    ("timm-plain", lambda c: c["model_args"].update(norm_layer="rmsnorm"), "norm_layer is 'rmsnorm'"),
    ("timm-plain", lambda c: c["model_args"].update(global_pool="map"), "global_pool is 'map', which this ViT lacks"),
    ("timm-plain", lambda c: c["model_args"].update(img_size=[1, 2, 3]), "has the size [1, 2, 3]"),
    ("timm-plain", lambda c: c.update(model_args=7), "config.json cannot be understood"),
    ("timm-plain", lambda c: c["pretrained_cfg"].update(crop_mode="round"), "crop_mode is 'round'"),
    ("timm-plain", lambda c: c["model_args"].update(attn_drop_rate=0.1), "proj_drop_rate and attn_drop_rate differ"),
    ("timm-plain", lambda c: c.update(architecture="vit_base_patch16_rope_224"), "has parts that this ViT lacks"),
    ("timm-plain", lambda c: c.update(model_type="bert"), "model_type is 'bert'; there is support for vit, deit"),
    ("hf-vit", lambda c: c.update(hidden_act="mish"), "hidden_act is 'mish', which this ViT lacks"),
    ("hf-dinov2", lambda c: c.update(use_swiglu_ffn=True), "use_swiglu_ffn is true"),
    ("hf-vit", lambda c: c.update(num_attention_heads=3), "dim must be a multiple of heads"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "says"), CONFIGS, ids=lambda x: x if isinstance(x, str) else "")
def test_options_that_are_lacking_are_named(name: str, change: Any, says: str, tmp_path: Path) -> None:
    folder = reconfigured(Path(shutil.copytree(RECORDED / name, tmp_path / name)), change)
    assert says in refused(folder)


def test_other_forms_of_blocks_are_named(plain: Path) -> None:
    gated = rewritten(plain, lambda a: a.update({"blocks.0.mlp.fc2.weight": np.zeros((8, 8), np.float32)}))
    assert "a gated MLP" in refused(gated)
    rewritten(plain, lambda a: a.pop("blocks.0.mlp.fc1.weight"))
    assert "the MLP has another form" in refused(plain)
    rewritten(plain, lambda a: a.pop("patch_embed.proj.weight"))
    assert "not the weights of a Vision Transformer: they lack a patch embedding" in refused(plain)


def test_broken_configurations_are_refused(plain: Path) -> None:
    for text, says in (("{", "is not valid JSON"), ("[]", "holds a list"), ("[" * 200000, "is not valid JSON")):
        (plain / "config.json").write_text(text)
        assert says in refused(plain)


def test_a_bare_file_is_inferred_and_says_so(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    (plain / "config.json").unlink()
    assert "the number of heads is not in the file, and cannot be inferred from a width of 8" in refused(plain)
    tv.manual_seed(0)
    model = tv.models.ViT(16, 4, 3, 64, 1, 2, 32, register_tokens=2, no_embed_class=True)
    save_file(model.state_dict(), plain / "model.safetensors")
    caplog.set_level("WARNING", "tinyvit")
    found = tv.models.from_pretrained(plain / "model.safetensors")
    assert "its form is inferred from its shapes (image_size (16, 16), patch_size (4, 4), dim 64" in caplog.text
    images = np.zeros((1, 3, 16, 16), np.float32)
    np.testing.assert_array_equal(found(images).numpy(), model.eval()(images).numpy())


def test_prefixes_of_wrappers_are_removed(plain: Path) -> None:
    images = np.ones((1, 3, 16, 16), np.float32)
    before = tv.models.from_pretrained(plain)(images).numpy()
    arrays = {f"module._orig_mod.{name}": array for name, array in arrays_of(plain).items()}
    save_file(arrays, plain / "model.safetensors")
    np.testing.assert_array_equal(tv.models.from_pretrained(plain)(images).numpy(), before)


def test_names_of_hugging_face_without_a_configuration_are_refused(tmp_path: Path) -> None:
    shutil.copy(RECORDED / "hf-vit" / "model.safetensors", tmp_path)
    assert "has Hugging Face's names, but no config.json beside it" in refused(tmp_path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "nothing")
    assert "holds no weights: there is no model.safetensors" in refused(tmp_path)
    for name in "ab":
        save_file({"x": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors")
    assert "holds a.safetensors, b.safetensors and no model.safetensors" in refused(tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    assert "is the folder of a run" in refused(tmp_path / "a.safetensors")
