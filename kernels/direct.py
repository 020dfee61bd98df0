"""Kernels called directly, on arrays: what `tinyvit.kernels` offers."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from . import lookup, registry
from .interrupts import import_whole


def attention_forward(
    q: Any,
    k: Any,
    v: Any,
    *,
    bias: Any = None,
    mask: Any = None,
    key_lengths: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    implementation: str = "auto",
) -> tuple[Any, Any]:
    """out = softmax(scale q k^T + bias) v, and the logarithm of each softmax's denominator.

    Parameters
    ----------
    q : (B, H, N, D), k : (B, H, S, D), v : (B, H, S, E)
        float32 or float64, of any strides; free of copies where the last axis is contiguous.
    bias : broadcastable to (B, H, N, S), optional
        Added to the scores, in the dtype of q.
    mask : boolean, broadcastable to (B, H, N, S), optional
        True where attention is allowed.
    key_lengths : integers (B,), optional
        Keys from there on are padding.
    is_causal : bool
        Key s is visible to query n only if s <= n.
    scale : 1 / sqrt(D) by default.
    dropout_p, seed, offset : dropout of the probabilities, drawn from the stream (seed, offset).

    Returns
    -------
    out : (B, H, N, E), in memory as (B, N, H, E).
    lse : (B, H, N), natural logarithm; -inf where a query sees no key, and out is 0 there.
    """
    _check_attention(q, k, v, bias, mask, key_lengths)
    params = _attention_params(q, k, mask, key_lengths, is_causal, scale)
    params |= _dropout_params(dropout_p, seed, offset)
    out, lse = _forward("attention", implementation, {"q": q, "k": k, "v": v, "bias": bias}, params)
    return out, lse


def attention_backward(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    *,
    bias: Any = None,
    mask: Any = None,
    key_lengths: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    implementation: str = "auto",
    out_grads: tuple[Any, Any, Any] | None = None,
) -> tuple[Any, Any, Any, Any]:
    """The gradients of `attention_forward` from that of its output, and what it was given and returned.

    Returns
    -------
    dq, dk, dv : in the shapes of q, k, v; the arrays `out_grads` if given (they may be views of one packed array).
    dbias : in the shape of bias; None without one.
    """
    _check_attention(q, k, v, bias, mask, key_lengths)
    like_out = (*q.shape[:-1], v.shape[-1])
    for name, array, shape in (("dout", dout, like_out), ("out", out, like_out), ("lse", lse, q.shape[:-1])):
        _check_saved("attention_backward", name, array, shape, q)
    if out_grads is not None:
        _check_targets(out_grads, (q, k, v))
    params = _attention_params(q, k, mask, key_lengths, is_causal, scale)
    params |= _dropout_params(dropout_p, seed, offset)
    kept = {"q": q, "k": k, "v": v, "bias": bias, "out": out, "lse": lse}
    needs = (True, True, True, bias is not None)
    dq, dk, dv, dbias = _backward("attention", implementation, (dout,), kept, needs, params)
    if out_grads is not None:
        for target, gradient in zip(out_grads, (dq, dk, dv), strict=True):
            target[...] = gradient
        dq, dk, dv = out_grads
    return dq, dk, dv, dbias


def attention_weights(
    q: Any,
    k: Any,
    lse: Any,
    *,
    bias: Any = None,
    mask: Any = None,
    key_lengths: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Any:
    """The probabilities (B, H, N, S) of every head, computed again from the `lse` that `attention_forward` returned.

    They are those before dropout; a row is 0 where a query sees no key. On a GPU they come from CuPy's own functions.
    """
    _check_attention(q, k, k, bias, mask, key_lengths)
    _check_saved("attention_weights", "lse", lse, q.shape[:-1], q)
    if q.dtype not in (np.float32, np.float64):
        raise TypeError(f"attention_weights: q is {q.dtype}; it must be float32 or float64")
    where = "numba_cpu" if isinstance(q, np.ndarray) else "cupy_raw"
    weights = import_whole(f"{__package__}.attention.{where}").weights
    with _beside(q):
        return weights(q, k, lse, bias, **_attention_params(q, k, mask, key_lengths, is_causal, scale))


def layer_norm_forward(
    x: Any, weight: Any, bias: Any, eps: float = 1e-5, *, residual: Any = None, implementation: str = "auto"
) -> tuple[Any, ...]:
    """Layer norm of x (..., C), or of x + residual: (y, mean, rstd), or (sum, y, mean, rstd) with a residual.

    weight, bias : (C,).  mean, rstd : (...).
    """
    _check_layer_norm("layer_norm_forward", x, weight, bias)
    if residual is None:
        return _forward("layer_norm", implementation, {"x": x, "weight": weight, "bias": bias}, {"eps": eps})
    if residual.shape != x.shape:
        raise ValueError(f"layer_norm_forward: residual has shape {residual.shape}; it must be that of x, {x.shape}")
    given = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    return _forward("add_layer_norm", implementation, given, {"eps": eps})[:4]


def layer_norm_backward(
    dy: Any, x: Any, weight: Any, mean: Any, rstd: Any, eps: float = 1e-5, *, implementation: str = "auto"
) -> tuple[Any, Any, Any]:
    """dx (..., C), dweight and dbias (C,) of a layer norm of x (the sum, where it had a residual)."""
    _check_layer_norm("layer_norm_backward", x, weight, weight)
    if dy.shape != x.shape or mean.shape != x.shape[:-1] or rstd.shape != x.shape[:-1]:
        raise ValueError(
            f"layer_norm_backward: x has shape {x.shape}, dy {dy.shape}, mean {mean.shape} and rstd {rstd.shape}; "
            "they must be (..., C), (..., C), (...) and (...)"
        )
    kept = {"x": x, "weight": weight, "mean": mean, "rstd": rstd}
    dx, dweight, dbias = _backward("layer_norm", implementation, (dy,), kept, (True, True, True), {"eps": eps})
    return dx, dweight, dbias


# Which kernel serves -------------------------------------------------------------------------------------------------


def _kernel(operation: str, implementation: str, **inputs: Any) -> lookup.Kernel | None:
    """Find the kernel that serves `operation` on these inputs, the first of which decides device and dtype."""
    first = next(iter(inputs.values()))
    technology, _ = lookup.split_choice(implementation, "implementation")
    device = "cpu" if isinstance(first, np.ndarray) else "cuda"
    kernel = lookup.find(operation, device, implementation, first.dtype, inputs, {}, "implementation")
    if kernel is None and technology not in ("auto", "numpy"):
        raise RuntimeError(f"{technology!r} has no kernel for {operation}; use 'auto' or 'numpy'")
    return kernel


def _beside(array: Any) -> AbstractContextManager[None]:
    """Return a block in which arrays are made and kernels launched where `array` is."""
    if isinstance(array, np.ndarray):
        return nullcontext()
    from .cuda.device import beside

    return beside(array)


def _forward(operation: str, implementation: str, given: dict[str, Any], params: dict[str, Any]) -> tuple[Any, ...]:
    """Return the outputs of an operation and the residuals of its kernel."""
    with _beside(next(iter(given.values()))):
        kernel = _kernel(operation, implementation, **given)
        run = registry.PLAIN[operation].forward if kernel is None else kernel.forward
        outputs: tuple[Any, ...] = run(*given.values(), **params)
    return outputs


def _backward(
    operation: str,
    implementation: str,
    incoming: tuple[Any, ...],
    kept: dict[str, Any],
    needs: tuple[bool, ...],
    params: dict[str, Any],
) -> tuple[Any, ...]:
    """Return the gradients of an operation's inputs. `kept` are its inputs, outputs and residuals by name."""
    with _beside(next(iter(kept.values()))):
        kernel = _kernel(operation, implementation, **kept)
        if kernel is None:
            gradients = registry.PLAIN[operation].backward(incoming, kept, needs, params)
        else:
            assert isinstance(kernel.spec, registry.KernelSpec)
            arguments = (kept[name] for name in kernel.spec.keeps)
            gradients = kernel.backward(*incoming, *arguments, needs=needs, **params)
    return tuple(gradients)


def _with_lengths(mask: Any, key_lengths: Any, k: Any) -> Any:
    """`mask`, and False for the keys that are padding."""
    if key_lengths is None:
        return mask
    from .cuda.device import library_of

    xp = library_of(k)
    with _beside(k):
        real = xp.arange(k.shape[-2]) < xp.asarray(key_lengths)[:, None, None, None]
    return real if mask is None else mask & real


def _check_attention(q: Any, k: Any, v: Any, bias: Any, mask: Any, key_lengths: Any) -> None:
    fits = q.ndim == 4 and k.ndim == 4 and v.ndim == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2]
    if not fits or q.shape[3] != k.shape[3] or k.shape[2] != v.shape[2]:
        raise ValueError(
            f"attention: q has shape {q.shape}, k {k.shape} and v {v.shape}; "
            "they must be (B, H, N, D), (B, H, S, D) and (B, H, S, E)"
        )
    if q.shape[3] == 0:
        raise ValueError(f"attention: q has shape {q.shape}; D must be at least 1")
    if not q.dtype == k.dtype == v.dtype or (bias is not None and bias.dtype != q.dtype):
        given = [str(x.dtype) for x in (q, k, v, bias) if x is not None]
        raise TypeError(f"attention: the dtypes of q, k, v and bias are {', '.join(given)}; they must be one")
    scores = (*q.shape[:3], k.shape[2])
    for name, array in (("bias", bias), ("mask", mask)):
        if array is not None and not _broadcasts(array.shape, scores):
            raise ValueError(f"attention: {name} has shape {array.shape}; it must broadcast to (B, H, N, S) = {scores}")
    if mask is not None and mask.dtype != bool:
        raise TypeError(f"attention: mask has dtype {mask.dtype}; it must be boolean, True where attention is allowed")
    if key_lengths is not None and np.shape(key_lengths) != q.shape[:1]:
        raise ValueError(f"attention: key_lengths has shape {np.shape(key_lengths)}; it must be (B,) = {q.shape[:1]}")


def _attention_params(
    q: Any, k: Any, mask: Any, key_lengths: Any, is_causal: bool, scale: float | None
) -> dict[str, Any]:
    """Return the parameters of an attention without dropout, as the registry describes them."""
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return {"mask": _with_lengths(mask, key_lengths, k), "is_causal": bool(is_causal), "scale": scale}


def _dropout_params(dropout_p: float, seed: int, offset: int) -> dict[str, Any]:
    """Return the parameters of dropout; raise ValueError if one is out of range."""
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"attention: dropout_p is {dropout_p}; a probability is in [0, 1]")
    for name, number in (("seed", seed), ("offset", offset)):
        if not 0 <= number < 2**63:
            raise ValueError(f"attention: {name} is {number}; it must be in [0, 2**63)")
    return {"dropout_p": float(dropout_p), "seed": seed, "offset": offset}


def _check_targets(targets: Any, inputs: tuple[Any, Any, Any]) -> None:
    if len(targets) != 3:
        raise ValueError(f"attention_backward: out_grads has {len(targets)} entries; they must be those of q, k and v")
    for name, target, x in zip("qkv", targets, inputs, strict=True):
        if getattr(target, "shape", None) != x.shape or target.dtype != x.dtype:
            given = f"shape {target.shape} and dtype {target.dtype}" if hasattr(target, "dtype") else type(target)
            raise ValueError(
                f"attention_backward: the gradient of {name} in out_grads has {given}; "
                f"it must have those of {name}, {x.shape} and {x.dtype}"
            )


def _check_saved(function: str, name: str, array: Any, shape: tuple[int, ...], q: Any) -> None:
    if array.shape != shape:
        raise ValueError(f"{function}: {name} has shape {array.shape}; for q {q.shape} it must be {shape}")
    if array.dtype != q.dtype and not (name == "lse" and q.dtype.itemsize == 2):
        raise TypeError(f"{function}: {name} is {array.dtype} and q {q.dtype}; they must be one dtype")


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _check_layer_norm(name: str, x: Any, weight: Any, bias: Any) -> None:
    if x.ndim == 0 or weight.shape != x.shape[-1:] or bias.shape != weight.shape:
        raise ValueError(
            f"{name}: x has shape {x.shape}, weight {weight.shape} and bias {bias.shape}; "
            "they must be (..., C), (C,) and (C,)"
        )
    if not x.dtype == weight.dtype == bias.dtype:
        raise TypeError(f"{name}: x is {x.dtype}, weight {weight.dtype} and bias {bias.dtype}; they must be one dtype")
