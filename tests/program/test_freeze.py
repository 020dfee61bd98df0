"""What `tv.freeze` records, what it refuses, and what a program refuses."""

import threading
import tracemalloc

import numpy as np
import pytest

import tinyvit as tv
from tinyvit import functional as F
from tinyvit.backend import default_generator
from tinyvit.program import Ref, Size, TraceError

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 1, 8, 8)).astype(np.float32)


def digits(**options: object) -> tv.models.ViT:
    tv.manual_seed(0)
    return tv.models.ViT(8, 2, 10, 16, 1, 2, in_channels=1, **options)  # type: ignore[arg-type]


class Doing(tv.nn.Module):
    """A module whose forward is a function."""

    def __init__(self, function: object, **attributes: object) -> None:
        self.weight = tv.nn.Parameter(np.linspace(-1, 1, 4, dtype=np.float32))
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.function(self, x)


X = RNG.standard_normal((3, 4)).astype(np.float32)


# What is recorded -----------------------------------------------------------------------------------------------------


def test_the_steps_are_the_operations_of_the_model_in_order() -> None:
    program = tv.freeze(Doing(lambda self, x: F.exp(tv.Tensor(x)) * 2 + self.weight), X)
    assert [step.name for step in program.operations] == ["exp", "multiply", "add"]
    assert program.operations[1].inputs == (Ref(program.operations[0].outputs[0]), 2)
    assert [value.name for value in program.graph.values][:2] == ["x", "weight"]


def test_the_batch_is_a_letter_wherever_it_matters() -> None:
    program = tv.freeze(digits(), IMAGES)
    assert program.is_batch_free
    (broadcast,) = [step for step in program.operations if step.name == "broadcast_to"]
    assert broadcast.params["shape"] == (Size(0, (1,)), 1, 16)
    assert "(B, 17, 16)" in str(program)
    for batch in (0, 1, 2, 5):
        assert program(np.repeat(IMAGES[:1], batch, axis=0)).shape == (batch, 10)


def test_what_does_not_depend_on_the_inputs_is_computed_once() -> None:
    program = tv.freeze(Doing(lambda self, x: tv.Tensor(x) * F.exp(self.weight * 2)), X)
    assert [step.name for step in program.operations] == ["multiply"]
    (factor,) = [value.array for value in program.graph.values if value.array is not None]
    np.testing.assert_array_equal(factor, np.exp(np.linspace(-1, 1, 4, dtype=np.float32) * 2))


def test_steps_whose_results_nobody_reads_are_left_out() -> None:
    def forward(self, x):
        F.exp(tv.Tensor(x))
        return tv.Tensor(x) + 1

    assert [step.name for step in tv.freeze(Doing(forward), X).operations] == ["add"]


def test_functions_of_numpy_on_the_inputs_are_steps() -> None:
    def forward(self, ids):
        mask = (ids != 0)[:, None] & np.ones((1, 1), bool)
        return mask.astype("float32") / mask.sum(axis=-1, keepdims=True), np.concatenate([mask, ~mask], axis=1)

    ids = np.array([[3, 0, 2], [0, 0, 1]])
    program = tv.freeze(Doing(forward), ids)
    for rows in (ids, ids[::-1], np.array([[1, 2, 3]])):
        for got, wanted in zip(program(rows), forward(None, rows), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_a_program_returns_what_the_model_returns() -> None:
    def forward(self, x):
        y = tv.Tensor(x) * 2
        return {"pair": (y, [y + 1, None]), "weight": self.weight, "input": tv.Tensor(x), "number": 3, "rows": len(x)}

    found = tv.freeze(Doing(forward), X)(X[:2])
    np.testing.assert_array_equal(found["pair"][0], X[:2] * 2)
    np.testing.assert_array_equal(found["pair"][1][0], X[:2] * 2 + 1)
    assert (found["pair"][1][1], found["number"], found["rows"]) == (None, 3, 2)
    assert not np.shares_memory(found["input"], X)
    assert type(found["input"]) is np.ndarray
    found["weight"][:] = 9  # a copy: the program keeps its own
    assert tv.freeze(Doing(forward), X)(X)["weight"][0] == -1


def test_axes_of_different_lengths_have_letters_of_their_own() -> None:
    rows = np.array([0, 2, 1, 1, 0])
    model = Doing(None)
    model.forward = lambda x, rows: tv.Tensor(x)[rows] * 1.0  # type: ignore[method-assign]
    program = tv.freeze(model, X, rows)
    assert program.graph.letters == ("B", "Q")
    np.testing.assert_array_equal(program(X[:2], np.array([1, 0])), X[[1, 0]])
    with pytest.raises(IndexError):
        program(X[:2], np.array([2]))


def test_a_model_that_needs_one_batch_size_gives_a_program_for_that() -> None:
    program = tv.freeze(Doing(lambda self, x: tv.Tensor(x) * tv.Tensor(X[:, :1])), X)
    assert not program.is_batch_free
    np.testing.assert_array_equal(program(X), X * X[:, :1])
    with pytest.raises(ValueError, match=r"x has shape \(2, 4\); the program takes \(3, 4\) float32 \(all sizes are"):
        program(X[:2])


def test_a_length_that_is_a_square_of_the_batch_fixes_it() -> None:
    program = tv.freeze(Doing(lambda self, x: tv.Tensor(x) @ tv.Tensor(x).T), X)
    assert program(X[:2]).shape == (2, 2)
    program = tv.freeze(Doing(lambda self, x: (tv.Tensor(x) @ tv.Tensor(x).T).reshape(len(x) ** 2)), X)
    assert not program.is_batch_free
    assert "not linear" in program.graph.reason
    assert program(X).shape == (9,)


def test_steps_that_are_the_same_only_for_large_batches_fix_the_size() -> None:
    large = np.ones((128, 4), np.float32)
    program = tv.freeze(Doing(lambda self, x: tv.Tensor(x) * (len(x) // 64)), large)
    assert not program.is_batch_free
    np.testing.assert_array_equal(program(large), large * 2)


def test_freezing_keeps_no_values_that_later_operations_do_not_need() -> None:
    def forward(self, x):
        y = tv.Tensor(x)
        for _ in range(30):
            y = y + 1
        return y

    x = np.zeros((64, 4096), np.float32)  # 1 MB
    tracemalloc.start()
    program = tv.freeze(Doing(forward), x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * x.nbytes
    np.testing.assert_array_equal(program(x[:2]), x[:2] + 30)


def test_later_changes_of_the_weights_do_not_reach_a_program() -> None:
    model = digits().eval()
    program = tv.freeze(model, IMAGES)
    before = program(IMAGES)
    assert program.is_current(model)
    model.head.bias.data += 1
    assert not program.is_current(model)
    np.testing.assert_array_equal(program(IMAGES), before)
    model.head.bias.data -= 1
    model.patch_embed.proj.weight.data *= 0.5
    assert not program.is_current(model)
    np.testing.assert_array_equal(program(IMAGES), before)


# What is refused ------------------------------------------------------------------------------------------------------

REFUSED = {
    "item": (lambda self, x: tv.Tensor(x) * tv.Tensor(x).sum().item(), "reads the values"),
    "if": (lambda self, x: x if tv.Tensor(x).sum() > 0 else -x, "reads the values"),
    "float": (lambda self, x: tv.Tensor(x) * float(tv.Tensor(x).sum()), "reads the values"),
    "asarray": (lambda self, x: tv.Tensor(np.asarray(x)), "reads the values"),
    "numpy": (lambda self, x: tv.tensor(tv.Tensor(x).numpy()), "reads the values"),
    "mask": (lambda self, x: tv.Tensor(x)[x > 0], "mask"),
    "nonzero": (lambda self, x: np.nonzero(x), "depends on values"),
    "in place": (lambda self, x: tv.Tensor(x).__iadd__(1), "in place"),
    "item of an array": (lambda self, x: x.__setitem__(0, 1.0), "in place"),
    "out": (lambda self, x: np.add(x, 1, out=x), "writes into"),
    "weight": (lambda self, x: (self.weight.assign(np.zeros(4)), tv.Tensor(x))[1], "changes the parameter weight"),
    "dropout": (lambda self, x: F.dropout(tv.Tensor(x)), "model.eval"),
    "draw": (lambda self, x: tv.Tensor(x) + tv.Tensor(default_generator.numpy().random(4, "f")), "random numbers"),
    "object": (lambda self, x: object(), "returns a object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_program_cannot_do_is_refused(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(TraceError, match=f"^freeze: .*{message}"):
        tv.freeze(Doing(function), X.copy())


def test_dropout_is_refused_in_training_mode_only() -> None:
    model = digits(dropout=0.1)
    with pytest.raises(TraceError, match=r"model\.eval\(\)"):
        tv.freeze(model, IMAGES)
    assert tv.freeze(model.eval(), IMAGES)(IMAGES).shape == (3, 10)


def test_a_refused_trace_leaves_the_random_stream_alone() -> None:
    tv.manual_seed(5)
    with pytest.raises(TraceError):
        tv.freeze(Doing(lambda self, x: F.dropout(tv.Tensor(x))), X)
    assert default_generator.state_dict() == {"seed": 5, "offset": 0}


def test_errors_of_the_model_come_through() -> None:
    with pytest.raises(ValueError, match="this model takes"):
        tv.freeze(digits(), IMAGES[:, :, :4])


@pytest.mark.parametrize(
    ("arrays", "kind", "message"),
    [
        ((), TypeError, r"takes 1 arrays \(images\), not 0"),
        ((IMAGES.astype(np.float64),), TypeError, "images is float64; it must be float32"),
        (([1.0],), TypeError, "images is a list"),
        ((IMAGES[0],), ValueError, r"images has shape \(1, 8, 8\); the program takes \(B, 1, 8, 8\) float32"),
        ((IMAGES[:, :, :4],), ValueError, "images has shape"),
    ],
)
def test_a_program_says_what_it_takes(arrays: tuple[object, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        tv.freeze(digits(), IMAGES)(*arrays)


def test_inputs_that_share_a_batch_must_agree() -> None:
    model = Doing(None)
    model.forward = lambda x, y: tv.Tensor(x) + y  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="y has 2 rows and x 3; they must have the same number, B"):
        tv.freeze(model, X, X)(X, X[:2])


def test_ids_are_checked_at_each_call() -> None:
    program = tv.freeze(tv.nn.Embedding(5, 2), np.array([[0, 4]]))
    assert program(np.array([[1, 2]], np.int32)).shape == (1, 2, 2)
    with pytest.raises(ValueError, match=r"they must be in \[0, 5\)"):
        program(np.array([[0, 5]]))


def test_a_trace_in_one_thread_does_not_reach_another() -> None:
    """A recorder of the whole process would record the other thread's operations."""
    inside, outside = threading.Event(), threading.Event()

    def forward(self, x):
        inside.set()
        outside.wait(10)
        return tv.Tensor(x) + 1

    def work() -> None:
        inside.wait(10)
        F.exp(tv.Tensor(X))
        outside.set()

    thread = threading.Thread(target=work)
    thread.start()
    program = tv.freeze(Doing(forward), X)
    thread.join()
    assert [step.name for step in program.operations] == ["add"]
