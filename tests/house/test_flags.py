"""Every flag of a public function is True or False: a text such as "no", which Python counts as true, is refused."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyvit.kernels

import tinyvit as tv
from tinyvit import data, functional, models, nn, optim, program
from tinyvit.engine import Tensor

WRONG = ("no", "", None, 2, 1.5, (), np.ones(2), object())
PLACES = (tv, functional, nn, models, optim, data, program, tinyvit.kernels)


def model() -> Any:
    return models.ViT(8, 4, 2, 8, 1, 2, in_channels=1)


def dataset() -> data.Dataset:
    images = np.zeros((4, 1, 8, 8), np.uint8)
    return data.Dataset("empty", "train", images, np.arange(4), ("",) * 4, (0.0,), (1.0,))


def gradient(**flags: Any) -> Any:
    x = Tensor(np.ones(2), requires_grad=True)
    return tv.grad(x.sum(), x, **flags)


def images() -> np.ndarray:
    return np.zeros((1, 1, 8, 8), np.float32)


# How a function with flags is called; what a call would write is not wanted, so these are only called with wrong ones.
CALLS: dict[str, Callable[..., Any]] = {
    "grad": gradient,
    "tensor": lambda **flags: tv.tensor([1.0], **flags),
    "Tensor.backward": lambda **flags: tv.tensor([1.0], requires_grad=True).sum().backward(**flags),
    "allow_tf32": tv.allow_tf32,
    "Module.load_state_dict": lambda **flags: model().load_state_dict(model().state_dict(), **flags),
    "Module.train": lambda **flags: model().train(**flags),
    "Module.requires_grad_": lambda **flags: model().requires_grad_(**flags),
    "ViT.forward_head": lambda **flags: model().forward_head(model().features(images()), **flags),
    "ViT.forward_intermediates": lambda **flags: model().forward_intermediates(images(), **flags),
    "Loader": lambda **flags: data.Loader(dataset(), 2, **flags),
    "Augment": data.Augment,
    "TextTable.load": lambda **flags: data.TextTable.load(object.__new__(data.TextTable), "train", **flags),
    "Program.export_onnx": lambda **flags: program.freeze(model(), images()).export_onnx(Path("never"), **flags),
    "Program.export_c": lambda **flags: program.freeze(model(), images()).export_c(Path("never"), **flags),
}
ELSEWHERE = {
    # It is made at every step of training; its other methods are these functions.
    "Tensor", *(f"Tensor.{name}" for name in functional.__all__),
    # Attention passes this flag on to the function of tests/functional/test_every_argument.py.
    "Attention.forward", "Block.forward",
    # Kernels that are called directly take arrays and flags as the package gives them.
    "attention_forward", "attention_backward", "attention_weights",
    # `Program` traces with these.
    "StepTrace.gradients",
    *functional.__all__,  # tests/functional/test_every_argument.py
    *optim.__all__,  # tests/optim/test_wrong_settings.py
    # tests/nn/test_sizes.py makes every layer and model
    *(name for room in (nn, models) for name in room.__all__ if inspect.isclass(getattr(room, name))),
}  # fmt: skip


def flags_of(function: Any) -> set[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {p.name for p in parameters if p.annotation is bool}


def with_flags() -> Iterator[tuple[str, set[str]]]:
    """The public functions, classes and methods that take flags, and their names."""
    for place in PLACES:
        for name in place.__all__:
            thing = getattr(place, name)
            yield name, flags_of(thing)
            for method, function in vars(thing).items() if inspect.isclass(thing) else ():
                if not method.startswith("_"):
                    yield f"{name}.{method}", flags_of(function)


def test_every_function_with_flags_is_tried() -> None:
    found = {name for name, flags in with_flags() if flags}
    assert found - ELSEWHERE == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_what_is_neither_true_nor_false_is_refused_by_name(name: str) -> None:
    for flag in sorted(dict(with_flags())[name]):
        for wrong in WRONG:
            with pytest.raises(TypeError, match=rf"^\w+: {flag} is .*; it must be True or False$"):
                CALLS[name](**{flag: wrong})


def test_flags_of_numpy_are_taken() -> None:
    assert gradient(create_graph=np.True_, allow_unused=np.False_, retain_graph=np.True_)[0].shape == (2,)
    assert type(model().train(np.False_).training) is bool


@pytest.mark.parametrize("number", [1, 0, np.int64(1), np.uint8(0)])
def test_one_and_zero_are_taken_as_flags_and_become_booleans(number: Any) -> None:
    taken = model().train(number).training
    assert type(taken) is bool
    assert taken == bool(number)
