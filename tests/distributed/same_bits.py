"""Compare the weights of whole recipes trained by 1, 2, 4 and 8 processes: `python tests/distributed/same_bits.py`.

Every run takes a few steps on a sample of its data. The SHA-256 of the weights is printed for each number of processes;
the exit status is 1 if two of a recipe differ. It needs MPI, and TINYVIT_DATA for the data sets that are downloaded.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPES = {
    "digits": ("limit=400",),
    "mnist": ("limit=500",),
    "caption": ("limit=300",),
    "retrieve": ("limit=400", "batch_size=150"),
}


def weights_of(recipe: str, settings: tuple[str, ...], size: int, folder: Path) -> str:
    """Train by `size` processes, and return the SHA-256 of the weights."""
    launcher = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or "mpiexec"
    out = folder / f"{recipe}-{size}"
    command = [launcher, "-n", str(size), sys.executable, "-m", "tinyvit", "train", recipe, "--out", str(out)]
    for setting in ("epochs=1", "validation=0", *settings):
        command += ["--set", setting]
    job = subprocess.run([*command, "--distributed"], capture_output=True, text=True)
    if job.returncode:
        raise SystemExit(f"{recipe} by {size} processes failed:\n{job.stderr}")
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    shutil.rmtree(out)
    return digest


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--processes", default="1,2,4", help="numbers of processes")
    options = parser.parse_args()
    differ = False
    with tempfile.TemporaryDirectory() as folder:
        for recipe in options.recipes:
            for precision in ("float32", "bfloat16"):
                settings = (*RECIPES[recipe], f"precision={precision}")
                sizes = [int(text) for text in options.processes.split(",")]
                found = {size: weights_of(recipe, settings, size, Path(folder)) for size in sizes}
                is_equal = len(set(found.values())) == 1
                differ |= not is_equal
                text = ", ".join(f"{size}: {digest[:12]}" for size, digest in found.items())
                print(f"{recipe} {precision}: {'equal' if is_equal else 'DIFFERENT'}  ({text})", flush=True)
    sys.exit(differ)


if __name__ == "__main__":
    main()
