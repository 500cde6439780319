"""LeNet-5 and a perceptron."""

from collections.abc import Callable

import jax

from experiments.models.base import ImageShape, Model, Params, conv_kernels, layer


def _init_lenet5(key: jax.Array, image_shape: ImageShape, classes: int) -> Params:
    height, width, channels = image_shape
    # A pool halves the image; between them the "VALID" convolution trims 4 pixels.
    features = ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2) * 16
    keys = jax.random.split(key, 5)
    return {
        "conv1": layer(keys[0], 5, 5, channels, 6),
        "conv2": layer(keys[1], 5, 5, 6, 16),
        "dense1": layer(keys[2], features, 120),
        "dense2": layer(keys[3], 120, 84),
        "dense3": layer(keys[4], 84, classes),
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
        "dense1": layer(keys[0], height * width * channels, 256),
        "dense2": layer(keys[1], 256, 128),
        "dense3": layer(keys[2], 128, classes),
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


def _dense_kernels(params: Params, image_shape: ImageShape) -> jax.Array:
    """Each unit's column of the first kernel, laid out as the image that it sees."""
    return params["dense1"]["kernel"].T.reshape(-1, *image_shape)


MODELS: dict[str, Model] = {
    # As LeCun et al. 1998, "Gradient-based learning applied to document recognition",
    # built it: tanh and mean pooling.
    "lenet5": Model(
        ("conv", "tanh", "avg_pool", "dense"),
        _init_lenet5,
        _lenet5,
        conv_kernels("conv1"),
    ),
    # As it is mostly built today.
    "lenet5-max": Model(
        ("conv", "relu", "max_pool", "dense"),
        _init_lenet5,
        _lenet5,
        conv_kernels("conv1"),
    ),
    "mlp": Model(("relu", "dense"), _init_mlp, _mlp, _dense_kernels),
}
