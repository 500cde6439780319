"""Arrays that are computed once, however many read them.

XLA on a CPU moves what computes an array into the loop of each of its readers: a sum of
25 terms into the two loops of a max pool and the one of a relu's mask behind it, a
batch norm's gradient into the nine sums of a depthwise kernel's. An
`optimization_barrier` is gone before that happens. What it does not move is a
reduction.

And it computes an array as soon as it can. A form of an activation that only the
backward pass reads would be made along with the activation, and be kept until then:
such an array is made *after* the error, which an element of the error sees to. By the
same means one result is there after another.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, sharding


def written_down(x: jax.Array, after: jax.Array | None = None) -> jax.Array:
    """The same numbers, which others read rather than compute again.

    Args:
      x: real numbers; those of less than a byte are left as they are.
      after: what is to exist before.
    """
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    if (jnp.finfo if floating else jnp.iinfo)(x.dtype).bits % 8:
        return x
    return _written_down(x, None if after is None else _element(after))


def zero_after(array: jax.Array, dtype: np.dtype) -> jax.Array | np.ndarray:
    """A zero that is there after an array: what is padded with it is padded then."""
    element = _element(array)
    return arguments.zero(dtype) if element is None else _zero(element, dtype)


def postponed(x: jax.Array, after: jax.Array) -> jax.Array:
    """The same numbers, which are there after an array: one of them waits for it."""
    element = _element(after)
    return x if element is None or not x.size else _postponed(x, element)


def _element(array: jax.Array) -> jax.Array | None:
    """One of an array's numbers; none of what devices may split, it would travel."""
    if not array.size or sharding.may_be_split() or sharding.of(array) is not None:
        return None
    return lax.stop_gradient(array[(0,) * array.ndim]).astype(jnp.float32)


def _zero(element: jax.Array, dtype: np.dtype) -> jax.Array:
    """Nothing is more than infinity, but XLA does not know."""
    return (element > np.inf).astype(dtype)


@jax.custom_jvp
def _written_down(x: jax.Array, after: jax.Array | None) -> jax.Array:
    return lax.platform_dependent(x, after, cpu=_reduced, default=lambda x, after: x)


@_written_down.defjvp
def _written_down_jvp(primals, tangents):
    """d y = d x, which the bits do not tell."""
    return _written_down(*primals), tangents[0]


@jax.custom_jvp
def _postponed(x: jax.Array, after: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, after, cpu=_one_chosen, default=lambda x, _: x)


@_postponed.defjvp
def _postponed_jvp(primals, tangents):
    """d y = d x: it is the same number."""
    return _postponed(*primals), tangents[0]


def _one_chosen(x: jax.Array, after: jax.Array) -> jax.Array:
    """The first number is chosen, in its place, before another that never is."""
    first = lax.slice(x, (0,) * x.ndim, (1,) * x.ndim)
    first = jnp.where(after > np.inf, jnp.zeros_like(first), first)
    return lax.dynamic_update_slice(x, first, (0,) * x.ndim)


def _reduced(x: jax.Array, after: jax.Array | None) -> jax.Array:
    """The maximum with zero of the bits, which XLA computes and stores in one loop.

    Of floating-point numbers it would be two more passes: a library's reduction.
    """
    dtype = np.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = lax.bitcast_convert_type(x, dtype)
    zero = np.zeros((), dtype) if after is None else _zero(after, dtype)
    config = [(0, 1, 0), *[(0, 0, 0)] * x.ndim]
    pair = lax.pad(lax.expand_dims(bits, [0]), zero, config)
    return lax.bitcast_convert_type(lax.reduce_max(pair, (0,)), x.dtype)
