"""Activations by name, and MLPs: two linear maps with an activation, a gate or a convolution between them."""

import math
from collections.abc import Callable

from .. import functional as F
from ..functional.tensors import Tensor, as_pair, integers, is_sequence
from . import init
from .layers import GELU, DepthwiseConv, Dropout, Linear, ReLU
from .module import Module


class QuickGELU(Module):
    """x sigmoid(1.702 x), the approximation of GELU by one sigmoid (Hendrycks and Gimpel, 2016), as CLIP uses it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * F.sigmoid(1.702 * x)


class SiLU(Module):
    """x sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


_ACTIVATIONS: dict[str, Callable[[], Module]] = {  # by the names of timm
    "gelu": GELU,
    "gelu_tanh": lambda: GELU("tanh"),
    "quick_gelu": QuickGELU,
    "relu": ReLU,
    "silu": SiLU,
}
ACTIVATIONS = tuple(_ACTIVATIONS)


def activation(name: str) -> Module:
    """Return a new activation of one of the `ACTIVATIONS`. Raises ValueError for another name."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"act is {name!r}; it must be one of {', '.join(ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


class Mlp(Module):
    """Two linear maps with a GELU, or the module `act`, between them: (..., dim) -> (..., hidden_dim) -> (..., dim)."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        dropout: float = 0.0,
        approximate: str = "none",
        bias: bool = True,
        act: Module | None = None,
    ) -> None:
        init.check_sizes("Mlp", dim=dim)
        init.check_optional_sizes("Mlp", hidden_dim=hidden_dim)
        self.fc1 = Linear(dim, hidden_dim or 4 * dim, bias)
        self.act = GELU(approximate) if act is None else act
        self.fc2 = Linear(hidden_dim or 4 * dim, dim, bias)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class LocalMlp(Mlp):
    """An `Mlp` in which the hidden maps of the patches pass a depthwise 3 x 3 convolution before the activation.

    Tokens x (B, N, dim) are `prefix` others, which pass by the convolution, and the patches of `grid` (rows, columns),
    row by row. Li et al., LocalViT, and Yuan et al., CeiT, both 2021, normalize batches around the convolution; here
    nothing does, as in Wang et al., PVT v2, 2022.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None,
        grid: tuple[int, int],
        prefix: int = 0,
        dropout: float = 0.0,
        bias: bool = True,
        act: Module | None = None,
    ) -> None:
        super().__init__(dim, hidden_dim, dropout, bias=bias, act=act)
        init.check_sizes("LocalMlp", 0, prefix=prefix)
        if not is_sequence(grid):
            raise ValueError(f"LocalMlp: grid is {grid!r}; it must be (rows, columns)")
        as_pair("LocalMlp", "grid", grid, 1)
        self.dwconv = DepthwiseConv(hidden_dim or 4 * dim)
        self.grid, self.prefix = grid, prefix

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.mixed(self.fc1(x))))))

    def mixed(self, x: Tensor) -> Tensor:
        """Convolve the patches among the hidden maps x (B, N, hidden_dim); raise ValueError if they are no grid."""
        count = self.prefix + math.prod(self.grid)
        if x.ndim != 3 or x.shape[1] != count:
            raise ValueError(
                f"mlp_layer='local' needs all {count} tokens of an image, (B, {count}, C); x has shape {x.shape}"
            )
        patches = x[:, self.prefix :] if self.prefix else x
        y = self.dwconv(patches.reshape(x.shape[0], *self.grid, x.shape[2])).reshape(*patches.shape)
        return F.concatenate([x[:, : self.prefix], y], axis=1) if self.prefix else y

    def describe(self) -> str:
        return f"grid={self.grid}, prefix={self.prefix}"


class SwiGLU(Module):
    """silu(x W) * (x V), then a linear map: (..., dim) -> (..., hidden_dim) -> (..., dim).

    `fc1` has the rows of W, then those of V, as timm's `SwiGLUPacked`. By default hidden_dim is 8/3 dim, rounded up to
    a multiple of 8, so that there are as many weights as in an `Mlp` of 4 dim (Shazeer, GLU variants improve
    Transformer, 2020, equation 6 and section 3).
    """

    def __init__(self, dim: int, hidden_dim: int | None = None, dropout: float = 0.0, bias: bool = True) -> None:
        init.check_sizes("SwiGLU", dim=dim)
        init.check_optional_sizes("SwiGLU", hidden_dim=hidden_dim)
        hidden = hidden_dim or -(-8 * dim // 24) * 8
        self.fc1 = Linear(dim, 2 * hidden, bias)
        self.fc2 = Linear(hidden, dim, bias)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = F.split(self.fc1(x), 2, axis=-1)
        return self.drop(self.fc2(self.drop(F.silu(gate) * value)))


MLPS = ("mlp", "local", "swiglu")


def new_mlp(
    name: str,
    dim: int,
    hidden_dim: int | None,
    dropout: float,
    bias: bool,
    act: str,
    grid: tuple[int, ...],
    prefix: int,
) -> Mlp | SwiGLU:
    """Return a new MLP of one of the `MLPS`. Raises ValueError for another name, or where its options do not fit."""
    if name not in MLPS:
        raise ValueError(f"mlp_layer is {name!r}; it must be one of {', '.join(MLPS)}")
    if name == "swiglu":
        if act != "gelu":
            raise ValueError(f"act is {act!r}, which mlp_layer='swiglu' does not use; leave it at 'gelu'")
        return SwiGLU(dim, hidden_dim, dropout, bias)
    if name == "mlp":
        return Mlp(dim, hidden_dim, dropout, bias=bias, act=activation(act))
    if len(integers("grid", grid)) != 2:
        raise ValueError(f"mlp_layer is 'local', which needs images, not patches in a grid of {grid}")
    return LocalMlp(dim, hidden_dim, (grid[0], grid[1]), prefix, dropout, bias, activation(act))
