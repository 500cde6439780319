"""Phases of a strided input gradient: each residue has a small kernel of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import handgrad
from figures.style import Ink, arrow, canvas, grid

KERNEL = np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
ERROR = np.float32([[1, 2], [3, 4]])


@functools.cache
def gradient() -> np.ndarray:
    """∂L/∂x of a convolution with stride 2 on 5×5 pixels, by the formula "phases"."""

    def conv(x):
        kernel = jnp.expand_dims(KERNEL, (2, 3))
        image = jnp.expand_dims(x, (0, 3))
        return handgrad.conv(
            image, kernel, strides=2, padding="VALID", implementation="phases"
        )

    _, vjp = jax.vjp(conv, jnp.zeros((5, 5)))
    return np.asarray(vjp(jnp.expand_dims(jnp.asarray(ERROR), (0, 3)))[0])


def draw(ink: Ink) -> Figure:
    """The kernel's four sub-kernels, each with the pixels that it alone makes."""
    figure, axes = canvas(27, 14.6)

    def tinted(shape):
        cells = np.full(shape, "", object)
        for r, c in np.ndindex(*shape):
            cells[r, c] = ink.shades[2 * (r % 2) + c % 2]
        return cells

    grid(axes, ink, ERROR, (0.5, 2), ink.d, title="δ, stride 2")
    grid(axes, ink, KERNEL, (0.5, 7), ink.k, title="k", fills=tinted((3, 3)))
    spots = {(0, 0): (9.5, 1.3), (0, 1): (9.5, 4.9), (1, 0): (9.5, 8.4)}
    spots[(1, 1)] = (9.5, 11.0)
    for (a, b), (x, y) in spots.items():
        part = KERNEL[a::2, b::2][::-1, ::-1]
        fills = np.full(part.shape, ink.shades[2 * a + b], object)
        grid(axes, ink, part, (x, y), ink.k, title=f"phase {a}, {b}", fills=fills)
        arrow(axes, ink, (3.9, 8.5), (x - 0.3, y + part.shape[0] / 2))
        arrow(axes, ink, (x + part.shape[1] + 0.3, y + part.shape[0] / 2), (18.6, 6.5))
    axes.text(
        15.5,
        12.2,
        "each is a convolution of δ with stride 1;\nno product with an inserted zero",
        color=ink.soft,
        va="center",
        ha="left",
    )
    grid(
        axes,
        ink,
        gradient(),
        (19, 4),
        ink.g,
        title="∂L/∂x, interleaved",
        fills=tinted((5, 5)),
    )
    return figure
