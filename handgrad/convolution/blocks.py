"""Blocks of rows: one after the other goes through all steps and stays in the cache."""

import jax
from jax import lax

from handgrad import arguments


def count(rows: int, at_once: int) -> int:
    """Into how many blocks the rows fall, each of at most so many.

    Blocks of equal height, where there are some, leave no rows to pad and to cut off.
    """
    blocks = -(-rows // at_once)
    equal = (n for n in range(blocks, 2 * blocks) if rows % n == 0)
    return next(equal, blocks)


def longer(x: jax.Array, rows: int, axis: int = 1) -> jax.Array:
    """The image [N, H, W, C] with more rows of zeros, so that blocks divide them."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (0, rows, 0)
    return lax.pad(x, arguments.zero(x.dtype), config)
