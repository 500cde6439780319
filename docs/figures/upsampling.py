"""Up-sampling: a mean's error is spread evenly, a maximum's goes to one pixel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import handgrad
from figures.style import Ink, arrow, canvas, grid

X = np.float32([[1, 3, 2, 0], [4, 2, 1, 5], [7, 0, 3, 8], [1, 6, 4, 2]])
ERROR = np.float32([[4, 8], [12, 16]])


@functools.cache
def pooled(op: str) -> tuple[np.ndarray, np.ndarray]:
    """The pool's value and ∂L/∂x, by handgrad's rule."""

    def pool(x):
        y = getattr(handgrad, op)(jnp.expand_dims(x, 2), (2, 2), (2, 2))
        return jnp.squeeze(y, 2)

    y, vjp = jax.vjp(pool, X)
    return np.asarray(y), np.asarray(vjp(jnp.asarray(ERROR))[0])


def draw(ink: Ink) -> Figure:
    """Both pools, forward and back."""
    figure, axes = canvas(27, 14.4)
    blocks = np.full((4, 4), "", object)
    for r, c in np.ndindex(4, 4):
        blocks[r, c] = ink.shades[2 * (r // 2) + c // 2]
    four = blocks[::2, ::2]
    for row, (op, name) in enumerate((("avg_pool", "mean"), ("max_pool", "max"))):
        y, dx = pooled(op)
        top = 1.6 + 7 * row
        best = [tuple(i) for i in np.argwhere(dx)] if row else []
        chosen = blocks.copy()
        if row:
            for r, c in np.ndindex(4, 4):
                chosen[r, c] = blocks[r, c] if dx[r, c] else ""
        grid(axes, ink, X, (0.5, top), ink.x, title="x", fills=blocks, bold=best)
        arrow(axes, ink, (4.8, top + 2), (7.4, top + 2), name)
        grid(axes, ink, y, (7.8, top + 1), ink.g, title="u", fills=four)
        grid(axes, ink, ERROR, (14, top + 1), ink.d, title="δ", fills=four)
        label = "spread" if not row else "to the maximum"
        arrow(axes, ink, (16.4, top + 2), (21.4, top + 2), label)
        grid(
            axes,
            ink,
            dx,
            (21.8, top),
            ink.g,
            title="∂L/∂x",
            fills=chosen,
            faint=dx == 0,
        )
    return figure
