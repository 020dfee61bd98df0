"""A training step as one CUDA graph: forward, backward, clipping and the optimizer, launched by a single call.

What changes from step to step lies in the device's memory: the batch, the learning rates, the number of steps, the
scale of the losses, the state of the random stream. So a graph that was recorded once computes each step, bit for bit
what the same step computes when it is not captured.
"""

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np

from .autocast import LossScaler, autocast
from .autograd import Tensor
from .backend import default_generator, gpu, is_on_gpu, like
from .optim import Adam

WARM_UP = 3  # steps before the capture: kernels are compiled, algorithms are chosen


class CapturedStep:
    """Makes training steps for parameters on a GPU, by a CUDA graph as soon as it can.

    The first steps run as usual; then one is captured. A batch of other shapes than the first one's runs as usual too,
    and so do all steps where the capture failed: a warning and `reason` then say why.

    Parameters
    ----------
    loss_of : Callable
        `loss_of(*batch)` gives the loss, a scalar tensor, of arrays on the device. It must not wait for the device.
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
        self._batch: list[Any] = []
        self._random = like(np.zeros(2, np.uint64), self._bundle.state)
        self._graph: Any = None
        self._draws = self._runs = 0
        self._rows: Any = None  # where the graph has its gradients
        self._held: Any = None  # what the graph writes to and others read
        self.reason: str | None = None

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def __call__(self, *batch: Any) -> Tensor:
        """One step; the loss stays on the device."""
        with self._own_stream():
            self._bundle.set_groups(self._optimizer.groups)
            usual = self._take(batch)
            if usual and self._graph is None and self.reason is None and self._runs >= WARM_UP:
                self._capture()
            self._runs += 1
            if not usual or self._graph is None:
                return self._step([like(np.asarray(x), self._bundle.state) if not is_on_gpu(x) else x for x in batch])
            return self._replay()

    @contextmanager
    def _own_stream(self) -> Any:
        """Work on a stream of its own, after what was asked for before, and before what comes later."""
        current = gpu()[0].cuda.get_current_stream()
        self._stream.wait_event(current.record())
        with self._stream:
            yield
        current.wait_event(self._stream.record())

    def _take(self, batch: tuple[Any, ...]) -> bool:
        """Copy a batch to where the graph reads it; False if it has other shapes than the first one."""
        if not self._batch:
            self._batch = [like(np.array(x), self._bundle.state) if not is_on_gpu(x) else x.copy() for x in batch]
            return True
        if [x.shape for x in batch] != [x.shape for x in self._batch]:
            return False
        for place, x in zip(self._batch, batch, strict=True):
            place[...] = like(x, place)
        return True

    def _step(self, batch: list[Any]) -> Tensor:
        self._optimizer.zero_grad()
        with autocast(self._precision):
            loss = self._loss_of(*batch)
        (self.scaler.scaled(loss) if self.scaler else loss).backward()
        self._optimizer.step()
        return loss.detach()

    def _capture(self) -> None:
        """Record a step, in memory that nobody else is given: each launch of the graph writes there again."""
        cupy = gpu()[0]
        cupy.get_default_memory_pool().free_all_blocks()  # of the steps before; the graph may take it
        self._stream.begin_capture()
        steps, offset = self._optimizer.steps, default_generator.offset
        try:
            with cupy.cuda.using_allocator(self._pool.malloc), default_generator.on_device(self._random):
                loss = self._step(self._batch)
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
            self._random[...] = like(stream, self._random)
            default_generator.offset += self._draws
        if self._bundle.rows is not self._rows:  # a step that ran as usual had its gradients elsewhere
            self._bundle.rows = self._rows
            self._bundle.upload_table()
        self._graph.launch(self._stream)
        self._optimizer.steps += 1
        return Tensor(self._held[0].data.copy())
