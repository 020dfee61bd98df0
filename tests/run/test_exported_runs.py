"""`tinyvit export` writes files with the facts about a run, and says what it cannot write."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from javascript import clang
from peers import peer
from tiers import quick_first
from tiny_tasks import tiny

import tinyvit as tv
from tinyvit.cli import commands
from tinyvit.cli.export import FORMATS
from tinyvit.data import normalize
from tinyvit.dense import detect, segment
from tinyvit.recipe import load_recipe
from tinyvit.run.export import to_c, to_onnx
from tinyvit.run.features import write_features
from tinyvit.run.folder import RunError, TrainedModel, build_model, load_data, load_run
from tinyvit.run.webpage import to_web
from tinyvit.tasks import DataSpec


def untrained(kind: str) -> TrainedModel:
    recipe = tiny(kind)
    data = DataSpec.of(load_data(recipe, "test"))
    return TrainedModel(recipe, build_model(recipe, data).eval(), data)


def test_the_command_writes_c_with_classes_mean_and_std(tmp_path: Path) -> None:
    result = CliRunner().invoke(commands, ["export", "digits", "--to", "c", "--int8", "--out", str(tmp_path / "c")])
    assert result.exit_code == 0, result.output
    header = (tmp_path / "c" / "model.h").read_text()
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"model.c", "model.h", "main.c", "example.h"}
    assert 'names[] = {"0", "1",' in (tmp_path / "c" / "main.c").read_text()
    assert "/* classes: ['0', '1'" in header
    assert "/* mean: [0.305] */" in header


@pytest.mark.parametrize(
    ("kind", "parts"),
    quick_first([("caption", ["decoder", "encoder"]), ("vqa-cnn", []), ("retrieve", ["images", "texts"])]),
)
def test_models_of_several_parts_become_a_folder(kind: str, parts: list[str], tmp_path: Path) -> None:
    trained = untrained(kind)
    to_c(trained, tmp_path / "c")
    folders = sorted(p.name for p in (tmp_path / "c").iterdir() if p.is_dir())
    assert folders == parts
    peer("onnx"), peer("onnxruntime")
    to_onnx(trained, tmp_path / "onnx")
    path = tmp_path / "onnx"
    assert sorted(p.stem for p in path.iterdir()) == parts if parts else path.is_file()


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    clang()
    path = tmp_path / "page"
    result = CliRunner().invoke(commands, ["export", "digits", "--to", "web", "--int8", "--out", str(path)])
    assert result.exit_code == 0, result.output
    assert {p.name for p in path.iterdir()} == {"index.html", "model.wasm"}
    assert f"{path / 'index.html'} (" in result.output
    page = (path / "index.html").read_text("utf-8")
    assert "<title>Handwritten digits, 8x8 pixels</title>" in page
    assert '"label":9' in page


def onnx_outputs(path: Path, images: np.ndarray) -> list[np.ndarray]:
    session = peer("onnxruntime").InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == ["images"]
    return session.run(None, {"images": images})


def image_file(trained: TrainedModel, folder: Path) -> tuple[Path, np.ndarray]:
    """Return an image file of the size of the model, and the input of the model for it."""
    from PIL import Image

    pixels = np.asarray(load_data(trained.recipe, "test").images[3])
    path = folder / "scene.png"
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    return path, normalize(pixels[None], trained.data.mean, trained.data.std)


@pytest.mark.parametrize("kind", quick_first(["segment", "segment-queries"]))
def test_the_file_of_a_segmenter_gives_the_mask_of_the_command(kind: str, tmp_path: Path) -> None:
    peer("onnx"), peer("onnxruntime")
    trained = untrained(kind)
    to_onnx(trained, tmp_path / "model.onnx")
    path, images = image_file(trained, tmp_path)
    (logits,) = onnx_outputs(tmp_path / "model.onnx", images)
    assert logits.shape == (1, *images.shape[2:], len(trained.classes))
    np.testing.assert_array_equal(logits[0].argmax(axis=-1), segment(trained, path).mask)
    assert len(np.unique(logits[0].argmax(axis=-1))) > 1


def test_the_file_of_a_detector_gives_the_boxes_of_the_command(tmp_path: Path) -> None:
    peer("onnx"), peer("onnxruntime")
    trained = untrained("detect")
    to_onnx(trained, tmp_path / "model.onnx")
    path, images = image_file(trained, tmp_path)
    logits, boxes = onnx_outputs(tmp_path / "model.onnx", images)
    height, width = images.shape[2:]
    powers = np.exp(logits[0] - logits[0].max(axis=-1, keepdims=True))
    scores = (powers / powers.sum(axis=-1, keepdims=True))[:, :-1]
    corners = np.concatenate([boxes[0, :, :2] - boxes[0, :, 2:] / 2, boxes[0, :, :2] + boxes[0, :, 2:] / 2], axis=1)
    corners = np.clip(corners, 0, 1) * [width, height, width, height]
    things = detect(trained, path, 0.0).things
    assert len(things) == len(scores) == trained.recipe.task.queries
    order = np.argsort(-scores.max(axis=1), kind="stable")
    for thing, i in zip(things, order, strict=True):
        assert thing.name == trained.classes[scores[i].argmax()]
        assert abs(thing.score - scores[i].max()) <= 1e-5
        np.testing.assert_allclose(thing.box, corners[i], atol=0.0051)  # they are rounded to hundredths


@pytest.mark.parametrize(("kind", "what"), [("vqa-cnn", "is a 'vqa' run"), ("segment", "is a 'segment' run")])
def test_a_page_is_for_runs_that_classify_images(kind: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"a page to draw on is for runs that classify images, but this one {what}"):
        to_web(untrained(kind), tmp_path / "page")
    video = load_recipe("video").override(["dim=8", "depth=1", "heads=2", "mlp_dim=8"])
    data = DataSpec(("a", "b"), (8, 1, 16, 16), (0.1,), (0.1,))
    with pytest.raises(RunError, match="but this one classifies videos"):
        to_web(TrainedModel(video, tv.models.ViT(8, 4, 2, 8, 1, 2), data), tmp_path / "page")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["onnx", "c", "web", "timm", "hf"])
def test_nothing_is_replaced(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setitem(FORMATS, target, lambda trained, out: written.append(out) or "")
    monkeypatch.chdir(tmp_path)
    for place in ("file", "link", "full/other"):
        Path(place).parent.mkdir(exist_ok=True)
    Path("file").write_text("mine")
    Path("link").symlink_to("nowhere")
    Path("full/other").write_text("mine")
    Path("empty").mkdir()
    for place, says in (
        ("file", "file exists already; give a name"),
        ("link", "link exists already"),
        ("full", "full is not empty"),
    ):
        result = CliRunner().invoke(commands, ["export", "digits", "--to", target, "--out", place])
        assert isinstance(result.exception, RunError)
        assert says in str(result.exception)
    assert written == []
    for place in ("new", "empty"):
        assert CliRunner().invoke(commands, ["export", "digits", "--to", target, "--out", place]).exit_code == 0
    assert written == [Path("new"), Path("empty")]


def test_the_command_that_an_export_prints_compiles_and_runs(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("needs cc")
    said = to_c(load_run("digits"), tmp_path / "a folder")
    (command,) = [line.removeprefix("next: ") for line in said.splitlines() if line.startswith("next: ")]
    printed = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout.splitlines()
    label = load_data(load_recipe("digits"), "test").labels[0]
    assert printed[-2:] == [f"largest: number {label}, class {label}", "as expected"]


@pytest.mark.parametrize(
    ("target", "says"), [("timm", 'create_model("local-dir:out"'), ("hf", 'from_pretrained("out")')]
)
def test_the_next_step_of_a_folder_is_printed(target: str, says: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tinyvit.interop.save.export_folder", lambda *_: "written -> out")
    result = CliRunner().invoke(commands, ["export", "digits", "--to", target, "--out", "out"])
    written, step = result.output.splitlines()
    assert written == "written -> out"
    assert step.startswith("next, in Python: ")
    assert says in step


def test_features_replace_no_file(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(RunError, match="exists already"):
        write_features("digits", [str(tmp_path)], tmp_path / "photo.png")
    assert (tmp_path / "photo.png").read_bytes() == b"mine"


def test_a_masked_run_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a 'masked' run cannot be exported; these can: classify"):
        to_c(untrained("masked-patches"), tmp_path / "c")
