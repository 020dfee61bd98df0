"""Exported C computes what the program does, without a warning of the compiler or a finding of its sanitizers."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import MODELS, arrays, difference, images, texts

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.data import load_dataset, normalize
from tinyvit.program import ExportError
from tinyvit.program.c_pieces import GROUP, Weight
from tinyvit.run.folder import load_run

GCC = shutil.which("gcc")
FLAGS = ("-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover")
ALLOWED = 1e-5  # of the largest output
# Reads inputs of one row after the other from standard input, and writes the outputs.
DRIVER = """
#include <stdio.h>
#include "model.h"
int main(void)
{
    %(arrays)s
    while (1) {
        %(reads)s
        if (model_run(%(names)s) != 0) return 3;
        %(writes)s
    }
}
"""

pytestmark = pytest.mark.skipif(GCC is None, reason="needs gcc")


def compiled(folder: Path, *files: str) -> Path:
    command = [str(GCC), *FLAGS, *files, "-lm", "-o", "program"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return folder / "program"


def outputs_of(folder: Path, program: Any, inputs: Any) -> list[np.ndarray]:
    """Compile exported C with sanitizers, and run it on each row of the inputs."""
    wanted = arrays(program(*inputs))
    names = [program.graph.values[number].name for number in program.graph.inputs]
    given = {n: x.astype("f4" if x.dtype.kind == "f" else "i4") for n, x in zip(names, inputs, strict=True)}
    out = ["output"] if len(wanted) == 1 else [f"output_{i}" for i in range(len(wanted))]
    kinds = {name: "float" if x.dtype.kind == "f" else "int" for name, x in given.items()} | dict.fromkeys(out, "float")
    text = DRIVER % {
        "arrays": " ".join(f"static {kind} {name}[MODEL_{name.upper()}_SIZE];" for name, kind in kinds.items()),
        "reads": "\n        ".join(f"if (!fread({name}, sizeof {name}, 1, stdin)) return 0;" for name in given),
        "names": ", ".join(kinds),
        "writes": " ".join(f"fwrite({name}, sizeof {name}, 1, stdout);" for name in out),
    }
    (folder / "driver.c").write_text(text)
    binary, rows = compiled(folder, "driver.c", "model.c"), len(inputs[0])
    fed = b"".join(x[i].tobytes() for i in range(rows) for x in given.values())
    made = np.frombuffer(subprocess.run([binary], input=fed, check=True, capture_output=True).stdout, np.float32)
    ends = np.cumsum([x[0].size if x.ndim else 1 for x in wanted])[:-1]
    parts = np.split(made.reshape(rows, -1), ends, axis=1)
    return [part.reshape(x.shape) if x.ndim else part[0, 0] for part, x in zip(parts, wanted, strict=True)]


@pytest.fixture(scope="module")
def digits() -> Any:
    trained, data = load_run("digits"), load_dataset("digits", "test")
    x = normalize(data.images, data.mean, data.std)
    return tv.freeze(trained.model, x[:1]), x, data.labels


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_every_digit_of_the_test_split_has_the_same_class(digits: Any, int8: bool, tmp_path: Path) -> None:
    program, x, labels = digits
    made = program.export_c(tmp_path, x[:1], int8=int8)
    logits, (y,) = program(x), outputs_of(tmp_path, program, [x])
    assert len(y) == 359
    subprocess.run([compiled(tmp_path, "main.c", "model.c")], check=True, capture_output=True)
    if int8:
        assert (logits.argmax(1) == labels).mean() - (y.argmax(1) == labels).mean() <= 0.001
    else:
        assert difference(logits, y) <= ALLOWED
        np.testing.assert_array_equal(logits.argmax(1), y.argmax(1))
    source = (tmp_path / "model.c").read_text()
    assert f"{made.memory} bytes of working memory, {made.weights} bytes of weights" in source
    assert f"static float memory[{made.memory // 4}];" in source
    assert made.memory < 40_000
    assert made.weights < (143_000 if int8 else 560_000)
    assert "alloc" not in source
    if int8:
        subprocess.run([str(GCC), "-std=c99", "-Os", "-c", "model.c", "-o", "small.o"], cwd=tmp_path, check=True)
        sizes = subprocess.run(["size", "small.o"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        code_and_constants, data, memory = map(int, sizes.splitlines()[1].split()[:3])
        assert code_and_constants + data < 150_000
        assert memory < 40_000


def test_constants_of_8_bits_are_off_by_half_a_step_at_most() -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.standard_normal((40, 50)) * 10 ** rng.uniform(-3, 1, (40, 1))).astype(np.float32)
    matrix[7] = 0
    for form, array in (("rows", matrix), ("groups", matrix.ravel()[:77]), ("groups", np.zeros(20, np.float32))):
        stored = Weight("w", array, form)
        length = array.shape[-1] if form == "rows" else GROUP
        steps = np.repeat(stored.scales * stored.unit, length)[: array.size].reshape(array.shape)
        restored = stored.values.reshape(array.shape) * steps
        assert stored.values.dtype == np.int8
        assert (np.abs(restored - array) <= 0.5001 * steps).all()
        # A factor is rounded up by at most one of 65,535 steps up to the largest one.
        peaks = [np.abs(part).max() for part in np.split(array.ravel(), range(length, array.size, length))]
        assert (stored.scales * stored.unit <= np.array(peaks) / 127 * 1.0001 + stored.unit).all()
        assert stored.bytes == array.size + 2 * len(peaks)


ODD = ('a "quote" \\', "caf\u00e9 \U0001f600", "what??/", "%d", *"456789")


@pytest.mark.parametrize("classes", [None, ODD], ids=["numbers", "names"])
def test_the_example_prints_the_outputs_of_its_image(digits: Any, classes: Any, tmp_path: Path) -> None:
    program, x, _ = digits
    facts = {"note": "*/ a comment /* cannot end */"} | ({} if classes is None else {"classes": classes})
    program.export_c(tmp_path, x[5:6], name="digits", metadata=facts)
    printed = subprocess.run([compiled(tmp_path, "main.c", "digits.c")], check=True, capture_output=True)
    head, *rows, largest, verdict = printed.stdout.decode().splitlines()
    np.testing.assert_allclose([float(row.split()[1]) for row in rows], program(x[5:6])[0], rtol=1e-4, atol=1e-4)
    best = program(x[5:6])[0].argmax()
    assert (largest, verdict) == (
        f"largest: number {best}" + (f", class {classes[best]}" if classes else ""),
        "as expected",
    )
    assert head.split() == ["number", "output", *(["class"] if classes else [])]
    if not classes or classes[0].isascii():  # each column begins below its head
        assert all(row.index(row.split()[1]) == head.index("output") for row in rows)
    if classes:
        assert [row.split(maxsplit=2)[2] for row in rows] == list(classes)


@pytest.mark.slow
def test_the_example_fails_if_an_output_is_not_as_expected(digits: Any, tmp_path: Path) -> None:
    program, x, _ = digits
    program.export_c(tmp_path, x[:1])
    text = (tmp_path / "example.h").read_text()
    for wrong in ("9.5f", "NAN"):
        changed = re.sub(r"(expected_output\[10\] = \{)[^,]*", rf"\g<1>{wrong}", text)
        assert changed != text
        (tmp_path / "example.h").write_text("#include <math.h>\n" + changed)
        ended = subprocess.run([compiled(tmp_path, "main.c", "model.c")], capture_output=True, text=True)
        assert (ended.returncode, ended.stdout.splitlines()[-1]) == (2, "outputs that are not as expected: 1"), wrong


def test_c_with_8_bits_computes_with_the_numbers_that_are_stored(tmp_path: Path) -> None:
    model = tv.models.ViT(16, 8, 5, dim=48, depth=1, heads=2, in_channels=1).eval()
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.assign((rng.standard_normal(p.shape) * np.exp(rng.standard_normal(p.shape)) / 4).astype(np.float32))
    x = images(3, 1)
    program = tv.freeze(model, x)
    program.export_c(tmp_path, int8=True)
    (made,) = outputs_of(tmp_path, program, [x])
    before = program(x)
    for name, p in model.named_parameters():
        if p.size >= 16:
            is_vector = p.ndim == 1 or name in ("cls_token", "pos_embed")
            stored = Weight("w", p.numpy(), "groups" if is_vector else "rows")
            length = GROUP if is_vector else p.size // len(p)
            factors = np.repeat(stored.scales * stored.unit, length)[: p.size]
            p.assign((stored.values * factors).astype(np.float32).reshape(p.shape))
    assert difference(tv.freeze(model, x)(x), made) <= ALLOWED
    assert difference(before, made) > 100 * ALLOWED


FEW = ("first, registers", "captioner")  # the others are slow: each is compiled


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in MODELS])
def test_c_computes_what_the_model_does(name: str, tmp_path: Path) -> None:
    model, inputs = MODELS[name]()
    program = tv.freeze(model.eval(), *inputs(2))
    program.export_c(tmp_path)
    for x, y in zip(arrays(program(*inputs(3))), outputs_of(tmp_path, program, inputs(3)), strict=True):
        assert difference(x, y) <= ALLOWED
    printed = subprocess.run([compiled(tmp_path, "main.c", "model.c")], capture_output=True, text=True)
    lines = printed.stdout.splitlines()
    assert (printed.returncode, lines[-1]) == (0, "as expected")
    results = arrays(program(*inputs(3)))
    heads = [line.split()[1:] for line in lines if line.startswith("number")]
    assert heads == ([["output"]] if len(results) == 1 else [[f"output_{i}"] for i in range(len(results))])
    more = [int(line.split()[1]) for line in lines if line.startswith("and ")]
    sizes = [x[0].size if x.ndim else 1 for x in results]
    assert more == [size - 1000 for size in sizes if size > 1000]


def test_an_id_out_of_its_range_is_reported(tmp_path: Path) -> None:
    model, inputs = MODELS["text"]()
    program = tv.freeze(model.eval(), *inputs(2))
    program.export_c(tmp_path)
    outputs_of(tmp_path, program, inputs(1))
    for wrong in (-1, 40):
        ids = texts(1).astype(np.int32)
        ids[0, 3] = wrong
        assert subprocess.run([tmp_path / "program"], input=ids.tobytes(), check=False).returncode == 3


def test_what_c_has_no_form_for_is_named(tmp_path: Path) -> None:
    program = tv.freeze(lambda x: F.cumsum(x, axis=-1), tv.tensor(images(2)))
    with pytest.raises(ExportError, match="the model calls cumsum, which has no form in C yet"):
        program.export_c(tmp_path / "c")
    with pytest.raises(ExportError, match=r"name is 'A b'; it must be small letters"):
        program.export_c(tmp_path / "c", name="A b")
    wide = tv.freeze(F.exp, tv.tensor(images(2).astype(np.float64)))
    with pytest.raises(ExportError, match=r"x is not float32; call model.to\('float32'\)"):
        wide.export_c(tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "function", [F.relu, F.gelu, lambda x: F.gelu(x, "tanh"), lambda x: F.maximum(x, 0.5), lambda x: F.clip(x, -1, 1)]
)
def test_large_numbers_and_nan_pass_through_exported_functions(function: Any, tmp_path: Path) -> None:
    x = np.array([[np.nan, 1e20, -1e20, 3e38, -3e38, np.inf, 0.75, -0.75]], np.float32)
    program = tv.freeze(function, tv.tensor(x))
    program.export_c(tmp_path, x)
    (y,) = outputs_of(tmp_path, program, [x])
    np.testing.assert_allclose(y, function(tv.tensor(x)).numpy(), ALLOWED, ALLOWED)
