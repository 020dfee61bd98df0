"""Tables of the user's own texts: columns, splits, words, answers, images that are shared or missing, bad files."""

import csv
import io
import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tinyvit.data import FolderOptions, TextTable
from tinyvit.data.check_texts import check_texts
from tinyvit.data.disk import DiskImages
from tinyvit.data.own_texts import CAPTIONS, LONGEST, QUESTIONS, TRANSLATIONS
from tinyvit.data.tables import read_lines
from tinyvit.data.tokenizer import CLS, END, PAD, START, UNK, words_of
from tinyvit.errors import DataError
from tinyvit.tasks import DataSpec

CUT = FolderOptions(test=0.25, validation=0.25)
COLOURS = ("red", "green", "blue")


def picture(path: Path, seed: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def table(path: Path, rows: list[tuple], delimiter: str = ",") -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerows(rows)
    path.write_text(text.getvalue(), "utf-8")
    return path


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Twelve images with two captions each."""
    rows = [("image", "caption")]
    for i in range(12):
        picture(tmp_path / "images" / f"{i}.png", i)
        rows += [(f"images/{i}.png", f"Picture {i}, {COLOURS[i % 3]}."), (f"images/{i}.png", f"again {COLOURS[i % 3]}")]
    return table(tmp_path / "captions.csv", rows)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [("image", "question", "answer")]
    for i in range(12):
        picture(tmp_path / f"{i}.png", i, "L")
        rows += [
            (f"{i}.png", "What colour?", COLOURS[i % 3]),
            (f"{i}.png", "Is it red?", "yes" if i % 3 == 0 else "no"),
        ]
    return table(tmp_path / "questions.csv", rows)


def translations(path: Path, count: int = 20) -> Path:
    rows = [(f"word{i} a b{i % 4}", f"b{i % 4} a WORD{i}") for i in range(count)]
    return table(path, [("source", "target"), *rows], "\t")


# Splits ---------------------------------------------------------------------------------------------------------------


def test_rows_about_one_image_are_on_one_side(captions) -> None:
    found = TextTable(captions, CAPTIONS, CUT)
    assert {split: len(rows) for split, rows in found.parts.items()} == {"train": 14, "test": 6, "validation": 4}
    files = {split: {row.file for row in rows} for split, rows in found.parts.items()}
    assert sum(map(len, files.values())) == len(set.union(*files.values())) == 12
    assert found.cut == ("test", "validation")
    again = TextTable(captions, CAPTIONS, CUT)
    assert again.parts == found.parts
    other = TextTable(captions, CAPTIONS, FolderOptions(test=0.25, validation=0.25, seed=1))
    assert [row.line for row in other.parts["test"]] != [row.line for row in found.parts["test"]]


def test_names_of_files_do_not_decide_what_is_held_out(captions) -> None:
    before = {row.texts for row in TextTable(captions, CAPTIONS, CUT).parts["test"]}
    rows = [line.cells for line in read_lines(captions)]
    renamed = [(a if a == "image" else f"other/{100 - int(Path(a).stem)}.png", b) for a, b in reversed(rows[1:])]
    for (new, _), (old, _) in zip(renamed, reversed(rows[1:]), strict=True):
        target = captions.parent / new
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((captions.parent / old).read_bytes())
    table(captions, [("image", "caption"), *renamed])
    assert {row.texts for row in TextTable(captions, CAPTIONS, CUT).parts["test"]} == before


def test_equal_sources_are_on_one_side(tmp_path) -> None:
    rows = [(f"Word {i % 10} !", f"target {i}") for i in range(30)]
    found = TextTable(table(tmp_path / "t.csv", [("source", "target"), *rows]), TRANSLATIONS, CUT)
    sides = [{row.texts[0] for row in part} for part in found.parts.values()]
    assert sum(map(len, sides)) == 10
    assert sorted(map(len, found.parts.values())) == [6, 6, 18]


def test_a_column_names_the_split(questions) -> None:
    rows = [line.cells for line in read_lines(questions)]
    names = ["split", *(("Train", "val", "testing")[i // 2 % 3] for i in range(24))]
    table(questions, [(*row, name) for row, name in zip(rows, names, strict=True)])
    found = TextTable(questions, QUESTIONS, CUT)
    assert {split: len(rows) for split, rows in found.parts.items()} == {"train": 8, "validation": 8, "test": 8}
    assert found.cut == ()
    assert {row.file.name for row in found.parts["test"]} == {f"{i}.png" for i in range(2, 12, 3)}


@pytest.mark.parametrize(
    ("test", "validation", "counts"), [(3, 2, (7, 3, 2)), (0.5, 0.0, (6, 6, 0)), (1, 5, (6, 1, 5))]
)
def test_numbers_and_shares_count_images(captions, test, validation, counts) -> None:
    found = TextTable(captions, CAPTIONS, FolderOptions(test=test, validation=validation))
    images = tuple(len({row.file for row in found.parts.get(s, ())}) for s in ("train", "test", "validation"))
    assert images == counts


@pytest.mark.parametrize(("test", "message"), [(12, "too few to hold out 12"), (1.5, "must be a fraction below 1 or")])
def test_too_much_cannot_be_held_out(captions, test, message) -> None:
    with pytest.raises(DataError, match=message):
        TextTable(captions, CAPTIONS, FolderOptions(test=test))


# Words and answers ----------------------------------------------------------------------------------------------------


def test_the_vocabulary_is_that_of_the_training_rows_alone(captions, caplog) -> None:
    found = TextTable(captions, CAPTIONS, CUT)
    train = found.load("train")
    seen = {word for row in found.parts["train"] for word in words_of(row.texts[0])}
    assert set(train.tokenizer.words[6:]) == seen
    with caplog.at_level(logging.WARNING):
        test = found.load("test", train)
    assert test.tokenizer == train.tokenizer
    words = [word for row in found.parts["test"] for word in words_of(row.texts[0])]
    new = [word for word in words if word not in seen]
    assert new  # the numbers of the pictures
    assert (test.labels == UNK).sum() == len(new)
    assert f"{len(new)} of {len(words)} words of the test split are in no training row" in caplog.text
    assert found.load("test").tokenizer == train.tokenizer
    for row, ids in zip(found.parts["test"], test.labels, strict=True):
        expected = [START, *train.tokenizer.encode(row.texts[0]), END]
        assert ids[: len(expected)].tolist() == expected
        assert (ids[len(expected) :] == PAD).all()


def test_questions_have_images_words_and_answers(questions) -> None:
    found = TextTable(questions, QUESTIONS, CUT)
    train = found.load("train")
    assert train.classes == ("blue", "green", "no", "red", "yes")
    assert "yes" not in train.tokenizer.words  # answers are not read
    assert train.images.shape == (7, 1, 8, 8)  # all images are grey
    for i, row in enumerate(found.parts["train"]):
        with Image.open(row.file) as image:
            assert np.array_equal(train.images[train.image_of[i], 0], np.asarray(image))
        assert train.classes[train.labels[i]] == row.texts[1]
        assert train.texts[i, 0] == CLS
        assert train.tokenizer.decode(train.texts[i]) == " ".join(words_of(row.texts[0]))
    assert train.mean == (pytest.approx(train.images.mean() / 255, abs=1e-6),)
    assert train.std == (pytest.approx(train.images.std() / 255, abs=1e-6),)
    assert found.load("test").mean == found.load("test", train).mean == train.mean


def test_an_answer_without_a_training_row_is_wrong_and_named(questions, caplog) -> None:
    with questions.open("a") as file:
        file.write("0.png,How big?,huge\n")
    rows = [line.cells for line in read_lines(questions)]
    table(questions, [(*row, "split" if i == 0 else "test" if i > 20 else "train") for i, row in enumerate(rows)])
    found = TextTable(questions, QUESTIONS, FolderOptions())
    train = found.load("train")
    test = found.load("test", train)
    assert "huge" in train.classes
    assert test.classes == train.classes
    assert train.classes.index("huge") not in train.labels
    assert train.classes.index("huge") in test.labels
    assert "no training row has the test answers huge, so they count as wrong" in caplog.text
    learnt = DataSpec.of(train)
    with questions.open("a") as file:
        file.write("0.png,How big?,tiny,test\n")
    with pytest.raises(DataError, match="answers that the model has not learnt: tiny"):
        TextTable(questions, QUESTIONS, FolderOptions()).load("test", learnt)


def test_tables_of_ids_are_as_wide_as_the_longest_text_of_any_split(tmp_path) -> None:
    found = TextTable(translations(tmp_path / "t.tsv"), TRANSLATIONS, CUT)
    rows = [line.cells for line in read_lines(tmp_path / "t.tsv")]
    line = found.parts["test"][0].line - 1
    rows[line] = [rows[line][0], rows[line][1] + " and much more"]
    table(tmp_path / "t.tsv", rows, "\t")
    found = TextTable(tmp_path / "t.tsv", TRANSLATIONS, CUT)
    train, test = found.load("train"), found.load("test")
    assert DataSpec.of(train).lengths == DataSpec.of(test).lengths == (4, 8)
    assert train.images.shape == (0,)
    assert train.mean == ()


def test_letters_are_taken_in_the_composed_form(tmp_path) -> None:
    rows = [(f"caf\u00e9 {i}", unicodedata.normalize("NFD", f"caf\u00e9 {i}")) for i in range(8)]
    found = TextTable(table(tmp_path / "t.csv", [("source", "target"), *rows]), TRANSLATIONS, CUT)
    assert all(a == b for part in found.parts.values() for a, b in (row.texts for row in part))


# Images ---------------------------------------------------------------------------------------------------------------


def test_an_image_with_two_captions_is_read_once(captions) -> None:
    found = TextTable(captions, CAPTIONS, CUT)
    train = found.load("train")
    assert len(train) == 14
    assert len(train.images) == 7
    assert train.shares_images
    batch = train.batch(np.arange(4))
    assert batch.images.shape[0] == 2
    assert batch.image_of_each.shape[0] == 4


@pytest.mark.parametrize("cache_mb", [1024, 0])
def test_pairs_have_an_image_each_and_are_measured_once_an_image(captions, cache_mb) -> None:
    options = FolderOptions(test=0.25, validation=0.25, cache_mb=cache_mb)
    found = TextTable(captions, CAPTIONS, options)
    train, test = found.load("train", pairs=True), found.load("test", pairs=True)
    assert isinstance(train.images, DiskImages) == (cache_mb == 0)
    assert len(train) == len(train.images) == 14
    assert train.image_of.tolist() == list(range(14))
    plain = found.load("train")
    assert np.array_equal(train.images[np.arange(14)], plain.images[plain.image_of])
    assert len(test) == len(test.images) == 3
    assert test.kinds == ("pairs",)
    firsts = [row.texts[0] for row in found.parts["test"] if row.texts[0].startswith("Picture")]
    assert [test.tokenizer.decode(ids) for ids in test.labels] == [
        test.tokenizer.decode(test.tokenizer.encode(text)) for text in firsts
    ]
    assert train.fingerprint() == TextTable(captions, CAPTIONS, options).load("train", pairs=True).fingerprint()


def test_images_that_are_missing_or_broken_are_left_out_and_named(captions, caplog) -> None:
    (captions.parent / "images" / "0.png").unlink()
    (captions.parent / "images" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    found = TextTable(captions, CAPTIONS, FolderOptions(test=2, validation=0))
    names = {Path(row.file).name for split in ("train", "test") for row in found.parts[split]}
    assert "0.png" not in names
    assert "1.png" in names
    total = sum(len(found.load(split)) for split in ("train", "test"))
    assert total == 20
    assert "0.png (it does not exist)" in caplog.text
    assert "1.png (cannot be read as an image" in caplog.text
    with pytest.raises(DataError, match=r"names 1 image that cannot be read: .*0\.png"):
        TextTable(captions, CAPTIONS, FolderOptions(broken="refuse"))


def test_a_number_that_leaves_less_than_half_of_the_images_is_refused(captions) -> None:
    images = len({row.group for row in TextTable(captions, CAPTIONS, FolderOptions(test=1)).parts["train"]})
    fits = TextTable(captions, CAPTIONS, FolderOptions(test=1, validation=images // 2))
    assert len({row.group for row in fits.parts["validation"]}) == images // 2
    with pytest.raises(DataError, match=rf"validation is {images // 2 + 1}, .* at most {images // 2}, or a share"):
        TextTable(captions, CAPTIONS, FolderOptions(test=1, validation=images // 2 + 1))


# Bad files ------------------------------------------------------------------------------------------------------------

HEAD = "image,caption\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; its first line must be image,caption"),
        (b"\n\n", "is empty"),
        (HEAD.encode(), "has no rows to train on"),
        (b"image,title\na.png,b\n", "has the columns image, title, but not caption: .* may also be text, description"),
        (b"a.png,a cat\n", "but not image and caption"),
        (f"{HEAD}images/0.png,\n".encode(), "line 2: caption is empty"),
        (f"{HEAD}images/0.png,fine\n\nimages/1.png, \t \n".encode(), "line 4: caption is empty"),
        (f"{HEAD},a cat\n".encode(), "line 2: image is empty"),
        (f"{HEAD}images/0.png\n".encode(), "line 2: caption is empty"),
        (f"{HEAD}gone.png,a cat\n".encode(), "no rows to train on; images that do not exist: .*gone.png"),
        (f"{HEAD}{'x' * 5000},a cat\n".encode(), "no rows to train on"),
        (f"{HEAD}images/0.png,a cat\n".encode(), "has 1 different image to train on, too few to hold out 1"),
        (f"{HEAD}images/0.png,{'a ' * (LONGEST + 1)}\n".encode(), "line 2: caption has 513 words, more than 512"),
        (f'{HEAD}images/0.png,"a cat\nimages/1.png,a dog\n'.encode(), "line 3: unexpected end of data"),
        (f'{HEAD}images/0.png,"a" cat\n'.encode(), "line 2: ',' expected after '\"'"),
        (f"{HEAD}images/0.png,caf\xe9\n".encode("latin-1"), "line 2: the byte 0xe9 is not UTF-8; save the table as"),
        (f"{HEAD}images/0.png,a cat\n".encode("utf-16"), "line 1: the byte 0xff is not UTF-8"),
        (f"{HEAD}images/0.png,a cat\n".encode("utf-16-le"), "holds zero bytes"),
        (
            f"{HEAD}images/0.png,fine,\nimages/1.png,a big dog, running on grass\n".encode(),
            "line 3 has 3 cells, but the first line has 2; put a text that holds a comma in double quotes",
        ),
        (b"image,caption,\nimages/1.png,a big dog, running\n", "line 2 has 3 cells, but the first line has 2"),
        (b"image;caption\nimages/1.png;a dog;a cat;\n", "line 2 has 3 cells, .* that holds a semicolon"),
        (b"image,caption,Caption\na.png,b,c\n", "has 2 columns for the caption: 'caption' and 'Caption'; keep one"),
        (b"image,file,caption\na.png,b.png,c\n", "has 2 columns for the image: 'image' and 'file'; keep one"),
        (b"split,image,caption,set\ntrain,a.png,b,test\n", "has 2 columns for the split: 'split' and 'set'"),
        (f"{HEAD}images/0.png,{'x' * 140_000}\n".encode(), "line 2: a cell has more than 131,072 characters; shorten"),
        (b"image,caption,split\nimages/0.png,a cat,tset\n", "line 2: the split is 'tset'; it must be train, val or"),
        (b"image,caption,split\nimages/0.png,a cat,test\n", "has no rows to train on"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_an_error_that_says_where(captions, content, message) -> None:
    captions.write_bytes(content)
    with pytest.raises(DataError, match=message):
        TextTable(captions, CAPTIONS, CUT)


def test_empty_cells_at_the_end_and_columns_that_are_not_used_do_no_harm(captions) -> None:
    before = TextTable(captions, CAPTIONS, CUT).parts
    rows = [line.cells for line in read_lines(captions)]
    table(captions, [(*row, *(("note", "note") if i == 0 else ("", "n", "", " "))) for i, row in enumerate(rows)])
    assert {s: [row.texts for row in part] for s, part in TextTable(captions, CAPTIONS, CUT).parts.items()} == {
        s: [row.texts for row in part] for s, part in before.items()
    }


def test_a_file_that_is_missing_or_a_folder_is_an_error(tmp_path) -> None:
    for path, message in ((tmp_path / "no.csv", "there is no table"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=message):
            TextTable(path, CAPTIONS, CUT)


def test_a_split_that_is_not_there_is_an_error(captions) -> None:
    with pytest.raises(DataError, match="has no validation split"):
        TextTable(captions, CAPTIONS, FolderOptions()).load("validation")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text('ab,;"\t\n image caption.png0', max_size=200).map(str.encode))
def test_any_bytes_are_rows_or_one_clear_error(captions, content) -> None:
    captions.write_bytes(HEAD.encode() + content)
    try:
        message = str(captions) * bool(TextTable(captions, CAPTIONS, FolderOptions(test=1)).parts["train"])
    except DataError as error:
        message = str(error)
    assert str(captions) in message


# The check of a table -----------------------------------------------------------------------------------------------


def test_a_check_counts_rows_words_answers_and_images(questions, captions, tmp_path) -> None:
    (tmp_path / "3.png").unlink()
    (tmp_path / "4.png").write_bytes(b"broken")
    found = check_texts(questions, QUESTIONS, CUT)
    assert found.text.startswith(f"{questions}: 22 rows of image, question, answer; test and validation rows were cut")
    assert "answers: 5; most often: no 8, green 4, blue 4, red 3, yes 3" in found.text
    assert "4.png (cannot be read as an image" in found.text
    assert "3.png (it does not exist)" in found.text
    assert "contradictory labels: 0" in found.text
    assert "words of the longest text: question 4" in found.text
    assert sum(map(len, found.examples.values())) == 10
    of_captions = check_texts(captions, CAPTIONS, CUT).text
    test = {word for row in TextTable(captions, CAPTIONS, CUT).parts["test"] for word in words_of(row.texts[0])}
    new = sorted(test - set(TextTable(captions, CAPTIONS, CUT).tokenizer.words))
    assert f"unknown words of the test rows: {len(new)} of {len(test)}: {', '.join(new)}" in of_captions
    texts = check_texts(translations(tmp_path / "t.tsv"), TRANSLATIONS)
    assert texts.examples == {}
    assert "20 rows of source, target" in texts.text


def test_two_answers_to_one_question_about_one_image_are_named_with_their_lines(questions) -> None:
    lines = questions.read_text().splitlines()
    image, question, answer = lines[1].split(",")
    again = f"{image},{question.upper()},{answer}x"  # the words are the same
    questions.write_text("\n".join([*lines, again, lines[2]]) + "\n")
    text = check_texts(questions, QUESTIONS, CUT).text
    (line,) = [line for line in text.splitlines() if line.startswith("contradictory labels")]
    file = questions.parent / image
    one = f"line 2: {file}, {question!r} ({answer})"
    other = f"line {len(lines) + 1}: {file}, {question.upper()!r} ({answer}x)"
    assert line in (f"contradictory labels: 1: {one} = {other}", f"contradictory labels: 1: {other} = {one}")


def test_an_image_that_cannot_be_decoded_is_refused_if_that_is_asked_for(captions) -> None:
    for i in range(12):
        (captions.parent / "images" / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken %d" % i)
    with pytest.raises(DataError, match=r"images that cannot be read: .* or set data\.broken=skip"):
        TextTable(captions, CAPTIONS, FolderOptions(test=2, broken="refuse")).load("train")
