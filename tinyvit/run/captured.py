"""A training step as one CUDA graph: forward, backward, clipping and the optimizer, launched by a single call.

What changes from step to step lies in the device's memory: the batch, the learning rates, the number of steps, the
scale of the losses, the state of the random stream. So a graph that was recorded once computes each step, bit for bit
what the same step computes when it is not captured.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..autocast import LossScaler
from ..backend import default_generator, gpu, namespace_of, to_device_of
from ..context import autocast
from ..engine import Tensor
from ..optim import Adam

WARM_UP = 3  # steps before the capture: kernels are compiled, algorithms are chosen

_Batch = tuple[Any, ...]  # arrays, or None


class CapturedStep:
    """Makes training steps for parameters on a GPU, by a CUDA graph as soon as it can.

    The first steps run as usual; then one is captured. Batches of other shapes run as usual too, and so do all steps
    where the capture failed: a warning and `reason` then say why.

    Parameters
    ----------
    loss_of : Callable
        `loss_of(*batch)` gives the loss, a scalar tensor, of the arrays of a batch on the device, None where there is
        none. It must not wait for the device.
    optimizer : Adam or AdamW, of float32 parameters on one GPU.
    precision : as of `autocast`; with "float16" losses are scaled.
    clip_norm : what the joint norm of the gradients is clipped to; 0 for no clipping.

    Attributes
    ----------
    reason : why steps are not captured; None as long as nothing speaks against it.
    is_captured : whether there is a graph.
    scaler : LossScaler for "float16", else None.
    """

    def __init__(
        self, loss_of: Callable[..., Tensor], optimizer: Adam, precision: str = "float32", clip_norm: float = 0.0
    ) -> None:
        bundle = optimizer.device_bundle()
        if bundle is None:
            raise ValueError("CapturedStep: optimizer must have float32 parameters, all of them on one GPU")
        self._loss_of, self._optimizer, self._precision = loss_of, optimizer, precision
        self._bundle = bundle
        self._bundle["max_norm"] = clip_norm
        self.scaler = LossScaler(optimizer) if precision == "float16" else None
        cuda = gpu()[0].cuda
        self._stream, self._pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()
        self._places: list[_Batch] = []  # where the graph reads batches
        self._random = to_device_of(np.zeros(2, np.uint64), self._bundle.state)
        self._graph: Any = None
        self._draws = 0
        self._runs = 0  # of batches that fit there
        self._rows: Any = None  # where the graph has its gradients
        self._held: Any = None  # what the graph writes to and others read
        self.reason: str | None = None

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def __call__(self, *batches: _Batch) -> Tensor:
        """One step down the gradient of the sum of the losses of `batches`, which stays on the device."""
        with self._own_stream():
            self._bundle.set_groups(self._optimizer.groups)
            fits = self._take(batches)
            if fits and self._graph is None and self.reason is None and self._runs >= WARM_UP:
                self._capture()
            self._runs += fits
            if fits:
                return self._step(self._places) if self._graph is None else self._replay()
            there = self._bundle.state
            return self._step(
                [tuple(None if x is None else to_device_of(x, there) for x in batch) for batch in batches]
            )

    @contextmanager
    def _own_stream(self) -> Any:
        """Work on a stream of its own, after what was asked for before, and before what comes later."""
        current = gpu()[0].cuda.get_current_stream()
        self._stream.wait_event(current.record())
        with self._stream:
            yield
        current.wait_event(self._stream.record())

    def _take(self, batches: Sequence[_Batch]) -> bool:
        """Copy batches to where the graph reads them; False if they do not fit there.

        Until there is a graph, the largest ones decide what does: a run may begin with the last batch of an epoch.
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
        for batch in batches:
            with autocast(self._precision):
                loss = self._loss_of(*batch)
            (self.scaler.scaled(loss) if self.scaler else loss).backward()
            losses.append(loss.detach())
        self._optimizer.step()
        return sum(losses[1:], losses[0])

    def _capture(self) -> None:
        """Record a step, in memory that nobody else is given: each launch of the graph writes there again."""
        cupy = gpu()[0]
        cupy.get_default_memory_pool().free_all_blocks()  # of the steps before; the graph may take it
        self._stream.begin_capture()
        steps, offset = self._optimizer.steps, default_generator.offset
        try:
            with cupy.cuda.using_allocator(self._pool.malloc), default_generator.on_device(self._random):
                loss = self._step(self._places)
                self._draws = default_generator.offset - offset
            self._held = loss, [p.grad for p, _, _ in self._bundle.members]
            graph = self._stream.end_capture()
        except Exception as error:  # whatever asked for something that a graph cannot hold
            self.reason = f"the step cannot be captured in a CUDA graph ({type(error).__name__}: {error})"
            self._abandon()
            warnings.warn(f"{self.reason}; its operations are launched one by one", RuntimeWarning, stacklevel=2)
        else:
            self._rows, self._graph = self._bundle.rows, graph
            self._bundle.upload_table()
        self._optimizer.steps, default_generator.offset = steps, offset

    def _abandon(self) -> None:
        """End a capture that failed."""
        try:
            if self._stream.is_capturing():
                self._stream.end_capture()
        except Exception as error:
            self.reason = f"{self.reason}; ending the capture gave {error}"

    def _replay(self) -> Tensor:
        if self._draws:
            stream = np.array([default_generator.seed, default_generator.offset], np.uint64)
            self._random[...] = to_device_of(stream, self._random)
            default_generator.offset += self._draws
        if self._bundle.rows is not self._rows:  # a step that ran as usual had its gradients elsewhere
            self._bundle.rows = self._rows
            self._bundle.upload_table()
        self._graph.launch(self._stream)
        self._optimizer.steps += 1
        return Tensor(self._held[0].data.copy())


def _shapes(batches: Sequence[_Batch]) -> list[list[Any]]:
    return [[None if x is None else x.shape for x in batch] for batch in batches]


def _size(shapes: list[list[Any]]) -> int:
    """How many elements there are in arrays of these shapes."""
    return sum(math.prod(shape) for batch in shapes for shape in batch if shape is not None)
