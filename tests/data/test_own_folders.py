"""The user's own images: every layout, files by their content, splits by content, images that stay on disk."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyvit.data import FolderOptions, ImageFolder, check_folder, image_folder
from tinyvit.data.disk import DiskImages
from tinyvit.data.image_files import kind_of
from tinyvit.errors import DataError


def picture(path: Path, seed: int, mode: str = "RGB", size: tuple[int, int] = (8, 8), kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, format=kind)
    return path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A folder of two classes with ten images each."""
    for k, name in enumerate(("cat", "dog")):
        for i in range(10):
            picture(tmp_path / "pets" / name / f"{i}.png", 100 * k + i)
    return tmp_path / "pets"


CUT = FolderOptions(test=0.2, validation=0.25)


def names(folder: ImageFolder) -> dict[str, set[str]]:
    return {split: {str(file) for file in part.files} for split, part in folder.parts.items()}


# Layouts --------------------------------------------------------------------------------------------------------------


def test_a_flat_folder_is_cut_into_three_splits(flat) -> None:
    folder = ImageFolder(flat, CUT)
    assert {split: np.bincount(part.labels).tolist() for split, part in folder.parts.items()} == {
        "train": [6, 6],
        "test": [2, 2],
        "validation": [2, 2],
    }
    found = names(folder)
    assert len(set().union(*found.values())) == 20
    assert names(ImageFolder(flat, CUT)) == found
    assert names(ImageFolder(flat, FolderOptions(test=0.2, validation=0.25, seed=1))) != found


@pytest.mark.parametrize(("train", "val", "test"), [("train", "val", "test"), ("training", "valid", "testing")])
@pytest.mark.parametrize("has", ["val test", "val", "test", ""])
def test_folders_of_splits_are_taken_and_missing_ones_are_cut(flat, tmp_path, train, val, test, has) -> None:
    root = tmp_path / "split"
    shutil.copytree(flat, root / train)
    for split, seed in ((val, 1000), (test, 2000)):
        if split.replace("valid", "val").replace("testing", "test") in has.split():
            for name in ("cat", "dog"):
                picture(root / split / name / "more" / "x.png", seed + ord(name[0]))
    folder = ImageFolder(root, CUT)
    assert folder.parts.keys() == {"train", "validation", "test"}
    assert len(folder.parts["test"].files) == (2 if "test" in has else 4)
    there = {"val": "validation", "test": "test"}
    assert set(folder.cut) == {"test", "validation"} - {there[name] for name in has.split()}
    assert len(set().union(*names(folder).values())) == sum(len(part.files) for part in folder.parts.values())


@pytest.mark.parametrize(
    "head", ["file,label,split\n", "path;class;set\n", "filename\tlabel\tsplit\n", "label,image,split\n"]
)
def test_a_table_names_files_labels_and_splits(flat, head) -> None:
    delimiter = next(c for c in ",;\t" if c in head)
    rows = [(f"{name}/{i}.png", name, "val" if i == 9 else "train") for name in ("dog", "cat") for i in range(10)]
    rows.append(("gone.png", "cat", "train"))
    if head.startswith("label"):
        rows = [(b, a, c) for a, b, c in rows]
    (flat / "all.csv").write_text(head + "".join(delimiter.join(row) + "\n" for row in rows))
    folder = ImageFolder(flat / "all.csv", CUT)
    assert folder.classes == ("cat", "dog")
    assert {split: len(part.files) for split, part in folder.parts.items()} == {"train": 14, "validation": 2, "test": 4}
    for part in folder.parts.values():
        assert [Path(file).parent.name for file in part.files] == [folder.classes[label] for label in part.labels]
    assert [entry.path.name for entry in folder.parts["train"].left_out] == ["gone.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a table of files and labels"),
        ("a,b\nx,y\n", "must have 'file' and 'label'"),
        ("image,captions\nx.png,y\n", "has the columns image, captions .* must have 'image' and 'caption', or"),
        ("file,label\ncat/0.png,a cat, asleep\n", "line 2 has 3 cells, but the first line has 2"),
        ("cat/0.png,cat\ncat/1.png,cat, asleep\n", "line 2 has 3 cells, but the first line has 2"),
        ("file,label,class\ncat/0.png,cat,pet\n", "has 2 columns for the label: 'label' and 'class'"),
        ("file,label\nx.png,\n", "line 2: .* does not have a file and a label"),
        ("file,label\nx.png,cat\n", "names no file that exists: .*x.png"),
        ("file,label,split\ncat/0.png,cat,trian\n", "line 2: the split is 'trian'"),
        ("file,label,split\ncat/0.png,cat,train\ndog/0.png,dog,test\n", "no training image of the classes dog"),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error(flat, content, message) -> None:
    (flat / "all.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        ImageFolder(flat / "all.csv", CUT)


def test_a_class_may_be_called_train(tmp_path) -> None:
    for name in ("train", "car"):
        for i in range(4):
            picture(tmp_path / name / f"{i}.png", ord(name[0]) + i)
    assert ImageFolder(tmp_path, CUT).classes == ("car", "train")


def test_a_folder_with_a_test_but_no_train_is_an_error(flat) -> None:
    (flat / "dog").rename(flat / "test")
    with pytest.raises(DataError, match="has the folder test, but no folder train"):
        ImageFolder(flat)


# Files ----------------------------------------------------------------------------------------------------------------


def test_files_are_recognized_by_their_content(flat) -> None:
    kinds = {"a": "PNG", "b.txt": "JPEG", "c.dat": "WEBP", "d": "BMP", "e": "GIF"}
    for number, (name, kind) in enumerate(kinds.items()):
        path = picture(flat / "cat" / "odd" / name, 500 + number, kind=kind)
        assert kind_of(path) == kind
    others = {"x.heic": b"\0\0\0\x18ftypheic", "BMW.md": b"BMW is a car, not a bitmap", "P5.txt": b"P5 no"}
    for name, content in others.items():
        (flat / "cat" / name).write_bytes(content)
    part = ImageFolder(flat, FolderOptions(test=1)).parts
    assert sum(len(p.files) for p in part.values()) == 25
    reasons = {entry.path.name: entry.reason for entry in part["train"].left_out}
    assert "save it as JPEG or PNG" in reasons["x.heic"]
    assert reasons["BMW.md"] == reasons["P5.txt"] == "not an image"


def test_equal_files_are_in_one_split_and_names_do_not_matter(flat) -> None:
    before = ImageFolder(flat, CUT)
    for name in ("cat", "dog"):
        for file in list((flat / name).iterdir()):
            shutil.copy(file, file.with_name(f"copy-{file.name}"))
    for split, files in names(ImageFolder(flat, CUT)).items():
        assert {Path(file).name.startswith("copy-") for file in files} == {True, False}, split
        originals = {file for file in files if "copy-" not in file}
        assert {file.replace("copy-", "") for file in files} == originals
    for name in ("cat", "dog"):
        for file in list((flat / name).iterdir()):
            if file.name.startswith("copy-"):
                file.unlink()
            else:
                file.rename(file.with_name(f"z{9 - int(file.stem)}.png"))
    after = ImageFolder(flat, CUT)
    contents = [{Path(f).read_bytes() for f in folder.parts["test"].files} for folder in (after,)]
    assert len(before.parts["test"].files) == len(contents[0])


def test_broken_files_are_skipped_or_refused(flat, caplog) -> None:
    (flat / "dog" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    parts = [ImageFolder(flat, FolderOptions(test=1)).load(split) for split in ("train", "test")]
    assert sum(map(len, parts)) == 20
    assert "torn.jpg (cannot be read as an image" in caplog.text
    folder = ImageFolder(flat, FolderOptions(test=1, broken="refuse"))
    split = next(name for name, part in folder.parts.items() if flat / "dog" / "torn.jpg" in part.files)
    with pytest.raises(DataError, match=r"1 image that cannot be read: .*torn\.jpg.*set data.broken=skip"):
        folder.load(split)


def test_size_channels_and_normalization_are_those_of_the_images(tmp_path) -> None:
    for name in ("a", "b"):
        for i in range(6):
            picture(tmp_path / name / f"{i}.png", ord(name) + i, "L", (9, 7))
    train = ImageFolder(tmp_path, CUT).load("train")
    assert train.images.shape[1:] == (1, 7, 9)
    x = train.images.astype(np.float64) / 255
    assert train.mean == (pytest.approx(x.mean(), abs=1e-6),)
    assert train.std == (pytest.approx(x.std(), abs=1e-6),)
    assert ImageFolder(tmp_path, CUT).load("test").mean == train.mean
    picture(tmp_path / "a" / "colour.png", 9, size=(9, 7))
    options = FolderOptions(test=1, statistics="half")
    assert {len(ImageFolder(tmp_path, options).load(split).mean) for split in ("train", "test")} <= {1, 3}
    assert image_folder(tmp_path, "train", options=FolderOptions(channels=3, image_size=4)).images.shape[1:] == (
        3,
        4,
        4,
    )


# On disk --------------------------------------------------------------------------------------------------------------


def test_images_beyond_the_cache_are_read_when_they_are_needed(flat) -> None:
    side = 512  # of which one image is 0.75 MiB
    whole, part = (ImageFolder(flat, FolderOptions(image_size=side, cache_mb=mb)).load("train") for mb in (1024, 3))
    assert isinstance(whole.images, np.ndarray)
    assert isinstance(part.images, DiskImages)
    assert (len(part), part.images.shape, part.mean) == (16, whole.images.shape, whole.mean)
    order = np.random.default_rng(0).permutation(16)
    for chosen in (order, order[:3], slice(2, 9), np.array([], np.int64)):
        np.testing.assert_array_equal(part.images[chosen], whole.images[chosen])
    np.testing.assert_array_equal(part.images[5], whole.images[5])
    few = pickle.loads(pickle.dumps(part.chosen(order[4:8])))
    np.testing.assert_array_equal(few.batch(np.arange(4)).images, whole.batch(order[4:8]).images)
    assert (
        few.fingerprint()
        != part.fingerprint()
        == ImageFolder(flat, FolderOptions(image_size=side, cache_mb=6)).load("train").fingerprint()
    )


def test_a_file_that_changes_during_a_run_is_an_error(flat) -> None:
    data = ImageFolder(flat, FolderOptions(image_size=512, cache_mb=1)).load("train")
    picture(Path(data.files[9]), 77)
    with pytest.raises(DataError, match="has changed since the run began"):
        data.images[9]


# The check ------------------------------------------------------------------------------------------------------------


def test_a_check_counts_and_names(flat) -> None:
    folder = ImageFolder(flat, FolderOptions(validation=0.1))
    train, test = (Path(folder.parts[split].files[0]) for split in ("train", "test"))
    with Image.open(train) as image:
        image.save(train.with_name("same.bmp"))  # other bytes, but the same pixels
    (flat / "cat" / "torn.png").write_bytes(b"torn")
    (flat / "dog" / "notes.txt").write_text("notes")
    text = check_folder(flat).text
    assert "21 images of 2 classes; test and validation images were cut by a seed" in text
    assert "sizes: all 8 x 8 pixels" in text
    assert "formats: PNG 20, BMP 1" in text
    assert "torn.png (cannot be read as an image" in text
    assert "notes.txt (not an image)" in text
    assert "contradictory labels: 0" in text
    assert text.count("same.bmp") == 1
    assert test.exists()


@pytest.mark.parametrize("form", ["folders", "table"])
def test_equal_images_with_different_labels_are_named(flat, form) -> None:
    if form == "folders":
        (flat / "dog" / "twin.png").write_bytes((flat / "cat" / "0.png").read_bytes())
        text, one, other = check_folder(flat).text, flat / "cat/0.png (cat)", flat / "dog/twin.png (dog)"
    else:
        files = [(f"{name}/{i}.png", name) for name in ("cat", "dog") for i in range(8)]
        rows = [*files, ("cat/0.png", "dog"), ("cat/1.png", "cat")]  # the last one is repeated, but agrees
        (flat / "some.csv").write_text("".join(f"{','.join(row)}\n" for row in [("file", "label"), *rows]))
        text = check_folder(flat / "some.csv").text
        one, other = flat / "cat/0.png (cat)", flat / "cat/0.png (dog)"
    (line,) = [line for line in text.splitlines() if line.startswith("contradictory labels")]
    assert line in (f"contradictory labels: 1: {one} = {other}", f"contradictory labels: 1: {other} = {one}")


def test_images_that_are_all_equal_cannot_be_divided(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / "cat" / f"{name}.png")
    with pytest.raises(DataError, match=r"3 images to train on, equal to those that would be held out"):
        ImageFolder(tmp_path)


# Everything that a check can report -----------------------------------------------------------------------------------


def test_a_check_reports_all_faults_that_stop_training(flat) -> None:
    (flat / "empty").mkdir()
    (flat / "text").mkdir()
    (flat / "text/a.txt").write_text("a text")
    (flat / "torn").mkdir()
    (flat / "torn/0.png").write_bytes((flat / "cat/0.png").read_bytes()[:40])
    found = check_folder(flat)
    assert [name for fault in found.faults for name in ("empty", "text", "torn") if str(flat / name) in fault] == [
        *("empty", "text", "torn")
    ]
    assert "training would stop at 3 faults:" in found.text
    assert all(f"  {fault}" in found.text for fault in found.faults)
    table = found.text.split("\n\n")[1]
    assert [line.split()[0] for line in table.splitlines()[1:-1]] == sorted(
        p.name for p in flat.iterdir() if p.is_dir()
    )
    assert "1 file is left out of the " in found.text
    with pytest.raises(DataError, match="empty holds no images"):
        ImageFolder(flat)  # training stops at the first


def test_a_check_of_splits_reports_what_each_lacks(flat, tmp_path) -> None:
    root = tmp_path / "split"
    for split in ("train", "val"):
        shutil.copytree(flat, root / split, ignore=shutil.ignore_patterns("*.csv"))
    (root / "val/bird").mkdir()
    (root / "test").mkdir()
    found = check_folder(root)
    assert [str(root / name) in fault for name, fault in zip(("val/bird", "test"), found.faults, strict=True)] == [
        True
    ] * 2
    assert "bird" not in found.text.split("\n\n")[1]


def test_a_check_of_a_table_reports_every_line(flat) -> None:
    lines = ["file,label,split", "cat/0.png,cat,train", "cat/1.png,,train", "dog/0.png,dog,tset", "dog/1.png,dog,test"]
    (flat / "some.csv").write_text("\n".join(lines))
    found = check_folder(flat / "some.csv")
    assert [fault.partition(": ")[0].rpartition("/")[2] for fault in found.faults[:2]] == [
        "some.csv, line 3",
        "some.csv, line 4",
    ]
    assert any("no training image of the classes dog" in fault for fault in found.faults)
    with pytest.raises(DataError, match="line 3"):
        ImageFolder(flat / "some.csv")


def test_a_folder_without_faults_has_none(flat) -> None:
    assert check_folder(flat).faults == ()
    assert "training would stop" not in check_folder(flat).text


def test_a_class_of_one_image_is_reported(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "a/0.png")
    found = check_folder(tmp_path)
    assert len(found.faults) == 2  # neither test nor validation images can be held out
    assert all("too few to hold some out" in fault for fault in found.faults)
