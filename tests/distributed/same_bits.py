"""Compare whole recipes trained by 1, 2, 4 and 8 processes: `python tests/distributed/same_bits.py`.

Every run takes an epoch on a sample of its data, and is measured on its whole test split. A row of the table that is
printed has the start of the SHA-256 of the weights for each number of processes. The exit status is 1 if in some row
the weights differ, or the figures of the test do. It needs MPI, and TINYVIT_DATA for the data sets that are downloaded.
"""

import argparse
import hashlib
import json
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
PRECISIONS = ("float32", "bfloat16")


def launcher() -> str:
    """Return the path of mpiexec, preferably of the one beside this Python."""
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if found is None:
        raise SystemExit("there is no mpiexec: pip install 'tinyvit[mpi]'")
    return found


def trained(recipe: str, settings: tuple[str, ...], size: int, out: Path) -> tuple[str, str, int]:
    """Train by `size` processes; return the SHA-256 of the weights, the figures of the test and the number of steps."""
    command = [launcher(), "-n", str(size), sys.executable, "-m", "tinyvit", "train", recipe, "--out", str(out)]
    for setting in ("epochs=1", "validation=0", *settings):
        command += ["--set", setting]
    job = subprocess.run([*command, "--distributed"], capture_output=True, text=True)
    if job.returncode:
        raise SystemExit(f"{recipe} by {size} processes failed:\n{job.stderr}")
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    figures = (out / "test.json").read_text()
    shutil.rmtree(out)
    return digest, figures, json.loads(figures)["step"]


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(RECIPES)}; all by default")
    parser.add_argument("--precision", choices=PRECISIONS, help="only this one")
    parser.add_argument("--processes", default="1,2,4,8", help="numbers of processes")
    options = parser.parse_args()
    sizes, differ = [int(text) for text in options.processes.split(",")], False
    print(f"| recipe, changed by | steps | {' | '.join(f'n = {size}' for size in sizes)} | |")
    print("|---|---|" + "---|" * len(sizes) + "---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for recipe in options.recipes or RECIPES:
            for precision in [options.precision] if options.precision else PRECISIONS:
                settings = (*RECIPES[recipe], f"precision={precision}")
                found = [trained(recipe, settings, size, Path(folder, "run")) for size in sizes]
                is_equal = len(set(found)) == 1
                differ |= not is_equal
                digests = " | ".join(digest[:12] for digest, *_ in found)
                verdict = "equal" if is_equal else "DIFFERENT"
                print(f"| {recipe}, {', '.join(settings)} | {found[0][2]} | {digests} | {verdict} |", flush=True)
    sys.exit(differ)


if __name__ == "__main__":
    main()
