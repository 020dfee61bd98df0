"""IDX and CIFAR files, complete and damaged: a reader returns the right values or raises a DataError."""

import gzip
import io
import lzma
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvit.data.formats import read_cifar, read_cifar_archive, read_idx
from tinyvit.errors import DataError

SHAPE = (5, 4, 3)
VALUES = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
IDX = b"\0\0\x08\x03" + b"".join(length.to_bytes(4, "big") for length in SHAPE) + VALUES.tobytes()


def gzipped(content: bytes) -> bytes:
    """Compress without the time of day, so that tests have the same names in every run."""
    return gzip.compress(content, mtime=0)


COMPRESSIONS = {"plain": bytes, "gzip": gzipped, "xz": lzma.compress}


def idx_file(folder: Path, content: bytes) -> Path:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    return path


def cifar_bytes(records: int, label_bytes: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Return a file, record by record, and the images and (last) labels in it."""
    rng = np.random.default_rng(records)
    images = rng.integers(0, 256, (records, 3, 32, 32), np.uint8)
    labels = rng.integers(0, 10, (records, label_bytes), np.uint8)
    content = b"".join(bytes(label) + bytes(image.ravel()) for label, image in zip(labels, images, strict=True))
    return content, images, labels[:, -1]


def cifar_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def assert_names_the_way_out(error: pytest.ExceptionInfo[DataError], path: Path) -> None:
    assert str(path) in str(error.value)
    assert "delete it and run `tinyvit data fetch mnist`" in str(error.value)


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_idx_is_read_whatever_its_compression_and_name(tmp_path: Path, compress) -> None:
    values = read_idx(idx_file(tmp_path, compress(IDX)), "mnist", SHAPE)
    assert values.dtype == np.uint8
    assert np.array_equal(values, VALUES)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE HTML><html>Sign in</html>", "is an HTML page"),
        (b"\0\0\x08\x01" + IDX[4:], "begins with the bytes 00 00 08 01, not with 00 00 08 03"),
        (IDX[:9], "ends inside its header, after 9 of 16 bytes"),
        (IDX[:3] + b"\x03\0\0\0\6" + IDX[8:], "announces the shape (6, 4, 3), not (5, 4, 3)"),
        (IDX[:-1], "ends after 75 of 76 bytes"),
        (IDX + b"\0", "holds more than the 76 bytes"),
        (gzipped(IDX)[:-9], "is damaged"),
        (gzipped(IDX[:-1]), "ends after 75 of 76 bytes"),
        (gzipped(IDX) + b"rubbish", "is damaged"),
        (lzma.compress(IDX)[:-9], "is damaged"),
    ],
)
def test_idx_that_is_something_else_says_what_was_found(tmp_path: Path, content: bytes, found: str) -> None:
    path = idx_file(tmp_path, content)
    with pytest.raises(DataError, match=re.escape(found)) as error:
        read_idx(path, "mnist", SHAPE)
    assert_names_the_way_out(error, path)


@given(compression=st.sampled_from(list(COMPRESSIONS)), data=st.data())
@settings(max_examples=60)
def test_idx_cut_anywhere_is_an_error(tmp_path_factory: pytest.TempPathFactory, compression, data) -> None:
    content = COMPRESSIONS[compression](IDX)
    length = data.draw(st.integers(0, len(content) - 1))
    path = idx_file(tmp_path_factory.getbasetemp(), content[:length])
    with pytest.raises(DataError) as error:
        read_idx(path, "mnist", SHAPE)
    assert_names_the_way_out(error, path)


@given(compression=st.sampled_from(["gzip", "xz"]), data=st.data())
@settings(max_examples=100)
def test_compressed_idx_with_a_flipped_bit_never_gives_other_values(
    tmp_path_factory: pytest.TempPathFactory, compression, data
) -> None:
    content = bytearray(COMPRESSIONS[compression](IDX))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = idx_file(tmp_path_factory.getbasetemp(), bytes(content))
    try:
        values = read_idx(path, "mnist", SHAPE)
    except DataError:
        return
    assert np.array_equal(values, VALUES)  # the bit has no effect, such as one of the time in a gzip header


def test_a_file_that_cannot_be_opened_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_idx(tmp_path / "missing", "mnist", SHAPE)
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path, "mnist", SHAPE)


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
@pytest.mark.parametrize("label_bytes", [1, 2])
def test_cifar_records_are_split_into_images_and_their_last_label(tmp_path: Path, compress, label_bytes: int) -> None:
    content, images, labels = cifar_bytes(4, label_bytes)
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(compress(content))
    found_images, found_labels = read_cifar(path, "cifar-10", 4, label_bytes)
    assert np.array_equal(found_images, images)
    assert np.array_equal(found_labels, labels)


def test_a_record_that_looks_like_the_start_of_markup_is_data(tmp_path: Path) -> None:
    content, images, _ = cifar_bytes(1, 1)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(b"\t<" + content[2:])  # label 9, first pixel 60
    found, labels = read_cifar(path, "cifar-10", 1, 1)
    assert labels.tolist() == [9]
    assert found[0, 0, 0, 0] == ord("<")
    assert np.array_equal(found.ravel()[1:], images.ravel()[1:])


@pytest.mark.parametrize("change", [-3073, -1, 1, 3073])
def test_cifar_of_another_length_is_an_error(tmp_path: Path, change: int) -> None:
    content, _, _ = cifar_bytes(3, 1)
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(DataError, match=r"of 9,219 bytes|more than the 9,219 bytes"):
        read_cifar(path, "mnist", 3, 1)


def test_a_cifar_archive_gives_the_members_in_the_order_asked_for(tmp_path: Path) -> None:
    batches = {f"data_batch_{i}.bin": cifar_bytes(3, 1) for i in (2, 1)}
    members = {"readme.html": b"<html>", **{name: content for name, (content, _, _) in batches.items()}}
    path = cifar_archive(tmp_path / "cifar-10-binary.tar.gz", members)
    order = ["data_batch_1.bin", "data_batch_2.bin"]
    for name, (images, labels) in zip(order, read_cifar_archive(path, "cifar-10", order, 3, 1), strict=True):
        assert np.array_equal(images, batches[name][1])
        assert np.array_equal(labels, batches[name][2])


def test_an_archive_that_lacks_a_member_or_has_a_short_one_says_which(tmp_path: Path) -> None:
    content, _, _ = cifar_bytes(3, 1)
    path = cifar_archive(tmp_path / "x.tar.gz", {"test_batch.bin": content[:-5]})
    with pytest.raises(DataError, match=r"does not contain data_batch_1\.bin") as error:
        read_cifar_archive(path, "mnist", ["data_batch_1.bin"], 3, 1)
    assert_names_the_way_out(error, path)
    with pytest.raises(DataError, match=r"x\.tar\.gz, test_batch\.bin, ends after 9,214 of 9,219 bytes"):
        read_cifar_archive(path, "mnist", ["test_batch.bin"], 3, 1)


def test_an_archive_of_something_else_or_with_another_checksum_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(b"no archive" * 200))
    with pytest.raises(DataError, match="is damaged") as error:
        read_cifar_archive(path, "mnist", ["test_batch.bin"], 1, 1)
    assert_names_the_way_out(error, path)
    content = bytearray(cifar_archive(path, {"test_batch.bin": cifar_bytes(1, 1)[0]}).read_bytes())
    content[-8] ^= 1  # gzip ends with the checksum of the content, and its length
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged") as error:
        read_cifar_archive(path, "mnist", ["test_batch.bin"], 1, 1)
    assert_names_the_way_out(error, path)


@given(data=st.data())
@settings(max_examples=40)
def test_an_archive_cut_anywhere_is_an_error(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = cifar_archive(folder / "cut.tar.gz", {"test_batch.bin": cifar_bytes(1, 1)[0]})
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DataError) as error:
        read_cifar_archive(path, "mnist", ["test_batch.bin"], 1, 1)
    assert_names_the_way_out(error, path)


@pytest.mark.parametrize("place", ["a member", "after the last member"])
def test_an_archive_that_unpacks_to_very_much_is_not_read_to_its_end(tmp_path: Path, place: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("zeros")
        member.size = 50_000_000 if place == "a member" else 0
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(gzipped(buffer.getvalue() + bytes(50_000_000)))
    with pytest.raises(DataError, match="more than is plausible") as error:
        read_cifar_archive(path, "mnist", ["train.bin"], 1, 1)
    assert_names_the_way_out(error, path)
