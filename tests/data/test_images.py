"""Reading images: the stated rule for each kind of pixel, and a clear error for files that are not images."""

import contextlib
import io
import os
import re
import socket
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sources import FILES

from tinyvit.backend import files
from tinyvit.data import images, load_dataset, read_image
from tinyvit.errors import DataError
from tinyvit.use import is_drawn

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
GREYS = COLOURS[..., 0]


def saved(folder: Path, image: Image.Image, name: str = "image.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def test_a_digit_saved_and_read_back_is_the_same_input(tmp_path: Path) -> None:
    digits = load_dataset("digits", "test")
    for image in digits.images[:20]:
        path = saved(tmp_path, Image.fromarray(image[0]))
        assert np.array_equal(read_image(path, 1, 8), image)
        in_colour = saved(tmp_path, Image.fromarray(np.repeat(image.transpose(1, 2, 0), 3, axis=2)))
        assert np.array_equal(read_image(in_colour, 1, 8), image)


def test_colour_and_grey_are_taken_as_they_are_or_converted(tmp_path: Path) -> None:
    colour = saved(tmp_path, Image.fromarray(COLOURS), "colour.png")
    grey = saved(tmp_path, Image.fromarray(GREYS), "grey.png")
    assert np.array_equal(read_image(colour, 3), COLOURS.transpose(2, 0, 1))
    assert np.array_equal(read_image(grey, 1), GREYS[None])
    assert np.array_equal(read_image(grey, 3), np.stack([GREYS] * 3))
    luma = COLOURS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(colour, 1)[0] - luma).max() <= 0.51
    assert read_image(colour, 3).flags.c_contiguous


def test_transparency_lies_over_black(tmp_path: Path) -> None:
    alpha = np.arange(0, 252, 7, dtype=np.uint8).reshape(6, 6)
    expected = COLOURS * (alpha[..., None] / 255)
    path = saved(tmp_path, Image.fromarray(np.dstack([COLOURS, alpha])))
    assert np.abs(read_image(path, 3).transpose(1, 2, 0) - expected).max() <= 1
    path = saved(tmp_path, Image.merge("LA", [Image.fromarray(GREYS), Image.fromarray(alpha)]))
    assert np.abs(read_image(path, 1)[0] - GREYS * (alpha / 255)).max() <= 1.5


INK = np.zeros((8, 8), np.uint8)
INK[2:6, 3:5] = 255


def with_alpha(mode: str, value: int, alpha: np.ndarray) -> Image.Image:
    bands = [Image.fromarray(np.full((8, 8), value, np.uint8)) for _ in mode[:-1]]
    return Image.merge(mode, [*bands, Image.fromarray(alpha)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize(
    ("value", "alpha", "is_seen"),
    [
        (0, INK, False),
        (12, INK, False),
        (0, 255 - INK, False),
        (90, np.zeros_like(INK), False),
        (255, INK, True),
        (60, INK, True),
        (0, np.full_like(INK, 255), True),
    ],
)
def test_shapes_that_black_would_hide_are_refused(tmp_path, channels, mode, value, alpha, is_seen) -> None:
    path = saved(tmp_path, with_alpha(mode, value, alpha))
    if is_seen:
        assert read_image(path, channels).shape == (channels, 8, 8)
    else:
        with pytest.raises(DataError, match=r"image\.png .* laid over black, so that nothing is seen; save it without"):
            read_image(path, channels)


def test_a_transparent_value_of_sixteen_bits_is_laid_over_black(tmp_path: Path) -> None:
    values = np.array([[40_000, 257], [65535, 40_000]], np.uint16)
    path = saved(tmp_path, Image.fromarray(values), transparency=40_000)
    assert read_image(path, 1)[0].tolist() == [[0, 1], [255, 0]]


def test_sixteen_bits_that_become_one_value_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.array([[0, 255], [100, 3]], np.uint16)))
    with pytest.raises(DataError, match="from 0 to 255 of 65535, are one value of 8 bits; save it as an 8-bit PNG"):
        read_image(path, 1)
    assert read_image(saved(tmp_path, Image.fromarray(np.full((2, 2), 9, np.uint16))), 1).max() == 0


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I;16B")


@pytest.mark.parametrize("mode", [*MODES, "I", "F", "La"])
def test_every_mode_of_pillow_is_converted_or_refused(tmp_path, mode, monkeypatch) -> None:
    source = Image.new(mode, (4, 4), 1 if mode == "1" else None)
    path = saved(tmp_path, Image.new("L", (4, 4)))
    source.format = "TIFF"
    monkeypatch.setattr("PIL.Image.open", lambda path, **options: source)
    refused = {"LA", "PA", "RGBA", "RGBa"} | {"I", "F", "La"}  # transparent all over; not of 8 or 16 bits
    for channels in (1, 3):
        if mode in refused:
            with pytest.raises(DataError, match=r"nothing is seen|8-bit PNG|not supported"):
                read_image(path, channels)
        else:
            assert read_image(path, channels).shape == (channels, 4, 4)


def test_a_palette_is_resolved_with_its_transparent_colour(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    path = saved(tmp_path, palette)
    assert read_image(path, 3)[:, 0, 1].tolist() == [0, 255, 0]
    path = saved(tmp_path, palette, transparency=1)
    assert read_image(path, 3)[:, 0, 1].tolist() == [0, 0, 0]
    assert read_image(path, 3)[:, 0, 0].tolist() == [255, 0, 0]


def test_sixteen_bits_become_eight_and_one_bit_black_and_white(tmp_path: Path) -> None:
    values = np.array([[0, 256], [257 * 100, 65535]], np.uint16)
    assert read_image(saved(tmp_path, Image.fromarray(values)), 1)[0].tolist() == [[0, 0], [100, 255]]
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read_image(saved(tmp_path, bits), 1)[0].tolist() == [[0, 255]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    red = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    pixel = read_image(saved(tmp_path, red, "red.tiff"), 3)[:, 0, 0]
    assert pixel.tolist() == [255, 0, 0]


def test_pixels_without_a_scale_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.ones((2, 2), np.float32)), "float.tiff")
    with pytest.raises(DataError, match=r"float\.tiff .* 8-bit PNG"):
        read_image(path, 1)
    path = saved(tmp_path, Image.fromarray(np.full((2, 2), 70_000, np.int32)), "int.tiff")
    with pytest.raises(DataError, match=r"int\.tiff .* 8-bit PNG"):
        read_image(path, 1)


def test_the_centred_square_is_resized_with_antialiasing(tmp_path: Path) -> None:
    # black left and right of a centred square of one-pixel stripes, which antialiasing makes an even grey
    stripes = np.zeros((32, 64), np.uint8)
    stripes[:, 16:48:2] = 255
    found = read_image(saved(tmp_path, Image.fromarray(stripes)), 1, 8)
    assert found.shape == (1, 8, 8)
    assert np.abs(found[0, :, 1:-1].astype(int) - 127).max() <= 16
    assert read_image(saved(tmp_path, Image.fromarray(GREYS)), 3, 12).shape == (3, 12, 12)


def test_the_orientation_of_the_camera_is_obeyed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: to be rotated by 90 degrees clockwise
    path = saved(tmp_path, Image.fromarray(GREYS[:4]), exif=exif)
    assert np.array_equal(read_image(path, 1)[0], np.rot90(GREYS[:4], -1))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.png", None, "there is no file"),
        ("empty.png", b"", "cannot be read as an image"),
        ("text.png", b"not an image at all", "cannot be read as an image"),
        ("page.png", b"<html></html>", "cannot be read as an image"),
    ],
)
def test_an_error_about_another_file_names_it(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_image(tmp_path / name, 3)
    assert str(tmp_path / name) in str(error.value)


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file"):
        read_image(tmp_path, 3)


@given(kind=st.sampled_from(["png", "jpeg", "gif", "bmp"]), data=st.data())
@settings(max_examples=80)
def test_a_damaged_image_is_a_data_error_or_an_image(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(content)
    try:
        outcome = read_image(path, 3, 6).shape
    except DataError as error:
        outcome = str(error).split()[0]
    assert outcome in ((3, 6, 6), str(path))


def huge_png(width: int, height: int) -> bytes:
    """Return the beginning of a PNG that states a size; the size is checked before more is read."""
    header = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I4s", 0, b"IDAT")


@pytest.mark.parametrize("side", [8_000, 10_000, 60_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(side, side))
    with pytest.raises(DataError, match=f"more than {images.MAX_PIXELS:,}"):
        read_image(path, 1, 28)


def test_channels_are_one_or_three(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="channels is 4"):
        read_image(saved(tmp_path, Image.fromarray(GREYS)), 4)


# Files that are not to be opened, or not to be trusted ---------------------------------------------------------------


def refused(path: Path) -> str:
    """Return the message with which every way to open an image refuses a file."""
    assert not is_drawn(path)
    with pytest.raises(DataError) as error:
        read_image(path, 3, 8)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.timeout(60)
def test_pipes_devices_and_links_in_a_loop_are_refused_without_opening_them(tmp_path: Path) -> None:
    pipe, loop, device, socket_file = (tmp_path / f"{name}.png" for name in ("pipe", "loop", "device", "socket"))
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    device.symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(socket_file))
    for path in (pipe, device, socket_file):
        assert "not a file" in refused(path)
    assert "links" in refused(loop)


def test_only_the_stated_formats_are_read_whatever_a_file_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(COLOURS)
    Image.init()
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))  # SPIDER takes the suffix that it is saved with
    for kind in sorted(Image.SAVE):
        path = tmp_path / f"{kind}.png"
        with contextlib.suppress(Exception):  # formats that cannot hold it, or need a library
            image.save(path, kind)
        if path.exists() and path.stat().st_size and kind not in (*images.FORMATS, "MPO", "DIB", "SPIDER"):
            assert ", ".join(images.FORMATS) in refused(path), kind
    for kind in images.FORMATS:
        with contextlib.suppress(KeyError, OSError):  # this Pillow was built without it
            image.save(tmp_path / "any.name", kind)
        assert read_image(tmp_path / "any.name", 3).shape == (3, 6, 6)


@pytest.mark.skipif(os.name != "posix", reason="the trap is a script of the shell")
@pytest.mark.parametrize("name", ["x.png", "x.eps", "x.jpg"])
def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    trap = tmp_path / "bin" / "gs"
    trap.parent.mkdir()
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/RAN\n")
    trap.chmod(0o755)
    monkeypatch.setenv("PATH", str(trap.parent), prepend=os.pathsep)
    (tmp_path / name).write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    )
    refused(tmp_path / name)
    assert not (tmp_path / "RAN").exists()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(*chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(72))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


ZEROS = zlib.compress(bytes(80_000_000))
TRICKS = {
    "text bomb": png_with(chunk(b"zTXt", b"a\0\0" + ZEROS)),
    "profile bomb": png_with(chunk(b"iCCP", b"a\0\0" + ZEROS)),
    "decompression bomb": huge_png(60_000, 60_000),
    "bomb that Pillow warns about": huge_png(10_000, 10_000),
    "PPM without a size": b"P6\n",
    "PPM with a bad size": b"P6 -1 x 255\n",
    "PPM with a long size": b"P6 99999999999999999999 1 255\n",
    "PPM of no pixels": b"P6 0 0 255\n",
    "PPM with a bad maximum": b"P6 1 1 99999\n000",
    "GIF of no pixels": b"GIF89a" + bytes(20),
    "BMP of nonsense": b"BM" + bytes(60),
    "TIFF of nonsense": b"II*\0\x08\0\0\0" + b"\xff" * 60,
    "WEBP of nonsense": b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(40),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_are_refused_in_one_way_and_without_a_warning(tmp_path: Path, trick: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(TRICKS[trick])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        refused(path)
    assert not warned


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with open(path, "wb") as file:
        file.write(png_with())
        file.truncate(files.MAX_IMAGE_BYTES + 1)
    assert "more than" in refused(path)


def test_images_are_opened_in_one_place() -> None:
    named = [name for name, path in FILES.items() if re.search(r"\bImage\.open\b", path.read_text("utf-8"))]
    assert named == ["tinyvit.data.images"]
