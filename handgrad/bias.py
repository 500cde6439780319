"""The bias of a dense or convolution layer: `y = u + b`, `db = Σ δ`.

One number a channel is added to every pixel of every example, so its gradient is the
sum of the error over all of them, and the error itself passes through unchanged.
(The article: ∂L/∂b = Σ_ij δ_ij.)
"""

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, sharding
from handgrad.rules import RULES, register


def add_bias(
    x: jax.Array, bias: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """Adds one number a channel.

    y[..., o] = x[..., o] + bias[o]

    Args:
      x: array [..., O].
      bias: array [O], of the same dtype.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array [..., O].

    Raises:
      ValueError: `bias` does not have one entry for each of the channels.
      TypeError: the dtypes differ, or are complex.

    Example:
      >>> import jax, jax.numpy as jnp, handgrad
      >>> x, bias = jnp.ones((2, 3)), jnp.arange(3.0)
      >>> jax.grad(lambda b: handgrad.add_bias(x, b).sum())(bias)
      Array([2., 2., 2.], dtype=float32)

    Source: the article's bias gradient, FORMULAS A3.
    """
    return add(x, bias, op="add_bias", implementation=implementation)


def add(
    x: jax.Array, bias: jax.Array, *, op: str, implementation: str | None = None
) -> jax.Array:
    """`add_bias` on behalf of another op, which its errors name."""
    x, bias = arguments.array(op, "x", x), arguments.array(op, "bias", bias)
    arguments.require(x.ndim >= 1, op, f"x must have channels, got shape {x.shape}")
    channels = x.shape[-1]
    arguments.require(
        bias.shape == (channels,),
        op,
        f"bias must have shape ({channels},), one number for each of the {channels} "
        f"output channels, got shape {bias.shape}",
    )
    arguments.same_dtype(op, x=x, bias=bias)
    x, bias = sharding.align(x, bias)
    return RULES["add_bias"].choose(implementation)(x, bias)


def _reference(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + lax.expand_dims(bias, range(x.ndim - 1))


@register("add_bias", source="the article, A3: ∂L/∂b = Σ δ", autodiff=_reference)
@jax.custom_vjp
def _add_bias(x, bias):
    return _reference(x, bias)


def _add_bias_fwd(x, bias):
    residuals = ()  # linear: neither gradient looks at x or bias
    return _add_bias(x, bias), residuals


def _add_bias_bwd(residuals, dy):
    """dx = dy, dbias[o] = Σ_n dy[n, o]."""
    del residuals
    return dy, jnp.sum(dy, axis=range(dy.ndim - 1))


_add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)
