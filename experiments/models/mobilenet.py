"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381)."""

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

LARGE = 64  # pixels from which an image is halved by the stem and the second stage
STEM, LAST = 32, 1280
# Expansion, channels, blocks and stride of each stage: the paper's table 2.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def model(
    stages: Sequence[tuple[int, int, int, int]] = STAGES,
    stem: int = STEM,
    last: int = LAST,
) -> Model:
    """A network of inverted residual blocks."""

    def init(key: jax.Array, image_shape: ImageShape, classes: int) -> Params:
        keys = (jax.random.fold_in(key, i) for i in itertools.count())
        params = {"stem": normed(next(keys), 3, 3, image_shape[2], stem)}
        for name, expansion, before, width, _ in _names(stages, stem):
            hidden = expansion * before
            if expansion != 1:
                params[f"{name} expand"] = normed(next(keys), 1, 1, before, hidden)
            params[f"{name} depthwise"] = normed(next(keys), 3, 3, 1, hidden)
            params[f"{name} project"] = normed(next(keys), 1, 1, hidden, width)
        params["last"] = normed(next(keys), 1, 1, stages[-1][1], last)
        params["head"] = layer(next(keys), last, classes)
        return params

    def network(
        params: Params,
        images: jax.Array,
        conv: Callable[..., jax.Array],
        norm: Callable[..., jax.Array],
        relu6: Callable[..., jax.Array],
        avg_pool: Callable[..., jax.Array],
        dense: Callable[..., jax.Array],
    ) -> jax.Array:
        def step(x, name, activation=relu6, **options):
            p = params[name]
            y = norm(conv(x, p["kernel"], **options), p["scale"], p["bias"])
            return activation(y) if activation else y

        large = images.shape[1] >= LARGE
        x = step(images, "stem", strides=2 if large else 1)
        for name, _, before, width, strides in _names(stages, stem):
            if name.startswith("stage2 ") and not large:
                strides = 1
            y = step(x, f"{name} expand") if f"{name} expand" in params else x
            y = step(
                y, f"{name} depthwise", strides=strides, feature_group_count=y.shape[-1]
            )
            y = step(y, f"{name} project", activation=None)
            x = x + y if strides == 1 and before == width else y
        x = step(x, "last")
        x = avg_pool(x, x.shape[1:3])
        return dense(x.reshape(x.shape[0], -1), **params["head"])

    ops = ("conv", "batch_norm", "relu6", "avg_pool", "dense")
    return Model(ops, init, network, conv_kernels("stem"))


def _names(stages, before):
    """Each block's name, expansion, channels before and after, and stride."""
    for i, (expansion, width, count, strides) in enumerate(stages):
        for j in range(count):
            yield (
                f"stage{i + 1} block{j + 1}",
                expansion,
                before,
                width,
                1 if j else strides,
            )
            before = width
