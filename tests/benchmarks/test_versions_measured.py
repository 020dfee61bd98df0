"""The gains of kernel versions are measured for every CPU kernel."""

from click.testing import CliRunner
from tinyvit.kernels import registry

from benchmarks.versions import MEASURED, main

# Kernels that run the code of another one, which is measured.
FUSED = {"add_layer_norm"}


def test_every_cpu_kernel_is_measured() -> None:
    assert set(MEASURED) | FUSED >= {spec.operation for spec in registry.SPECS if spec.technology == "numba"}


def test_a_version_is_compared_with_the_one_before() -> None:
    run = CliRunner().invoke(main, ["patches", "--seconds", "0"])
    assert run.exit_code == 0, run.output
    forward, backward = run.output.splitlines()[1:]
    for line, direction in ((forward, "forward"), (backward, "backward")):
        assert line.startswith(f"patches {direction}, 128 images 3 x 32 x 32, P = 4: numpy ")
        assert line.index("numba:v1") < line.index("numba:v2")
        assert line.count(" x)") == 2
