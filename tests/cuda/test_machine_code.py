"""What v5 of attention promises is seen in its machine code, so a regression shows without a GPU.

A tile is one straight line of code: its loads from shared memory, its products on tensor cores and its exponentials may
overlap, and no branch separates a load from the product that needs it. That nothing is spilled to memory is tested in
test_nvrtc.py.
"""

from pathlib import Path

import pytest
from machine_code import disassembler, instructions, interruptions, products_in_line
from tinyvit.kernels.attention import launches
from tinyvit.kernels.cuda.compiler import CompilerMissing, compile_cubin, nvrtc_version

pytestmark = pytest.mark.slow
ARCHITECTURES = [80, 90, 100]
TOKENS, DEPTH = (65, 197, 257), 64


@pytest.fixture(autouse=True)
def _tools() -> None:
    try:
        nvrtc_version()
    except CompilerMissing as reason:
        pytest.skip(str(reason))
    if disassembler() is None:
        pytest.skip("needs nvdisasm, from the package nvidia-cuda-nvdisasm or a CUDA toolkit")


def machine_code(version: int, arch: int, folder: Path) -> dict[str, list[str]]:
    """Return the instructions of the kernels for the usual lengths of ViTs, by their expressions."""
    found, by_source = {}, {}
    for n in TOKENS:
        shape = launches.Shape("bfloat_t", 1, n, n, DEPTH, launches.Extras(0))
        for plan in launches.VERSIONS[version]:
            for launch in plan(shape):
                by_source.setdefault(launch.kernel.source, set()).add(launch.kernel.expression)
    for source, expressions in by_source.items():
        cubin = compile_cubin(source, sorted(expressions), arch)
        path = folder / "kernels.cubin"
        path.write_bytes(cubin.code)
        code = instructions(path)
        found |= {expression: code[cubin.names[expression]] for expression in expressions}
    return found


def products(columns: int, matrices: int) -> int:
    """Return how many products a warp needs for 16 rows, as many columns, and so many products of matrices."""
    return matrices * (DEPTH // 16) * (columns // 8)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_tile_of_v5_is_a_straight_line(arch: int, tmp_path: Path) -> None:
    """Each line has all products of a tile; on sm_80 the lanes' common largest score divides those of forward."""

    def forward(columns: int) -> list[int]:
        return [products(columns, 1)] * 2 if arch < 90 else [products(columns, 2)]

    of_queries, of_keys = ([products(64, n), products(16, n)] for n in (3, 4))
    expected = {
        "attention_forward_5<bfloat_t, 64, 0, 80>": forward(80),
        "attention_forward_5<bfloat_t, 64, 64, 16>": forward(64) + forward(16),
        "attention_backward_5<bfloat_t, 64, 16, 16>": of_queries + of_keys,
    }
    found = machine_code(5, arch, tmp_path)
    assert {expression: products_in_line(code) for expression, code in found.items()} == expected
    for expression, code in found.items():
        assert interruptions(code) == 0, expression
        assert not {"LDL", "STL"} & {*code}, expression  # nothing is in local memory


def test_the_branches_of_v4_are_seen(tmp_path: Path) -> None:
    for expression, code in machine_code(4, 90, tmp_path).items():
        assert len(products_in_line(code)) > 8, expression


def test_a_branch_between_a_load_and_its_product_is_counted() -> None:
    code = ["LDSM", "HMMA", "BRA", "LDSM", "BRA", "IMAD", "HMMA", "LDSM", "EXIT"]
    assert interruptions(code) == 2
    assert products_in_line(code) == [1, 1]
