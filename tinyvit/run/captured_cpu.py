"""The gradients of a training step on the CPU as a list of kernel calls, made with hardly any Python between them.

The forward pass and the walk back are recorded once (`tinyvit.program.step_trace`), for batches of one shape. Later
steps copy their batch to where the recorded step had its own, and make the same calls on the same arrays, so they
compute the same bits. Clipping, the optimizer and the average of the weights follow as in any other step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import context, dispatch
from ..engine import Tensor
from ..program import Replay, StepTrace, TraceError, undrawn
from ..program.rows import Row, root_of

WARM_UP = 20  # steps with batches of one shape before one is recorded, which takes as long as a hundred small ones
TRIALS = 2  # recorded steps that are made again as usual ones, to compare the bits
MOST_SHAPES = 3  # for so many shapes of batches a step is recorded
MOST_SEEN = 64  # shapes of batches; if none of so many has come several times, no step is recorded
MOST_BYTES = 512 * 2**20  # of all arrays of a step; the kernels of a larger one take far longer than Python

_Batch = tuple[Any, ...]  # arrays; None where the data has none of a kind
_Gradients = list[tuple[Tensor, Tensor]]  # parameters with their gradients


class CapturedGradients:
    """Compute the gradients of a loss with respect to parameters on the CPU, from records of earlier steps.

    Parameters
    ----------
    loss_of : Callable
        `loss_of(*batch)` returns the loss and its share in the mean loss of the step, whose gradient is wanted, both
        scalar tensors, of the arrays of a batch.
    parameters : the tensors that get gradients.
    groups : some of the parameters, in groups.
    found : `found(gradients)` is called as soon as those of a group are complete, with pairs of a parameter and its
        gradient in the batch, which must not be modified. Without a record, nothing calls it.

    Attributes
    ----------
    reason : the reason why steps are not recorded, else None.
    """

    def __init__(
        self,
        loss_of: Callable[..., tuple[Tensor, Tensor]],
        parameters: Sequence[Tensor],
        groups: Sequence[Sequence[Tensor]] = (),
        found: Callable[[_Gradients], None] | None = None,
    ) -> None:
        self._loss_of, self._parameters = loss_of, list(parameters)
        self._groups, self._found = groups, found
        self._captures: dict[Any, _Capture] = {}
        self._seen: dict[Any, int] = {}
        self.reason: str | None = None
        if not dispatch.is_served("linear", np.dtype(np.float32), "cpu") or not _are_compiled():
            self.reason = "no compiled kernels serve here"

    @property
    def is_captured(self) -> bool:
        """Whether a step has been recorded."""
        return bool(self._captures)

    @property
    def replays(self) -> list[Replay]:
        """What is run in the place of a step, for each shape of batches."""
        return [capture.replay for capture in self._captures.values()]

    def __call__(self, batch: _Batch, images: int, is_only_one: bool = True) -> float | None:
        """Add the gradients of a batch to `.grad` of the parameters, and return its loss; None if it is not recorded.

        Parameters
        ----------
        images : the number of images in all batches of the step, on which the mean loss depends.
        is_only_one : whether the step has no other batch. Then the gradients lie where the next call writes its own.
        """
        now = context.now()
        if self.reason is not None or now.recorder is not None or not now.recording:
            return None
        if not all(x is None or type(x) is np.ndarray for x in batch):
            self._give_up("a batch holds something that is no array of NumPy")
            return None
        key = (images, now.precision, now.kernels, *((x.shape, x.dtype.char) if x is not None else None for x in batch))
        capture = self._captures.get(key)
        if capture is None:
            return self._record(key, batch, is_only_one) if self._is_due(key) else None
        if not capture.fits():
            self._captures.clear()  # the weights lie elsewhere, or a hook wants to see their gradients
            return None
        return self._made(capture, batch, is_only_one)

    def _is_due(self, key: Any) -> bool:
        """Return whether a step for batches of this shape is to be recorded now."""
        if key not in self._seen and len(self._seen) == MOST_SEEN:
            if not self._captures:
                self._give_up("hardly any two batches have the same shape")
            return False
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        return seen > WARM_UP and len(self._captures) < MOST_SHAPES

    def _made(self, capture: "_Capture", batch: _Batch, is_only_one: bool) -> float | None:
        before = [p.grad for p in self._parameters]
        capture.run(batch, self._found if capture.trials == TRIALS else None)
        if capture.trials < TRIALS:
            for p in self._parameters:
                p.grad = None
            loss, mean = self._loss_of(*batch)
            mean.backward()
            is_equal = capture.equals(loss, self._parameters)
            for p, old in zip(self._parameters, before, strict=True):
                p.grad = old
            if not is_equal:
                self._give_up("a step that was made again from its record did not give the same bits")
                return None
            capture.trials += 1
        capture.hand_over(is_only_one)
        return capture.loss

    def _record(self, key: Any, batch: _Batch, is_only_one: bool) -> float | None:
        before = [p.grad for p in self._parameters]
        for p in self._parameters:
            p.grad = None
        try:
            if any(p.hooks for p in self._parameters):
                raise TraceError("a hook is registered on a parameter")
            with undrawn():
                capture = _Capture(self._loss_of, self._parameters, batch, self._groups)
        except TraceError as error:
            self._give_up(str(error).removeprefix("freeze: ").partition(";")[0])
            return None
        except Exception as error:  # a model may raise anything for stand-ins; a usual step shows its real errors
            self._give_up(f"a step cannot be recorded ({type(error).__name__}: {error})")
            return None
        finally:
            for p, old in zip(self._parameters, before, strict=True):
                p.grad = old
        self._captures[key] = capture
        return self._made(capture, batch, is_only_one)

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._captures.clear()


def _are_compiled() -> bool:
    from ..kernels.cpu.compiler import is_compiling

    return is_compiling()


class _Capture:
    """A recorded step, for batches of one shape."""

    def __init__(
        self,
        loss_of: Callable[..., Any],
        parameters: Sequence[Tensor],
        batch: _Batch,
        groups: Sequence[Sequence[Tensor]] = (),
    ) -> None:
        from ..kernels.cpu import threads

        self._team_now = threads.team
        self._places = [None if x is None else np.array(x, order="C") for x in batch]
        trace = StepTrace(MOST_BYTES)
        with context.changed(recorder=trace):
            given = [None if x is None else trace.stand_in(x) for x in self._places]
            loss, mean = loss_of(*given)
        value = trace.value(loss).data
        trace.backward(mean, parameters)
        found = [None if p.grad is None else p.grad.data for p in parameters]
        by_parameter = {id(p): g for p, g in zip(parameters, found, strict=True) if g is not None}
        self._groups = [[p for p in group if id(p) in by_parameter] for group in groups]
        self._found: Callable[[_Gradients], None] | None = None
        rows = self._with_notices(trace.rows, by_parameter)
        replay = Replay(rows, trace.inner, [value, *by_parameter.values()])
        self.replay = replay
        self._loss, *gradients = replay.results
        self._state = [(p, p.data, p.requires_grad) for p in parameters]
        owners = [p for p, g in zip(parameters, found, strict=True) if g is not None]
        self._gradients = [(p, Tensor(g)) for p, g in zip(owners, gradients, strict=True)]
        self._gradient_of = {id(p): g for p, g in self._gradients}
        self._team = threads.team()
        self.trials = 0

    def _with_notices(self, rows: Sequence[Row], gradients: dict[int, np.ndarray]) -> list[Row]:
        """Return the rows, with a row for Python after the last one that touches a gradient of a group."""
        last = {id(root_of(array)): i for i, row in enumerate(rows) for array in row.arrays()}
        after: dict[int, list[Row]] = {}
        for number, group in enumerate(self._groups):
            if group:
                place = max(last.get(id(root_of(gradients[id(p)])), -1) for p in group)
                after.setdefault(place, []).append(Row(self._notice, (number,)))
        return [*after.get(-1, []), *(each for i, row in enumerate(rows) for each in (row, *after.get(i, [])))]

    def _notice(self, number: int) -> None:
        if self._found:
            self._found([(p, self._gradient_of[id(p)]) for p in self._groups[number]])

    def fits(self) -> bool:
        """Return whether weights and threads are those of the record, and no hook wants to see a gradient."""
        return self._team == self._team_now() and all(
            p.data is data and p.requires_grad is needs and not p.hooks for p, data, needs in self._state
        )

    def run(self, batch: _Batch, found: Callable[[_Gradients], None] | None = None) -> None:
        """Compute loss and gradients of a batch; `found` is called with the gradients of each group when complete."""
        self._found = found
        for place, x in zip(self._places, batch, strict=True):
            if place is not None:
                place[...] = x
        self.replay.run()
        for _, gradient in self._gradients:
            gradient.mark_modified()

    @property
    def loss(self) -> float:
        """The loss of the last batch."""
        return float(self._loss.item())

    def equals(self, loss: Tensor, parameters: Sequence[Tensor]) -> bool:
        """Return whether loss and gradients are those of parameters, bit for bit."""
        own = {id(p): g.data for p, g in self._gradients}
        pairs = [(self._loss, loss.data)]
        for p in parameters:
            if (p.grad is None) != (id(p) not in own):
                return False
            if p.grad is not None:
                pairs.append((own[id(p)], p.grad.data))
        return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)

    def hand_over(self, is_only_one: bool) -> None:
        """Give the gradients to the parameters, or add them to those that they have."""
        for p, g in self._gradients:
            if p.grad is None:
                p.grad = g if is_only_one else g.copy()
            else:
                p.grad.data += g.data
                p.grad.mark_modified()
