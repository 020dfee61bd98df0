"""A fused kernel beside the formula it computes: what it holds tile by tile, what it saves, what it computes again.

What the kernel holds after a tile of keys is asked of the kernel itself: it is run on the keys seen so far. That
happens in a process of its own with the compiler off, so that nobody waits for kernels to be compiled:

    NUMBA_DISABLE_JIT=1 python -m tinyvit.study.page.fused FOLDER
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels import attention_backward, attention_forward, layer_norm_backward, layer_norm_forward
from ..record.records import Entry, Recording, whole

TILES = 4  # in which the keys are shown
_ROWS = 6  # of a layer norm that are shown
_HIDING = ("mask", "is_causal", "dropout_p")  # an attention with one of these is not shown


def comparisons_of(recording: Recording) -> list[dict[str, Any]]:
    """The first attention and the first layer norm of a trace, each as a table of numbers and a table of words.

    Without those whose arrays the trace did not keep; empty where the kernels cannot run.
    """
    chosen: dict[str, Entry] = {}
    for entry in recording.entries:
        hides = any(entry.params.get(key) is not None and entry.params[key] for key in _HIDING)
        if entry.op.name in _ABOUT and entry.backward and not hides:
            chosen.setdefault(entry.op.name, entry)
    try:
        numbers = _asked({name: _arrays(entry) for name, entry in chosen.items()}) if chosen else {}
    except (LookupError, subprocess.SubprocessError):
        return []
    return [_ABOUT[name](chosen[name], numbers[name]) for name in _ABOUT if name in numbers]


def _arrays(entry: Entry) -> dict[str, np.ndarray]:
    """What an operation and its gradient rule were given and gave, by name; the parameters too."""
    assert entry.backward is not None
    named = dict(zip(entry.op.inputs, whole(entry.inputs), strict=True))
    named |= {f"d{k}": g for k, g in zip(entry.op.inputs, whole(entry.backward.outgoing), strict=True)}
    named |= {"out": whole(entry.outputs)[0], "dout": whole(entry.backward.incoming)[0]}
    named |= {k: v for k, v in entry.params.items() if k in ("scale", "eps")}
    return {k: np.asarray(v) for k, v in named.items() if v is not None}


def _asked(arrays: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """What the other process says of the arrays of these operations."""
    with tempfile.TemporaryDirectory() as folder:
        for name, named in arrays.items():
            np.savez(Path(folder) / f"{name}.npz", **named)  # type: ignore[arg-type]
        command = [sys.executable, "-m", __name__, folder]
        environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(ran.stdout)


# In the other process -------------------------------------------------------------------------------------------------


def attention_numbers(a: dict[str, Any]) -> dict[str, Any]:
    """Rows of one query of head 0 after each tile of keys, by the kernel and by the formula at float64."""
    q, k, v, bias, scale = a["q"], a["k"], a["v"], a.get("bias"), float(a["scale"])
    n, keys = q.shape[2] // 2, k.shape[2]
    scores = scale * q[0, 0, n].astype(np.float64) @ k[0, 0].astype(np.float64).T
    if bias is not None:
        bias = np.broadcast_to(bias, (*q.shape[:3], keys))
        scores = scores + bias[0, 0, n]
    rows, before = [], None
    for stop in np.unique(np.linspace(0, keys, TILES + 1).round().astype(int))[1:]:
        seen = [np.ascontiguousarray(x[:, :, :stop]) for x in (k, v)]
        part = None if bias is None else np.ascontiguousarray(bias[..., :stop])
        out, lse = attention_forward(q, *seen, bias=part, scale=scale, implementation="numba")
        m = scores[:stop].max()
        e = np.exp(scores[:stop] - m)
        factor = 1.0 if before is None else np.exp(before - m)
        exact = e @ v[0, 0, :stop, 0].astype(np.float64) / e.sum()
        held = (m, factor, np.exp(lse[0, 0, n] - m), e.sum(), lse[0, 0, n], m + np.log(e.sum()), out[0, 0, n, 0], exact)
        rows.append([f"keys 0 to {stop - 1}", *map(float, held)])
        before = m
    out, lse = attention_forward(q, k, v, bias=bias, scale=scale, implementation="numba")
    found = attention_backward(a["dout"], q, k, v, out, lse, bias=bias, scale=scale, implementation="numba")
    apart = max(_apart(g, a[name]) for g, name in zip(found[:3], ("dq", "dk", "dv"), strict=True))
    return {"rows": rows, "apart": apart, "query": n}


def layer_norm_numbers(a: dict[str, Any]) -> dict[str, Any]:
    """The first rows: mean, rstd and the first output, by the kernel and by the formula at float64."""
    x, eps = a["x"], float(a.get("eps", 1e-5))
    y, mean, rstd = layer_norm_forward(x, a["weight"], a["bias"], eps, implementation="numba")
    exact, outputs, found = (z.reshape(-1, x.shape[-1]) for z in (x.astype(np.float64), a["out"], y))
    rows = []
    for r in range(min(_ROWS, len(exact))):
        pairs = (mean.ravel()[r], exact[r].mean(), rstd.ravel()[r], 1 / np.sqrt(exact[r].var() + eps))
        rows.append([f"row {r}", *map(float, (*pairs, found[r, 0], outputs[r, 0]))])
    gradients = layer_norm_backward(a["dout"], x, a["weight"], mean, rstd, eps, implementation="numba")
    apart = max(_apart(g, a[name]) for g, name in zip(gradients, ("dx", "dweight", "dbias"), strict=True))
    return {"rows": rows, "apart": apart}


def _apart(a: Any, b: Any) -> float:
    """The largest difference, over the largest of `b`."""
    return float(np.abs(a - b).max() / np.abs(b).max())


# In words -------------------------------------------------------------------------------------------------------------


def _attention(entry: Entry, numbers: dict[str, Any]) -> dict[str, Any]:
    b, h, n, _ = entry.inputs[0].shape
    keys = entry.inputs[1].shape[2]
    return {
        "title": f"{entry.key}: head 0, query {numbers['query']}",
        "words": "Keys come in tiles. The kernel holds the largest score so far, m, and the sum l of e^(s - m); when a "
        "new tile has a larger score, what was summed before is multiplied by the factor e^(m before - m). After the "
        "last tile, lse = m + log l is saved instead of P. The kernel takes up to 320 keys as one tile; here the "
        f"{keys} keys are shown in {len(numbers['rows'])}, so that the factor has something to do.",
        "columns": ["seen", "m", "factor", *(f"{x}, {by}" for x in ("l", "lse", "out[0]") for by in _BY)],
        "rows": numbers["rows"],
        "compare": [
            ["saved for backward", f"q, k, v, out, and lse: {b * h * n} numbers", "q, k, v, out"],
            ["P (B, H, N, S)", f"never whole: {b * h * n * keys:,} numbers not stored", "computed whole, both ways"],
            ["in backward", "scores again, in blocks; P = e^(scores - lse)", "scores, maximum, exponential, sum again"],
            ["gradients", "dq, dk, dv in one pass over the blocks", _step_by_step(numbers)],
        ],
    }


def _layer_norm(entry: Entry, numbers: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": entry.key,
        "words": "A row is read once and stays in the first-level cache through all passes over it; its mean and rstd "
        "are saved. On the way back xhat is computed from them again.",
        "columns": ["", *(f"{x}, {by}" for x in ("mean", "rstd", "y[0]") for by in _BY)],
        "rows": numbers["rows"],
        "compare": [
            ["saved for backward", "x, weight, and mean and rstd of each row", "x, weight"],
            ["xhat", "never stored", "computed whole, both ways"],
            ["in backward", "xhat = (x - mean) rstd, from what was saved", "mean, variance, rstd and xhat again"],
            ["gradients", "dx while a row is in the cache; dw, db in parts", _step_by_step(numbers)],
        ],
    }


def _step_by_step(numbers: dict[str, Any]) -> str:
    return f"step by step; the largest difference is {numbers['apart']:.1e} of the largest gradient"


_BY = ("kernel", "formula")
_ABOUT = {"attention": _attention, "layer_norm": _layer_norm}
_NUMBERS = {"attention": attention_numbers, "layer_norm": layer_norm_numbers}

if __name__ == "__main__":
    files = sorted(Path(sys.argv[1]).glob("*.npz"))
    print(json.dumps({file.stem: _NUMBERS[file.stem](dict(np.load(file))) for file in files}))
