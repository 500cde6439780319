"""What lives from the forward to the backward pass, layer by layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import handgrad
from figures.style import Ink


@functools.cache
def kept() -> dict[str, tuple[float, float]]:
    """Bytes an image that each layer keeps: by hand, and by JAX's own gradient.

    Each layer is differentiated by its own input and parameters, and what its `vjp`
    holds is added up; a parameter lives anyway and is left out.
    """
    random = np.random.default_rng(0)

    def numbers(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    images = 8
    layers = {
        "conv 3×3, 64": ("conv", (56, 56, 64), {}, (numbers(3, 3, 64, 64),)),
        "batch norm, relu": (
            "batch_norm",
            (56, 56, 64),
            {"activation": "relu"},
            (numbers(64), numbers(64)),
        ),
        "relu": ("relu", (56, 56, 64), {}, ()),
        "gelu": ("gelu", (56, 56, 64), {}, ()),
        "max pool 3×3/2": (
            "max_pool",
            (56, 56, 64),
            {"window_shape": (3, 3), "strides": (2, 2), "padding": "SAME"},
            (),
        ),
        "mean pool 2×2/2": (
            "avg_pool",
            (28, 28, 64),
            {"window_shape": (2, 2), "strides": (2, 2)},
            (),
        ),
        "dropout": ("dropout", (14, 14, 64), {"rate": 0.5}, ()),
        "layer norm": ("layer_norm", (14, 14, 64), {}, (numbers(64), numbers(64))),
        "softmax": ("softmax", (1000,), {}, ()),
    }
    found = {}
    for name, (op, shape, options, parameters) in layers.items():
        x = numbers(images, *shape)

        def size(implementation, op=op, options=options, parameters=parameters, x=x):
            def layer(x, *parameters):
                leading = (jax.random.key(0),) if op == "dropout" else ()
                call = functools.partial(getattr(handgrad, op), *leading)
                return call(x, *parameters, **options, implementation=implementation)

            _, vjp = jax.vjp(layer, x, *parameters)
            arrays = {id(a): a for a in jax.tree.leaves(vjp)}.values()
            own = {p.shape for p in parameters}
            whole = sum(
                a.nbytes
                for a in arrays
                if a.shape not in own and a.size >= images  # no scalar, no statistic
            )
            return whole / images / 1024

        found[name] = size(None), size("autodiff")
    return found


def draw(ink: Ink) -> Figure:
    """Two bars a layer."""
    found = kept()
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(found))
    for offset, index, colour, label, hatch in (
        (-0.2, 0, ink.x, "handgrad", ""),
        (0.2, 1, ink.k, "JAX's own gradient", "///"),
    ):
        sizes = [pair[index] for pair in found.values()]
        bars = axes.barh(
            places + offset,
            sizes,
            0.38,
            color=colour,
            label=label,
            hatch=hatch,
            edgecolor=ink.page,
        )
        axes.bar_label(
            bars,
            [f"{s:,.0f}" if s >= 0.5 else "0" for s in sizes],
            padding=3,
            fontsize=8,
        )
    axes.set_yticks(places, list(found))
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel("KiB an image from the forward to the backward pass (float32)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)
    axes.legend(frameon=False, loc="lower right")
    return figure
