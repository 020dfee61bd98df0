"""Mutated files of every kind: each gives a result or one sentence, never a traceback, a hang or a wrong result.

The more than two thousand mutations are drawn from a seed, which the environment variable TINYVIT_FUZZ_SEED changes.
What a file says wrongly but with a right checksum is mutated, too.
"""

import hashlib
import io
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import isolate, tiny_recipe

from tinyvit import cli
from tinyvit.checkpoint import load, save
from tinyvit.data import Tokenizer, images, load_texts, read_image
from tinyvit.data.formats import read_cifar, read_cifar_archive, read_idx
from tinyvit.errors import DataError, TinyvitError
from tinyvit.recipe import load_recipe, recipe_names
from tinyvit.run.loop import train

pytestmark = pytest.mark.slow
SEED = os.environ.get("TINYVIT_FUZZ_SEED", "")
PATIENCE = 20  # seconds for one file: none takes a second, but machines are slow at times

TOKENS = [b"\0", b"\xff", b"[", b"{", b'"', b"-", b"1e999", b"NaN", b"\n", b"\x1b[2J", b"999999999999", b"\xed\xa0\x80"]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return `content` with one to three changes of the kinds that disks, networks and attackers make."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 64, 512))
        match rng.randrange(8):
            case 0 if data:
                data[place % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[place % len(data)] = rng.randrange(256)
            case 2:
                del data[place : place + length]
            case 3:
                del data[place:]
            case 4:
                data[place:place] = rng.choice(TOKENS) * rng.choice((1, 1, 3, 2000))
            case 5:
                data[place : place + length] = bytes(len(data[place : place + length]))
            case 6:
                other = rng.randrange(len(data) + 1)
                data[place:place] = data[other : other + length]
            case 7:
                data[place : place + length] = rng.randbytes(len(data[place : place + length]))
    return bytes(data)


def mutations(content: bytes, count: int, name: str) -> Iterator[bytes]:
    rng = random.Random(hashlib.sha256((name + SEED).encode()).digest())
    for _ in range(count):
        began = time.perf_counter()
        yield mutated(content, rng)
        assert time.perf_counter() - began < PATIENCE


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2,
    10**30,
    1e300,
    float("nan"),
    "",
    "x" * 99,
    "\x1b[2J",
    [],
    [1],
    {},
    np.zeros(3),
]


def with_another_value(state: Any, rng: random.Random) -> Any:
    """Return `state` with one of its nodes replaced, removed or repeated."""
    if isinstance(state, dict) and state and rng.random() < 0.85:
        key = rng.choice(list(state))
        if rng.random() < 0.1:
            return {k: v for k, v in state.items() if k != key}
        return state | {key: with_another_value(state[key], rng)}
    if isinstance(state, list) and state and rng.random() < 0.7:
        place = rng.randrange(len(state))
        change = rng.choice(([], [state[place]] * 2, [with_another_value(state[place], rng)]))
        return [*state[:place], *change, *state[place + 1 :]]
    if isinstance(state, np.ndarray) and state.size and rng.random() < 0.7:
        changed = state.astype(np.float64).reshape(-1)
        changed[rng.randrange(state.size)] = rng.choice((np.nan, np.inf, 1e300, -1e39))
        shorter = state[..., :-1] if state.ndim else state[None]
        return rng.choice((changed.reshape(state.shape), shorter, state.T, state.astype(np.int8)))
    return rng.choice(VALUES)


@contextmanager
def refused_by_name(name: object) -> Iterator[None]:
    """Allow errors of ours in this block, if they name the file."""
    try:
        yield
    except TinyvitError as error:
        message = str(error)
    else:
        return
    assert str(name) in message


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(tiny_recipe("epochs=2", "batch_size=719", "ema=0.5", "clip_norm=1"), "x", folder)
    return folder


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Return a function that calls the command in a folder with a run and an image, and checks how it ends."""
    isolate(tmp_path, monkeypatch)
    Path("run").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save("a.png")

    def restore() -> None:
        for path in trained.iterdir():
            (Path("run") / path.name).write_bytes(path.read_bytes())

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tinyvit", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert "a bug" not in err
        assert "Traceback" not in err
        assert not set(out + err) & set("\x1b\x07\r\x9b")
        if ended.value.code:
            assert ended.value.code in (1, 2)
            assert re.match(r"tinyvit: (error|warning)", err), err
        else:
            assert not err
        restore()
        return ended.value.code, out

    restore()
    return call


USES = (("predict", "run", "a.png"), ("evaluate", "run"), ("train", "--resume", "run"))


@pytest.mark.parametrize("arguments", USES, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("file", ["model.safetensors", "checkpoint.safetensors"])
def test_mutated_checkpoints(command: Command, trained: Path, file: str, arguments: tuple[str, ...]) -> None:
    expected = command(*arguments)
    assert expected[0] == 0
    content = (trained / file).read_bytes()
    head = content[: 8 + int.from_bytes(content[:8], "little")]
    refused = 0
    for i, damaged in enumerate(mutations(content, 60, file + arguments[0])):
        if i % 2:  # most of a file is arrays: every second time, change what is before them
            damaged = mutated(head, random.Random(f"{i}{SEED}")) + content[len(head) :]
        (Path("run") / file).write_bytes(damaged)
        status, out = command(*arguments)
        refused += status != 0
        assert status or (status, out) == expected
    assert arguments[0] == "train" or refused > 30


@pytest.mark.parametrize("arguments", USES, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("file", ["model.safetensors", "checkpoint.safetensors"])
def test_checkpoints_of_another_content(command: Command, trained: Path, file: str, arguments: tuple[str, ...]) -> None:
    state, rng = load(trained / file), random.Random(file + arguments[0] + SEED)
    for _ in range(60):
        changed = with_another_value(state, rng)
        save(Path("run") / file, changed if isinstance(changed, dict) else {})
        command(*arguments)


@pytest.mark.parametrize("kind", [kind for kind in images.FORMATS if kind != "AVIF"])  # not every Pillow has that
def test_mutated_images(command: Command, kind: str) -> None:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    refused = 0
    for content in mutations(buffer.getvalue(), 50, kind):
        Path("mutated.png").write_bytes(content)
        status, out = command("predict", "digits", "mutated.png")
        refused += status == 2
        assert status == 2 or re.fullmatch(r"mutated\.png\t\d\t[01]\.\d{4}\n", out)
        try:
            assert read_image("mutated.png", 3, 8).shape == (3, 8, 8)
        except DataError:
            assert status == 2
    assert refused


@pytest.mark.parametrize("name", ["digits", "vqa", "my"])
def test_mutated_recipes(tmp_path: Path, name: str) -> None:
    assert name == "my" or name in recipe_names()
    recipe = tiny_recipe() if name == "my" else load_recipe(name)
    for content in mutations(recipe.to_toml().encode(), 100, name):
        (tmp_path / "r.toml").write_bytes(content)
        with refused_by_name("r.toml"):
            assert load_recipe(load_and_write(tmp_path / "r.toml")) is not None


def load_and_write(path: Path) -> Path:
    """Read a recipe and write it again: it must be equal."""
    recipe = load_recipe(path)
    again = path.with_name("again.toml")
    again.write_text(recipe.to_toml(), "utf-8")
    assert load_recipe(again) == recipe
    return again


def test_mutated_vocabularies(tmp_path: Path) -> None:
    tokenizer = Tokenizer.build(["is it a red square?", "übung \u3042"])
    tokenizer.save(tmp_path / "t.json")
    for content in mutations((tmp_path / "t.json").read_bytes(), 150, "vocabulary"):
        (tmp_path / "t.json").write_bytes(content)
        with refused_by_name("t.json"):
            assert len(Tokenizer.read(tmp_path / "t.json")) > 6
    document, rng = tokenizer_document(tokenizer, tmp_path), random.Random(SEED)
    for _ in range(150):
        changed = with_another_value(document, rng)
        (tmp_path / "t.json").write_text(json.dumps(changed, default=lambda array: array.tolist()))
        with refused_by_name("t.json"):
            Tokenizer.read(tmp_path / "t.json").encode("is it red?")


def tokenizer_document(tokenizer: Tokenizer, folder: Path) -> Any:
    tokenizer.save(folder / "whole.json")
    return json.loads((folder / "whole.json").read_text("utf-8"))


def packed(content: bytes, suffix: str) -> bytes:
    import gzip
    import lzma
    import tarfile

    if suffix == ".tar.gz":
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            member = tarfile.TarInfo("folder/part.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        return buffer.getvalue()
    return {".gz": gzip.compress, ".xz": lzma.compress, "": bytes}[suffix](content)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".tar.gz"])
def test_mutated_data_files(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    idx = bytes((0, 0, 8, 3)) + np.array([20, 7, 5], ">u4").tobytes() + rng.bytes(700)
    cifar = rng.bytes(3 * 3073)
    content = packed(idx if suffix != ".tar.gz" else cifar, suffix)
    for damaged in mutations(content, 100, suffix):
        path = tmp_path / f"data{suffix}"
        path.write_bytes(damaged)
        with refused_by_name(str(path)):
            if suffix == ".tar.gz":
                ((pixels, labels),) = read_cifar_archive(path, "cifar-10", ["part.bin"], 3, 1)
                found = np.concatenate([labels[:, None], pixels.reshape(3, -1)], axis=1).tobytes()
                assert found == cifar
            else:
                assert read_idx(path, "mnist", (20, 7, 5)).tobytes() == idx[16:]
    (tmp_path / "plain").write_bytes(cifar[:-1])
    with pytest.raises(DataError, match="ends after"):
        read_cifar(tmp_path / "plain", "cifar-10", 3, 1)


def test_mutated_questions_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "easy-vqa"
    pixels = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(pixels, "png")
    files = {"answers.txt": b"yes\nno\nred\n"}
    questions = json.dumps([["is it red?", "yes", 0], ["what colour is it?", "red", 0]])
    for split in ("train", "test"):
        files |= {f"{split}/questions.json": questions.encode(), f"{split}/images/0.png": pixels.getvalue()}
    monkeypatch.setenv("TINYVIT_DATA", str(tmp_path))
    for name in files:
        for damaged in mutations(files[name], 40, name):
            for other, content in files.items():
                (folder / other).parent.mkdir(parents=True, exist_ok=True)
                (folder / other).write_bytes(damaged if other == name else content)
            with refused_by_name(str(folder)):
                load_texts("easy-vqa", "test").batch(np.arange(1))
