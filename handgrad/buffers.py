"""Arrays that are computed once, however many read them.

XLA on a CPU moves what computes an array into the loop of each of its readers: a sum of
25 terms into the two loops of a max pool and the one of a relu's mask behind it, a
batch norm's gradient into the nine sums of a depthwise kernel's. An
`optimization_barrier` is gone before that happens. What it does not move is a
reduction.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import sharding


def written_down(x: jax.Array, after: jax.Array | None = None) -> jax.Array:
    """The same numbers, which others read rather than compute again.

    Args:
      x: real numbers; those of less than a byte are left as they are.
      after: what is to exist before. XLA computes what depends on an activation alone
        along with it: a copy for its kernel's gradient would be made in the forward
        pass, and be kept until the backward pass comes by.
    """
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    if (jnp.finfo if floating else jnp.iinfo)(x.dtype).bits % 8:
        return x
    # Of an array that devices may split one element would have to travel.
    whole = not sharding.may_be_split() and (after is None or not sharding.of(after))
    if after is not None and after.size and whole:
        after = lax.stop_gradient(after[(0,) * after.ndim])
        return _written_down(x, after.astype(jnp.float32))
    return _written_down(x, None)


@jax.custom_jvp
def _written_down(x: jax.Array, after: jax.Array | None) -> jax.Array:
    return lax.platform_dependent(x, after, cpu=_reduced, default=lambda x, after: x)


@_written_down.defjvp
def _written_down_jvp(primals, tangents):
    """d y = d x, which the bits do not tell."""
    return _written_down(*primals), tangents[0]


def _reduced(x: jax.Array, after: jax.Array | None) -> jax.Array:
    """The maximum with zero of the bits, which XLA computes and stores in one loop.

    Of floating-point numbers it would be two more passes: a library's reduction.
    """
    dtype = np.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = lax.bitcast_convert_type(x, dtype)
    zero = np.zeros((), dtype)
    if after is not None:
        zero = (after > np.inf).astype(dtype)  # as nothing is, but XLA does not know
    config = [(0, 1, 0), *[(0, 0, 0)] * x.ndim]
    pair = lax.pad(lax.expand_dims(bits, [0]), zero, config)
    return lax.bitcast_convert_type(lax.reduce_max(pair, (0,)), x.dtype)
