"""Arrays that are computed once, however many read them.

XLA on a CPU moves what computes an array into the loop of each of its readers: a sum of
25 terms into the two loops of a max pool and the one of a relu's mask behind it, a
batch norm's gradient into the nine sums of a depthwise kernel's. An
`optimization_barrier` is gone before that happens. What it does not move is a
reduction.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@jax.custom_jvp
def written_down(x: jax.Array) -> jax.Array:
    """The same numbers, which others read rather than compute again.

    Args:
      x: real numbers; those of less than a byte are left as they are.
    """
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    size = (jnp.finfo if floating else jnp.iinfo)(x.dtype).bits
    if size % 8:
        return x
    reduced = functools.partial(_reduced, dtype=np.dtype(f"uint{size}"))
    return lax.platform_dependent(x, cpu=reduced, default=lambda x: x)


@written_down.defjvp
def _written_down_jvp(primals, tangents):
    """d y = d x, which the bits do not tell."""
    return written_down(*primals), *tangents


def _reduced(x: jax.Array, dtype: np.dtype) -> jax.Array:
    """The maximum with zero of the bits, which XLA computes and stores in one loop.

    Of floating-point numbers it would be two more passes: a library's reduction.
    """
    bits = lax.bitcast_convert_type(x, dtype)
    config = [(0, 1, 0), *[(0, 0, 0)] * x.ndim]
    pair = lax.pad(lax.expand_dims(bits, [0]), np.zeros((), dtype), config)
    return lax.bitcast_convert_type(lax.reduce_max(pair, (0,)), x.dtype)
