"""Folders of images: what is learnt from is named, counted and the same everywhere; nothing is left out silently."""

import io
import logging
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tinyvit.data import Tokenizer, image_folder, read_image
from tinyvit.data.datasets import sample_indices
from tinyvit.data.image_files import IMAGE_SUFFIXES, find_images
from tinyvit.errors import DataError
from tinyvit.tasks import DataSpec

E_COMPOSED, E_TWO = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


def picture(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 60, 30)).save(path, format={".jfif": "JPEG", ".jpe": "JPEG"}.get(path.suffix))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three images for training and one for the test."""
    for split, count in (("train", 3), ("test", 1)):
        for k, name in enumerate(("cat", "dog")):
            for i in range(count):
                picture(tmp_path / split / name / f"{i}.png", 100 * k + 10 * i + (split == "test"))
    return tmp_path


def told(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


# Which files are read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_files_of_every_suffix_are_read(suffix: str, tmp_path: Path) -> None:
    Image.init()
    kind = {".apng": "PNG", ".j2c": "JPEG2000"}.get(suffix, Image.registered_extensions().get(suffix))
    picture = io.BytesIO()
    Image.new("1" if suffix == ".pbm" else "RGB", (8, 8)).save(picture, kind)
    path = tmp_path / f"a{suffix.upper()}"
    path.write_bytes(picture.getvalue())
    assert find_images(tmp_path).images == [path]
    assert read_image(path, 3).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("notes.txt", "not an image"),
        ("photo", "not an image"),
        ("a.heic", "not an image"),
        ("more/deep/notes.md", "not an image"),
        (".photo.png", "hidden"),
        ("torn.png", "cannot be read as an image"),
        ("more/empty.png", "cannot be read as an image"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_file_that_is_left_out_is_named_and_stops_nothing(root, caplog, name, reason, split) -> None:
    path = root / split / "cat" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"torn" if name == "torn.png" else b"")
    assert len(image_folder(root, split)) == (6 if split == "train" else 2)
    assert f"{root / split}: 1 file is left out of the {split} split, beside" in told(caplog)
    assert str(path) in told(caplog)
    assert reason in told(caplog)


@pytest.mark.parametrize("name", ["._0.png", ".DS_Store", ".git/a.png", ".cache"])
def test_files_of_the_system_are_passed_over(root, caplog, name) -> None:
    path = root / "train" / "cat" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\5\26\7")
    assert len(image_folder(root, "train")) == 6
    assert not told(caplog)


def test_many_files_that_are_left_out_are_counted(root, caplog) -> None:
    for i in range(12):
        (root / "train" / "dog" / f"{i}.txt").touch()
    image_folder(root, "train")
    assert "12 files are left out" in told(caplog)
    assert "and 7 more" in told(caplog)


def test_links_and_pipes_are_followed_or_named(root, tmp_path_factory, caplog) -> None:
    cat, elsewhere = root / "train" / "cat", tmp_path_factory.mktemp("elsewhere")
    picture(elsewhere / "linked.png", 7)
    (cat / "links").symlink_to(elsewhere)
    (cat / "loop").symlink_to(cat)
    (cat / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(cat / "pipe.png")
    data = image_folder(root, "train")
    assert str(cat / "links" / "linked.png") in data.files
    assert len(data) == 7
    for reason in ("a broken link", "not a file", "a link to a folder that contains it"):
        assert reason in told(caplog)


def test_images_in_subfolders_belong_to_the_class_and_files_beside_the_classes_are_named(root, caplog) -> None:
    picture(root / "train" / "cat" / "more" / "deep" / "a.jpg")
    picture(root / "train" / "stray.png")
    data = image_folder(root, "train")
    assert np.bincount(data.labels).tolist() == [4, 3]
    assert [Path(name).parts[-1] for name in data.files] == [
        "0.png",
        "1.png",
        "2.png",
        "a.jpg",
        *(f"{i}.png" for i in "012"),
    ]
    assert "stray.png (in no class)" in told(caplog)


@pytest.mark.parametrize("content", [b"", b"torn"])
def test_a_class_without_an_image_is_an_error_that_names_its_files(root, content) -> None:
    for file in (root / "train" / "dog").iterdir():
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"dog holds no images .* none can be used: .*0\.png \(cannot be read"):
        image_folder(root, "train")


def test_a_class_without_test_images_is_named(root, caplog) -> None:
    (root / "test" / "dog" / "0.png").unlink()
    (root / "test" / "dog").rmdir()
    assert len(image_folder(root, "test")) == 1
    assert "has no test images of the classes dog" in told(caplog)


# Names ----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters(categories=["L", "M", "N"]), min_size=1, max_size=4), min_size=1, max_size=5))
def test_a_text_has_the_same_words_in_both_forms_of_unicode(words) -> None:
    text = " ".join(words)
    tokenizer = Tokenizer.build([unicodedata.normalize("NFD", text)])
    assert tokenizer.encode(unicodedata.normalize("NFC", text)) == tokenizer.encode(unicodedata.normalize("NFD", text))
    assert not tokenizer.unknown(unicodedata.normalize("NFC", text))


def test_a_class_is_the_same_in_both_forms_of_unicode(root) -> None:
    (root / "train" / "cat").rename(root / "train" / E_TWO)
    (root / "test" / "cat").rename(root / "test" / E_COMPOSED)
    train, test = image_folder(root, "train"), image_folder(root, "test")
    assert train.classes == test.classes == (E_COMPOSED, "dog")
    assert test.labels.tolist() == [0, 1]
    picture(root / "train" / E_COMPOSED / "a.png")
    with pytest.raises(DataError, match="twice, in two forms of Unicode"):
        image_folder(root, "train")


# A sample -------------------------------------------------------------------------------------------------------------


GROUPS = st.lists(st.integers(0, 9), min_size=1, max_size=60)
OF_UNEQUAL_SIZES = st.lists(st.sampled_from((0, 1, 1, 2, 90)), min_size=1, max_size=6).map(
    lambda sizes: np.repeat(np.arange(len(sizes) + 1), (*sizes, 1)).tolist()
)


@given(GROUPS | OF_UNEQUAL_SIZES, st.integers(1, 70), st.integers(0, 2**63 - 1))
def test_a_sample_has_some_of_every_group_by_its_share(groups, count, seed) -> None:
    groups = np.array(groups)
    chosen = sample_indices(groups, count, seed)
    assert len(chosen) == min(count, len(groups))
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, sample_indices(groups, count, seed))
    there, found = np.bincount(groups), np.bincount(groups[chosen], minlength=groups.max() + 1)
    assert (found <= there).all()
    if count >= (there > 0).sum():
        assert (found[there > 0] >= 1).all()
        share = count * there / len(groups)
        assert (found <= np.ceil(share) + 1).all()
    else:
        assert found.max() == 1


def test_a_sample_of_a_folder_has_the_names_of_its_files(root) -> None:
    whole = image_folder(root, "train")
    for seed in range(5):
        part = whole.sample(2, seed)
        assert len(part.files) == len(part) == 2
        for name, image in zip(part.files, part.images, strict=True):
            np.testing.assert_array_equal(image, whole.images[whole.files.index(name)])


def test_a_sample_depends_on_the_seed_and_a_whole_data_set_stays_as_it_is() -> None:
    groups = np.arange(200) // 20
    samples = {tuple(sample_indices(groups, 30, seed)) for seed in range(5)}
    assert len(samples) == 5
    np.testing.assert_array_equal(sample_indices(groups, 200, 0), np.arange(200))


# What a run says about other data -------------------------------------------------------------------------------------

LEARNT = DataSpec(("a", "b", "c"), (3, 8, 8), (0.5,) * 3, (0.5,) * 3, ("<pad>", "red"), (7, 5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ("a", "c", "z")}, "the classes were a, b, c and are now a, c, z (b is gone, z is new)"),
        ({"classes": ("a", "aa", "b", "c")}, "(aa is new)"),
        ({"classes": ("a", "b")}, "(c is gone)"),
        ({"classes": ("a", "x", "y")}, "(b, c are gone, x, y are new)"),
        ({"classes": ("b", "a", "c")}, "(in another order)"),
        ({"shape": (3, 8, 9)}, "the images were 8 x 8 pixels with 3 channels and are now 9 x 8 pixels with 3 channels"),
        ({"shape": (1, 8, 8)}, "are now 8 x 8 pixels with 1 channel"),
        ({"shape": (4, 3, 8, 8)}, "are now 4 frames of 8 x 8 pixels with 3 channels"),
        ({"shape": ()}, "are now absent"),
        ({"words": ("<pad>", "blue")}, "the words were <pad>, red and are now <pad>, blue (red is gone, blue is new)"),
        ({"lengths": (8, 5)}, "the longest text that is read had 7 tokens and has now 8"),
        ({"lengths": (7, 9)}, "the longest text that is written had 5 tokens and has now 9"),
        ({"lengths": (3, 2)}, ""),
    ],
)
def test_other_data_differs_in_words(change, words) -> None:
    found = DataSpec(**{**LEARNT.__dict__, **change})
    changes = LEARNT.differences(found)
    assert words in "; ".join(changes)
    assert bool(changes) == bool(words)


def test_a_model_of_texts_refuses_images() -> None:
    with pytest.raises(DataError, match=r"photo\.png is an image; this model takes texts only"):
        DataSpec((), (), (), (), ("<pad>",), (7, 5)).read_image("photo.png")
