"""A user's whole way, each command in a process of its own: train, evaluate, predict."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_run import ENVIRONMENT, command, metrics_of, settings

from tinyvit.data import load_dataset

LEARNS_FAST = (
    *("epochs=2", "batch_size=32", "lr=1e-2", "warmup_epochs=0", "ema=0", "rotate=0", "scale=0"),
    *("patch_size=4", "stem=linear"),
)
SMALL = ("dim=16", "depth=1", "heads=2")


def test_train_then_evaluate_then_predict(tmp_path):
    run = tmp_path / "runs" / "digits"
    status, out, err = command("train", *settings(*LEARNS_FAST, *SMALL), cwd=tmp_path, env=ENVIRONMENT)
    assert (status, err) == (0, "")
    accuracy = json.loads((run / "test.json").read_text())["accuracy"]
    assert metrics_of(run)[-1]["val_accuracy"] > 0.5  # on validation images
    assert accuracy > 0.6  # chance is 0.1
    *_, done, following = out.splitlines()
    assert done.startswith(f"test accuracy {100 * accuracy:.2f} % after 2 epochs in ")
    assert done.endswith(" -> runs/digits")
    assert following == "next: tinyvit evaluate runs/digits; tinyvit predict runs/digits IMAGE"
    assert {path.name for path in run.iterdir()} == {
        *("recipe.toml", "metrics.jsonl", "model.safetensors", "checkpoint.safetensors", "curves.png"),
        *("test.json", "classes.csv", "confusion.csv", "confusion.png"),
    }
    for name in ("curves.png", "confusion.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 10  # it is not blank

    status, out, err = command("evaluate", run, env=ENVIRONMENT)
    assert (status, err) == (0, "")
    assert out.startswith(f"accuracy {100 * accuracy:.2f} % ({round(accuracy * 359)} of 359 test images)")

    test = load_dataset("digits", "test")
    pictures = [f"{i}.png" for i in range(40)]
    for name, pixels in zip(pictures, test.images, strict=False):
        Image.fromarray(pixels[0]).save(tmp_path / name)
    status, out, err = command("predict", run, *pictures, cwd=tmp_path, env=ENVIRONMENT)
    assert (status, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines()]
    assert [path for path, _, _ in rows] == pictures
    right = sum(name == test.classes[label] for (_, name, _), label in zip(rows, test.labels, strict=False))
    assert right > 20
    assert all(float(probability) == pytest.approx(0.55, abs=0.45) for _, _, probability in rows)
