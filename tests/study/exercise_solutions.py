"""Solutions of the exercises, and mistakes that students make: the tests that are handed out must tell them apart.

Each solution replaces the body of the missing function; a mistake is one change of a solution.
"""

SOLUTIONS = {
    "softmax_backward": "return y * (dy - (dy * y).sum(axis=-1, keepdims=True))",
    "layer_norm_backward": """
        g = dy * weight
        dx = rstd * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True))
        return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)
    """,
    "attention_backward": """
        dv = p.swapaxes(-1, -2) @ dout
        dp = dout @ v.swapaxes(-1, -2)
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
        return ds @ k * scale, ds.swapaxes(-1, -2) @ q * scale, dv
    """,
    "adamw": """
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        mean = m / (1 - beta1**step)
        square = v / (1 - beta2**step)
        x = x - lr * weight_decay * x - lr * mean / (np.sqrt(square) + eps)
        return x, m, v
    """,
    "numba_kernel": """
        for i in range(x.shape[0]):
            largest = -np.inf
            total = 0.0
            for j in range(x.shape[1]):
                if x[i, j] > largest:
                    total = total * np.exp(largest - x[i, j]) + 1.0
                    largest = x[i, j]
                elif x[i, j] > -np.inf:
                    total += np.exp(x[i, j] - largest)
            for j in range(x.shape[1]):
                out[i, j] = np.exp(x[i, j] - largest) / total
    """,
    "cuda_kernel": """
        part = cuda.shared.array(THREADS, float32)
        row = cuda.blockIdx.x
        t = cuda.threadIdx.x
        total = float32(0)
        for j in range(t, x.shape[1], THREADS):
            total += x[row, j]
        part[t] = total
        cuda.syncthreads()
        half = THREADS // 2
        while half > 0:
            if t < half:
                part[t] += part[t + half]
            cuda.syncthreads()
            half //= 2
        if t == 0:
            out[row] = part[0]
    """,
}

MISTAKES = {
    "softmax_backward": [
        ("(dy * y).sum(axis=-1, keepdims=True)", "(dy * y).sum()"),
        ("(dy * y).sum(axis=-1, keepdims=True)", "dy.mean(axis=-1, keepdims=True)"),
        ("return y * (dy", "return (dy"),
    ],
    "layer_norm_backward": [
        (" - g.mean(axis=-1, keepdims=True)", ""),
        ("g = dy * weight", "g = dy"),
        ("(dy * xhat).sum(axis=0)", "(g * xhat).sum(axis=0)"),
    ],
    "attention_backward": [
        ("ds @ k * scale", "ds @ k"),
        ("p.swapaxes(-1, -2) @ dout", "p.swapaxes(-1, -2) @ dout * scale"),
        ("(dp - (dp * p).sum(axis=-1, keepdims=True))", "dp"),
    ],
    "adamw": [
        ("lr * weight_decay * x", "weight_decay * x"),
        ("v / (1 - beta2**step)", "v"),
        ("beta1**step", "beta1"),
    ],
    "numba_kernel": [
        ("elif x[i, j] > -np.inf:", "else:"),
        ("total * np.exp(largest - x[i, j]) + 1.0", "total + 1.0"),
        ("largest = -np.inf", "largest = 0.0"),
    ],
    "cuda_kernel": [
        ("range(t, x.shape[1], THREADS)", "range(t, x.shape[1] - 1, THREADS)"),
        ("part[t + half]", "part[t + 1]"),
        ("half = THREADS // 2", "half = THREADS // 4"),
    ],
}
