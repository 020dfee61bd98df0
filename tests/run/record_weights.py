"""Write the weights of runs into the package, where `tests/run/test_weights.py` checks them.

    tinyvit train caption
    python tests/run/record_weights.py runs/caption

A run folder is of the recipe whose name it has. Without the state of training, and in 16 bits, its weights have a sixth
of the size of its checkpoint. They are read back as float32.
"""

import sys
from pathlib import Path

import numpy as np

import tinyvit as tv
from tinyvit.recipe import load_recipe
from tinyvit.run.folder import load_run
from tinyvit.run.shipped import SHIPPED


def record(folder: Path) -> Path:
    """Write the weights of a run, and the facts about its data, into the package; return the path of the file."""
    trained, recipe = load_run(folder), load_recipe(folder.name)
    if trained.recipe != recipe:
        raise SystemExit(f"{folder} is not of the recipe {folder.name} as it is: train it again, without --set")
    weights = {name: array.astype(np.float16) for name, array in trained.model.state_dict().items()}
    path = SHIPPED / f"{folder.name}.safetensors"
    tv.save(path, {"data": trained.data.state_dict(), "model": weights})
    return path


if __name__ == "__main__":
    for name in sys.argv[1:]:
        written = record(Path(name))
        print(f"{name} -> {written}, {written.stat().st_size:,} bytes")
