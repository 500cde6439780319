"""Error maps: where a float32 gradient errs, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import handgrad
from figures.style import Ink

FORMULAS = ("autodiff", "rot180", "gemm", "winograd")


@functools.cache
def maps() -> dict[str, np.ndarray]:
    """∂L/∂x minus the truth of a 3×3 convolution, by formula, over rms(truth)."""
    random = np.random.default_rng(0)
    shapes = ((1, 14, 14, 64), (3, 3, 64, 64), (1, 14, 14, 64))
    x, kernel, dy = (random.standard_normal(s).astype(np.float32) for s in shapes)

    def gradient(implementation, dtype=np.float32):
        def conv(x):
            wide = kernel.astype(dtype)
            return handgrad.conv(x, wide, implementation=implementation)

        _, vjp = jax.vjp(conv, x.astype(dtype))
        return np.asarray(vjp(jnp.asarray(dy, dtype))[0])

    with jax.enable_x64(True):
        truth = gradient("autodiff", np.float64)
    scale = np.sqrt(np.mean(truth**2))
    return {
        name: np.abs(gradient(name) - truth)[0].max(-1) / scale for name in FORMULAS
    }


def draw(ink: Ink) -> Figure:
    """One panel a formula, one scale for all."""
    found = maps()
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    panels = figure.subplots(1, len(found))
    top = max(array.max() for array in found.values())
    for axes, (name, array) in zip(panels, found.items(), strict=True):
        picture = axes.imshow(array, cmap="cividis", vmin=0, vmax=top)
        axes.set_title(f"{name}\nat most {array.max():.1e}", fontsize=10)
        axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(picture, ax=panels, shrink=0.8)
    bar.set_label("error / rms of the truth", color=ink.text)
    bar.formatter.set_powerlimits((-2, 3))
    return figure
