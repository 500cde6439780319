"""The networks that `train.py` trains.

Parameters are a dictionary of layers, each with its `kernel` and `bias`. A network is
a pure function of its parameters, the images and the ops it is made of; the ops are
handgrad's, so every gradient is derived by hand.
"""

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


def _layer(key: jax.Array, *kernel_shape: int) -> dict[str, jax.Array]:
    """A kernel of variance 1 / fan-in and a bias of zeros: Flax's initial values."""
    return {
        "kernel": jax.nn.initializers.lecun_normal()(key, kernel_shape),
        "bias": jnp.zeros(kernel_shape[-1]),
    }


def _init_lenet5(key: jax.Array, image_shape: ImageShape, classes: int) -> Params:
    height, width, channels = image_shape
    # A pool halves the image; between them the "VALID" convolution trims 4 pixels.
    features = ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2) * 16
    keys = jax.random.split(key, 5)
    return {
        "conv1": _layer(keys[0], 5, 5, channels, 6),
        "conv2": _layer(keys[1], 5, 5, 6, 16),
        "dense1": _layer(keys[2], features, 120),
        "dense2": _layer(keys[3], 120, 84),
        "dense3": _layer(keys[4], 84, classes),
    }


def _lenet5(
    params: Params,
    images: jax.Array,
    conv: Callable[..., jax.Array],
    activation: Callable[..., jax.Array],
    pool: Callable[..., jax.Array],
    dense: Callable[..., jax.Array],
) -> jax.Array:
    x = activation(conv(images, **params["conv1"], padding="SAME"))
    x = pool(x, (2, 2), (2, 2))
    x = activation(conv(x, **params["conv2"], padding="VALID"))
    x = pool(x, (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    x = activation(dense(x, **params["dense1"]))
    x = activation(dense(x, **params["dense2"]))
    return dense(x, **params["dense3"])


def _init_mlp(key: jax.Array, image_shape: ImageShape, classes: int) -> Params:
    height, width, channels = image_shape
    keys = jax.random.split(key, 3)
    return {
        "dense1": _layer(keys[0], height * width * channels, 256),
        "dense2": _layer(keys[1], 256, 128),
        "dense3": _layer(keys[2], 128, classes),
    }


def _mlp(
    params: Params,
    images: jax.Array,
    activation: Callable[..., jax.Array],
    dense: Callable[..., jax.Array],
) -> jax.Array:
    x = images.reshape(images.shape[0], -1)
    x = activation(dense(x, **params["dense1"]))
    x = activation(dense(x, **params["dense2"]))
    return dense(x, **params["dense3"])


def _conv_kernels(params: Params, image_shape: ImageShape) -> jax.Array:
    """[height width channels filters] -> [filters height width channels]."""
    del image_shape  # a convolution's kernels have a size of their own
    return params["conv1"]["kernel"].transpose(3, 0, 1, 2)


def _dense_kernels(params: Params, image_shape: ImageShape) -> jax.Array:
    """Each unit's column of the first kernel, laid out as the image that it sees."""
    return params["dense1"]["kernel"].T.reshape(-1, *image_shape)


MODELS: dict[str, Model] = {
    # As LeCun et al. 1998, "Gradient-based learning applied to document recognition",
    # built it: tanh and mean pooling.
    "lenet5": Model(
        ("conv", "tanh", "avg_pool", "dense"), _init_lenet5, _lenet5, _conv_kernels
    ),
    # As it is mostly built today.
    "lenet5-max": Model(
        ("conv", "relu", "max_pool", "dense"), _init_lenet5, _lenet5, _conv_kernels
    ),
    "mlp": Model(("relu", "dense"), _init_mlp, _mlp, _dense_kernels),
}
