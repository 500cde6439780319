"""Local response normalisation: a channel is damped by its neighbours' squares.

    s_i = k + α Σ_{|j − i| ≤ size/2} x_j²,    y_i = x_i s_i^{−β}

A channel enters its own y and the s of its neighbours, ∂s_j/∂x_i = 2α x_i, so

    dx_i = s_i^{−β} dy_i − 2αβ x_i Σ_j dy_j x_j s_j^{−β−1}

over the channels j whose window holds i. The sum over a window of channels is a sum of
`size` shifted copies, forward and backward.
"""

import dataclasses
import functools

import jax
from jax import lax

from handgrad import arguments
from handgrad.rules import RULES, register


@dataclasses.dataclass(frozen=True)
class ResponseSpec:
    """The static part of a local response norm."""

    size: int
    alpha: float
    beta: float
    k: float


def local_response_norm(
    x: jax.Array,
    size: int = 5,
    *,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    implementation: str | None = None,
) -> jax.Array:
    """Local response normalisation over neighbouring channels, AlexNet's.

    y_i = x_i s_i^{−β},  s_i = k + α Σ_j x_j² over the `size` channels around i
    dx_i = s_i^{−β} dy_i − 2αβ x_i Σ_j dy_j x_j s_j^{−β−1}

    Args:
      x: floating-point array [..., C].
      size: channels of a window; of an even number the odd one is before i.
      alpha: weight of the squares, each (PyTorch's is divided by `size`).
      beta: exponent.
      k: added to the sum, above 0.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`.

    Raises:
      TypeError: `x` is not floating point, or `size` no integer.
      ValueError: `x` has no channels, or `size` or `k` is not above 0.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.local_response_norm(jnp.array([1.0, 2.0]), 3, alpha=1.0, beta=1.0)
      Array([0.14285715, 0.2857143 ], dtype=float32)

    Source: Krizhevsky et al. 2012, section 3.3, whose constants are the defaults.
    """
    op = "local_response_norm"
    x = arguments.array(op, "x", x, kind="floating")
    arguments.require(x.ndim >= 1, op, f"x must have channels, got shape {x.shape}")
    arguments.require(k > 0, op, f"k (={k}) must be above 0")
    size = arguments.integer(op, "size", size)
    spec = ResponseSpec(size, float(alpha), float(beta), float(k))
    return RULES[op].choose(implementation)(x, spec)


def _around(x, before, after):
    """The sum of each channel with so many before and after it."""
    channels = x.shape[-1]
    pads = [(0, 0, 0)] * (x.ndim - 1) + [(before, after, 0)]
    x = lax.pad(x, arguments.zero(x.dtype), pads)
    views = (
        lax.slice_in_dim(x, i, i + channels, axis=-1) for i in range(before + after + 1)
    )
    return functools.reduce(lax.add, views)


def _ends(spec):
    return spec.size // 2, (spec.size - 1) // 2


def _response(x, spec):
    """s, in at least float32."""
    return spec.k + spec.alpha * _around(lax.square(x), *_ends(spec))


def _value(x, spec):
    wide = x.astype(arguments.accumulator(x.dtype))
    return (wide * _response(wide, spec) ** -spec.beta).astype(x.dtype)


@register("local_response_norm", source="Krizhevsky et al. 2012, 3.3", autodiff=_value)
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _local_response_norm(x, spec):
    return _value(x, spec)


def _local_response_norm_fwd(x, spec):
    residuals = (x,)  # s is computed anew: autodiff keeps it and its power
    return _local_response_norm(x, spec), residuals


def _local_response_norm_bwd(spec, residuals, dy):
    """dx = s^{−β} dy − 2αβ x Σ dy x s^{−β−1} over the windows that hold a channel."""
    (x,) = residuals
    wide = x.astype(arguments.accumulator(x.dtype))
    s = _response(wide, spec)
    own = s**-spec.beta * dy.astype(wide.dtype)
    before, after = _ends(spec)
    others = wide * _around(own * wide / s, after, before)
    return ((own - 2 * spec.alpha * spec.beta * others).astype(x.dtype),)


_local_response_norm.defvjp(_local_response_norm_fwd, _local_response_norm_bwd)
