"""Products left to OpenBLAS: where a measurement chose it, only there, and for the whole of a run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from threadpoolctl import threadpool_limits
from tiny_run import Watch, isolate, sha256, tiny_recipe
from tinyvit.kernels.cpu import processor
from tinyvit.kernels.linear import choice
from tinyvit.kernels.linear.choice import Timing

import tinyvit as tv
from tinyvit.backend import product_threads
from tinyvit.checkpoint import load, save
from tinyvit.cli import commands
from tinyvit.dispatch import PlainRule, products_as, products_of_blas, select
from tinyvit.functional.linalg import Linear
from tinyvit.run import tune
from tinyvit.run.loop import resume, train

RECIPE = tiny_recipe("epochs=2", "limit=480")
SHAPES = [(240 * 4, 8, 24), (240 * 4, 32, 8)]  # qkv and the second map of the MLP, with batches of 240 images

pytestmark = pytest.mark.skipif(processor.level() in ("generic", "neon"), reason="NumPy makes all products here")


@pytest.fixture(autouse=True)
def _with_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    isolate(tmp_path, monkeypatch)
    monkeypatch.setattr(choice, "_folder", lambda: tmp_path / "cache")
    forget()
    with tv.use_kernels("auto"):
        yield
    forget()


def forget() -> None:
    with products_as(()):
        choice.kept.cache_clear()
        choice.chosen_in_file.cache_clear()


def keep(*timings: Timing) -> Path:
    with products_as(()):
        return choice.keep(timings)


def timing(shape: tuple[int, int, int], ratio: float) -> Timing:
    return Timing(shape, ratio * 1e-3, 1e-3, ratio)


def is_plain(rows: int, k: int, n: int, dtype: type = np.float32) -> bool:
    arrays = [np.ones((rows, k), dtype), np.ones((n, k), dtype), None]
    return isinstance(select(Linear, np.dtype(dtype), arrays, {}, tv.dispatch.current_choice()), PlainRule)


def test_only_the_chosen_shapes_are_left_to_openblas() -> None:
    assert not is_plain(6, 3, 4)
    with products_as([(6, 3, 4)]):
        assert is_plain(6, 3, 4)
        assert not any(is_plain(*shape) for shape in ((3, 6, 4), (6, 4, 3), (7, 3, 4)))
        assert not is_plain(6, 3, 4, np.float64)
        x = tv.tensor(np.ones((2, 3, 3), np.float32))  # of 6 rows
        w = tv.tensor(np.ones((4, 3), np.float32))
        assert (tv.functional.linear(x, w).numpy() == 3).all()
        with tv.use_kernels("numba"):
            assert not is_plain(6, 3, 4)
    assert not is_plain(6, 3, 4)


def test_a_file_chooses_what_was_faster_by_more_than_the_noise() -> None:
    assert products_of_blas() == frozenset()
    keep(timing((6, 3, 4), 1.5), timing((7, 3, 4), 1.04), timing((8, 3, 4), 0.7))
    assert products_of_blas() == {(6, 3, 4)}
    assert is_plain(6, 3, 4)
    assert not is_plain(7, 3, 4)
    keep(timing((6, 3, 4), 0.9), timing((9, 3, 4), 2))  # measured again, and another recipe
    assert products_of_blas() == {(9, 3, 4)}
    assert [t.shape[0] for t in choice.kept()] == [6, 7, 8, 9]


def test_a_resumed_run_keeps_its_choice() -> None:
    seen = []
    watch = Watch(lambda training, position: seen.append(sorted(products_of_blas())))
    with threadpool_limits(1, "blas"):
        with products_as(SHAPES):
            whole = train(RECIPE, "whole", display=watch)
            assert not is_plain(1, 2, 3)
        tiles = train(RECIPE, "tiles")
        assert load(whole.folder / "checkpoint.safetensors")["products"] == [list(shape) for shape in sorted(SHAPES)]
        assert load(tiles.folder / "checkpoint.safetensors")["products"] == []
        assert sha256(whole.folder) != sha256(tiles.folder)  # otherwise this test could not fail
        for before, shapes in ((whole, SHAPES), (tiles, [])):
            half = half_of(before.folder.name, shapes)
            seen.clear()
            with products_as([] if shapes else [(1, 1, 1)]):  # the machine has been measured again
                resume(half, watch)
            assert all(found == sorted(shapes) for found in seen)
            assert sha256(half) == sha256(before.folder)


def half_of(name: str, shapes: list[tuple[int, int, int]]) -> Path:
    """Return the folder of a run that was stopped after one epoch."""

    def stop(training, position) -> None:
        if position.epoch == 1:
            training.write_checkpoint(folder)
            raise RuntimeError("stopped")

    folder = Path("runs") / f"half-{name}"
    with products_as(shapes), pytest.raises(RuntimeError, match="stopped"):
        train(RECIPE, "half", folder, Watch(stop))
    return folder


def test_a_checkpoint_of_an_earlier_version_was_made_by_tiles() -> None:
    folder = half_of("old", [])
    path = folder / "checkpoint.safetensors"
    state = load(path)
    del state["products"]
    save(path, state)
    keep(*(timing(shape, 2) for shape in SHAPES))
    resume(folder)
    with products_as(()):
        assert sha256(folder) == sha256(train(RECIPE, "tiles").folder)


def test_products_of_openblas_use_all_threads_and_are_resumed_with_as_many() -> None:
    found = []
    with threadpool_limits(2, "blas"), products_as(SHAPES):
        train(RECIPE, "run", display=Watch(lambda training, _: found.append((product_threads(), training.threads))))
    assert set(found) == {(2, 2)}


@pytest.mark.slow
def test_the_shapes_of_a_recipe_are_those_of_its_first_step() -> None:
    found = tune.shapes_of(RECIPE)
    assert set(SHAPES) < set(found)
    assert (240, 8, 10) in found  # the head
    assert tune.shapes_of(tiny_recipe("precision=bfloat16")) == []
    assert not is_plain(*SHAPES[0])


def test_a_shape_is_measured_by_both_in_turn_and_judged_by_the_median_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tune.judged((1, 2, 3), [3, 100, 2.4], [2, 2, 2]) == Timing((1, 2, 3), 3, 2, 1.5)
    calls = []
    monkeypatch.setattr(tune, "_timed", lambda name, step: (step(name), calls.append(name), len(calls))[-1])
    measured = tune.measure((6, 3, 4))
    assert measured.shape == (6, 3, 4)
    assert len(calls) >= 18
    assert calls == ["numba", "numpy"] * (len(calls) // 2)


def test_info_measures_keeps_and_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "measure", lambda shape: timing(shape, 2 if shape in SHAPES else 0.5))
    Path("tiny.toml").write_text(RECIPE.to_toml())
    assert "not compared with OpenBLAS" in CliRunner().invoke(commands, ["info"]).output
    result = CliRunner().invoke(commands, ["info", "--tune", "tiny.toml"])
    assert result.exit_code == 0, result.output
    assert "960 x 8 to 24, forward and backward: 2 ms by tiles, 1 ms by OpenBLAS; OpenBLAS makes them" in result.output
    assert "240 x 8 to 10, forward and backward: 0.5 ms by tiles, 1 ms by OpenBLAS; tiles make them" in result.output
    assert products_of_blas() == set(SHAPES)


def test_nothing_is_measured_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "can_keep", lambda: False)
    monkeypatch.setattr(tune, "measure", lambda shape: pytest.fail("a shape was measured"))
    with pytest.raises(OSError, match="cannot be written; NUMBA_CACHE_DIR can name another folder"):
        tune.tune(RECIPE)
