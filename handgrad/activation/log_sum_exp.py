"""logsumexp and its two relatives: its gradient is the softmax, x less it is its log.

    L = log Σ_j exp(x_j),    ∂L/∂x_i = exp(x_i) / Σ_j exp(x_j) = softmax(x)_i

The maximum is subtracted first, so that exp cannot overflow. It and the sum are kept
apart: their sum L, where it is large, would round away digits of every probability.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, reductions, sharding
from handgrad.rules import RULES, register


def logsumexp(
    a: jax.Array,
    axis: int | Sequence[int] | None = None,
    b: jax.Array | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Logarithm of a sum of exponentials, without its overflow.

    y = log Σ_j b_j exp(a_j)
    da_i = (b_i exp(a_i) / S) dy,  db_i = (exp(a_i) / S) dy,  S = Σ_j b_j exp(a_j)

    Args:
      a: floating-point array of any shape.
      axis: the axis or axes to sum over; `None` means all.
      b: factors that broadcast to `a`; `None` means ones.
      keepdims: whether the summed axes stay, with size 1.
      return_sign: whether to return (log |S|, sign of S), for sums below 0.
      where: boolean array that broadcasts to `a`; entries that are `False` take no part
        and get no gradient.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The logarithm; −∞ for an empty sum and where every entry is −∞ or masked, where
      the gradient is 0 (JAX: NaN); NaN where S < 0, unless `return_sign`.

    Raises:
      TypeError: `a` or `b` is not floating point, or `where` not boolean.
      ValueError: `axis`, `b` or `where` does not fit the shape of `a`.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.logsumexp(jnp.array([0.0, 0.0]))
      Array(0.6931472, dtype=float32)

    Source: FORMULAS A6; the residuals are a, its maximum and the sum.
    """
    op = "logsumexp"
    a = arguments.array(op, "a", a, kind="floating")
    if b is not None:
        b = arguments.array(op, "b", b, kind="floating")
        arguments.same_dtype(op, a=a, b=b)
        b = arguments.broadcast(op, "b", b, a.shape)
    where = arguments.mask(op, "where", where, a.shape)
    axes = arguments.axes(op, axis, a.ndim)
    a, b, where = sharding.align(a, b, where)
    y, sign = RULES[op].choose(implementation)(a, b, where, axes)
    if not keepdims:
        y, sign = lax.squeeze(y, axes), lax.squeeze(sign, axes)
    if return_sign:
        return y, sign
    return y if b is None else jnp.where(sign < 0, jnp.nan, y)


def _autodiff_logsumexp(a, b, where, axes):
    y, sign = jax.nn.logsumexp(a, axes, b, keepdims=True, return_sign=True, where=where)
    return y, lax.stop_gradient(sign)


def maximum_and_sum(x, axes, factors=None):
    """max x, and Σ exp(x − max x) times the factors, in at least float32.

    The axes stay, with size 1. Where all is −∞ the maximum is 0 and so is the sum.
    """
    x = x.astype(arguments.accumulator(x.dtype))
    highest = lax.stop_gradient(reductions.maximum(x, axes))
    highest = jnp.where(highest == -jnp.inf, 0, highest)
    terms = jnp.exp(x - highest)
    if factors is not None:
        terms *= factors.astype(terms.dtype)
    return highest, reductions.total(terms, axes)


def masked(x, where, other=None):
    """x, but −∞ where it is masked or the factor is 0."""
    if other is not None:
        x = jnp.where(other != 0, x, -jnp.inf)
    return x if where is None else jnp.where(where, x, -jnp.inf)


def _logsumexp_terms(a, b, where, axes):
    highest, total = maximum_and_sum(masked(a, where, b), axes, b)
    y = jnp.log(jnp.abs(total)) + highest
    return (y.astype(a.dtype), jnp.sign(total).astype(a.dtype)), (highest, total)


@register("logsumexp", source="FORMULAS A6: softmax", autodiff=_autodiff_logsumexp)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _logsumexp(a, b, where, axes):
    y, _ = _logsumexp_terms(a, b, where, axes)
    return y


def _logsumexp_fwd(a, b, where, axes):
    _, normalizer = _logsumexp_terms(a, b, where, axes)
    residuals = (a, b, where, normalizer)  # a was there before
    # By the rule: the terms have no derivative with respect to a factor of 0.
    return _logsumexp(a, b, where, axes), residuals


def _logsumexp_bwd(axes, residuals, cotangents):
    """da = b exp(a − max) / Σ · dy, db the same without b; the sign is constant."""
    a, b, where, (highest, total) = residuals
    dy, _ = cotangents
    share = dy.astype(total.dtype) / jnp.where(total == 0, 1, total)
    wide = masked(a, where).astype(total.dtype)
    db = jnp.exp(wide - highest) * share
    da = db if b is None else db * b.astype(total.dtype)
    return da.astype(a.dtype), None if b is None else db.astype(b.dtype), None


_logsumexp.defvjp(_logsumexp_fwd, _logsumexp_bwd)


def softmax(
    x: jax.Array,
    axis: int | tuple[int, ...] | None = -1,
    where: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Softmax: positive numbers that sum to 1 along `axis`.

    y_i = exp(x_i) / Σ_j exp(x_j),  dx = y ⊙ (dy − Σ_j dy_j y_j)

    Args:
      x: floating-point array of any shape.
      axis: the axis or axes to normalise; `None` means all.
      where: boolean array that broadcasts to `x`; entries that are `False` take no
        part, have the value 0 and get no gradient.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`. An entry of −∞ has the value 0 and the gradient 0; where all is
      masked, the values and gradients are 0. A +∞ or NaN makes all of them NaN.

    Raises:
      TypeError: `x` is not floating point, or `where` not boolean.
      ValueError: `axis` or `where` does not fit the shape of `x`.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.softmax(jnp.zeros(4))
      Array([0.25, 0.25, 0.25, 0.25], dtype=float32)

    Source: Bridle 1990, doi:10.1007/978-3-642-76153-9_28. From ∂y_i/∂x_j =
    y_i ([i = j] − y_j); the output suffices.
    """
    x = arguments.array("softmax", "x", x, kind="floating")
    where = arguments.mask("softmax", "where", where, x.shape)
    axes = arguments.axes("softmax", axis, x.ndim)
    x, where = sharding.align(x, where)
    return RULES["softmax"].choose(implementation)(x, where, axes)


def _shifted(x, where, axes):
    """x minus its maximum (exp cannot overflow), −∞ where masked."""
    x = masked(x, where).astype(arguments.accumulator(x.dtype))
    highest = lax.stop_gradient(reductions.maximum(x, axes))
    if where is not None:  # all of it may be masked
        highest = jnp.where(highest == -jnp.inf, 0, highest)
    return x - highest


def _at_least_one(total, where):
    """The sum, which is 0 where all is masked: 0 / 1 and −∞ − log 1 are right there."""
    return total if where is None else jnp.where(total == 0, 1, total)


def _autodiff_softmax(x, where, axes):
    return jax.nn.softmax(x, axes, where)


@register("softmax", source="Bridle 1990", autodiff=_autodiff_softmax)
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _softmax(x, where, axes):
    numerators = jnp.exp(_shifted(x, where, axes))
    total = reductions.total(numerators, axes)
    return (numerators / _at_least_one(total, where)).astype(x.dtype)


def _softmax_fwd(x, where, axes):
    y = _softmax(x, where, axes)
    return y, (y,)


def _softmax_bwd(axes, residuals, dy):
    """dx_i = Σ_j dy_j y_j ([i = j] − y_i) = y_i (dy_i − mean of dy weighted by y).

    Where one y is near 1 the two terms cancel. Centring twice keeps the digits: the
    first difference is exact there, the second removes the mean's own rounding.
    """
    (y,) = residuals
    wide = arguments.accumulator(y.dtype)
    y_wide, centred = y.astype(wide), dy.astype(wide)
    for _ in range(2):
        centred -= reductions.total(centred * y_wide, axes)
    return (y_wide * centred).astype(y.dtype), None


_softmax.defvjp(_softmax_fwd, _softmax_bwd)


def log_softmax(
    x: jax.Array,
    axis: int | tuple[int, ...] | None = -1,
    where: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Logarithm of the softmax, without its overflow and cancellation.

    y_i = x_i − log Σ_j exp(x_j),  dx = dy − exp(y) ⊙ Σ_j dy_j

    Args:
      x: floating-point array of any shape.
      axis: the axis or axes to normalise; `None` means all.
      where: boolean array that broadcasts to `x`; entries that are `False` take no
        part, have the value −∞ and get no gradient.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`. An entry of −∞ has the value −∞; where all is masked, the values
      are −∞ and the gradients 0. A +∞ or NaN makes all of them NaN.

    Raises:
      TypeError: `x` is not floating point, or `where` not boolean.
      ValueError: `axis` or `where` does not fit the shape of `x`.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.log_softmax(jnp.array([1000.0, 1000.0]))
      Array([-0.6931472, -0.6931472], dtype=float32)

    Source: from ∂y_i/∂x_j = [i = j] − exp(y_j); the output suffices.
    """
    x = arguments.array("log_softmax", "x", x, kind="floating")
    where = arguments.mask("log_softmax", "where", where, x.shape)
    axes = arguments.axes("log_softmax", axis, x.ndim)
    x, where = sharding.align(x, where)
    return RULES["log_softmax"].choose(implementation)(x, where, axes)


def _autodiff_log_softmax(x, where, axes):
    return jax.nn.log_softmax(x, axes, where)


@register("log_softmax", source="Bridle 1990", autodiff=_autodiff_log_softmax)
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _log_softmax(x, where, axes):
    shifted = _shifted(x, where, axes)
    total = reductions.total(jnp.exp(shifted), axes)
    return (shifted - jnp.log(_at_least_one(total, where))).astype(x.dtype)


def _log_softmax_fwd(x, where, axes):
    y = _log_softmax(x, where, axes)
    return y, (y, where)


def _log_softmax_bwd(axes, residuals, dy):
    """dx_i = Σ_j dy_j ([i = j] − exp(y_i))."""
    y, where = residuals
    dtype, wide = y.dtype, arguments.accumulator(y.dtype)
    y, dy = y.astype(wide), dy.astype(wide)
    if where is not None:  # a masked entry is the constant −∞
        dy = jnp.where(where, dy, 0)
    return (dy - jnp.exp(y) * reductions.total(dy, axes)).astype(dtype), None


_log_softmax.defvjp(_log_softmax_fwd, _log_softmax_bwd)
