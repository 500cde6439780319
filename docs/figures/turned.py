"""The error padded and the kernel turned: the input gradient as a full convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import handgrad
from figures.style import Ink, arrow, canvas, grid

X = np.arange(1.0, 17, dtype=np.float32).reshape(4, 4)
KERNEL = np.float32([[1, 2, 0], [0, 1, -1], [-1, 0, 2]])
ERROR = np.float32([[1, 2], [3, 4]])


@functools.cache
def gradient() -> np.ndarray:
    """∂L/∂x by handgrad's rule."""

    def conv(x):
        kernel = jnp.expand_dims(KERNEL, (2, 3))
        return handgrad.conv(jnp.expand_dims(x, 2), kernel, padding="VALID")

    _, vjp = jax.vjp(conv, X)
    return np.asarray(vjp(jnp.expand_dims(jnp.asarray(ERROR), 2))[0])


def draw(ink: Ink) -> Figure:
    """The error, padded; the kernel, turned; and the pixel they make together."""
    figure, axes = canvas(27, 15.2)
    padded = np.pad(ERROR, 2)
    zero = np.ones((6, 6), bool)
    zero[2:4, 2:4] = False
    inside = np.full((6, 6), "", object)
    inside[2:4, 2:4] = ink.shades[3]
    met = np.full((3, 3), "", object)
    met[1:, 1:] = ink.shades[1]
    turned = KERNEL[::-1, ::-1]

    grid(axes, ink, ERROR, (0.5, 2.4), ink.d, title="δ")
    arrow(axes, ink, (2.8, 3.4), (4.9, 3.4), "pad by 2")
    grid(
        axes,
        ink,
        padded,
        (5.2, 1.4),
        ink.d,
        title="pad(δ)",
        fills=inside,
        faint=zero,
        boxes=[(1, 1, 3, 3)],
    )
    grid(axes, ink, KERNEL, (0.5, 10.2), ink.k, title="k")
    arrow(axes, ink, (3.8, 11.7), (6.4, 11.7), "turn by 180°")
    grid(axes, ink, turned, (6.7, 10.2), ink.k, title="rot180(k)", fills=met)
    axes.text(
        11.0,
        11.75,
        "lies on the padded error\nwhere pixel x₂₂ is made",
        va="center",
        color=ink.soft,
    )
    arrow(axes, ink, (8.2, 9.2), (7.9, 6.3), bend=0.15)
    dx = gradient()
    here = np.full((4, 4), "", object)
    here[1, 1] = ink.shades[2]
    arrow(axes, ink, (12, 4.4), (20.4, 4.4), "∂L/∂x₂₂ = 1·1 + 2·0 + 3·2 + 4·1 = 11")
    grid(
        axes,
        ink,
        dx,
        (20.8, 2.4),
        ink.g,
        title="∂L/∂x",
        fills=here,
        bold=[(1, 1)],
        boxes=[(1, 1, 1, 1)],
        box_colour=ink.g,
    )
    return figure
