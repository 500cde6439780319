"""Batch norm: each channel's statistics over all other axes."""

import jax
from jax import lax

from handgrad import arguments
from handgrad.normalization.rule import NormSpec, compute, given_statistics, result


def batch_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    mean: jax.Array | None = None,
    variance: jax.Array | None = None,
    *,
    axis: int = -1,
    epsilon: float | jax.Array = 1e-5,
    where: jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    activation: str | None = None,
    return_statistics: bool = False,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalisation, in training or, with given statistics, in inference.

    y = γ (x − μ) / √(σ² + ε) + β,  μ and σ² of each channel over all other axes
    dx = r [g − mean(g) − x̂ mean(g x̂)],  g = γ dy;  dβ = Σ dy,  dγ = Σ dy x̂

    Args:
      x: floating-point array [N, ..., C].
      scale: γ [C], or `None` for ones.
      bias: β [C], or `None` for zeros.
      mean: μ [C], if it is not to be computed: running averages, in inference.
      variance: σ² [C], given together with `mean`.
      axis: the axis of the channels.
      epsilon: added to the variance; has a gradient.
      where: boolean array that broadcasts to `x`; elements that are `False` are
        normalised, but are no part of the statistics.
      axis_name: mesh axis or axes of `shard_map` (or of `vmap`) over which the
        statistics are means as well.
      activation: "relu" to apply one within the rule, or `None`.
      return_statistics: whether to return (y, mean, variance), for running averages;
        they are differentiable.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`, of its dtype; statistics [C] in at least float32. The variance is
      that of the population, σ² = mean((x − μ)²).

    Raises:
      TypeError: an array is not floating point, or `where` not boolean.
      ValueError: the shapes do not fit, only one statistic is given, there is no such
        axis, or `activation` is unknown.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.batch_norm(jnp.array([[1.0], [3.0]]), epsilon=0.0)
      Array([[-1.],
             [ 1.]], dtype=float32)

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167; FORMULAS B8.
    """
    op = "batch_norm"
    x = arguments.array(op, "x", x, kind="floating")
    feature = arguments.integer(op, "axis", axis, least=-x.ndim)
    features = arguments.axes(op, feature, x.ndim)
    axes = tuple(i for i in range(x.ndim) if i not in features)
    arguments.require(
        activation in (None, "relu"),
        op,
        f"activation (={activation!r}) must be None or 'relu'",
    )

    def expand(name, value):
        arguments.require(
            value.shape == (x.shape[features[0]],),
            op,
            f"{name} must have shape ({x.shape[features[0]]},), got {value.shape}",
        )
        return lax.expand_dims(value, axes)

    spec = NormSpec(axes, relu=activation == "relu", axis_name=axis_name)
    given = given_statistics(op, mean, variance, expand)
    outputs = compute(
        op,
        x,
        spec,
        epsilon,
        implementation,
        features=features,
        scale=scale,
        bias=bias,
        where=where,
        given=given,
    )
    return result(outputs, axes, return_statistics)
