"""What a network is, and how its ops and its layers' initial values are chosen."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import handgrad

Params = dict[str, dict[str, jax.Array]]
ImageShape = tuple[int, int, int]  # height, width, channels


def offers(op: str, implementation: str | None) -> bool:
    """Says whether the op of this name has such an implementation."""
    formulas = handgrad.RULES[op].formulas
    return implementation in (None, "autodiff") or implementation in formulas


def bind(op: str, implementation: str | None) -> Callable[..., Any]:
    """The handgrad op of this name, its implementation chosen.

    `gemm` is a formula of convolutions: the ops that do not offer it take their best.
    """
    chosen = implementation if offers(op, implementation) else None
    return functools.partial(getattr(handgrad, op), implementation=chosen)


class Model(NamedTuple):
    """A network.

    Attributes:
        ops: names of the handgrad ops it is made of.
        init: `(key, image_shape, classes) -> params`.
        network: `(params, images, *ops) -> logits`, with images of shape
            `(batch, height, width, channels)` and logits of shape `(batch, classes)`.
        first_kernels: `(params, image_shape) -> images`, what the first layer looks
            for, of shape `(filters, height, width, channels)`.
    """

    ops: tuple[str, ...]
    init: Callable[[jax.Array, ImageShape, int], Params]
    network: Callable[..., jax.Array]
    first_kernels: Callable[[Params, ImageShape], jax.Array]

    def apply(
        self, params: Params, images: jax.Array, implementation: str | None = None
    ) -> jax.Array:
        """The logits of a batch of images."""
        ops = (bind(op, implementation) for op in self.ops)
        return self.network(params, images, *ops)


def layer(key: jax.Array, *kernel_shape: int) -> dict[str, jax.Array]:
    """A kernel of variance 1 / fan-in and a bias of zeros: Flax's initial values."""
    return {
        "kernel": jax.nn.initializers.lecun_normal()(key, kernel_shape),
        "bias": jnp.zeros(kernel_shape[-1]),
    }


def normed(
    key: jax.Array, *kernel_shape: int, scale: float = 1.0
) -> dict[str, jax.Array]:
    """A kernel for a relu, of variance 2 / fan-out, and a batch norm after it."""
    initializer = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    channels = kernel_shape[-1]
    return {
        "kernel": initializer(key, kernel_shape),
        "scale": jnp.full(channels, scale),
        "bias": jnp.zeros(channels),
    }


def conv_kernels(first: str) -> Callable[[Params, ImageShape], jax.Array]:
    """[height width channels filters] -> [filters height width channels]."""

    def kernels(params: Params, image_shape: ImageShape) -> jax.Array:
        del image_shape  # a convolution's kernels have a size of their own
        return params[first]["kernel"].transpose(3, 0, 1, 2)

    return kernels
