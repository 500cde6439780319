"""im2col lays patches out as columns; col2im adds them back where they came from."""

import functools

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import handgrad
from figures.style import Ink, arrow, canvas, grid

X = np.arange(1.0, 10, dtype=np.float32).reshape(3, 3)
KERNEL = np.float32([[1, 2], [3, -1]])
ERROR = np.float32([[1, 2], [3, 4]])


@functools.cache
def columns() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, dX = Kᵀ dY and col2im(dX)."""
    x = handgrad.im2col(jnp.expand_dims(jnp.asarray(X), 2), (2, 2))
    dx = KERNEL.reshape(4, 1) * ERROR.reshape(1, 4)
    back = handgrad.col2im(jnp.asarray(dx), (3, 3), (2, 2))
    return np.asarray(x), dx, np.asarray(back)[..., 0]


def draw(ink: Ink) -> Figure:
    """One patch to its column; the middle pixel's four copies back to it."""
    figure, axes = canvas(27, 13.4)
    forward, dx, back = columns()
    patch = np.full((3, 3), "", object)
    patch[:2, 1:] = ink.shades[0]
    column = np.full((4, 4), "", object)
    column[:, 1] = ink.shades[0]
    grid(
        axes,
        ink,
        X,
        (0.6, 1.8),
        ink.x,
        title="x",
        fills=patch,
        boxes=[(0, 1, 2, 2)],
    )
    arrow(axes, ink, (4, 3.2), (8.2, 3.2), "im2col")
    grid(
        axes,
        ink,
        forward,
        (8.6, 1.4),
        ink.x,
        title="X: one patch a column",
        fills=column,
        boxes=[(0, 1, 4, 1)],
    )
    grid(axes, ink, KERNEL.reshape(1, 4), (17.4, 1.8), ink.k, title="K")
    y = KERNEL.reshape(1, 4) @ forward
    grid(axes, ink, y, (17.4, 4.4), ink.g, title="Y = K X")

    copies = np.full((4, 4), "", object)
    for i in range(4):
        copies[3 - i, i] = ink.shades[3]
    middle = np.full((3, 3), "", object)
    middle[1, 1] = ink.shades[3]
    grid(
        axes,
        ink,
        dx,
        (8.6, 8.4),
        ink.d,
        title="dX = Kᵀ dY",
        fills=copies,
        bold=[(3 - i, i) for i in range(4)],
    )
    arrow(axes, ink, (8.2, 10.4), (4, 10.4), "col2im")
    grid(
        axes,
        ink,
        back,
        (0.6, 8.9),
        ink.g,
        title="∂L/∂x",
        fills=middle,
        bold=[(1, 1)],
        boxes=[(1, 1, 1, 1)],
        box_colour=ink.d,
    )
    axes.text(
        14.2,
        10.4,
        "the middle pixel was copied into all\nfour patches and feels their errors:\n"
        "−1 + 6 + 6 + 4 = 15",
        va="center",
        color=ink.soft,
    )
    return figure
