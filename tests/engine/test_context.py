"""What is on now: context managers made once and entered often, nested, in threads, by decorators and generators.

Every test draws from all of them: `no_grad`, `autocast`, `use_kernels`, and any other change of the context.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyvit as tv
import tinyvit.functional as F
from tinyvit import context, dispatch

# A context manager, made by calling the first; what it changes, and to what.
MANAGERS: dict[str, tuple[Callable[[], context.changed], str, Any]] = {
    "no_grad": (tv.no_grad, "recording", False),
    "bfloat16": (lambda: tv.autocast("bfloat16"), "precision", context.PRECISIONS["bfloat16"]),
    "float16": (lambda: tv.autocast("float16"), "precision", context.PRECISIONS["float16"]),
    "plain": (lambda: tv.use_kernels("numpy"), "kernels", "numpy"),
    "numba": (lambda: tv.use_kernels("numba:v1"), "kernels", "numba:v1"),
    "recorder": (lambda: context.changed(recorder=None), "recorder", None),
}
names = st.sampled_from(sorted(MANAGERS))


@pytest.fixture(autouse=True)
def same_afterwards() -> Iterator[None]:
    before = context.now()
    yield
    assert context.now() == before


def made(name: str) -> tuple[context.changed, str, Any]:
    make, field, value = MANAGERS[name]
    return make(), field, value


@pytest.mark.parametrize("name", [n for n in MANAGERS if n not in ("plain", "numba")])
def test_making_one_switches_nothing_on(name: str) -> None:
    before = context.now()
    made(name)
    assert context.now() == before


def test_as_a_call_use_kernels_chooses_until_a_block_or_a_decorator_takes_it_back() -> None:
    before = dispatch.current_choice()
    chosen = tv.use_kernels("numba:v1")
    assert dispatch.current_choice() == "numba:v1"
    with chosen:
        assert dispatch.current_choice() == "numba:v1"
    assert dispatch.current_choice() == before

    @tv.use_kernels("numba")
    def choice() -> str:
        return dispatch.current_choice()

    assert dispatch.current_choice() == before
    assert (choice(), dispatch.current_choice()) == ("numba", before)


@given(st.lists(names, max_size=6), st.integers(1, 3))
def test_one_manager_can_be_entered_again_and_nested(order: list[str], times: int) -> None:
    before = context.now()
    managers = {name: made(name) for name in sorted(set(order))}
    for manager, _, _ in managers.values():
        with manager:  # a call of use_kernels is taken back
            pass
    context.set_here(kernels=before.kernels)

    def enter(rest: list[str]) -> None:
        inside = context.now()
        if rest:
            manager, field, value = managers[rest[0]]
            with manager:
                assert getattr(context.now(), field) == value
                enter(rest[1:])
            assert context.now() == inside

    for _ in range(times):
        enter(order + order)  # each of them within itself, too
    assert context.now() == before


@pytest.mark.parametrize("name", MANAGERS)
def test_an_exception_leaves_the_block(name: str) -> None:
    manager, field, value = made(name)
    for _ in range(2):
        seen = []
        with pytest.raises(ZeroDivisionError), manager:
            _ = 1 / len(seen.append(getattr(context.now(), field)) or ())
        assert seen == [value]


@pytest.mark.parametrize("name", MANAGERS)
def test_a_decorated_function_runs_inside_and_keeps_its_name(name: str) -> None:
    manager, field, value = made(name)

    @manager
    def inner(x: int, *, y: int = 0) -> tuple[Any, int]:
        """A docstring."""
        return getattr(context.now(), field), x + y

    before = context.now()
    for _ in range(2):
        assert inner(1, y=2) == (value, 3)
        assert context.now() == before
    assert (inner.__name__, inner.__doc__) == ("inner", "A docstring.")


@pytest.mark.parametrize("name", MANAGERS)
def test_a_decorated_generator_runs_inside_and_its_caller_does_not(name: str) -> None:
    manager, field, value = made(name)
    seen: list[Any] = []

    @manager
    def values() -> Iterator[Any]:
        try:
            received = yield getattr(context.now(), field)
            while True:
                try:
                    received = yield (getattr(context.now(), field), received)
                except KeyError:
                    seen.append(getattr(context.now(), field))
        finally:
            seen.append(getattr(context.now(), field))

    before = context.now()
    generator: Any = values()
    assert next(generator) == value
    assert context.now() == before
    assert generator.send("sent") == (value, "sent")
    assert generator.throw(KeyError()) == (value, "sent")
    assert context.now() == before
    generator.close()
    assert seen == [value, value]

    @manager
    def returns() -> Iterator[int]:
        yield 1
        return 2

    def outer() -> Iterator[int]:
        yield (yield from returns())  # type: ignore[misc]

    assert list(outer()) == [1, 2]


@given(st.permutations(["no_grad", "bfloat16"]))
def test_blocks_that_end_in_another_order_do_not_undo_one_another(order: list[str]) -> None:
    first, second = (made(name)[0] for name in order)

    def suspended() -> Iterator[None]:
        with first:
            yield

    before, generator = context.now(), suspended()
    next(generator)
    with second:
        generator.close()  # the block of the generator ends within the second
        assert getattr(context.now(), MANAGERS[order[1]][1]) == MANAGERS[order[1]][2]
        assert getattr(context.now(), MANAGERS[order[0]][1]) == getattr(before, MANAGERS[order[0]][1])
    assert context.now() == before


@pytest.mark.parametrize("name", MANAGERS)
def test_one_manager_serves_many_threads_and_each_has_its_own_settings(name: str) -> None:
    manager, field, value = made(name)
    with manager:  # a call of use_kernels is taken back in the thread that made it
        pass
    default, turns = context.Context(), threading.Barrier(4, timeout=60)
    wrong: list[Any] = []

    def run(enters: bool) -> None:
        for _ in range(20):
            turns.wait()
            if enters:
                with manager:
                    turns.wait()
                    found, expected = getattr(context.now(), field), value
            else:
                turns.wait()
                found, expected = getattr(context.now(), field), getattr(default, field)
            if found != expected:
                wrong.append((found, expected))

    threads = [threading.Thread(target=run, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_new_thread_starts_from_the_defaults() -> None:
    found: list[context.Context] = []
    before = context.now()
    with tv.no_grad(), tv.autocast("bfloat16"), tv.use_kernels("numba"):
        thread = threading.Thread(target=lambda: found.append(context.now()))
        thread.start()
        thread.join()
    assert found == [context.Context()]
    try:
        context.set_default(kernels="numba:v1")
        thread = threading.Thread(target=lambda: found.append(context.now()))
        thread.start()
        thread.join()
        assert found[1].kernels == "numba:v1"
    finally:
        context.set_default(kernels="auto")
        context.set_here(kernels=before.kernels)


def test_each_is_seen_by_operations() -> None:
    x = tv.tensor(np.ones((2, 2), np.float32), requires_grad=True)
    assert not tv.no_grad()(lambda: (x @ x).requires_grad)()
    bfloat16 = tv.autocast("bfloat16")
    assert [bfloat16(lambda: (x @ x).dtype)() for _ in range(2)] == ["bfloat16"] * 2
    assert (x @ x).dtype == np.float32
    assert (x @ x).requires_grad


@pytest.mark.parametrize("dtype", ["int8", None, "float64"])
def test_an_unknown_precision_is_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match=f"autocast: dtype is {dtype!r}"):
        tv.autocast(dtype)


def test_asynchronous_functions_are_refused() -> None:
    async def later() -> None: ...

    with pytest.raises(TypeError, match=r"no_grad cannot decorate the asynchronous .*later"):
        tv.no_grad()(later)


def test_a_gradient_within_no_grad_or_autocast_is_that_without() -> None:
    x = tv.tensor(np.array([[1.0, 2.0], [3.0, 4.0]]), requires_grad=True)
    expected = tv.grad(F.softmax(x @ x).sum(), x)[0]
    assert expected is not None
    y = F.softmax(x @ x).sum()
    with tv.no_grad(), tv.autocast("float16"):
        (found,) = tv.grad(y, x)
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
