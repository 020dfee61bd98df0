"""Which kernels of attention serve a call, and how they are launched."""

import pytest
from emulator import EmulatedDevice
from tinyvit.kernels.attention import launches

NONE = launches.Extras(0)


@pytest.mark.parametrize("heads", [0, 1, 65_535, 65_536, 98_304, 12 * 70_000])
@pytest.mark.parametrize("version", launches.VERSIONS)
def test_no_grid_has_more_blocks_than_allowed(version: int, heads: int) -> None:
    for back in (False, True):
        for launch in launches.VERSIONS[version][back](launches.Shape("half_t", heads, 40, 40, 64, NONE)):
            first, *others = (*launch.grid, 1, 1)[:3]
            assert first * others[0] * others[1] % max(heads, 1) == 0
            assert max(others) <= 65_535


@pytest.mark.parametrize(
    ("arch", "shared", "ctype", "keys", "depth", "served"),
    [
        (90, 232_448, "bfloat_t", 197, 64, "4"),
        (90, 232_448, "bfloat_t", 257, 64, "4"),
        (90, 232_448, "bfloat_t", 577, 64, "3"),
        (90, 232_448, "half_t", 65, 128, "4"),
        (90, 232_448, "float", 65, 64, "2"),
        (75, 65_536, "half_t", 65, 64, "4"),
        (75, 65_536, "half_t", 197, 64, "3"),
        (75, 65_536, "half_t", 65, 256, "2"),
        (75, 65_536, "float", 8192, 256, "2"),
    ],
)
def test_the_last_version_that_fits_is_launched(
    arch: int, shared: int, ctype: str, keys: int, depth: int, served: str
) -> None:
    shape = launches.Shape(ctype, 6, keys, keys, depth, NONE)
    (launch,) = launches.plan(4, False, shape, EmulatedDevice(arch, shared))
    assert launch.kernel.expression.startswith(f"attention_forward_{served}")


def test_extras_are_left_to_a_version_that_supports_them() -> None:
    shape = launches.Shape("half_t", 6, 65, 65, 64, launches.Extras.CAUSAL)
    for backward in (False, True):
        last = launches.plan(4, backward, shape, EmulatedDevice())[-1].kernel.expression
        assert last.startswith("attention_backward_3" if backward else "attention_forward_3")
        assert last.endswith("true>")


def test_a_call_that_no_version_fits_is_refused_with_the_numbers() -> None:
    shape = launches.Shape("float", 1, 10, 10, 256, NONE)
    with pytest.raises(RuntimeError, match=r"needs \d+ bytes of shared memory, and device cuda:0 \(sm_75\) has 30"):
        launches.plan(2, False, shape, EmulatedDevice(75, 30))


@pytest.mark.parametrize(
    ("shared", "ctype", "keys", "depth", "forward", "backward"),
    [
        (232_448, "bfloat_t", 65, 64, "_5<bfloat_t, 64, 0, 80>", "_5<bfloat_t, 64, 16, 16>"),
        (232_448, "half_t", 64, 64, "_5<half_t, 64, 0, 64>", "_5<half_t, 64, 64, 64>"),
        (232_448, "half_t", 128, 64, "_5<half_t, 64, 64, 64>", "_5<half_t, 64, 64, 64>"),
        (232_448, "bfloat_t", 197, 64, "_5<bfloat_t, 64, 64, 16>", "_5<bfloat_t, 64, 16, 16>"),
        (232_448, "bfloat_t", 257, 64, "_5<bfloat_t, 64, 64, 16>", "_5<bfloat_t, 64, 16, 16>"),
        (
            232_448,
            "bfloat_t",
            577,
            64,
            "_tiles_5<bfloat_t, 64, 64, 0>",
            "_tiles_5<bfloat_t, 64, 64, true, true, true, 0>",
        ),
        (65_536, "half_t", 197, 64, "_tiles_5<half_t, 64, 64, 0>", "_tiles_5<half_t, 64, 64, true, true, true, 0>"),
        (232_448, "half_t", 65, 256, "_tiles_5<half_t, 256, 16, 0>", "_tiles_5<half_t, 256, 16, true, false, true, 0>"),
        (65_536, "half_t", 65, 256, "_2<half_t, 256>", "_2<half_t, 256, true>"),
    ],
)
def test_a_head_that_fits_is_kept_and_a_longer_one_goes_from_tile_to_tile(
    shared: int, ctype: str, keys: int, depth: int, forward: str, backward: str
) -> None:
    shape, on = launches.Shape(ctype, 6, keys, keys, depth, NONE), EmulatedDevice(90, shared)
    found = [launches.plan(5, back, shape, on)[-1].kernel.expression for back in (False, True)]
    assert found == [f"attention_forward{forward}", f"attention_backward{backward}"]


@pytest.mark.parametrize(
    ("tokens", "forward", "backward"), [(17, 2, 4), (65, 5, 4), (80, 5, 4), (81, 6, 8), (197, 6, 8), (257, 6, 8)]
)
def test_longer_sequences_have_more_warps(tokens: int, forward: int, backward: int) -> None:
    shape = launches.Shape("half_t", 6, tokens, tokens, 64, NONE)
    found = [launches.plan(5, back, shape, EmulatedDevice())[0].threads for back in (False, True)]
    assert found == [32 * forward, 32 * backward]


def test_everything_that_a_call_has_besides_q_k_and_v_is_an_argument_of_the_template() -> None:
    for bits in range(32):
        shape = launches.Shape("half_t", 6, 577, 577, 64, launches.Extras(bits))
        (launch,) = launches.plan(5, False, shape, EmulatedDevice())
        assert launch.kernel.expression == f"attention_forward_tiles_5<half_t, 64, 64, {bits}>"
