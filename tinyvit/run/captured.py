"""A training step as one CUDA graph: forward, backward, clipping and the optimizer, launched by a single call.

All that changes from step to step lies in the device's memory: the batch, the learning rates, the number of steps, the
scale of the losses, the state of the random stream. A graph that is recorded once therefore serves every step, and
computes the same bits as a step that is not captured.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from ..backend import default_generator, gpu, is_capturing, namespace_of, to_device_of
from ..context import autocast
from ..engine import Tensor
from ..optim import EMA, Adam, LossScaler, NarrowWeights

WARM_UP = 3  # steps before the capture, in which kernels are compiled and algorithms chosen

_Batch = tuple[Any, ...]  # arrays; None where the data has none of a kind


class CapturedStep:
    """Make training steps for parameters on a GPU, by a CUDA graph as soon as possible.

    The first steps launch their operations one by one; then one step is captured. Batches of other shapes are never
    captured. If the capture fails, no step is, and a warning and `reason` say why.

    Parameters
    ----------
    loss_of : Callable
        `loss_of(*batch)` returns the loss, a scalar tensor, of the arrays of a batch on the device. It must not wait
        for the device.
    optimizer : Adam or AdamW, of float32 parameters on one GPU.
    precision : the dtype of `autocast`; with "float16" losses are scaled.
    clip_norm : the largest joint norm that gradients keep; 0 for no clipping.
    average : updated after each step, in the graph where it has a kernel.

    Attributes
    ----------
    reason : the reason why steps cannot be captured, else None.
    is_captured : whether a step has been captured.
    scaler : LossScaler for "float16", else None.
    """

    def __init__(
        self,
        loss_of: Callable[..., Tensor],
        optimizer: Adam,
        precision: str = "float32",
        clip_norm: float = 0.0,
        average: EMA | None = None,
    ) -> None:
        bundle = optimizer.device_bundle()
        if bundle is None:
            raise ValueError("CapturedStep: optimizer must have float32 parameters, all of them on one GPU")
        self._loss_of, self._optimizer, self._precision = loss_of, optimizer, precision
        self._bundle, self._average = bundle, average
        self._bundle["max_norm"] = clip_norm
        self.scaler = LossScaler(optimizer) if precision == "float16" else None
        self._weights = [p for p, _, _ in bundle.members]
        self._narrow = NarrowWeights(self._weights) if precision == "bfloat16" else None
        cuda = gpu()[0].cuda
        self._stream, self._pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()
        self._places: list[_Batch] = []  # the arrays from which the graph reads its batches
        self._random = to_device_of(np.zeros(2, np.uint64), self._bundle.state)
        self._graph: Any = None
        self._draws = 0
        self._averages_in_graph = False
        self._runs = 0  # steps with batches that fit into these arrays
        self._rows: Any = None  # the optimizer's table with the addresses of the graph's gradients
        self._held: Any = None  # arrays that the graph writes and others read, kept alive
        self.reason: str | None = None

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def described(self) -> str:
        """Return the nodes of the graph in the language DOT; nothing before the capture."""
        return "" if self._graph is None else str(self._graph.debug_dot_str())

    def __call__(self, *batches: _Batch) -> Tensor:
        """Make one step down the gradient of the sum of the losses of `batches`; return the sum, on the device."""
        with self._own_stream():
            self._bundle.set_groups(self._optimizer.groups)
            fits = self._take(batches)
            if not fits or self._graph is not None or self.reason is not None or self._runs < WARM_UP:
                return self._advance(batches, fits)
            self._capture()
        with self._own_stream():  # a new one, if the capture has failed
            return self._advance(batches, fits)

    def _advance(self, batches: Sequence[_Batch], fits: bool) -> Tensor:
        """Make a step; `fits` says that the batches are in the arrays from which the graph reads."""
        self._runs += fits
        if fits:
            return self._step(self._places) if self._graph is None else self._replay()
        return self._step([self._on_device(batch) for batch in batches])

    def _on_device(self, batch: _Batch) -> _Batch:
        return tuple(None if x is None else to_device_of(x, self._bundle.state) for x in batch)

    @contextmanager
    def _own_stream(self) -> Any:
        """Work on a stream of its own: after all earlier work on the current stream, and before all later work."""
        current = gpu()[0].cuda.get_current_stream()
        self._stream.wait_event(current.record())
        with self._stream:
            yield
        current.wait_event(self._stream.record())

    def _take(self, batches: Sequence[_Batch]) -> bool:
        """Copy batches into the arrays from which the graph reads; return whether they fit.

        Until a step is captured, the arrays take the shapes of the largest batches so far, because a run may begin with
        the last batch of an epoch, which is smaller.
        """
        shapes = _shapes(batches)
        if self._graph is None and _size(shapes) > _size(_shapes(self._places)):
            empty = namespace_of(self._bundle.state).empty
            self._places = [tuple(None if x is None else empty(x.shape, x.dtype) for x in batch) for batch in batches]
            self._runs = 0
        if shapes != _shapes(self._places):
            return False
        for places, batch in zip(self._places, batches, strict=True):
            for place, x in zip(places, batch, strict=True):
                if x is not None:
                    place[...] = to_device_of(x, place)
        return True

    def _step(self, batches: Sequence[_Batch]) -> Tensor:
        self._optimizer.zero_grad()
        losses = []
        with self._narrow.in_use() if self._narrow else nullcontext():
            for batch in batches:
                with autocast(self._precision):
                    loss = self._loss_of(*batch)
                (self.scaler.scaled(loss) if self.scaler else loss).backward()
                losses.append(loss.detach())
        self._optimizer.step()
        if self._average and (not is_capturing() or self._average.kernel()):
            self._average.update()
        return sum(losses[1:], losses[0])

    def _capture(self) -> None:
        """Record a step, in memory of a pool of its own, because each launch of the graph writes to it again."""
        cupy = gpu()[0]
        cupy.get_default_memory_pool().free_all_blocks()  # memory of earlier steps, which the graph may need
        steps, offset = self._optimizer.steps, default_generator.offset
        averaged = self._average.steps if self._average else 0
        self._averages_in_graph = bool(self._average and self._average.kernel())
        before = self._stream.record()
        try:
            self._stream.begin_capture()
            with cupy.cuda.using_allocator(self._pool.malloc), default_generator.on_device(self._random):
                loss = self._step(self._places)
                self._draws = default_generator.offset - offset
            self._held = loss, [p.grad for p in self._weights]
            graph = self._stream.end_capture()
        except Exception as error:  # any library may refuse what a graph cannot hold
            self.reason = f"the step cannot be captured in a CUDA graph ({type(error).__name__}: {error})"
            self._abandon(before)
            warnings.warn(f"{self.reason}; its operations are launched one by one", RuntimeWarning, stacklevel=2)
        except BaseException:  # an interruption; the state of the run is saved on the device's other streams
            self._abandon(before)
            raise
        else:
            self._rows, self._graph = self._bundle.rows, graph
            self._bundle.upload_table()
        finally:
            self._optimizer.steps, default_generator.offset = steps, offset
            if self._average:
                self._average.steps = averaged

    def _abandon(self, before: Any) -> None:
        """End a capture that has failed, or continue on a new stream after the event `before`.

        The stream is not asked whether it captures: CuPy raises an error if the capture has become invalid, as by
        waiting for the device. Such a capture must be ended too, which reports the error once more.
        """
        try:
            self._stream.end_capture()
        except Exception:
            self._stream = gpu()[0].cuda.Stream(non_blocking=True)
            self._stream.wait_event(before)

    def _replay(self) -> Tensor:
        if self._draws:
            stream = np.array([default_generator.seed, default_generator.offset], np.uint64)
            self._random[...] = to_device_of(stream, self._random)
            default_generator.offset += self._draws
        if self._bundle.rows is not self._rows:  # a step that was not captured had its gradients elsewhere
            self._bundle.rows = self._rows
            self._bundle.upload_table()
        self._graph.launch(self._stream)
        for p, gradient in zip(self._weights, self._held[1], strict=True):
            p.mark_modified()
            if gradient is not None:
                gradient.mark_modified()
        self._optimizer.steps += 1
        if self._average and self._averages_in_graph:
            self._average.steps += 1
        elif self._average:
            self._average.update()
        return Tensor(self._held[0].data.copy())


def _shapes(batches: Sequence[_Batch]) -> list[list[Any]]:
    return [[None if x is None else x.shape for x in batch] for batch in batches]


def _size(shapes: list[list[Any]]) -> int:
    """Return the number of elements in arrays of these shapes."""
    return sum(math.prod(shape) for batch in shapes for shape in batch if shape is not None)
