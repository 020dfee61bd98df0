"""The work of a case: floating-point operations, and bytes that must cross the memory bus at least once.

Both count the algorithm, not an implementation, so that every contender is rated by the same work. An addition,
multiplication, division, comparison, exp, erf, tanh, sqrt or log counts as one operation. Bytes are those of the inputs
and outputs in float32, each once; caches may hold some of them, so a rate above the copy bandwidth is possible. Kernels
in bfloat16 move half as many bytes, and are rated by those of float32 all the same.
"""

from typing import NamedTuple

from .cases import AttentionShape, Case, DenseShape, LinearShape, ModelShape, RowShape, TextShape

FLOAT = 4  # bytes


class Cost(NamedTuple):
    flops: int
    bytes: int | None  # None for a model, which has no stated minimum


def cost(case: Case) -> Cost:
    """Count the work of one call."""
    match case.shape:
        case AttentionShape() as shape:
            return _attention(shape, case.direction)
        case RowShape() as shape:
            return _rows(case.operation, shape, case.direction)
        case LinearShape(R=r, K=k, N=n):
            return Cost(2 * r * k * n, FLOAT * (r * k + n * k + r * n))
        case ModelShape() as shape if case.operation == "patches":
            return Cost(0, FLOAT * 2 * shape.batch * shape.channels * shape.image**2)
        case ModelShape() as shape if case.operation == "adamw":
            # Operations: p decays 1, m 3, v 4, corrections 2, sqrt 1, + eps 1, quotient 1, times lr 1, p - update 1.
            # p, m and v are read and written, g is read.
            return Cost(15 * parameter_count(shape), FLOAT * 7 * parameter_count(shape))
        case ModelShape() as shape:
            return Cost(_model(shape, training=case.operation == "train"), None)
        case TextShape() as shape:
            return Cost(_text_model(shape), None)
        case DenseShape() as shape:
            return Cost(_dense_model(shape), None)
    raise TypeError(f"no cost is known for the shape {case.shape!r}")


def _attention(s: AttentionShape, direction: str) -> Cost:
    gemm = 2 * s.B * s.H * s.N * s.N * s.D
    tensor, statistics = s.B * s.H * s.N * s.D, s.B * s.H * s.N
    # The softmax is left out of both: it takes 5 operations for each element of S, the products take 4 D.
    if direction == "forward":  # S = q k^T, out = P v; reads q, k, v, writes out and the log-sum-exp of each row
        return Cost(2 * gemm, FLOAT * (4 * tensor + statistics))
    # S again, dv = P^T dout, dP = dout v^T, dq = dS k, dk = dS^T q; reads q, k, v, out, dout, writes dq, dk, dv
    return Cost(5 * gemm, FLOAT * (8 * tensor + statistics))


# For each operation, forward then backward: operations per element of x, and the arrays of its size read and written.
# The comments add up the operations, forward before the semicolon and backward after it.
_PER_ELEMENT = {
    # sum 1, variance 3, (x - mean) rstd w + b 4;  xhat 2, g 1, sum g 1, sum g xhat 2, dw 2, db 1, dx 4
    "layer_norm": ((8, 2), (13, 3)),
    # x + b 1, scale 1, erf 1, 0.5 + 0.5 e 2, times x 1;  forward but its last product 5, x^2 1, -0.5 1, exp 1, scale 1,
    # x pdf 1, cdf + 1, times dy 1, db 1
    "bias_gelu": ((6, 2), (13, 3)),
    # x + b 1, x x x 2, c 1, + x 1, scale 1, tanh 1, 1 + t 1, 0.5 x 1, product 1;  forward up to 1 + t 8, 0.5 1,
    # 0.5 x 1, 1 - t t 2, product 1, du = scale (1 + 3 c x x) 3, product 1, sum 1, times dy 1, db 1
    "bias_gelu_tanh": ((10, 2), (20, 3)),
    # max 1, subtract 1, exp 1, sum 1, divide 1;  dy y 1, sum 1, subtract 1, times y 1
    "softmax": ((5, 2), (4, 3)),
    # max 1, subtract 1, exp 1, sum 1;  x - lse 1, exp 1, times dloss / R 1
    "cross_entropy": ((4, 1), (3, 2)),
    # one product; the random bits are integers
    "dropout": ((1, 2), (1, 2)),
}


def _rows(operation: str, s: RowShape, direction: str) -> Cost:
    size = s.R * s.C
    if operation == "linear":  # (R, C) -> (R, 4 C)
        gemm, out, weight = 2 * size * 4 * s.C, 4 * size, 4 * s.C * s.C
        if direction == "forward":
            return Cost(gemm + out, FLOAT * (size + weight + 4 * s.C + out))
        return Cost(2 * gemm + out, FLOAT * (2 * size + 2 * weight + 4 * s.C + out))
    flops, arrays = _PER_ELEMENT[operation][direction == "backward"]
    return Cost(flops * size, FLOAT * arrays * size)


def parameter_count(s: ModelShape) -> int:
    """Count the parameters of the ViT."""
    patches = s.channels * s.patch**2 * s.dim + s.dim
    block = 12 * s.dim**2 + 13 * s.dim  # weights of qkv, proj, fc1 and fc2; their biases and two norms
    tokens, norm, head = s.dim + s.N * s.dim, 2 * s.dim, s.dim * s.classes + s.classes
    return patches + tokens + s.depth * block + norm + head


def _model(s: ModelShape, training: bool) -> int:
    """Count the matrix products of a ViT. Backward adds two for each linear map, and five for the two of attention."""
    tokens = s.batch * s.N
    linear = 2 * tokens * 12 * s.dim**2 * s.depth + 2 * s.batch * s.dim * s.classes
    attention = 4 * tokens * s.N * s.dim * s.depth
    patches = 2 * s.batch * s.patches * s.channels * s.patch**2 * s.dim
    if not training:
        return linear + attention + patches
    return 3 * linear + attention * 7 // 2 + 2 * patches  # the images need no gradient


def _text_model(s: TextShape) -> int:
    """Count the matrix products of a training step with images and texts, as in `_model`."""
    tokens = s.patches + s.length
    linear = 12 * s.dim**2 * s.depth * tokens
    if s.answers:  # all tokens attend to all
        attention = 4 * s.dim * s.depth * tokens**2
        head = s.dim * s.answers
    else:  # patches to patches, text to text, text to patches
        linear += 2 * s.dim**2 * s.depth * tokens  # cross-attention: q and proj of the text, k and v of the patches
        attention = 4 * s.dim * s.depth * (s.patches**2 + s.length**2 + s.length * s.patches)
        head = s.dim * s.vocabulary * s.length
    patches = s.patches * s.channels * s.patch**2 * s.dim
    return s.batch * (6 * (linear + head) + attention * 7 // 2 + 4 * patches)  # the images need no gradient


def _dense_model(s: DenseShape) -> int:
    """Count the products of a training step with masks or boxes, those of convolutions among them, as in `_model`.

    The matching and the losses are left out.
    """
    width, hidden = s.dim, s.mlp_dim
    block = 4 * width**2 + 2 * width * hidden  # qkv and proj, fc1 and fc2
    linear = s.patches * s.depth * (block + (9 * hidden if s.mlp_layer == "local" else 0))
    attention = 4 * width * s.depth * s.patches**2
    if s.queries:  # queries to queries, then to patches; the hidden layers of the boxes are of the width of the model
        reads = width * (s.classes + 1) + 2 * width**2 + 4 * width
        linear += s.decoder * (s.queries * (block + 2 * width**2 + reads) + s.patches * 2 * width**2)
        attention += 4 * width * s.decoder * (s.queries**2 + s.queries * s.patches)
    else:
        linear += s.patches * width * s.patch**2 * s.classes
    stem, side, channels = [], s.image, s.channels
    for i in range(halvings := s.patch.bit_length() - 1):
        side, wider = side // 2, width // 2 ** (halvings - i)
        stem.append(side**2 * wider * channels * 9)
        channels = wider
    linear += sum(stem[1:]) + s.patches * channels * width
    return s.batch * (6 * linear + attention * 7 // 2 + 4 * stem[0])  # the images need no gradient
