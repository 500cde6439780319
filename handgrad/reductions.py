"""Sums and maxima over the last axis, as fast as the machine can read.

On a CPU, XLA reduces a row one number after the other: each addition waits for the one
before it, and an exponential fused into it is no vector operation either. Two ways to
say the same fill the vector unit (4096 rows of 1000 float32: 0.4 ms a maximum instead
of 1.7, 0.8 ms a sum of exponentials instead of 3.7):

    max_i x_i = max_l (max_k x_{k,l})        lanes l side by side, first over k
    Σ_i x_i   = x · 1                        a product with a vector of ones

Other platforms have good reductions of their own and keep them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import sharding

# Rows shorter than the first are read at once, than the second added up as they are;
# more lanes than the third leave nothing to take first.
_SHORT, _LEAST, _MOST_LANES = 32, 128, 512


def or_nan(extremum: jax.Array, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """A maximum or minimum of x over the axes, NaN where x has one.

    XLA on a CPU loses it in the reduction of an array that lies in memory
    (openxla/xla issue 21461).
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return extremum
    lost = jnp.any(x != x, axes, keepdims=extremum.ndim == x.ndim)
    return jnp.where(lost, np.array(np.nan, x.dtype), extremum)


def maximum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The maximum over the axes, which stay with size 1; −∞ of nothing.

    Not `or_nan`: where exp(x − maximum) is summed, x brings its own.
    """
    plain = functools.partial(jnp.max, axis=axes, keepdims=True, initial=-jnp.inf)
    lanes = _lanes(x.shape[-1]) if _rows(x, axes) else 0
    if not lanes:
        return plain(x)

    def by_lanes(x):
        x = x.reshape(*x.shape[:-1], -1, lanes)
        partial = lax.optimization_barrier(jnp.max(x, -2))
        return jnp.max(partial, -1, keepdims=True)

    return lax.platform_dependent(x, cpu=by_lanes, default=plain)


def total(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The sum over the axes, which stay with size 1."""
    plain = functools.partial(jnp.sum, axis=axes, keepdims=True)
    if not _rows(x, axes) or x.shape[-1] < _SHORT:
        return plain(x)

    def by_product(x):
        # The barrier keeps what makes x, an exponential say, a vector operation.
        x = lax.optimization_barrier(x)
        if x.shape[-1] < _LEAST:
            return plain(x)
        ones = jnp.ones((x.shape[-1], 1), x.dtype)
        return jnp.matmul(x, ones, precision=lax.Precision.HIGHEST)

    return lax.platform_dependent(x, cpu=by_product, default=plain)


def _rows(x: jax.Array, axes: tuple[int, ...]) -> bool:
    return (
        axes == (x.ndim - 1,) and x.ndim > 1 and x.size > 0 and sharding.of(x) is None
    )


def _lanes(n: int) -> int:
    """The greatest number of lanes that divides n; 0 if there are too few."""
    most = max(d for d in range(1, _MOST_LANES + 1) if n % d == 0 and d < n)
    return most if most >= _LEAST else 0


def two_totals(
    a: jax.Array, b: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The sums of two arrays of one shape over the axes, which stay with size 1.

    Where the last axis is kept, both are added up in one pass over the innermost of
    the others, a vector of channels at a time; what is left is small.
    """
    if axes == (a.ndim - 1,):
        return total(a, axes), total(b, axes)
    return _two_totals(a, b, axes, a.shape, sharding.of(a))  # type: ignore[misc]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _two_totals(a, b, axes, shape, where):
    def plain(a, b):
        return tuple(jnp.sum(x, axes, keepdims=True) for x in (a, b))

    inner = max((i for i in axes if i != a.ndim - 1), default=None)
    if inner is None or a.size == 0:
        return plain(a, b)

    def one_pass(a, b):
        def add(x, y):
            return x[0] + y[0], x[1] + y[1]

        zeros = (np.zeros((), a.dtype), np.zeros((), b.dtype))
        sums = lax.optimization_barrier(lax.reduce((a, b), zeros, add, (inner,)))
        return plain(*(lax.expand_dims(x, [inner]) for x in sums))

    return lax.platform_dependent(a, b, cpu=one_pass, default=plain)


def _two_totals_fwd(a, b, axes, shape, where):
    residuals = ()  # linear
    return _two_totals(a, b, axes, shape, where), residuals


def _two_totals_bwd(axes, shape, where, residuals, cotangents):
    """Each sum's error is that of all its terms."""
    del axes, residuals
    return tuple(jnp.broadcast_to(dy, shape, out_sharding=where) for dy in cotangents)


_two_totals.defvjp(_two_totals_fwd, _two_totals_bwd)
