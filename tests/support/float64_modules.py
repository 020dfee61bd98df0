"""Modules with random weights at float64, for comparisons with formulas."""

from typing import Any

import numpy as np
from block_oracles import Weights

from tinyvit import nn
from tinyvit.engine import Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def in_float64(module: nn.Module) -> tuple[Any, Weights]:
    """The module with random weights at float64 (biases and norms too), and those weights by name."""
    rng = np.random.default_rng(1)
    module.to("float64")
    for p in module.parameters():
        p.assign(rng.standard_normal(p.shape))
    return module, module.state_dict()


def close(found: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-12, strict=True)
