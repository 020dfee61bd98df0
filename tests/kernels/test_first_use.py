"""The first use of a kernel is announced, kept for the next time if possible, and never fails for lack of a cache."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tinyvit.kernels import cache
from tinyvit.kernels.cpu import claims, processor, progress

from tinyvit import kernels

CODE = """
import sys
import tinyvit as tv, tinyvit.functional as F
assert "numba" not in sys.modules
tv.use_kernels("numba")
x = tv.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]])
F.linear(x, x)
y = F.dropout(x, p=0.5, generator=tv.backend.Generator(7))
with tv.use_kernels("numpy"):
    assert (y.numpy() == F.dropout(x, p=0.5, generator=tv.backend.Generator(7)).numpy()).all()
"""
LINES = "".join(
    f"tinyvit: compiling the kernel {name}, once on this machine\n"
    for name in ("linear: _forward_2", "dropout: _apply_2")
)


READ_ONLY = """
import pathlib, tempfile
def refused(*arguments, **options):
    raise OSError(30, "Read-only file system")
tempfile.TemporaryFile = tempfile.NamedTemporaryFile = pathlib.Path.mkdir = refused
"""


FOLLOWED = """
from tinyvit.kernels.cpu import progress
block = progress.followed(lambda state: None)
block.__enter__()
"""


def first_use(cache: Path, code: str = CODE) -> str:
    """Return what a fresh process that uses kernels prints on stderr."""
    settings = {"NUMBA_CACHE_DIR": str(cache), "TINYVIT_THREADS": "1", "NUMBA_DISABLE_JIT": "0"}
    settings |= {"TINYVIT_COMPILE_AHEAD": "0", "TINYVIT_ANNOUNCE": "1"}
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
    assert run.stdout == ""
    return run.stderr


@pytest.mark.slow
def test_a_compilation_is_announced_only_once(tmp_path: Path) -> None:
    assert first_use(tmp_path / "cache") == LINES
    assert first_use(tmp_path / "cache") == ""


DIRECT = """
import sys
import numpy as np
from tinyvit import kernels
q, row = (np.random.default_rng(0).standard_normal(n).astype("float32") for n in ((2, 2, 9, 4), 4))
out, lse = kernels.attention_forward(q, q, q, implementation="numpy")
y, mean, rstd = kernels.layer_norm_forward(q, row, row, implementation="numpy")
arguments = {
    "attention_forward": (q, q, q),
    "attention_backward": (q, q, q, q, out, lse),
    "attention_weights": (q, q, lse),
    "layer_norm_forward": (q, row, row),
    "layer_norm_backward": (q, q, row, mean, rstd),
}[sys.argv[1]]
found = getattr(kernels, sys.argv[1])(*arguments)
assert all(np.isfinite(x).all() for x in (found if isinstance(found, tuple) else [found]) if x is not None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", kernels.__all__)
def test_a_function_can_be_the_first_that_a_process_calls(name: str) -> None:
    settings = {"NUMBA_DISABLE_JIT": "0", "TINYVIT_COMPILE_AHEAD": "0"}
    subprocess.run([sys.executable, "-c", DIRECT, name], env=os.environ | settings, check=True)


def blocked(path: Path) -> Path:
    """Put a file in the place of the folder, which stops even root."""
    path.write_text("")
    return path


def too_long(path: Path) -> Path:
    return path / ("x" * 300)


def read_only(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o555)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("unusable", [blocked, too_long, read_only])
def test_a_cache_folder_that_cannot_be_written_is_no_error(tmp_path: Path, unusable: object) -> None:
    folder = unusable(tmp_path / "cache")  # type: ignore[operator]
    each = LINES.replace("once on this machine", "in each process, because FOLDER cannot be written")
    is_there = os.path.isdir(folder)
    assert first_use(tmp_path / "another" if is_there else folder, FOLLOWED + CODE) == ""
    for expected in ((LINES, each), ("", each)) if is_there else ((each,), (each,)):  # root can write everywhere
        assert re.sub(r"/\S+/tinyvit-\w+", "FOLDER", first_use(folder)) in expected
    assert not list(Path(cache.__file__).parent.rglob("*.nbi"))


@pytest.mark.slow
def test_a_cache_that_can_only_be_read_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert first_use(folder) == LINES
    kept = sorted(folder.rglob("*"))
    one_more = "with tv.use_kernels('auto'): F.gelu(x)"
    lines = first_use(folder, READ_ONLY + CODE + one_more)
    assert re.sub(r"/\S+/tinyvit-\w+", "FOLDER", lines) == (
        "tinyvit: compiling the kernel gelu: _forward_1, in each process, because FOLDER cannot be written\n"
    )
    assert sorted(folder.rglob("*")) == kept


def test_the_cache_folder_depends_on_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    here = cache.cache_folder.__wrapped__()
    assert here.parent == tmp_path
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"edited")
    assert cache.cache_folder.__wrapped__() != here
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder.__wrapped__().parent == tmp_path / "xdg" / "tinyvit" / "kernels"


@pytest.mark.slow
@pytest.mark.parametrize("length", [0, 100])
def test_damaged_files_of_the_cache_are_replaced(tmp_path: Path, length: int) -> None:
    assert first_use(tmp_path) == LINES
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".nbi", ".nbc", ".o"}
    for path in files:
        os.truncate(path, length)
    assert first_use(tmp_path) == LINES
    assert first_use(tmp_path) == ""


STEP = """
import numpy as np
import tinyvit as tv, tinyvit.functional as F
from tinyvit.models import ViT
model = ViT(8, 2, 10, dim=8, depth=1, heads=2, in_channels=1, {options})
optimizer = tv.optim.AdamW(model.parameters(), lr=1e-3)
with tv.autocast("{precision}"):
    loss = F.cross_entropy(model(tv.tensor(np.ones((2, 1, 8, 8), np.float32))), tv.tensor([0, 1]))
loss.backward()
optimizer.step()
"""
# In bfloat16 layer norm has two forms: within blocks its result is rounded at once, after the last block it is float32.
CASES = [("float32", 'pool="mean", stem="conv"', ["conv2d"], 0), ("bfloat16", 'pool="cls"', ["layer_norm"], 2)]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "options", "more", "casts"), CASES)
def test_a_first_step_compiles_only_the_kernels_that_it_needs(
    tmp_path: Path, precision: str, options: str, more: list[str], casts: int
) -> None:
    settings = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "TINYVIT_THREADS": "1", "NUMBA_DISABLE_JIT": "0"}
    settings |= {"TINYVIT_COMPILE_AHEAD": "1", "TINYVIT_ANNOUNCE": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", STEP.format(precision=precision, options=options)]
    run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
    kept = [
        f"{p.parent.name.rpartition('_')[0]}: {p.name.split('-')[0].split('.')[1]}" for p in tmp_path.rglob("*.nbc")
    ]
    both_ways = ["layer_norm", "attention", "cross_entropy", *more]
    both_ways += ["linear"] * (processor.level() != "generic")  # where NumPy multiplies matrices
    needed = [f"{name}: {way}" for name in both_ways for way in ("_forward_2", "_backward_2")]
    needed += ["gelu: _forward_1", "gelu: _backward_1", "patches: _move_2", "adamw: _step_2"]
    needed += ["add_narrow: _add_1"] * (precision == "bfloat16")
    assert sorted(kept) == sorted([*needed, *["cast: _cast_1"] * casts])
    assert 3 <= len(run.stderr.splitlines()) < len(kept)  # the helper compiled some of them
    assert os.listdir(tmp_path) == ["cache"]  # the claims are removed


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])  # Muon steps without a kernel of ours
def test_a_training_run_counts_the_kernels_that_it_compiles(optimizer: str, tmp_path: Path) -> None:
    settings = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "TINYVIT_THREADS": "1", "NUMBA_DISABLE_JIT": "0"}
    settings |= {"TINYVIT_COMPILE_AHEAD": "0", "TINYVIT_ANNOUNCE": "1"}
    command = [sys.executable, "-W", "error", "-m", "tinyvit", "train", "digits", "--out", str(tmp_path / "run")]
    command += ["--set", "epochs=1", "--set", "limit=320", "--set", f"optimizer={optimizer}"]
    run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
    assert run.stderr == ""  # the display shows it in place of a line for each kernel
    kept = {
        f"{p.parent.name.rpartition('_')[0]}: {p.name.split('-')[0].split('.')[1]}" for p in tmp_path.rglob("*.nbc")
    }
    expected = {name for name in progress.SECONDS if optimizer == "adamw" or not name.startswith("adamw")}
    assert expected <= kept
    first = r"^  compiling kernels: 1 of about (\d+), about \d+ s left; this is done once on this machine$"
    counted = re.search(first, run.stdout, re.MULTILINE)
    assert counted
    assert int(counted[1]) <= len(expected) <= len(kept) <= 1.3 * len(expected)


def test_the_helper_skips_kernels_that_the_first_process_has_claimed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert claims.claim("a")  # without a helper nothing is marked
    assert claims.claim("a")
    monkeypatch.setattr(claims, "_folder", None)
    claims.join(tmp_path)
    assert claims.claim("a")
    assert not claims.claim("a")
    assert claims.claim("b")
    with pytest.raises(claims.Claimed):
        claims.wait_for("a")
    claims.release("a")
    assert claims.claim("a")


@pytest.mark.parametrize("ends", [True, False])
def test_the_first_process_waits_for_the_helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: bool) -> None:
    class Helper:
        """A process that ends when it is polled for the third time, or has compiled the kernel by then."""

        polls = 0

        def poll(self) -> int | None:
            self.polls += 1
            if self.polls == 3 and not ends:
                claims.release("a")
            return 0 if self.polls == 3 and ends else None

    helper = Helper()
    monkeypatch.setattr(claims, "_folder", tmp_path)
    monkeypatch.setattr(claims, "_helper", helper)
    claims.claim("a")
    claims.wait_for("a")
    assert helper.polls == 3
    assert claims.claim("a") is not ends
    claims.wait_for("b")
