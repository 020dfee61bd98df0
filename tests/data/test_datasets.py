"""The data sets: the embedded digits, folders of images, and the real files if they are available."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mirror_server import whole
from peers import peer
from PIL import Image

from tinyvit.data import (
    CHANNEL_STATISTICS,
    Dataset,
    FolderOptions,
    dataset_names,
    image_folder,
    load_dataset,
    normalize,
)
from tinyvit.data.datasets import CLASSES, checksum
from tinyvit.data.sources import SOURCES
from tinyvit.data.texts import TEXT_DATASETS
from tinyvit.data.things import THINGS
from tinyvit.errors import DataError

FindData = Callable[[str], Path]


def test_the_digits_are_split_by_every_fifth_image() -> None:
    sklearn = peer("sklearn.datasets", "scikit-learn")  # has another copy of the digits
    values, labels = sklearn.load_digits(return_X_y=True)
    is_test = np.arange(1797) % 5 == 4
    for split, chosen in (("train", ~is_test), ("test", is_test)):
        digits = load_dataset("digits", split)
        assert digits.images.shape == (chosen.sum(), 1, 8, 8)
        assert np.array_equal(digits.labels, labels[chosen])
        pixels = values[chosen].reshape(-1, 1, 8, 8)
        assert np.array_equal(digits.images, np.floor(pixels * 255 / 16))
        assert digits.classes == tuple("0123456789")
    assert len(load_dataset("digits", "train")) == 1438
    assert len(load_dataset("digits", "test")) == 359


def test_scaling_the_digits_to_bytes_is_reversible() -> None:
    images = load_dataset("digits", "train").images
    assert sorted(np.unique(images)) == sorted({value * 255 // 16 for value in range(17)})


REAL = [
    ("mnist", "train", (60000, 1, 28, 28), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
    ("mnist", "test", (10000, 1, 28, 28), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ("fashion-mnist", "train", (60000, 1, 28, 28), [6000] * 10),
    ("fashion-mnist", "test", (10000, 1, 28, 28), [1000] * 10),
    ("cifar-10", "test", (10000, 3, 32, 32), [1000] * 10),
    pytest.param("cifar-10", "train", (50000, 3, 32, 32), [5000] * 10, marks=pytest.mark.slow),
    pytest.param("cifar-100", "train", (50000, 3, 32, 32), [500] * 100, marks=pytest.mark.slow),
    ("cifar-100", "test", (10000, 3, 32, 32), [100] * 100),
    ("digits", "train", (1438, 1, 8, 8), [151, 161, 143, 131, 147, 154, 150, 136, 127, 138]),
]


@pytest.mark.parametrize(("name", "split", "shape", "histogram"), REAL)
def test_the_real_data_has_its_known_counts_and_statistics(
    data_dir: FindData, name: str, split: str, shape: tuple[int, ...], histogram: list[int]
) -> None:
    if name != "digits":
        data_dir(name)
    dataset = load_dataset(name, split)
    assert dataset.images.dtype == np.uint8
    assert dataset.images.shape == shape
    assert dataset.images.flags.c_contiguous
    assert dataset.labels.dtype == np.int64
    assert np.bincount(dataset.labels).tolist() == histogram
    assert len(dataset.classes) == len(histogram)
    count = dataset.images[:, 0].size
    mean = dataset.images.sum((0, 2, 3), np.uint64) / count / 255
    squares = np.einsum("nchw,nchw->c", dataset.images, dataset.images, dtype=np.uint64) / count / 255**2
    tolerance = 5.1e-5 if split == "train" else 0.01  # four published digits, or another sample
    assert mean == pytest.approx(dataset.mean, abs=tolerance)
    assert np.sqrt(squares - mean**2) == pytest.approx(dataset.std, abs=tolerance)


def test_mnist_begins_with_its_well_known_five(data_dir: FindData) -> None:
    data_dir("mnist")
    mnist = load_dataset("mnist", "train")
    assert mnist.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.images[0, 0].sum() == 27525
    assert mnist.images[0, 0, 5, 12:16].tolist() == [3, 18, 18, 18]


def idx(values: np.ndarray) -> bytes:
    shape = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return bytes((0, 0, 8, values.ndim)) + shape + values.tobytes()


def test_a_missing_data_set_is_downloaded_and_then_found(cache: Path, offer, mirror) -> None:
    rng = np.random.default_rng(0)
    images, labels = np.zeros((10_000, 28, 28), np.uint8), rng.integers(0, 10, 10_000, np.uint8)
    images[:, 3, 4] = labels
    files = {
        "t10k-images-idx3-ubyte.gz": gzip.compress(idx(images), 1),
        "t10k-labels-idx1-ubyte.gz": gzip.compress(idx(labels), 1),
    }
    offer([mirror.url], **files)
    mirror.answers = {f"/{name}": whole(content) for name, content in files.items()}
    for _ in range(2):
        dataset = load_dataset("mnist", "test")
        assert np.array_equal(dataset.labels, labels)
        assert np.array_equal(dataset.images[:, 0], images)
    assert len(mirror.requests) == 2


def test_damaged_files_and_labels_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVIT_DATA", str(tmp_path))
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part in SOURCES["mnist"].files:
        (folder / part.name).write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is an HTML page.*tinyvit data fetch mnist"):
        load_dataset("mnist", "test")
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(idx(np.zeros((10_000, 28, 28), np.uint8)))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.full(10_000, 10, np.uint8)))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz holds the label 10, but has 10 classes"):
        load_dataset("mnist", "test")


@pytest.mark.parametrize("form", ["plain", "archive"])
def test_cifar_100_has_fine_labels_from_either_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("TINYVIT_DATA", str(tmp_path))
    records = np.zeros((10_000, 2 + 3072), np.uint8)
    records[:, 0], records[:, 1] = np.arange(10_000) % 20, np.arange(10_000) % 100
    records[:, 2 + 2 * 1024 + 5 * 32 + 7] = np.arange(10_000) % 251  # blue, row 5, column 7
    folder = tmp_path / "cifar-100"
    folder.mkdir()
    if form == "plain":
        (folder / "test.bin").write_bytes(records.tobytes())
        (folder / "train.bin.xz").touch()
    else:
        with tarfile.open(folder / "cifar-100-binary.tar.gz", "w:gz", compresslevel=1) as archive:
            member = tarfile.TarInfo("cifar-100-binary/test.bin")
            member.size = records.nbytes
            archive.addfile(member, io.BytesIO(records.tobytes()))
    dataset = load_dataset("cifar-100", "test")
    assert np.array_equal(dataset.labels, np.arange(10_000) % 100)
    assert np.array_equal(dataset.images[:, 2, 5, 7], np.arange(10_000) % 251)
    assert np.count_nonzero(dataset.images) == np.count_nonzero(dataset.images[:, 2, 5, 7])
    assert dataset.images.flags.c_contiguous


def test_names_and_splits_that_do_not_exist_are_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'mnist'"):
        load_dataset("MNIST", "train")
    with pytest.raises(ValueError, match="split is 'val'"):
        load_dataset("digits", "val")
    with pytest.raises(DataError, match="image_size is 32; the images of digits have the size 8"):
        load_dataset("digits", "train", image_size=32)
    assert load_dataset("digits", "train", image_size=8).images.shape[2:] == (8, 8)


def test_every_name_has_classes_and_statistics() -> None:
    labelled = [name for name in dataset_names() if name not in (*TEXT_DATASETS, *THINGS)]
    assert set(labelled) == set(CLASSES) == set(CHANNEL_STATISTICS) - {"folder"}
    for name, count in zip(labelled, (10, 10, 10, 10, 100, 8, 5), strict=True):
        assert len(set(CLASSES[name])) == len(CLASSES[name]) == count
    assert list(CLASSES["cifar-100"]) == sorted(CLASSES["cifar-100"])


def image_tree(root: Path, **files: tuple[int, int]) -> Path:
    """Write images of the given (width, height), each filled with a different value."""
    for value, (name, size) in enumerate(files.items()):
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, value + 1).save(path.with_suffix(".png"))
    return root


def test_a_folder_of_images_is_a_data_set(tmp_path: Path) -> None:
    root = image_tree(
        tmp_path,
        train__dog__b=(4, 4),
        train__dog__a=(4, 4),
        train__cat__c=(4, 4),
        test__dog__d=(4, 4),
    )
    (root / "train" / "dog" / "notes.txt").write_text("not an image")
    (root / "train" / ".hidden").mkdir()
    train = load_dataset(f"folder:{root}", "train")
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 1, 1]
    assert train.images.shape == (3, 1, 4, 4)  # grey stays grey
    assert train.images[:, 0, 0, 0].tolist() == [3, 2, 1]  # cat/c, dog/a, dog/b
    test = load_dataset(f"folder:{root}", "test", image_size=6)
    assert test.classes == ("cat", "dog")
    assert test.labels.tolist() == [1]
    assert test.images.shape == (1, 1, 6, 6)
    half = image_folder(root, "test", options=FolderOptions(statistics="half"))
    assert half.normalize(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)).ravel().tolist() == [-1, 1]


def test_an_error_about_a_folder_with_another_layout_says_what_is_wrong(tmp_path: Path) -> None:
    def error(split: str = "train", root: Path = tmp_path) -> str:
        with pytest.raises(DataError) as caught:
            image_folder(root, split)
        return str(caught.value)

    assert "PATH/train/<class>/<file>" in error()
    (tmp_path / "train").mkdir()
    assert "holds no folders" in error()
    (tmp_path / "train" / "cat").mkdir()
    assert "holds no images" in error()
    image_tree(tmp_path, train__cat__a=(4, 4), train__cat__b=(4, 5), train__cat__c=(4, 6), train__cat__d=(4, 7))
    assert "give image_size" in error()
    image_tree(tmp_path, test__cow__a=(4, 4))
    assert "cow is a class that" in error("test")
    (tmp_path / "test" / "cow").rename(tmp_path / "test" / "cat")
    for name in "abcd":
        (tmp_path / "train" / "cat" / f"{name}.png").write_bytes(b"torn")
    assert "a.png (cannot be read as an image" in error()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": np.zeros((2, 1, 3, 3))}, "images are float64"),
        ({"images": np.zeros((2, 3, 3), np.uint8)}, r"\(2, 3, 3\)"),
        ({"labels": np.zeros(3, np.int64)}, r"not int64 \(2,\)"),
        ({"labels": np.array([0, 2])}, "labels go from 0 to 2, of 2 classes"),
        ({"labels": np.array([-1, 0])}, "labels go from -1 to 0"),
        ({"mean": (0.0, 0.0)}, "each of the 1 channels"),
    ],
)
def test_a_data_set_of_inconsistent_arrays_is_refused(wrong: dict[str, object], message: str) -> None:
    parts = {
        "images": np.zeros((2, 1, 3, 3), np.uint8),
        "labels": np.array([0, 1]),
        "classes": ("a", "b"),
        "mean": (0.5,),
        "std": (0.5,),
    }
    with pytest.raises(ValueError, match=message):
        Dataset("toy", "train", **(parts | wrong))


def test_a_fingerprint_is_of_pixels_labels_shapes_and_dtypes() -> None:
    pixels, labels = np.arange(24, dtype=np.uint8), np.arange(3)
    given = [
        (pixels.reshape(3, 1, 2, 4), labels),
        (pixels.reshape(3, 1, 4, 2), labels),
        (pixels.reshape(3, 2, 2, 2), labels),
        (pixels.reshape(3, 1, 2, 4) + np.uint8(1), labels),
        (pixels.reshape(3, 1, 2, 4), labels[::-1]),
        (pixels.reshape(3, 1, 2, 4).view(np.int8), labels),
    ]
    assert len({checksum(*arrays) for arrays in given}) == len(given)
    assert checksum(*given[0]) == checksum(*(array.copy() for array in given[0]))


def test_normalizing_is_the_formula_for_bytes_and_floats() -> None:
    mean, std = CHANNEL_STATISTICS["cifar-10"]
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), np.uint8)
    column = (3, 1, 1)
    expected = (images / 255 - np.reshape(mean, column)) / np.reshape(std, column)
    for dtype in (np.uint8, np.float32, np.float64):
        found = normalize(images.astype(dtype), mean, std)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 4 * np.finfo(np.float32).eps * np.abs(expected).max()
    assert np.array_equal(normalize(images[0], mean, std), normalize(images, mean, std)[0])


def test_a_data_set_is_printed_in_a_line() -> None:
    assert repr(load_dataset("digits", "test")) == "Dataset(digits, test: 359 images of 1 x 8 x 8, 10 classes)"
