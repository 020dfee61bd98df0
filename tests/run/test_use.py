"""The use of models of images and texts: the commands `ask`, `caption`, `retrieve`, and their pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_tasks import tiny

import tinyvit as tv
from tinyvit import use
from tinyvit.cli import main
from tinyvit.data import normalize, read_image, scenes
from tinyvit.data.tokenizer import END, MASK, START
from tinyvit.program.program import Program
from tinyvit.program.serve import CALLS_BEFORE
from tinyvit.run.folder import load_run
from tinyvit.run.loop import train

pytestmark = pytest.mark.usefixtures("few_scenes")


def call(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["tinyvit", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code, *capsys.readouterr()


@pytest.fixture
def picture(tmp_path):
    scene = scenes.of_split("test").seen[:2]
    (tmp_path / "pictures").mkdir()
    for name, pixels in zip("ab", scenes.render(scene), strict=True):
        Image.fromarray(pixels.transpose(1, 2, 0)).resize((70, 60)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path / "pictures" / "a.png"


@pytest.mark.parametrize("name", ["vqa-cnn", "vqa-cross", "vqa-joint"])
def test_ask(name, picture, monkeypatch, capsys):
    train(tiny(name, "epochs=1"), "run")
    status, out, _ = call(
        monkeypatch, capsys, "ask", "runs/run", picture, "What COLOR is the circle?", "--out", "x.png"
    )
    answer, probability = out.rstrip("\n").split("\t")
    assert (status, answer in scenes.ANSWERS, 0 < float(probability) <= 1) == (0, True, True)
    assert read_image("x.png", 3).shape[2] > 100
    for question, message in [
        ("", "the text is empty"),
        (" ", "the text is empty"),
        ("is a zebra red?", "does not know: zebra"),
        ("red " * 99, "the text has 99 words and punctuation marks; this model reads up to"),
    ]:
        status, out, error = call(monkeypatch, capsys, "ask", "runs/run", picture, question)
        assert (status, out) == (2, "")
        assert message in error
    longest = load_run("runs/run").data.lengths[0] - 1
    for words, status in ((longest, 0), (longest + 1, 2)):
        assert call(monkeypatch, capsys, "ask", "runs/run", picture, "red " * words)[0] == status
    assert "there is no file 'none.png'" in call(monkeypatch, capsys, "ask", "runs/run", "none.png", "is it red?")[2]
    for mine in (picture, "runs/run/model.safetensors"):
        before = Path(mine).read_bytes()
        status, _, error = call(monkeypatch, capsys, "ask", "runs/run", picture, "is the circle red?", "--out", mine)
        assert (status, "did not draw; name another" in error, Path(mine).read_bytes() == before) == (2, True, True)
    assert call(monkeypatch, capsys, "ask", "runs/run", picture, "is the circle red?", "--out", "x.png")[0] == 0
    status, _, error = call(monkeypatch, capsys, "predict", "runs/run", picture)
    assert (status, "use `tinyvit ask`" in error) == (2, True)
    status, out, _ = call(monkeypatch, capsys, "evaluate", "runs/run")
    assert (status, "relational: " in out, "questions" in out) == (0, True, True)


def test_caption(picture, monkeypatch, capsys):
    run = train(tiny("caption", "epochs=1"), "run").folder
    status, out, err = call(monkeypatch, capsys, "caption", "runs/run", picture)
    assert (status, err) == (0, "")
    assert list(Path().glob("*.png")) == []  # a picture is drawn only where one is asked for
    assert call(monkeypatch, capsys, "caption", "runs/run", picture, "--out", "attention.png")[:2] == (0, out)
    text, maps = use.caption(load_run(run), picture)
    assert out == text + "\n"
    assert maps.maps.shape == (len(text.split()) + 1, 6, 6)
    np.testing.assert_allclose(maps.maps.sum(axis=(1, 2)), 1, rtol=1e-4)
    assert read_image("attention.png", 3).shape[2] > 100


@pytest.mark.parametrize("name", ["vqa-cross", "caption"])
def test_programs_take_over_with_their_maps(name, picture, monkeypatch):
    trained = load_run(train(tiny(name, "epochs=1"), "run").folder)
    served, call_program = [], Program.__call__

    def counted(self, *arrays):
        returned = call_program(self, *arrays)
        served.append(isinstance(returned, tuple) and isinstance(returned[1], dict))  # with maps
        return returned

    def answers():
        if name == "caption":
            return [(*use.caption(trained, picture), 1.0)]
        asked = [
            use.ask(trained, picture, question) for question in ("is the circle red?", "what color is the square?")
        ]
        return [(answer, maps, probability) for answer, probability, maps in asked]

    monkeypatch.setattr(Program, "__call__", counted)
    expected = answers()
    assert not served
    for _ in range(CALLS_BEFORE + 1):
        found = answers()
    assert any(served)
    for (text, maps, probability), (other, others, likely) in zip(found, expected, strict=True):
        assert (text, maps.words) == (other, others.words)
        assert probability == pytest.approx(likely, rel=1e-6)
        np.testing.assert_allclose(maps.maps, others.maps, rtol=1e-5, atol=1e-7)
    for p in trained.model.parameters():
        p.data *= -1
    before = len(served)
    changed = answers()
    monkeypatch.setattr("tinyvit.program.serve.CALLS_BEFORE", 1000)
    monkeypatch.setattr("tinyvit.program.serve._servers", {})
    for (text, maps, probability), (other, others, likely) in zip(changed, answers(), strict=True):
        assert (text, maps.words) == (other, others.words)
        assert probability == pytest.approx(likely, rel=1e-6)
        np.testing.assert_allclose(maps.maps, others.maps, rtol=1e-5, atol=1e-7)
    assert len(served) >= before


def test_retrieve(picture, monkeypatch, capsys):
    train(tiny("retrieve", "epochs=1"), "run")
    text = "a big red circle and a small blue square"
    picture.with_name("captions.csv").write_text("file,caption\na.png,a circle\n")
    status, out, err = call(monkeypatch, capsys, "retrieve", "runs/run", "--images", picture.parent, text)
    assert (err, list(Path().glob("*.png"))) == ("", [])  # no word about a file that is no image, and no picture
    drawn = call(
        monkeypatch, capsys, "retrieve", "runs/run", "--images", picture.parent, text, "--out", "attention.png"
    )
    assert drawn == (0, out, "tinyvit: attention of each word -> attention.png\n")
    lines = [line.split("\t") for line in out.splitlines()]
    assert status == 0
    assert sorted(path for path, _ in lines) == [str(picture), str(picture.with_name("b.png"))]
    assert float(lines[0][1]) >= float(lines[1][1])
    for _ in range(2):  # the second search ignores the picture that the first one drew
        _, out, _ = call(
            monkeypatch,
            capsys,
            "retrieve",
            "runs/run",
            "--images",
            picture.parent,
            text,
            "--out",
            picture.with_name("looks.png"),
        )
        assert len(out.splitlines()) == 2
    assert "there is no folder 'none'" in call(monkeypatch, capsys, "retrieve", "runs/run", "--images", "none", text)[2]
    assert "holds no images" in call(monkeypatch, capsys, "retrieve", "runs/run", "--images", "runs", text)[2]


@pytest.mark.parametrize(
    ("broken", "status"), [("._a.png", 0), (".DS_Store", 0), ("torn.png", 2), ("more/torn.jpg", 2)]
)
def test_a_search_goes_on_past_a_file_that_cannot_be_read(picture, monkeypatch, capsys, broken, status):
    train(tiny("retrieve", "epochs=1"), "run")
    path = picture.parent / broken
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(picture.read_bytes()[:60])
    arguments = ("retrieve", "runs/run", "--images", picture.parent, "a big red circle and a small blue square")
    found, out, error = call(monkeypatch, capsys, *arguments)
    assert (found, len(out.splitlines())) == (status, 2)
    assert (str(path) in error) == (status == 2)
    for name in "ab":
        picture.with_name(f"{name}.png").unlink()
    found, out, error = call(monkeypatch, capsys, *arguments)
    assert (found, out, "holds no images" in error) == (2, "", True)


@pytest.mark.parametrize("count", [1, 9, 10, 11, 12, 1200])
def test_a_search_says_how_many_images_it_does_not_print(monkeypatch, capsys, count):
    found = [(Path(f"{i}.png"), 1 - i / count) for i in range(count)]
    monkeypatch.setattr("tinyvit.run.folder.load_run", lambda run: None)
    monkeypatch.setattr(use, "search", lambda trained, folder, text: use.Found(found, None, []))
    status, out, error = call(monkeypatch, capsys, "retrieve", "retrieve", "--images", "scenes", "a circle")
    shown = len(out.splitlines())
    assert (status, shown) == (0, min(count, 10))
    assert error == ("" if shown == count else f"tinyvit: the {shown} best of {count:,} images\n")


def test_the_map_of_a_word_shows_the_patches_that_match_less_without_it(picture, monkeypatch):
    trained = load_run(train(tiny("retrieve", "epochs=1"), "run").folder)
    model, text = trained.model, "a big red circle and a small blue square"
    found, maps = use.retrieve(trained, picture.parent, text)
    assert maps.words == text.split()
    ids = trained.data.tokenizer.encode(text)
    image = normalize(trained.data.read_image(found[0][0])[None], trained.data.mean, trained.data.std)
    with tv.no_grad():
        patches = model.image_proj(model.vision.features(image)).numpy()[0]
        complete, masked = (
            model.encode_texts(np.array([[START, *words, END]])).numpy()[0]
            for words in (ids, [*ids[:2], MASK, *ids[3:]])
        )
    expected = np.maximum(patches @ (complete - masked), 0).reshape(maps.maps.shape[1:])
    np.testing.assert_allclose(maps.maps[2], expected, atol=1e-5)
