"""Programs for one step of a text decoder: the next token from the keys and values of those before it."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import context
from ..engine import Tensor
from ..models import TextDecoder
from ..nn import Module
from .program import Program, freeze_function
from .serve import state_of

STEPS_BEFORE = 100  # steps that a decoder computes itself

_steppers: "weakref.WeakKeyDictionary[TextDecoder, _Steps]" = weakref.WeakKeyDictionary()


@contextmanager
def serving_steps(model: Module) -> Iterator[None]:
    """Within this block, let programs compute the steps of the text decoders in a model that write token by token.

    What is written is the same, to the bit. A program takes over when a decoder has made a few steps, within `no_grad`
    and on the CPU; it serves any number of rows, of tokens so far and of tokens of the context.
    """
    decoders = [m for m in model.modules() if isinstance(m, TextDecoder) and "forward" not in vars(m)]
    for decoder in decoders:
        vars(decoder)["forward"] = _steppers.setdefault(decoder, _Steps(decoder))
    try:
        yield
    finally:
        for decoder in decoders:
            del vars(decoder)["forward"]


class _Steps:
    """The forward pass of a decoder; a step that has a cache is computed by a program."""

    def __init__(self, decoder: TextDecoder) -> None:
        self._decoder = weakref.ref(decoder)
        self._counts: dict[Any, int] = {}
        self._made: dict[Any, tuple[Program | None, Any]] = {}

    def __call__(self, ids: Any, context_: Any, context_mask: Any = None, cache: Any = None) -> Any:
        decoder = self._decoder()
        assert decoder is not None
        program = None
        if cache is not None and np.shape(ids)[1:] == (1,) and cache.length:
            program = self._program_for(decoder, ids, context_mask, cache)
        if program is None:
            return type(decoder).forward(decoder, ids, context_, context_mask, cache)
        mask = [] if context_mask is None else [context_mask]
        logits, *own = program(ids, *mask, *_parts_of(cache.blocks))
        for (kept, _), k, v in zip(cache.blocks, own[::2], own[1::2], strict=True):
            kept.parts = Tensor(k), Tensor(v)
        cache.length += 1
        return Tensor(logits)

    def _program_for(self, decoder: TextDecoder, ids: Any, mask: Any, cache: Any) -> Program | None:
        """Return the program for a step, or None where the decoder computes it."""
        now = context.now()
        if decoder.training or now.recording or now.recorder is not None or not isinstance(ids, np.ndarray):
            return None
        if not (mask is None or isinstance(mask, np.ndarray)):
            return None
        form = mask is None, now.kernels, now.precision, ids.dtype
        self._counts[form] = self._counts.get(form, 0) + 1
        if self._counts[form] <= STEPS_BEFORE:
            return None
        program, state = self._made.get(form, (None, None))
        is_first = cache.length == 1  # the parameters stay as they are while a text is written
        if form not in self._made or (is_first and program is not None and state != state_of(decoder)):
            self._made[form] = self._frozen(decoder, ids, mask, cache), state_of(decoder)
        return self._made[form][0]

    def _frozen(self, decoder: TextDecoder, ids: np.ndarray, mask: Any, cache: Any) -> Program | None:
        example, axes = {"ids": ids}, {"ids": ("B", None)}
        if mask is not None:
            example["mask"], axes["mask"] = mask, ("B", None, None, "T")  # type: ignore[assignment]
        for i, part in enumerate(_parts_of(cache.blocks)):
            name = f"{('key', 'value', 'context_key', 'context_value')[i % 4]}_{i // 4}"
            example[name], axes[name] = part, ("B", None, "S" if i % 4 < 2 else "T", None)  # type: ignore[assignment]

        def step(ids: Any, *rest: Any) -> Any:
            given, parts = (rest[0], rest[1:]) if mask is not None else (None, rest)
            return _step(decoder, ids, given, parts)

        try:
            program = freeze_function(step, example, decoder, axes)
        except Exception:  # whatever the reason is, the model itself computes
            return None
        return program if program.is_batch_free else None


def _step(decoder: TextDecoder, ids: Any, mask: Any, parts: Sequence[Tensor]) -> list[Any]:
    """Return the logits of the next token, then the keys and values of the tokens so far, block by block."""
    cache = decoder.new_cache()
    cache.length = parts[0].shape[2]
    for i, (own, onto) in enumerate(cache.blocks):
        own.parts, onto.parts = (parts[4 * i], parts[4 * i + 1]), (parts[4 * i + 2], parts[4 * i + 3])
    logits = type(decoder).forward(decoder, ids, parts[2], mask, cache)
    return [logits, *(part for own, _ in cache.blocks for part in own.parts or ())]


def _parts_of(blocks: Any) -> list[Tensor]:
    """Return the keys and values of the tokens and of the context, block by block."""
    return [part for own, onto in blocks for part in (*own.parts, *onto.parts)]
