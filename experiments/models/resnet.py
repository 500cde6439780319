"""ResNet of basic blocks (He et al. 2016, arXiv:1512.03385; ResNet-18 and smaller)."""

import itertools
from collections.abc import Callable, Sequence

import jax

from experiments.models.base import (
    ImageShape,
    Model,
    Params,
    conv_kernels,
    layer,
    normed,
)

LARGE = 64  # pixels from which an image is taken in by 7×7/2 and a pool


def model(widths: Sequence[int], blocks: Sequence[int]) -> Model:
    """A network of stages, each with so many channels and blocks."""

    def init(key: jax.Array, image_shape: ImageShape, classes: int) -> Params:
        keys = (jax.random.fold_in(key, i) for i in itertools.count())
        size = 7 if image_shape[0] >= LARGE else 3
        stem = normed(next(keys), size, size, image_shape[2], widths[0])
        params, before = {"stem": stem}, widths[0]
        for name, width, _ in _names(widths, blocks):
            params[f"{name} conv1"] = normed(next(keys), 3, 3, before, width)
            # A block begins as the identity: the scale of its last norm is 0.
            params[f"{name} conv2"] = normed(next(keys), 3, 3, width, width, scale=0.0)
            if width != before:
                params[f"{name} shortcut"] = normed(next(keys), 1, 1, before, width)
            before = width
        params["head"] = layer(next(keys), before, classes)
        return params

    def network(
        params: Params,
        images: jax.Array,
        conv: Callable[..., jax.Array],
        norm: Callable[..., jax.Array],
        relu: Callable[..., jax.Array],
        max_pool: Callable[..., jax.Array],
        avg_pool: Callable[..., jax.Array],
        dense: Callable[..., jax.Array],
    ) -> jax.Array:
        def step(x, name, activation=None, strides=1):
            p = params[name]
            y = conv(x, p["kernel"], strides=strides)
            return norm(y, p["scale"], p["bias"], activation=activation)

        large = images.shape[1] >= LARGE
        x = step(images, "stem", "relu", 2 if large else 1)
        if large:
            x = max_pool(x, (3, 3), (2, 2), "SAME")
        for name, _, strides in _names(widths, blocks):
            y = step(x, f"{name} conv1", "relu", strides)
            y = step(y, f"{name} conv2")
            if f"{name} shortcut" in params:
                x = step(x, f"{name} shortcut", strides=strides)
            x = relu(x + y)
        x = avg_pool(x, x.shape[1:3])
        return dense(x.reshape(x.shape[0], -1), **params["head"])

    ops = ("conv", "batch_norm", "relu", "max_pool", "avg_pool", "dense")
    return Model(ops, init, network, conv_kernels("stem"))


def _names(widths, blocks):
    """Each block's name, channels and stride: a stage but the first begins with 2."""
    for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for j in range(count):
            yield f"stage{i + 1} block{j + 1}", width, 2 if i and not j else 1
