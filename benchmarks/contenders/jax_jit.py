"""JAX on the CPU. Every call is one compiled function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cases import Case
from ..inputs import DROPOUT_P, LAYER_NORM_EPS, LEARNING_RATE, WEIGHT_DECAY, Arrays, operands, weights_of
from .base import Contender, Task
from .functional_vit import adamw, patches, vit_logits, vit_loss

erf = jax.scipy.special.erf


def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of (B, H, N, D), written out because jax.nn.dot_product_attention is slower on the CPU."""
    scores = jnp.einsum("bhnd,bhsd->bhns", q, k) * q.shape[-1] ** -0.5
    return jnp.einsum("bhns,bhsd->bhnd", jax.nn.softmax(scores), v)


def _layer_norm(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    centered = x - x.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt((centered * centered).mean(-1, keepdims=True) + LAYER_NORM_EPS) * weight + bias


def _cross_entropy(x: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], 1).mean()


def _dropout(x: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, 1 - DROPOUT_P, x.shape), x / (1 - DROPOUT_P), 0)


OPERATIONS = {
    "attention": _attention,
    "layer_norm": _layer_norm,
    "linear": lambda x, weight, bias: x @ weight.T + bias,
    "bias_gelu": lambda x, bias: jax.nn.gelu(x + bias, approximate=False),
    "bias_gelu_tanh": lambda x, bias: jax.nn.gelu(x + bias, approximate=True),
    "softmax": jax.nn.softmax,
    "cross_entropy": _cross_entropy,
    "dropout": _dropout,
}


class Jax(Contender):
    """The option is "" or "bf16", with which models multiply matrices in bfloat16 and round the products to it."""

    def __init__(self, option: str) -> None:
        super().__init__(option)
        self.dtype = "bfloat16" if option == "bf16" else "float32"
        self.narrow = jnp.bfloat16 if option == "bf16" else None

    @staticmethod
    def _operation(case: Case, inputs: Arrays) -> tuple[Any, list[str], list[jax.Array], list[jax.Array]]:
        """The function, the names of its differentiable operands, the operands, and the other arguments."""
        names = operands(inputs)
        arrays = [jnp.asarray(inputs[name]) for name in names]
        constants = [jnp.asarray(inputs["labels"])] if "labels" in inputs else []
        if case.operation == "dropout":
            constants.append(jax.random.key(0))
        if case.operation == "patches":
            patch = case.model.patch
            return lambda x: patches(jnp, x, patch), names, arrays, constants
        return OPERATIONS[case.operation], names, arrays, constants

    def forward(self, case: Case, inputs: Arrays) -> Task:
        operation, _, arrays, constants = self._operation(case, inputs)
        jitted = jax.jit(operation)
        return Task(lambda: jitted(*arrays, *constants).block_until_ready(), lambda out: {"out": np.asarray(out)})

    def backward(self, case: Case, inputs: Arrays) -> Task:
        operation, names, arrays, constants = self._operation(case, inputs)
        _, pullback = jax.jit(lambda *x: jax.vjp(lambda *y: operation(*y, *constants), *x))(*arrays)
        jitted, dout = jax.jit(lambda pull, dout: pull(dout)), jnp.asarray(inputs["dout"])
        return Task(
            lambda: jax.block_until_ready(jitted(pullback, dout)),
            lambda grads: {f"d{name}": np.asarray(g) for name, g in zip(names, grads, strict=True)},
        )

    def adamw(self, case: Case, inputs: Arrays) -> Task:
        state = _initial_state(inputs)
        gradients = {name: jnp.asarray(inputs[f"grad.{name}"]) for name in state[0]}
        jitted = jax.jit(_update, donate_argnums=(0,))

        def run() -> dict[str, jax.Array]:
            nonlocal state
            state = jax.block_until_ready(jitted(state, gradients))
            return state[0]

        return Task(run, lambda weights: {name: np.asarray(array) for name, array in weights.items()})

    def train(self, case: Case, inputs: Arrays) -> Task:
        state = _initial_state(inputs)
        images, one_hot = jnp.asarray(inputs["images"]), jax.nn.one_hot(inputs["labels"], case.model.classes)

        def step(state: Any, images: jax.Array, one_hot: jax.Array) -> Any:
            loss, gradients = jax.value_and_grad(
                lambda p: vit_loss(jnp, erf, p, images, one_hot, case.model, self.narrow)
            )(state[0])
            return _update(state, gradients), loss

        jitted = jax.jit(step, donate_argnums=(0,))

        def run() -> float:
            nonlocal state
            state, loss = jax.block_until_ready(jitted(state, images, one_hot))
            return float(loss)

        return Task(run, lambda loss: {"loss": np.asarray(loss)})

    def inference(self, case: Case, inputs: Arrays) -> Task:
        weights, images = _initial_state(inputs)[0], jnp.asarray(inputs["images"])
        jitted = jax.jit(lambda p, x: vit_logits(jnp, erf, p, x, case.model, self.narrow))
        return Task(lambda: jitted(weights, images).block_until_ready(), lambda out: {"out": np.asarray(out)})


def _initial_state(inputs: Arrays) -> tuple[Any, Any, Any, Any]:
    """The weights, both moments, and the number of steps taken."""
    weights = {name: jnp.array(array) for name, array in weights_of(inputs).items()}
    m, v = ({name: jnp.zeros_like(array) for name, array in weights.items()} for _ in range(2))
    return weights, m, v, jnp.float32(0)


def _update(state: tuple[Any, Any, Any, Any], gradients: dict[str, jax.Array]) -> tuple[Any, Any, Any, Any]:
    weights, m, v, steps = state
    steps = steps + 1
    new = {
        name: adamw(jnp, weights[name], g, m[name], v[name], steps, LEARNING_RATE, WEIGHT_DECAY)
        for name, g in gradients.items()
    }
    return *({name: arrays[i] for name, arrays in new.items()} for i in range(3)), steps
