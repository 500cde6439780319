"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545), without its stochastic depth."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from experiments.models.base import ImageShape, Model, Params, conv_kernels

LARGE = 64  # pixels from which the stem takes patches of 4×4, else of 2×2
LAYER_SCALE = 1e-6  # what a block's own branch begins with


def model(widths: Sequence[int], blocks: Sequence[int]) -> Model:
    """A network of stages, each with so many channels and blocks."""

    def init(key: jax.Array, image_shape: ImageShape, classes: int) -> Params:
        keys = (jax.random.fold_in(key, i) for i in itertools.count())

        def kernel(*shape):
            initializer = jax.nn.initializers.truncated_normal(0.02)
            return {
                "kernel": initializer(next(keys), shape),
                "bias": jnp.zeros(shape[-1]),
            }

        def norm(width):
            return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

        patch = _patch(image_shape[0])
        params = {
            "stem": kernel(patch, patch, image_shape[2], widths[0]),
            "stem norm": norm(widths[0]),
        }
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if i:
                params[f"down{i + 1} norm"] = norm(widths[i - 1])
                params[f"down{i + 1}"] = kernel(2, 2, widths[i - 1], width)
            for j in range(count):
                name = f"stage{i + 1} block{j + 1}"
                params[f"{name} depthwise"] = kernel(7, 7, 1, width)
                params[f"{name} norm"] = norm(width)
                params[f"{name} expand"] = kernel(width, 4 * width)
                params[f"{name} project"] = kernel(4 * width, width)
                params[f"{name} layer scale"] = {"scale": jnp.full(width, LAYER_SCALE)}
        params["head norm"] = norm(widths[-1])
        params["head"] = kernel(widths[-1], classes)
        return params

    def network(
        params: Params,
        images: jax.Array,
        conv: Callable[..., jax.Array],
        norm: Callable[..., jax.Array],
        gelu: Callable[..., jax.Array],
        avg_pool: Callable[..., jax.Array],
        dense: Callable[..., jax.Array],
    ) -> jax.Array:
        patch = _patch(images.shape[1])
        x = conv(images, **params["stem"], strides=patch)
        x = norm(x, **params["stem norm"])
        for i, count in enumerate(blocks):
            if i:
                x = norm(x, **params[f"down{i + 1} norm"])
                x = conv(x, **params[f"down{i + 1}"], strides=2)
            for j in range(count):
                name = f"stage{i + 1} block{j + 1}"
                groups = {"feature_group_count": x.shape[-1]}
                y = conv(x, **params[f"{name} depthwise"], **groups)
                y = norm(y, **params[f"{name} norm"])
                y = gelu(dense(y, **params[f"{name} expand"]), approximate=False)
                y = dense(y, **params[f"{name} project"])
                x = x + params[f"{name} layer scale"]["scale"].reshape(1, 1, 1, -1) * y
        x = avg_pool(x, x.shape[1:3])
        x = norm(x.reshape(x.shape[0], -1), **params["head norm"])
        return dense(x, **params["head"])

    ops = ("conv", "layer_norm", "gelu", "avg_pool", "dense")
    return Model(ops, init, network, conv_kernels("stem"))


def _patch(height: int) -> int:
    return 4 if height >= LARGE else 2
