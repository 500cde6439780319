"""Losses between directions and between distributions."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, reductions, sharding
from handgrad.rules import RULES, register


def _pair(op, axis, where, **arrays):
    """The checked arguments of a loss between two arrays of one shape."""
    arrays = {n: arguments.array(op, n, a, kind="floating") for n, a in arrays.items()}
    arguments.same_shape(op, **arrays)
    arguments.same_dtype(op, **arrays)
    first, second = arrays.values()
    axes = arguments.axes(op, axis, first.ndim)
    where = arguments.mask(op, "where", where, first.shape)
    return *sharding.align(first, second, where), axes


def _wide(*arrays):
    return tuple(a.astype(arguments.accumulator(a.dtype)) for a in arrays)


def cosine_distance(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    epsilon: float = 0.0,
    axis: int | tuple[int, ...] | None = -1,
    where: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """One minus the cosine of the angle between two vectors.

    L = 1 − c,  c = Σ_i â_i b̂_i,  â = a / ‖a‖,  b̂ = b / ‖b‖
    da = (c â − b̂) / ‖a‖ · dy,  db = (c b̂ − â) / ‖b‖ · dy

    Args:
      predictions: floating-point array a.
      targets: array b of the same shape and dtype.
      epsilon: least value of ‖a‖² and ‖b‖², a number; a norm that is held there is
        constant, and its term c â of the gradient is 0.
      axis: the axis or axes of the vectors; `None` means all.
      where: boolean array that broadcasts to `predictions`; entries that are `False`
        take no part and get no gradient.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The loss of each vector; as in optax NaN for a vector of zeros if `epsilon` is 0.

    Raises:
      TypeError: an array is not floating point, or the dtypes differ.
      ValueError: the shapes differ, or `axis` or `where` does not fit.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.cosine_distance(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]))
      Array(1., dtype=float32)

    Source: from ∂â_i/∂a_j = ([i = j] − â_i â_j) / ‖a‖. Kept are a and b, which were
    there before, and three numbers a vector.
    """
    op = "cosine_distance"
    a, b, where, axes = _pair(op, axis, where, predictions=predictions, targets=targets)
    return RULES[op].choose(implementation)(a, b, where, axes, float(epsilon))


def _norm(x, where, axes, epsilon):
    square = jnp.sum(lax.square(x), axes, keepdims=True, where=where)
    return jnp.sqrt(jnp.maximum(square, epsilon))


def _autodiff_cosine_distance(a, b, where, axes, epsilon):
    a_unit = a / _norm(a, where, axes, epsilon)
    b_unit = b / _norm(b, where, axes, epsilon)
    return 1 - jnp.sum(a_unit * b_unit, axes, where=where)


def _cosine_terms(a, b, where, axes, epsilon):
    """The cosine and both norms; the axes stay, with size 1."""
    a_norm, b_norm = _norm(a, where, axes, epsilon), _norm(b, where, axes, epsilon)
    product = (a / a_norm) * (b / b_norm)
    return jnp.sum(product, axes, keepdims=True, where=where), a_norm, b_norm


@register(
    "cosine_distance",
    source="∂â/∂a = (1 − â âᵀ) / ‖a‖",
    autodiff=_autodiff_cosine_distance,
)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _cosine_distance(a, b, where, axes, epsilon):
    loss, _ = _cosine_distance_fwd(a, b, where, axes, epsilon)
    return loss


def _cosine_distance_fwd(a, b, where, axes, epsilon):
    wide_a, wide_b = _wide(a, b)
    terms = _cosine_terms(wide_a, wide_b, where, axes, epsilon)
    residuals = (a, b, where, terms)
    return lax.squeeze(1 - terms[0], axes).astype(a.dtype), residuals


def _cosine_distance_bwd(axes, epsilon, residuals, dy):
    """da = (c â − b̂) / ‖a‖ dy, without c â where ‖a‖ is held; db likewise."""
    a, b, where, (cosine, a_norm, b_norm) = residuals
    a_unit, b_unit = (x / n for x, n in zip(_wide(a, b), (a_norm, b_norm), strict=True))
    dy = lax.expand_dims(dy, sorted(axes)).astype(cosine.dtype)
    if where is not None:
        dy = jnp.where(where, dy, 0)

    def direction(unit, norm, other):
        own = jnp.where(lax.square(norm) > epsilon, cosine, 0) * unit
        return ((own - other) / norm * dy).astype(a.dtype)

    return direction(a_unit, a_norm, b_unit), direction(b_unit, b_norm, a_unit), None


_cosine_distance.defvjp(_cosine_distance_fwd, _cosine_distance_bwd)


def kl_divergence(
    log_predictions: jax.Array,
    targets: jax.Array,
    axis: int | tuple[int, ...] | None = -1,
    where: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence of predictions from targets.

    L = Σ_i t_i (log t_i − log_predictions_i)
    dlog_predictions = −t · dy,  dt = (log t + 1 − log_predictions) · dy

    Args:
      log_predictions: floating-point array: logarithms of probabilities.
      targets: array t of the same shape and dtype: probabilities, not logarithms.
      axis: the axis or axes of the classes; `None` means all.
      where: boolean array that broadcasts to `log_predictions`; entries that are
        `False` take no part and get no gradient.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The divergence of each example. A class of probability 0 adds 0, also where its
      logarithm of a prediction is −∞ (optax: NaN); there dt, which is −∞ in the limit,
      is −log_predictions · dy (JAX: NaN).

    Raises:
      TypeError: an array is not floating point, or the dtypes differ.
      ValueError: the shapes differ, or `axis` or `where` does not fit.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, 1.0]))
      Array(0.6931472, dtype=float32)

    Source: Kullback & Leibler 1951, doi:10.1214/aoms/1177729694.
    """
    op = "kl_divergence"
    x, t, where, axes = _pair(
        op, axis, where, log_predictions=log_predictions, targets=targets
    )
    return RULES[op].choose(implementation)(x, t, where, axes)


def _log(t):
    return jnp.where(t == 0, 0, jnp.log(jnp.where(t == 0, 1, t)))


def _autodiff_kl_divergence(x, t, where, axes):
    return jnp.sum(t * (_log(t) - x), axes, where=where)


@register(
    "kl_divergence", source="Kullback & Leibler 1951", autodiff=_autodiff_kl_divergence
)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _kl_divergence(x, t, where, axes):
    x, wide = _wide(x, t)
    counts = wide != 0 if where is None else where & (wide != 0)
    terms = jnp.where(counts, wide * (_log(wide) - x), 0)
    return lax.squeeze(reductions.total(terms, axes), axes).astype(t.dtype)


def _kl_divergence_fwd(x, t, where, axes):
    residuals = (x, t, where)  # they were there before
    return _kl_divergence(x, t, where, axes), residuals


def _kl_divergence_bwd(axes, residuals, dy):
    """dx = −t dy, dt = (log t + 1 − x) dy, and −x dy where t = 0."""
    x, t, where = residuals
    dtype, (x, t) = x.dtype, _wide(x, t)
    dy = lax.expand_dims(dy, sorted(axes)).astype(x.dtype)
    if where is not None:
        dy = jnp.where(where, dy, 0)
        x = jnp.where(where, x, 0)
    dt = (_log(t) + jnp.where(t == 0, 0, 1) - x) * dy
    return (-t * dy).astype(dtype), dt.astype(dtype), None


_kl_divergence.defvjp(_kl_divergence_fwd, _kl_divergence_bwd)
