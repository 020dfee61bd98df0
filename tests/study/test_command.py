"""The study command: what it writes and prints; and the other views of a trace."""

import json
import os
from pathlib import Path

import click.testing
import numpy as np
import pytest
from study_page import Page, digits, holds
from tiny_run import isolate, tiny_recipe

import tinyvit as tv
import tinyvit.functional as F
import tinyvit.run.loop as training
from tinyvit.cli import commands
from tinyvit.study import trace
from tinyvit.study.page.write import page_of
from tinyvit.study.record.values import Value
from tinyvit.study.subject import about, study_operation, study_run

# The command ---------------------------------------------------------------------------------------------------------


def run(*words: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(commands, ["study", *words], catch_exceptions=True)


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = run("--out", str(out))
    assert result.exit_code == 0, result.output
    assert "open it in a browser" in result.output
    assert Page(out.read_text("utf-8")).document["about"]["grid"] == [4, 4]
    assert not list(tmp_path.glob("*.tmp*"))


@pytest.mark.slow
def test_the_command_takes_an_image(tmp_path: Path) -> None:
    from PIL import Image

    from tinyvit.data.digits import read_digits

    images, labels = read_digits("test")
    path = tmp_path / "digit.png"
    Image.fromarray(images[3, 0]).save(path)
    result = run("--image", str(path), "--out", str(tmp_path / "page.html"))
    assert result.exit_code == 0, result.output
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    document = page.document
    np.testing.assert_array_equal(page.value(document["about"]["pixels"]), images[3])
    assert f"against {labels[3]}, the model's own guess" in result.output
    assert "its own guess" in document["about"]["answer"]
    other = str((labels[3] + 1) % 10)
    result = run("--image", str(path), "--label", other, "--out", str(tmp_path / "page.html"))
    document = Page((tmp_path / "page.html").read_text("utf-8")).document
    assert document["about"]["target"] == int(other)
    assert f"against {other}, as asked" in result.output
    probabilities = np.array(document["about"]["probabilities"])
    gradient = study_run("digits", path, other).trace["cross_entropy"].backward.outgoing[0].array[0]
    np.testing.assert_allclose(gradient, probabilities - np.eye(10)[int(other)], atol=1e-6)


def test_a_page_is_named_after_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("exp").exit_code == 0
    assert run("relu", "--plant", "relu").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study-exp.html", "study-relu-exercise.html"]


def test_the_command_prints_text() -> None:
    result = run("softmax", "--text")
    assert result.exit_code == 0
    assert "y * (dy - xp.sum(dy * y, axis=ctx.axis, keepdims=True))" in result.output
    assert "numeric check: ok" in result.output
    for exercise in (run("softmax", "--text", "--plant", "softmax").output, study_operation("softmax", "any").text()):
        assert "WRONG" not in exercise
        assert "check: ok" not in exercise
        assert "the page, without --text, takes your claim" in exercise
    assert run("--text").output.count("check: ok") == len(study_run().trace.backwards)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "there is no run 'nothing'"),
        (["softmaxx"], "(did you mean 'softmax'?)"),
        (["--label", "ten"], "there is no class 'ten'; available: 0, 1, 2"),
        (["softmax", "--plant", "attention"], "would not show here"),
        (["--plant", "nothing"], "no fault is known for 'nothing'"),
        (["--operation", "nothing"], "no operation of this trace has 'nothing'"),
        (["softmax", "--image", "a.png"], "takes no image"),
        (["softmax", "--out", "/no/such/folder/page.html"], "/no/such/folder/page.html cannot be written"),
    ],
)
def test_wrong_arguments_are_explained(words: list[str], message: str) -> None:
    result = run(*words)
    assert isinstance(result.exception, tv.errors.TinyvitError)
    assert message in str(result.exception)


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "it is a device or a pipe, not a file" in str(run("softmax", "--out", str(tmp_path / "pipe")).exception)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        ("pool=cls", "patch_size=2", "register_tokens=1", "pos_embed=learned"),
        ("norm=post", "layer_scale=0.1", "stem=conv", "pool=first", "dropout=0.1", "depth=2"),
    ],
)
def test_any_run_can_be_studied(how: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    folder = training.train(tiny_recipe(*how, "epochs=1"), "tiny").folder
    subject = study_run(str(folder))
    page = Page(page_of(subject.trace, about(subject)))
    assert {op["check"]["verdict"] for op in page.document["ops"]} <= {"agrees", "unclear"}
    assert page.document["attention"]
    assert page.document["about"]["prefix"] == subject.trained.model.prefix
    tokens = page.document["about"]["grid"][0] ** 2 + subject.trained.model.prefix
    assert page.value(page.document["attention"][0]["p"]).shape[-1] == tokens
    assert len(page.document["tour"]) >= 4
    holds(page)


# Other views ---------------------------------------------------------------------------------------------------------


def test_text_page_and_trace_agree(tmp_path: Path) -> None:
    x = tv.tensor(np.array([[1.0, 2.0, 4.0]]), requires_grad=True)
    with trace() as recorded:
        F.softmax(x)[0, 1].backward()
    recorded.save_html(tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    v = page.document["ops"][0]["dout"][0]["v"]
    assert page.value(v).tobytes() == recorded.gradients["x"].array.tobytes()
    shown = " ".join(f"{g:.4g}" for g in recorded.gradients["x"].array.ravel())
    assert shown in recorded.text("softmax")
    with pytest.raises(KeyError, match="softmax"):
        recorded.text("attention")


@pytest.mark.slow
def test_the_graph_has_every_operation_and_edge() -> None:
    recording, page = digits()
    dot = recording.graph("dot")
    assert dot.count(" -> ") - dot.count("[style=dotted]") == len(page.document["edges"])
    assert all(json.dumps(e.key).strip('"') in dot for e in recording.entries)
    leaves = {id(v) for e in recording for v in e.inputs if isinstance(v, Value) and v.origin.kind == "leaf"}
    assert dot.count("shape=plaintext") == len(leaves)
    assert "image 1 x 1 x 8 x 8" in dot
    picture = recording.graph()
    assert picture.startswith("<svg")
    assert picture.count("<rect") == len(recording.entries)
    entry = recording["blocks.1.attn/attention"]
    norms = [v.statistics.norm for v in (entry.outputs[0], entry.backward.outgoing[0])]
    assert "1 x 4 x 16 x 16   |y| {:.3g}   |dx| {:.3g}".format(*norms) in picture
    assert recording._repr_html_().endswith(picture)
    with pytest.raises(ValueError, match="'svg' or 'dot'"):
        recording.graph("png")


def test_the_text_has_saved_bytes_and_unclear_verdicts() -> None:
    x, y = (tv.tensor(np.array([0.0, 0.0]), requires_grad=True) for _ in range(2))
    with trace() as recorded, tv.use_kernels("numpy"):
        (F.relu(x) * F.exp(y)).sum().backward()
    lines = recorded.text().splitlines()
    assert [line.split("check: ")[1] for line in lines if " relu " in line and "check" in line] == ["unclear"]
    assert any(" multiply " in line and "saves 32 B" in line for line in lines)
    assert "given dy float64[2]" in recorded.text("relu")  # the name that the rule uses
    with np.errstate(all="ignore"), trace() as recorded:
        F.log(F.sqrt(x)).sum().backward()
    assert recorded.text().endswith("first NaN or infinity: log")


def test_the_text_names_parameters_and_gradients() -> None:
    with trace() as recorded:
        F.cross_entropy(tv.tensor([[1.0, 2.0]], requires_grad=True), np.array([1])).backward()
    text = recorded.text("cross_entropy")
    assert "ids = [1]" in text
    assert "target: None" not in text
    assert "given dloss float" in text
