"""Dropout: `y = m ⊙ x / (1 − rate)`, `dx = m ⊙ dy / (1 − rate)`.

The mask m is a function of the key. So the rule keeps the key, some bytes, and draws
the same mask again going backward, where autodiff keeps one byte an element.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from handgrad import arguments, sharding
from handgrad.rules import RULES, register


def dropout(
    key: jax.Array,
    x: jax.Array,
    rate: float,
    *,
    broadcast_axes: Sequence[int] = (),
    implementation: str | None = None,
) -> jax.Array:
    """Sets elements to 0 at random and scales the others up.

    y = m x / (1 − rate),  dx = m dy / (1 − rate),  m = 1 with probability 1 − rate

    Args:
      key: of `jax.random`.
      x: floating-point array of any shape.
      rate: the share to drop, a number in [0, 1).
      broadcast_axes: axes that share their mask: the pixels' (1, 2) of [N, H, W, C]
        drop whole channels (spatial dropout).
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; `x` itself if `rate` is 0. What is dropped is 0 and has the
      gradient 0 whatever its value, NaN too. The same key drops the same elements.

    Raises:
      TypeError: `x` is not floating point, or `key` is no key.
      ValueError: `rate` is not in [0, 1), or there are no such axes.

    Example:
      >>> import jax, jax.numpy as jnp, handgrad
      >>> y = handgrad.dropout(jax.random.key(0), jnp.ones(1000), 0.2)
      >>> float(jnp.max(y)), bool(abs(jnp.mean(y == 0) - 0.2) < 0.05)
      (1.25, True)

    Source: Srivastava et al. 2014, JMLR 15:1929; by channels: Tompson et al. 2015,
    arXiv:1411.4280.
    """
    op = "dropout"
    x = arguments.array(op, "x", x, kind="floating")
    arguments.require(0 <= rate < 1, op, f"rate (={rate}) must be in [0, 1)")
    axes = arguments.axes(op, tuple(broadcast_axes), x.ndim)
    key = jnp.asarray(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.dtype != jnp.uint32:
            raise TypeError(f"{op}: key must be a key of jax.random, got {key.dtype}")
        key = jax.random.wrap_key_data(key)
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    core = RULES[op].choose(implementation)
    if rate == 0:
        return x
    x, data = sharding.align(x, jax.random.key_data(key))
    return core(x, data, shape, float(rate), str(jax.random.key_impl(key)))


def _dropped(x, data, shape, rate, kind):
    key = jax.random.wrap_key_data(data, impl=kind)
    # In float32 whatever the default: the same key means the same mask, and Flax's.
    kept = jax.random.bernoulli(key, np.float32(1 - rate), shape)
    return jnp.where(kept, x / (1 - rate), 0)


@register("dropout", source="Srivastava et al. 2014, JMLR 15:1929", autodiff=_dropped)
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _dropout(x, data, shape, rate, kind):
    return _dropped(x, data, shape, rate, kind)


def _dropout_fwd(x, data, shape, rate, kind):
    residuals = (data,)  # linear in x, and the key draws the mask again
    return _dropout(x, data, shape, rate, kind), residuals


def _dropout_bwd(shape, rate, kind, residuals, dy):
    """dx = m dy / (1 − rate), the same mask."""
    (data,) = residuals
    return _dropped(dy, data, shape, rate, kind), None


_dropout.defvjp(_dropout_fwd, _dropout_bwd)
