"""The process that draws inputs and computes the right answers, by the plain path of tinyvit in float64.

`python -m benchmarks.cpu.reference` answers the command `refer` with two files in a folder: inputs.npz, and
expected.npz with the outputs and, for each, the error of the plain path in float32.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..cases import Case, find_case
from ..inputs import Arrays, load_inputs, make_inputs
from ..verify import comparable, deviation
from .channel import serve

_PLAIN_ERROR = "plain error of "


def plain_outputs(case: Case, inputs: Arrays) -> Arrays:
    """The outputs of the plain path, computed in the dtype of the inputs."""
    from ..contenders.engine import Engine  # imports tinyvit, which workers that load expected.npz can do without

    task = Engine("numpy").prepare(case, inputs)
    result = None
    for _ in range(case.calls):
        result = task.run()
    return comparable(case, inputs, task.outputs(result))


def refer(case: str, folder: str) -> dict[str, Any]:
    """Write the inputs and the expected outputs of a case into `folder`."""
    chosen, place = find_case(case), Path(folder)
    drawn: dict[str, Any] = make_inputs(chosen)
    np.savez(place / "inputs.npz", **drawn)
    inputs = load_inputs(chosen, place / "inputs.npz")
    exact = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in inputs.items()}
    expected, plain = plain_outputs(chosen, exact), plain_outputs(chosen, inputs)
    answers: dict[str, Any] = {**expected}
    answers |= {_PLAIN_ERROR + name: deviation(plain[name], expected[name]) for name in expected}
    np.savez(place / "expected.npz", **answers)
    return {}


def load_expected(folder: Path) -> tuple[Arrays, dict[str, float]]:
    """The expected outputs, and for each the error of the plain path in float32."""
    with np.load(folder / "expected.npz") as file:
        arrays = dict(file)
    errors = {name.removeprefix(_PLAIN_ERROR): float(a) for name, a in arrays.items() if name.startswith(_PLAIN_ERROR)}
    return {name: arrays[name] for name in errors}, errors


if __name__ == "__main__":
    serve({"refer": refer})
