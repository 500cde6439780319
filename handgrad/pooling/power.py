"""Power-average pooling: between the sum of magnitudes and the largest magnitude.

    y[p] = (Σ_k |x[s·p + d·k − b]|^e)^(1/e)          (the norm of each window)

Differentiate y^e = Σ |x|^e: a window's share in the derivative of a pixel is
(|x| / y)^(e−1), at most 1, with the pixel's sign, so that

    dx[h] = sign(x[h]) |x[h]|^(e−1) · Σ_{windows p that hold h} dy[p] · y[p]^(1−e).

In a window of zeros y is zero and the quotient has no limit; there the rule takes the
subgradient 0, where autodiff of the formula above gives NaN. Going to the limit e → ∞
is max pooling of |x|; e = 1 sums the magnitudes.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments
from handgrad.pooling.arguments import image_and_windows
from handgrad.pooling.average import autodiff_sum, spread, window_totals
from handgrad.rules import RULES, register
from handgrad.windows import Windows


@dataclasses.dataclass(frozen=True)
class PowerSpec:
    """The static part of a power-average pool."""

    windows: Windows
    exponent: float


def lp_pool(
    inputs: jax.Array,
    window_shape: Sequence[int] | None,
    strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    *,
    norm: float = 2,
    window_dilation: Sequence[int] | None = None,
    ceil_mode: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """The norm of each window.

    y[p, q] = (Σ_kl |x[s·p + d·k − b, s·q + d·l − b]|^norm)^(1/norm)
    dx[h, w] = Σ dy[p, q] · sign(x) (|x| / y[p, q])^(norm−1) over its windows

    Args:
      inputs: floating-point image [..., H, W, C]; see `avg_pool`, and so for the other
        arguments.
      window_shape: pixels of the window in each spatial dimension, or `None` for all.
      strides: distance between neighbouring windows in pixels; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) pixels for each dimension.
      norm: the exponent, a finite number of at least 1.
      window_dilation: distance between neighbouring window pixels; 1 by default.
      ceil_mode: whether a last window that sticks out of the padded image counts.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The norms [..., P, Q, C]; a window of zeros is 0 and has the gradient 0.

    Raises:
      ValueError: the lengths do not match, the window does not fit the image, or the
        exponent is less than 1 or not finite.
      TypeError: `inputs` is not floating point.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.lp_pool(jnp.array([3.0, 4.0, 0.0, 0.0])[:, None], (2,), (2,)).ravel()
      Array([5., 0.], dtype=float32)

    Source: Bruna, Szlam & LeCun 2014, arXiv:1311.4025; ONNX's LpPool.
    """
    geometry = (window_shape, strides, padding, window_dilation, ceil_mode)
    x, described = image_and_windows("lp_pool", inputs, *geometry, kind="floating")
    number = isinstance(norm, (int, float, np.number)) and not isinstance(norm, bool)
    if not number:
        raise TypeError(f"lp_pool: norm must be a number, got {type(norm).__name__}")
    arguments.require(
        1 <= norm < float("inf"),
        "lp_pool",
        f"norm (={norm}) must be finite and at least 1",
    )
    spec = PowerSpec(described, float(norm))
    return RULES["lp_pool"].choose(implementation, spec)(x, spec)


def _power(x: jax.Array, exponent: float) -> jax.Array:
    """x^exponent of x ≥ 0; whole exponents by multiplication."""
    if exponent.is_integer():
        return lax.integer_pow(x, int(exponent))
    return x ** np.array(exponent, x.dtype)


def _root(total: jax.Array, exponent: float) -> jax.Array:
    if exponent == 2:
        return jnp.sqrt(total)
    return total if exponent == 1 else total ** np.array(1 / exponent, total.dtype)


def _autodiff_lp_pool(x, spec):
    total = autodiff_sum(_power(jnp.abs(x), spec.exponent), spec.windows)
    return _root(total, spec.exponent)


@register(
    "lp_pool",
    source="Bruna, Szlam & LeCun 2014, arXiv:1311.4025",
    autodiff=_autodiff_lp_pool,
)
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _lp_pool(x, spec):
    return _norms(x, spec).astype(x.dtype)


def _norms(x, spec):
    wide = x.astype(arguments.accumulator(x.dtype))
    magnitude = wide * jnp.sign(wide)  # |x|, with the derivative 0 at 0
    total = window_totals(_power(magnitude, spec.exponent), spec.windows)
    # A second derivative asks for the root's own, which at 0 is infinite.
    zeros = total == 0
    return jnp.where(zeros, total, _root(jnp.where(zeros, 1, total), spec.exponent))


def _lp_pool_fwd(x, spec):
    y = _norms(x, spec)
    residuals = (x, y)  # a pixel's share is of its own size and its window's
    return y.astype(x.dtype), residuals


def _lp_pool_bwd(spec, residuals, dy):
    """dx[h] = sign(x) |x|^(e−1) Σ_p dy[p] y[p]^(1−e) over the windows that hold h."""
    x, y = residuals
    if spec.exponent == 1:
        share = dy.astype(y.dtype)
    else:
        zeros = y == 0
        divisor = _power(jnp.where(zeros, jnp.ones_like(y), y), spec.exponent - 1)
        share = jnp.where(zeros, arguments.zero(y.dtype), dy.astype(y.dtype) / divisor)
    wide = x.astype(y.dtype)
    if spec.exponent == 2:
        slope = wide  # the same, with a derivative at 0
    else:
        slope = jnp.sign(wide) * _power(jnp.abs(wide), spec.exponent - 1)
    return ((slope * spread(share, spec.windows)).astype(x.dtype),)


_lp_pool.defvjp(_lp_pool_fwd, _lp_pool_bwd)
