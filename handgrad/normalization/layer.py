"""Layer norm and its kin: statistics over the features of each example."""

from collections.abc import Sequence

import jax

from handgrad import arguments
from handgrad.normalization.rule import NormSpec, compute, given_statistics, result


def layer_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float | jax.Array = 1e-6,
    where: jax.Array | None = None,
    return_statistics: bool = False,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array, jax.Array]:
    """Layer normalisation: over the features of each example.

    y = γ (x − μ) / √(σ² + ε) + β,  μ and σ² over `axis`
    dx = r [g − mean(g) − x̂ mean(g x̂)],  g = γ dy;  dβ = Σ dy,  dγ = Σ dy x̂

    Args:
      x: floating-point array [..., C].
      scale: γ, of the shape of `axis`, [C]; or `None` for ones.
      bias: β, likewise; or `None` for zeros.
      axis: the axis or axes of the features.
      epsilon: added to the variance; has a gradient.
      where: boolean array that broadcasts to `x`; elements that are `False` are
        normalised, but are no part of the statistics.
      return_statistics: whether to return (y, mean, variance).
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`, of its dtype; statistics in at least float32.

    Raises:
      TypeError: an array is not floating point, or `where` not boolean.
      ValueError: the shapes do not fit, or there is no such axis.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.layer_norm(jnp.array([[1.0, 3.0]]), epsilon=0.0)
      Array([[-1.,  1.]], dtype=float32)

    Source: Ba et al. 2016, arXiv:1607.06450; FORMULAS B8.
    """
    op = "layer_norm"
    x = arguments.array(op, "x", x, kind="floating")
    axes = tuple(sorted(arguments.axes(op, axis, x.ndim)))
    outputs = compute(
        op,
        x,
        NormSpec(axes),
        epsilon,
        implementation,
        features=axes,
        scale=scale,
        bias=bias,
        where=where,
    )
    return result(outputs, axes, return_statistics)


def rms_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float | jax.Array = 1e-6,
    where: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Root-mean-square normalisation: layer norm without the centring.

    y = γ x r,  r = 1 / √(mean(x²) + ε);  dx = r [g − x̂ mean(g x̂)],  g = γ dy

    Args:
      x: floating-point array [..., C].
      scale: γ, of the shape of `axis`, [C]; or `None` for ones.
      axis: the axis or axes of the features.
      epsilon: added to the mean square; has a gradient.
      where: boolean array that broadcasts to `x`; elements that are `False` are
        normalised, but are no part of the mean.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`, of its dtype.

    Raises:
      TypeError: an array is not floating point, or `where` not boolean.
      ValueError: the shapes do not fit, or there is no such axis.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.rms_norm(jnp.array([1.0, -7.0]), epsilon=0.0)
      Array([ 0.2, -1.4], dtype=float32)

    Source: Zhang & Sennrich 2019, arXiv:1910.07467; FORMULAS B8.
    """
    op = "rms_norm"
    x = arguments.array(op, "x", x, kind="floating")
    axes = tuple(sorted(arguments.axes(op, axis, x.ndim)))
    spec = NormSpec(axes, centred=False)
    outputs = compute(
        op, x, spec, epsilon, implementation, features=axes, scale=scale, where=where
    )
    return outputs[0]


def standardize(
    x: jax.Array,
    axis: int | Sequence[int] | None = -1,
    mean: jax.Array | None = None,
    variance: jax.Array | None = None,
    epsilon: float | jax.Array = 1e-5,
    where: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Mean 0 and variance 1 along `axis`.

    y = (x − μ) / √(σ² + ε);  dx = r [dy − mean(dy) − y mean(dy y)]

    Args:
      x: floating-point array of any shape.
      axis: the axis or axes of the means; `None` means all.
      mean: μ, if it is not to be computed; it broadcasts to `x`, with size 1 along
        `axis`.
      variance: σ², likewise, given together with `mean`.
      epsilon: added to the variance; has a gradient.
      where: boolean array that broadcasts to `x`; elements that are `False` are
        standardised, but are no part of the statistics.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`.

    Raises:
      TypeError: an array is not floating point, or `where` not boolean.
      ValueError: `axis`, `mean`, `variance` or `where` does not fit the shape of `x`.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.standardize(jnp.array([1.0, 3.0]), epsilon=0.0)
      Array([-1.,  1.], dtype=float32)

    Source: jax.nn.standardize; FORMULAS B8.
    """
    op = "standardize"
    x = arguments.array(op, "x", x, kind="floating")
    axes = tuple(sorted(arguments.axes(op, axis, x.ndim)))
    means = tuple(1 if i in axes else n for i, n in enumerate(x.shape))

    def expand(name, value):
        return arguments.broadcast(op, name, value, means)

    given = given_statistics(op, mean, variance, expand)
    spec = NormSpec(axes)
    return compute(op, x, spec, epsilon, implementation, where=where, given=given)[0]
