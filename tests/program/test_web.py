"""An exported page: its WebAssembly computes what the program does, and its scripts prepare images as the package."""

import ctypes
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import MODELS, arrays, difference
from javascript import clang, evaluated, run_module

import tinyvit as tv
from tinyvit.data import load_dataset, normalize
from tinyvit.data.images import pixels_of
from tinyvit.nn import keep_attention
from tinyvit.program import ExportError
from tinyvit.program.wasm import ASSETS, Wasm, wasm_of
from tinyvit.program.web import export_page, inputs_of, page_of
from tinyvit.run.folder import load_run
from tinyvit.run.webpage import DRAWINGS, contents_of, program_of

RNG = np.random.default_rng(0)

# The model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Any:
    trained, data = load_run("digits"), load_dataset("digits", "test")
    return trained, program_of(trained), normalize(data.images, data.mean, data.std), data


@pytest.mark.slow
def test_logits_and_maps_of_every_digit_are_those_of_the_program(digits: Any, tmp_path: Path) -> None:
    clang()
    trained, program, x, _ = digits
    logits, *maps = run_module(tmp_path / "model.wasm", wasm_of(program), x)
    assert len(logits) == 359
    wide = load_run("digits").model.to("float64")
    with tv.no_grad(), keep_attention(wide) as kept, tv.use_kernels("numpy"):
        exact = [wide(x.astype(np.float64)).numpy(), *(m[-1] for m in kept.values())]
    with tv.no_grad(), keep_attention(trained.model) as kept, tv.use_kernels("numpy"):
        plain = [trained.model(x).numpy(), *(m[-1] for m in kept.values())]
    np.testing.assert_array_equal(logits.argmax(1), program(x)[0].argmax(1))
    assert len(maps) == len(exact) - 1 == 4
    for made, usual, true in zip((logits, *maps), plain, exact, strict=True):
        # Sums are taken in order here, and pairwise in NumPy: for 128 terms their errors differ by a factor of about 4.
        allowed = 8 * np.abs(usual - true).max() + 4 * np.finfo(np.float32).eps * np.abs(true).max()
        assert np.abs(made - true).max() <= allowed


@pytest.mark.slow
def test_weights_of_8_bits_lose_no_digit(digits: Any, tmp_path: Path) -> None:
    clang()
    _, program, x, data = digits
    whole, small = wasm_of(program), wasm_of(program, int8=True)
    logits = run_module(tmp_path / "model.wasm", small, x)[0]
    lost = (program(x)[0].argmax(1) == data.labels).mean() - (logits.argmax(1) == data.labels).mean()
    assert lost <= 0.001
    assert len(small.code) < 0.4 * len(whole.code)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_webassembly_computes_what_the_model_does(name: str, tmp_path: Path) -> None:
    clang()
    model, inputs = MODELS[name]()
    program = tv.freeze(model.eval(), *inputs(2))
    made = run_module(tmp_path / "model.wasm", wasm_of(program), *inputs(3))
    for x, y in zip(arrays(program(*inputs(3))), made, strict=True):
        if x.ndim:  # a number that does not depend on the batch, such as a temperature, is the same for each row
            assert difference(x, y) <= 1e-5


def _ulps(y: np.ndarray, exact: np.ndarray) -> float:
    """Return the largest error in units of the last place of a float."""
    units = np.spacing(np.maximum(np.abs(exact).astype(np.float32), np.finfo(np.float32).tiny)).astype(np.float64)
    return float((np.abs(y - exact) / units).max())


@pytest.fixture(scope="module")
def compiled_math(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The functions of math.h, compiled for this machine, as functions of arrays."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs gcc: there is none")
    folder = tmp_path_factory.mktemp("math")
    loop = "void each_{0}(const float *x, float *y, int n) {{ for (int i = 0; i < n; i++) y[i] = {0}f(x[i]); }}\n"
    text = '#include "math.h"\n' + "".join(loop.format(name) for name in ("exp", "log", "tanh", "erf"))
    text += "void each_pow(const float *x, float *y, int n) { for (int i = 0; i < n; i++) y[i] = powf(x[i], y[i]); }"
    (folder / "each.c").write_text(text)
    flags = ["-std=c99", "-O1", "-fno-builtin", "-ffp-contract=off", "-shared", "-fPIC", f"-I{ASSETS}"]
    subprocess.run([gcc, *flags, "each.c", "-o", "each.so"], cwd=folder, check=True, capture_output=True)
    library = ctypes.CDLL(os.fspath(folder / "each.so"))

    def call(name: str, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        made = np.full_like(x, np.nan) if y is None else np.array(y, np.float32)
        library[f"each_{name}"](*(ctypes.c_void_p(a.ctypes.data) for a in (x, made)), len(x))
        return made

    return call


@pytest.mark.parametrize(
    ("name", "function", "lowest", "highest"),
    [
        ("exp", math.exp, -87.0, 88.7),
        ("log", math.log, 1e-30, 1e30),
        ("tanh", math.tanh, -11.0, 11.0),
        ("erf", math.erf, -4.5, 4.5),
    ],
)
def test_functions_are_rounded_once(
    compiled_math: Any, name: str, function: Any, lowest: float, highest: float
) -> None:
    x = RNG.uniform(lowest, highest, 20_000).astype(np.float32)
    small = np.float32(10) ** RNG.uniform(-20, 0, 5_000).astype(np.float32)
    x = np.concatenate([x, small, [1.0, lowest, highest], *([-small] if name != "log" else [])]).astype(np.float32)
    assert _ulps(compiled_math(name, x), np.array([function(float(v)) for v in x])) <= 0.51


def test_powers_are_rounded_once(compiled_math: Any) -> None:
    x = np.float32(10) ** RNG.uniform(-4, 4, 5_000).astype(np.float32)
    y = RNG.uniform(-8, 8, 5_000).astype(np.float32)
    assert _ulps(compiled_math("pow", x, y), x.astype(np.float64) ** y.astype(np.float64)) <= 0.51
    whole = np.rint(y)
    assert _ulps(compiled_math("pow", -x, whole), (-x.astype(np.float64)) ** whole) <= 0.51


def test_functions_of_special_numbers(compiled_math: Any) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([0.0, -0.0, inf, -inf, nan, 200.0, -200.0])
    expected = {
        "exp": [1, 1, inf, 0, nan, inf, 0],
        "log": [-inf, -inf, inf, nan, nan, np.log(np.float32(200)), nan],
        "tanh": [0, 0, 1, -1, nan, 1, -1],
        "erf": [0, 0, 1, -1, nan, 1, -1],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(compiled_math(name, x), np.array(values, np.float32), err_msg=name)
    cases = [(0, 2), (0, -1), (-2, 3), (-2, 0.5), (nan, 0), (1, nan), (inf, -1), (-inf, 3), (2, 200), (2, -200)]
    base, exponent = (np.array(part, np.float32) for part in zip(*cases, strict=True))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(compiled_math("pow", base, exponent), np.power(base, exponent))


def test_without_a_compiler_the_error_says_how_to_install_one(digits: Any, tmp_path: Path, monkeypatch: Any) -> None:
    program = digits[1]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError, match=r"needs clang and the linker wasm-ld, and there is no clang: `apt install"):
        wasm_of(program)
    broken = tmp_path / "clang-15"
    broken.write_text("#!/bin/sh\necho 'error: unable to create target: wasm32' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(ExportError, match=r"clang-15 failed \(error: unable to create target: wasm32\); it needs"):
        wasm_of(program)


# The page ---------------------------------------------------------------------------------------------------------


def test_a_page_has_everything_in_it(digits: Any, tmp_path: Path) -> None:
    trained = digits[0]
    wasm = Wasm(b"\0asm", {"images": (1, 1, 8, 8)}, {"output_0": (1, 10), "output_1": (1, 4, 16, 16)})
    contents = contents_of(trained, [(np.zeros((1, 8, 8), np.uint8), 3, "test image 1")])
    page = page_of(wasm, contents, [], 1e-5)
    assert not re.search(r"@[A-Z]+@", page)
    assert not re.search(r"https?:|<link[^>]+stylesheet|<script[^>]+src|@import|url\(", page)
    assert "default-src 'none'" in page
    assert '"reads":[0,1,2' in page


def test_a_name_cannot_end_the_data_of_a_page(digits: Any) -> None:
    trained = digits[0]
    strange = "</script><b>&"
    data = trained.data.__class__(**{**vars(trained.data), "classes": (strange, *trained.data.classes[1:])})
    page = page_of(
        Wasm(b"", {"images": (1, 1, 8, 8)}, {"output_0": (1, 10)}), contents_of(trained._replace(data=data), []), [], 0
    )
    assert strange not in page
    assert page.count("</script>") == 3


def test_nothing_is_written_without_a_compiler(digits: Any, tmp_path: Path, monkeypatch: Any) -> None:
    trained, program, _, data = digits
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError):
        export_page(program, tmp_path / "page", contents_of(trained, []), data.images[:1])
    assert not list(tmp_path.iterdir())


def test_the_page_normalizes_as_the_package_does(digits: Any) -> None:
    trained, _, x, data = digits
    np.testing.assert_array_equal(inputs_of(data.images, contents_of(trained, [])), x)


# Preparing images -------------------------------------------------------------------------------------------------


def image_of(pixels: np.ndarray) -> dict[str, Any]:
    """Return pixels (C, H, W) as an image of the scripts."""
    return {"width": pixels.shape[2], "height": pixels.shape[1], "planes": [plane.ravel().tolist() for plane in pixels]}


def pixels_in(image: Any) -> np.ndarray:
    return np.array(image["planes"]).reshape(-1, image["height"], image["width"])


def test_images_are_resized_as_by_pillow() -> None:
    from PIL import Image

    cases, wanted = [], []
    for name in ("box", "bilinear", "hamming", "bicubic", "lanczos"):
        for old, new in (((37, 50), (8, 8)), ((9, 7), (20, 31)), ((64, 64), (28, 20))):
            pixels = RNG.integers(0, 256, (1, *old), np.uint8)
            cases.append([image_of(pixels), new[1], new[0], name])
            resized = Image.fromarray(pixels[0]).resize(new[::-1], Image.Resampling[name.upper()])
            wanted.append(np.asarray(resized)[None])
    made = evaluated("given[0].map(([image, ...how]) => resized(image, ...how))", cases)
    for (_, *case), x, y in zip(cases, wanted, map(pixels_in, made), strict=True):
        assert np.abs(x.astype(int) - y).max() <= 1, case  # Pillow's weights have 22 bits


def test_pictures_are_prepared_as_by_predict() -> None:
    cases, wanted = [], []
    for height, width, size in ((40, 61, (16, 16)), (61, 40, (28, 28)), (28, 28, (28, 28)), (30, 90, (8, 12))):
        for channels in (1, 3):
            pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
            rgba = np.concatenate([pixels, np.full((height, width, 1), 255, np.uint8)], axis=2)
            cases.append([rgba.ravel().tolist(), width, height, channels, size[1], size[0]])
            wanted.append(pixels_of(pixels, channels, size).astype(int))
    made = evaluated("given[0].map(([p, w, h, c, ...size]) => ofPicture(fromRgba(p, w, h, c), ...size, null))", cases)
    for x, y in zip(wanted, map(pixels_in, made), strict=True):
        assert np.abs(x - y).max() <= 1


def test_pictures_are_prepared_by_the_rule_of_a_pretrained_model() -> None:
    cases, wanted = [], []
    for name, share in (("bilinear", 1.0), ("bicubic", 0.875), ("bicubic", 1.0), ("lanczos", 0.9)):
        for height, width in ((50, 71), (71, 50), (40, 40)):
            pixels = RNG.integers(0, 256, (3, height, width), np.uint8)
            # Where an image is squashed more in height than in width, Pillow begins with the columns.
            for mode in ("center", "squash") if width >= height else ("center",):
                cases.append([image_of(pixels), {"filter": name, "share": share, "squash": mode == "squash"}])
                rule = tv.data.Resize(name, share, mode)
                wanted.append(pixels_of(pixels.transpose(1, 2, 0), 3, (32, 32), rule).astype(int))
    made = evaluated("given[0].map(([image, rule]) => ofPicture(image, 32, 32, rule))", cases)
    for x, y in zip(wanted, map(pixels_in, made), strict=True):
        assert np.abs(x - y).max() <= 1


def strokes(left: int, top: int, bold: int = 20, size: int = 280) -> np.ndarray:
    """Return a drawing of an L, 60 wide and 120 high, (1, size, size)."""
    drawing = np.zeros((1, size, size), np.uint8)
    drawing[0, top : top + 120, left : left + bold] = 255
    drawing[0, top + 120 - bold : top + 120, left : left + 60] = 255
    return drawing


def test_the_place_of_a_drawing_does_not_matter() -> None:
    drawings = [image_of(strokes(*place)) for place in ((10, 5), (150, 100), (83, 61))]
    rules = [[8 if name == "digits" else 28, DRAWINGS[name]] for name in ("digits", "mnist", "fashion-mnist")]
    made = evaluated("given[1].map(([n, rule]) => given[0].map((x) => ofDrawing(x, n, n, rule)))", drawings, rules)
    for (size, _), images in zip(rules, made, strict=True):
        first, *others = map(pixels_in, images)
        assert first.shape == (1, size, size)
        assert first.max() > 200
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_the_centre_of_mass_of_a_drawing_for_mnist_is_in_the_middle() -> None:
    drawings = [image_of(strokes(200, 10, bold)) for bold in (8, 30)]
    for image in evaluated("given[0].map((x) => ofDrawing(x, 28, 28, given[1]))", drawings, DRAWINGS["mnist"]):
        (made,) = pixels_in(image)
        rows, columns = np.nonzero(made)
        assert np.ptp(rows) + 1 == 20
        assert np.ptp(columns) + 1 == 10
        for axis in (0, 1):
            weights = made.sum(axis=1 - axis)
            assert abs((weights * (np.arange(28) + 0.5)).sum() / weights.sum() - 14) <= 0.5


def test_pixels_of_a_drawing_for_the_digits_count_small_squares() -> None:
    # 256 pixels high, so that a small square is 8 x 8 pixels, and 128 wide.
    drawing = np.zeros((1, 280, 280), np.uint8)
    drawing[0, 12:268, 40:168] = 255
    drawing[0, 12:20, 48:160] = 0  # the first row of small squares, but for its ends
    (made,) = pixels_in(evaluated("ofDrawing(given[0], 8, 8, given[1])", image_of(drawing), DRAWINGS["digits"]))
    wanted = np.zeros((8, 8), int)
    wanted[:, 2:6] = 255
    wanted[0, 2:6] = [255 * count // 16 for count in (13, 12, 12, 13)]
    np.testing.assert_array_equal(made, wanted)


def test_an_empty_drawing_is_no_image() -> None:
    assert evaluated("ofDrawing(given[0], 8, 8, given[1])", image_of(np.zeros((1, 9, 9))), DRAWINGS["digits"]) is None
