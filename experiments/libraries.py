"""`handgrad.rewrite` on one small network, written in every library for JAX.

`python -m experiments.libraries` trains it in each that is installed: as it is, with
its loss rewritten, and with the whole step rewritten, gradient and all. It prints the
milliseconds of a step, and by how much the gradients differ.

Each function of `LIBRARIES` is a user's code of that library: it returns a loss, its
parameters, images and labels. The network is the same everywhere: a convolution, a
max-pool of overlapping windows, a depthwise and a pointwise convolution, another pool,
a mean over the pixels, and a dense layer.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich.console import Console
from rich.table import Table

import handgrad
from handgrad import measure

CLASSES = 10


class Task(NamedTuple):
    """What a user of a library trains: loss(parameters, images, labels)."""

    loss: Callable[..., jax.Array]
    parameters: Any
    images: jax.Array
    labels: jax.Array


def flax_linen(images: jax.Array, labels: jax.Array, width: int) -> Task:
    """Flax's older modules."""
    from flax import linen as nn

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            kinds = {"use_bias": False, "param_dtype": images.dtype}
            x = nn.relu(nn.Conv(width, (3, 3), **kinds)(x))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            x = nn.relu(nn.Conv(width, (3, 3), feature_group_count=width, **kinds)(x))
            x = nn.relu(nn.Conv(2 * width, (1, 1), **kinds)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
            return nn.Dense(CLASSES, param_dtype=x.dtype)(x.mean((1, 2)))

    network = Network()

    def loss(parameters, x, labels):
        logits: Any = network.apply(parameters, x)
        return _loss(logits, labels)

    return Task(loss, jax.jit(network.init)(jax.random.key(0), images), images, labels)


def flax_nnx(images: jax.Array, labels: jax.Array, width: int) -> Task:
    """Flax's newer modules, split into a definition and parameters."""
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            kinds = {"use_bias": False, "param_dtype": images.dtype, "rngs": rngs}
            self.first = nnx.Conv(images.shape[-1], width, (3, 3), **kinds)
            self.depthwise = nnx.Conv(
                width, width, (3, 3), feature_group_count=width, **kinds
            )
            self.pointwise = nnx.Conv(width, 2 * width, (1, 1), **kinds)
            self.last = nnx.Linear(
                2 * width, CLASSES, param_dtype=images.dtype, rngs=rngs
            )

        def __call__(self, x):
            x = nnx.max_pool(nnx.relu(self.first(x)), (3, 3), (2, 2), "SAME")
            x = nnx.relu(self.pointwise(nnx.relu(self.depthwise(x))))
            return self.last(nnx.max_pool(x, (2, 2), (2, 2)).mean((1, 2)))

    definition, parameters = nnx.split(Network(nnx.Rngs(0)))

    def loss(parameters, x, labels):
        return _loss(nnx.merge(definition, parameters)(x), labels)

    return Task(loss, parameters, images, labels)


def equinox(images: jax.Array, labels: jax.Array, width: int) -> Task:
    """One example at a time, channels first, under `vmap`."""
    eqx: Any = importlib.import_module("equinox")

    keys = jax.random.split(jax.random.key(0), 4)
    kinds = {"use_bias": False, "dtype": images.dtype}
    network = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(images.shape[-1], width, 3, padding=1, key=keys[0], **kinds),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(3, 2, padding=1),
            eqx.nn.Conv2d(
                width, width, 3, padding=1, groups=width, key=keys[1], **kinds
            ),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Conv2d(width, 2 * width, 1, key=keys[2], **kinds),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(lambda x: x.mean((1, 2))),
            eqx.nn.Linear(2 * width, CLASSES, key=keys[3], dtype=images.dtype),
        ]
    )
    parameters, rest = eqx.partition(network, eqx.is_array)

    def loss(parameters, x, labels):
        return _loss(jax.vmap(eqx.combine(parameters, rest))(x), labels)

    return Task(loss, parameters, images.transpose(0, 3, 1, 2), labels)


def haiku(images: jax.Array, labels: jax.Array, width: int) -> Task:
    """A function whose modules find their parameters by name."""
    hk: Any = importlib.import_module("haiku")

    def network(x):
        x = jax.nn.relu(hk.Conv2D(width, 3, with_bias=False)(x))
        x = hk.max_pool(x, (3, 3, 1), (2, 2, 1), "SAME")
        x = jax.nn.relu(hk.DepthwiseConv2D(1, 3, with_bias=False)(x))
        x = jax.nn.relu(hk.Conv2D(2 * width, 1, with_bias=False)(x))
        x = hk.max_pool(x, (2, 2, 1), (2, 2, 1), "VALID")
        return hk.Linear(CLASSES)(x.mean((1, 2)))

    init, apply = hk.without_apply_rng(hk.transform(network))

    def loss(parameters, x, labels):
        return _loss(apply(parameters, x), labels)

    return Task(loss, jax.jit(init)(jax.random.key(0), images), images, labels)


def keras(images: jax.Array, labels: jax.Array, width: int) -> Task:
    """Keras with JAX as its backend, by `stateless_call`."""
    os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is imported
    keras_: Any = importlib.import_module("keras")

    layers, kinds = keras_.layers, {"use_bias": False, "dtype": str(images.dtype)}
    activated = {"activation": "relu", **kinds}
    keras_.utils.set_random_seed(0)
    network = keras_.Sequential(
        [
            layers.Input(images.shape[1:], dtype=kinds["dtype"]),
            layers.Conv2D(width, 3, padding="same", **activated),
            layers.MaxPooling2D(3, 2, padding="same", dtype=kinds["dtype"]),
            layers.DepthwiseConv2D(3, padding="same", **activated),
            layers.Conv2D(2 * width, 1, **activated),
            layers.MaxPooling2D(2, 2, dtype=kinds["dtype"]),
            # GlobalAveragePooling2D means in float32, whatever the dtype.
            layers.Lambda(
                lambda x: keras_.ops.sum(x, (1, 2)) / (x.shape[1] * x.shape[2]),
                dtype=kinds["dtype"],
            ),
            layers.Dense(CLASSES, dtype=kinds["dtype"]),
        ]
    )
    parameters = [variable.value for variable in network.trainable_variables]
    others = [variable.value for variable in network.non_trainable_variables]

    def loss(parameters, x, labels):
        logits, *_ = network.stateless_call(parameters, others, x, training=True)
        return _loss(logits, labels)

    return Task(loss, parameters, images, labels)


def plain_lax(images: jax.Array, labels: jax.Array, width: int) -> Task:
    """No library: `jax.lax`, channels first."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (
        (width, images.shape[-1], 3, 3),
        (width, 1, 3, 3),
        (2 * width, width, 1, 1),
        (2 * width, CLASSES),
    )
    parameters = [
        0.2 * jax.random.normal(key, shape, images.dtype)
        for key, shape in zip(keys, shapes, strict=True)
    ]

    def pool(x, size):
        lowest = np.array(-np.inf, x.dtype)
        window = (1, 1, size, size), (1, 1, 2, 2)
        return lax.reduce_window(x, lowest, lax.max, *window, "SAME")

    def loss(parameters, x, labels):
        first, depthwise, pointwise, last = parameters
        x = pool(jax.nn.relu(lax.conv(x, first, (1, 1), "SAME")), 3)
        x = lax.conv_general_dilated(
            x, depthwise, (1, 1), "SAME", feature_group_count=width
        )
        x = jax.nn.relu(lax.conv(jax.nn.relu(x), pointwise, (1, 1), "SAME"))
        return _loss(pool(x, 2).mean((2, 3)) @ last, labels)

    return Task(loss, parameters, images.transpose(0, 3, 1, 2), labels)


LIBRARIES: dict[str, Callable[[jax.Array, jax.Array, int], Task]] = {
    "flax.linen": flax_linen,
    "flax.nnx": flax_nnx,
    "equinox": equinox,
    "haiku": haiku,
    "keras": keras,
    "jax.lax": plain_lax,
}


def _loss(logits: Any, labels: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def drawn(
    name: str, *, batch: int, pixels: int, width: int, dtype: Any = "float32"
) -> Task:
    """The task in one library, on drawn images [batch, pixels, pixels, 3]."""
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, pixels, pixels, 3))
    labels = jnp.asarray(random.integers(0, CLASSES, batch), jnp.int32)
    return LIBRARIES[name](jnp.asarray(images, dtype), labels, width)


def step(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    """One step of gradient descent: the new parameters, the gradient and the loss."""

    def descend(parameters, images, labels):
        value, gradient = jax.value_and_grad(loss)(parameters, images, labels)
        new = jax.tree.map(
            lambda p, g: p - (0.1 * g).astype(p.dtype), parameters, gradient
        )
        return new, gradient, value

    return descend


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference of any array's elements, relative to its largest."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures a training step in each library that is installed."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.libraries",
        description="handgrad.rewrite on one network, in every library for JAX.",
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(LIBRARIES)}")
    parser.add_argument("--batch", type=int, default=32, help="images (32)")
    parser.add_argument("--pixels", type=int, default=32, help="of a side (32)")
    parser.add_argument("--width", type=int, default=32, help="channels (32)")
    parser.add_argument("--seconds", type=float, default=2.0, help="a function (2)")
    flags = parser.parse_args(arguments)
    if unknown := [name for name in flags.names if name not in LIBRARIES]:
        parser.error(f"{', '.join(unknown)}: must be of {', '.join(LIBRARIES)}")
    table = Table(
        "library", "as it is, ms", "loss rewritten", "step rewritten", "differ"
    )
    for name in flags.names or LIBRARIES:
        sizes = {"batch": flags.batch, "pixels": flags.pixels, "width": flags.width}
        try:
            loss, *given = drawn(name, **sizes)
        except ImportError as error:
            table.add_row(name, f"no {error.name}")
            continue
        steps = {
            "as it is": jax.jit(step(loss)),
            "loss": jax.jit(step(handgrad.rewrite(loss))),
            "step": jax.jit(handgrad.rewrite(step(loss))),
        }
        s = measure.interleaved(steps, *given, seconds=flags.seconds)
        new = {which: function(*given)[1] for which, function in steps.items()}
        apart = max(
            difference(new[which], new["as it is"]) for which in ("loss", "step")
        )
        times = (
            f"{1e3 * s[which]:.2f}, {s['as it is'] / s[which]:.2f} times as fast"
            for which in ("loss", "step")
        )
        table.add_row(name, f"{1e3 * s['as it is']:.2f}", *times, f"{apart:.0e}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
