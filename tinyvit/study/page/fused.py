"""A fused kernel beside the formula it computes: its state tile by tile, what it saves, what it computes again.

The state after a tile of keys comes from the kernel itself, which runs on the keys up to there. That happens in another
process with the compiler off, because compiling the kernels would take longer than everything else on the page:

    NUMBA_DISABLE_JIT=1 python -P -m tinyvit.study.page.fused FOLDER
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...functional.attention import Attention
from ...functional.normalization import LayerNorm
from ...kernels import attention_backward, attention_forward, layer_norm_backward, layer_norm_forward
from ..record.records import Entry, Recording, arrays_of

TILES = 4  # that the keys are divided into
_ROWS = 6  # rows of a layer norm that are shown
_UNSUPPORTED = ("is_causal", "dropout_p")  # parameters, beside a mask, with which an attention is not compared
_BY = ("kernel", "formula")


def comparisons_of(recording: Recording) -> list[dict[str, Any]]:
    """The first attention and the first layer norm of a trace, each as a table of numbers and a table of words.

    An operation is left out if the trace did not store its arrays. The list is empty where the kernels cannot run.
    """
    chosen: dict[type, Entry] = {}
    for entry in recording.entries:
        is_supported = entry.params.get("mask") is None and not any(entry.params.get(key) for key in _UNSUPPORTED)
        comparison = next((c for c in COMPARISONS if c.operation is entry.op), None)
        if comparison is not None and entry.backward and is_supported:
            chosen.setdefault(comparison, entry)
    try:
        found = _numbers({c.__name__: _arrays(entry) for c, entry in chosen.items()}) if chosen else {}
    except (LookupError, subprocess.SubprocessError):
        return []
    return [c.tables(chosen[c], found[c.__name__]) for c in COMPARISONS if c in chosen]


def _arrays(entry: Entry) -> dict[str, np.ndarray]:
    """Inputs, output and gradients of an operation by name, and its parameters."""
    assert entry.backward is not None
    named = dict(zip(entry.op.inputs, arrays_of(entry.inputs), strict=True))
    named |= {f"d{k}": g for k, g in zip(entry.op.inputs, arrays_of(entry.backward.outgoing), strict=True)}
    named |= {"out": arrays_of(entry.outputs)[0], "dout": arrays_of(entry.backward.incoming)[0]}
    named |= {k: v for k, v in entry.params.items() if k in ("scale", "eps")}
    return {k: np.asarray(v) for k, v in named.items() if v is not None}


def _numbers(arrays: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """The numbers that the other process computes from these arrays, by name of the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        for name, named in arrays.items():
            np.savez(Path(folder) / f"{name}.npz", **named)  # type: ignore[arg-type]
        # -P: a file of the current folder that has the name of a module must not be run.
        command = [sys.executable, "-P", "-m", __name__, folder]
        environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(ran.stdout)


class AttentionComparison:
    """One query of head 0: the online softmax of the kernel beside that of the formula."""

    operation = Attention

    @staticmethod
    def numbers(a: dict[str, Any]) -> dict[str, Any]:
        """Rows after each tile of keys, by the kernel and by the formula at float64."""
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
            by_kernel, by_formula = lse[0, 0, n], m + np.log(e.sum())
            row = (m, factor, np.exp(by_kernel - m), e.sum(), by_kernel, by_formula, out[0, 0, n, 0], exact)
            rows.append([f"keys 0 to {stop - 1}", *map(float, row)])
            before = m
        out, lse = attention_forward(q, k, v, bias=bias, scale=scale, implementation="numba")
        found = attention_backward(a["dout"], q, k, v, out, lse, bias=bias, scale=scale, implementation="numba")
        difference = max(_difference(g, a[name]) for g, name in zip(found[:3], ("dq", "dk", "dv"), strict=True))
        return {"rows": rows, "difference": difference, "query": n}

    @staticmethod
    def tables(entry: Entry, numbers: dict[str, Any]) -> dict[str, Any]:
        b, h, n, _ = entry.inputs[0].shape
        keys = entry.inputs[1].shape[2]
        size = f"{b * h * n * keys:,}"
        return {
            "title": f"{entry.key}: head 0, query {numbers['query']}",
            "words": "The keys arrive in tiles. The kernel keeps the largest score so far, m, and the sum l of "
            "e^(s - m). If a new tile has a larger score, the previous sum is multiplied by the factor "
            "e^(m before - m). After the last tile, lse = m + log l is saved instead of P. The kernel treats up to 320 "
            f"keys as one tile; here the {keys} keys are divided into {len(numbers['rows'])}, so that the factor "
            "becomes visible.",
            "columns": ["tile", "m", "factor", *(f"{x}, {by}" for x in ("l", "lse", "out[0]") for by in _BY)],
            "rows": numbers["rows"],
            "compare": [
                ["saved for backward", f"q, k, v, out, and lse: {b * h * n} numbers", "q, k, v, out"],
                ["P (B, H, N, S)", f"never complete: {size} numbers are not stored", "complete, in both directions"],
                [
                    "in backward",
                    "scores again, in blocks; P = e^(scores - lse)",
                    "scores, maximum, exponential, sum again",
                ],
                ["gradients", "dq, dk, dv in one pass over the blocks", _step_by_step(numbers)],
            ],
        }


class LayerNormComparison:
    """The first rows of a layer norm: mean, rstd and the first output."""

    operation = LayerNorm

    @staticmethod
    def numbers(a: dict[str, Any]) -> dict[str, Any]:
        """One row of numbers for each row of x, by the kernel and by the formula at float64."""
        x, eps = a["x"], float(a.get("eps", 1e-5))
        y, mean, rstd = layer_norm_forward(x, a["weight"], a["bias"], eps, implementation="numba")
        exact, outputs, found = (z.reshape(-1, x.shape[-1]) for z in (x.astype(np.float64), a["out"], y))
        rows = []
        for r in range(min(_ROWS, len(exact))):
            pairs = (mean.ravel()[r], exact[r].mean(), rstd.ravel()[r], 1 / np.sqrt(exact[r].var() + eps))
            rows.append([f"row {r}", *map(float, (*pairs, found[r, 0], outputs[r, 0]))])
        gradients = layer_norm_backward(a["dout"], x, a["weight"], mean, rstd, eps, implementation="numba")
        names = ("dx", "dweight", "dbias")
        return {
            "rows": rows,
            "difference": max(_difference(g, a[name]) for g, name in zip(gradients, names, strict=True)),
        }

    @staticmethod
    def tables(entry: Entry, numbers: dict[str, Any]) -> dict[str, Any]:
        return {
            "title": entry.key,
            "words": "Each row is read from memory once and then stays in the first-level cache. Its mean and rstd are "
            "saved, and backward computes xhat from them again.",
            "columns": ["", *(f"{x}, {by}" for x in ("mean", "rstd", "y[0]") for by in _BY)],
            "rows": numbers["rows"],
            "compare": [
                ["saved for backward", "x, weight, and mean and rstd of each row", "x, weight"],
                ["xhat", "never stored", "complete, in both directions"],
                ["in backward", "xhat = (x - mean) rstd, from the saved values", "mean, variance, rstd and xhat again"],
                ["gradients", "dx while its row is in the cache; dw, db in parts", _step_by_step(numbers)],
            ],
        }


def _difference(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest element of `b`."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def _step_by_step(numbers: dict[str, Any]) -> str:
    return f"step by step; the largest difference is {numbers['difference']:.1e} of the largest gradient"


COMPARISONS: tuple[Any, ...] = (AttentionComparison, LayerNormComparison)

if __name__ == "__main__":
    by_name = {comparison.__name__: comparison for comparison in COMPARISONS}
    files = sorted(Path(sys.argv[1]).glob("*.npz"))
    print(json.dumps({file.stem: by_name[file.stem].numbers(dict(np.load(file))) for file in files}))
