"""Hashes of the results of all kernels on inputs that are large enough for threads.

`python results.py all` prints them for every version, `python results.py newest` for the newest versions in float32.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import ml_dtypes  # noqa: F401  (names bfloat16)
import numpy as np
from tinyvit.kernels import registry

import tinyvit as tv
from tinyvit.engine import Op, Tensor
from tinyvit.functional.samples import Sample

_ROWS = (13, 70, 64)


def large(*shapes: tuple[int, ...], **params: Any) -> Sample:
    rng = np.random.default_rng(0)
    return Sample(tuple(rng.standard_normal(shape) for shape in shapes), params)


def large_sample(name: str) -> Sample:
    """Return a sample of an operation that is large enough for kernels to use several threads."""
    heads = (2, 3, 90, 16)
    known = {
        "linear": large((250, 65), (96, 65), (96,)),
        "layer_norm": large(_ROWS, (64,), (64,), eps=1e-5),
        "add_layer_norm": large(_ROWS, _ROWS, (64,), (64,), eps=1e-5),
        "gelu": large(_ROWS, approximate="none"),
        "bias_gelu": large(_ROWS, (64,)),
        "softmax": large(_ROWS),
        "cross_entropy": large(_ROWS, _ROWS, label_smoothing=0.1),
        "dropout": large(_ROWS, p=0.3, seed=5, offset=2),
        "cast": large(_ROWS, dtype=np.dtype("bfloat16"), source=np.dtype("float32")),
        "add_narrow": large(_ROWS, _ROWS),
        "patches": large((3, 3, 64, 64), size=(4, 8)),
        "conv2d": large((18, 3, 30, 31), (5, 3, 3, 4), (5,), stride=(1, 2), padding=(1, 0)),
        "depthwise_conv": large((18, 12, 11, 20), (20, 1, 3, 5), (20,)),
        "embedding": large((33, 130), ids=np.random.default_rng(1).integers(0, 33, (20, 30))),
        "max_pool2d": large((18, 4, 31, 30), window=(3, 2), stride=(2, 1), padding=(1, 0)),
        "attention": large(heads, heads, heads, (3, 1, 90), scale=0.25, dropout_p=0.1, seed=3, offset=1),
    }
    return known[name] if name in known else next(iter(Op.registry[name].samples()))


def of_operation(op: type[Op], dtype: Any) -> list[np.ndarray]:
    """Return the outputs and gradients of an operation in a dtype."""
    given = large_sample(op.name)
    xs = [None if x is None else Tensor(x.astype(dtype), requires_grad=True) for x in given.inputs]
    out = op.apply(*xs, **given.params)
    outputs = out if isinstance(out, tuple) else (out,)
    gradients = tv.grad(outputs, [x for x in xs if x is not None], [y.detach() for y in outputs])
    return [t.numpy() for t in (*outputs, *gradients) if t is not None]


def of_optimizer() -> list[np.ndarray]:
    """Return the parameters after three steps of AdamW."""
    rng = np.random.default_rng(1)
    params = [Tensor(rng.standard_normal(n).astype(np.float32), requires_grad=True) for n in (30_000, 5)]
    optimizer = tv.optim.AdamW(params)
    for _ in range(3):
        for p in params:
            p.grad = Tensor(rng.standard_normal(p.shape).astype(np.float32))
        optimizer.step()
    return [p.numpy() for p in params]


def hashes(*names: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each kernel, and a hash of the results of the version that is chosen now, in these dtypes."""
    for spec in registry.SPECS:
        if spec.technology == "numba":
            op: Any = next((op for op in Op.registry.values() if op.kernel == spec.operation), None)
            dtypes = [d for d in map(np.dtype, names) if d in spec.dtypes]
            arrays = [a for d in dtypes for a in of_operation(op, d)] if op else of_optimizer()
            yield spec.operation, hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def hashes_of_versions() -> dict[str, dict[str, str]]:
    """Return the hashes of every version."""
    versions = max(spec.versions for spec in registry.SPECS)
    found = {}
    for choice in (f"numba:v{n}" for n in range(1, versions + 1)):
        with tv.use_kernels(choice):
            found[choice] = dict(hashes("float32", "bfloat16"))
    return found


def hashes_of_newest() -> dict[str, dict[str, str]]:
    """Return the hashes of the newest versions in float32 alone, which other tests compile anyway."""
    with tv.use_kernels("numba"):
        return {"numba": dict(hashes("float32"))}


if __name__ == "__main__":
    print(json.dumps(hashes_of_newest() if sys.argv[1] == "newest" else hashes_of_versions()))
