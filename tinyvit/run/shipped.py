"""Trained weights that come with the package, in place of a run: their names are those of their recipes.

A file `weights/<recipe>.safetensors` holds what a run folder holds that is needed to use the model: the weights, in 16
or 32 bits, and the facts about the data they were trained on, so that no data set is needed. `docs/guides/results.md`
states how they were trained, and how accurate they are.
"""

from pathlib import Path
from typing import Any

from ..checkpoint import load
from ..errors import CheckpointError
from ..tasks import DataSpec

SHIPPED = Path(__file__).parents[1] / "weights"


def shipped_names() -> tuple[str, ...]:
    """Return the names of the recipes whose trained weights come with the package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.safetensors")))


def read_shipped(name: str) -> tuple[Path, dict[str, Any], DataSpec]:
    """Return the file of such a recipe, the weights in it, and the facts about the data. Raises CheckpointError."""
    path = SHIPPED / f"{name}.safetensors"
    state = load(path)
    try:
        return path, state["model"], DataSpec.from_state(state["data"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not hold weights and facts about data: install tinyvit again") from error
