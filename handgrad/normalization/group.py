"""Group and instance norm: statistics over the pixels of each example."""

from typing import Any

import jax
import jax.numpy as jnp

from handgrad import arguments, sharding
from handgrad.normalization.rule import NormSpec, compute, result


def group_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    epsilon: float | jax.Array = 1e-6,
    where: jax.Array | None = None,
    return_statistics: bool = False,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array, jax.Array]:
    """Group normalisation: over the pixels and a group of channels of each example.

    y = γ (x − μ) / √(σ² + ε) + β,  μ and σ² of each example and group
    dx = r [g − mean(g) − x̂ mean(g x̂)],  g = γ dy;  dβ = Σ dy,  dγ = Σ dy x̂

    Args:
      x: floating-point array [N, ..., C].
      scale: γ [C], or `None` for ones.
      bias: β [C], or `None` for zeros.
      num_groups: groups of channels; `None` if `group_size` is given.
      group_size: channels of a group, instead of `num_groups`.
      epsilon: added to the variance; has a gradient.
      where: boolean array that broadcasts to `x`; elements that are `False` are
        normalised, but are no part of the statistics.
      return_statistics: whether to return (y, mean, variance).
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`, of its dtype; statistics [N, groups] in at least float32.

    Raises:
      TypeError: an array is not floating point, or `where` not boolean.
      ValueError: the groups do not divide the channels, or the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> x = jnp.array([[1.0, 3.0, 2.0, 6.0]])
      >>> handgrad.group_norm(x, num_groups=2, epsilon=0.0)
      Array([[-1.,  1., -1.,  1.]], dtype=float32)

    Source: Wu & He 2018, arXiv:1803.08494; FORMULAS B8.
    """
    op = "group_norm"
    x = arguments.array(op, "x", x, kind="floating")
    arguments.require(
        x.ndim >= 2, op, f"x must have shape [N, ..., C], got shape {x.shape}"
    )
    channels = x.shape[-1]
    arguments.require(
        (num_groups is None) != (group_size is None),
        op,
        f"either num_groups (={num_groups}) or group_size (={group_size}) must be None",
    )
    if group_size is None:
        name, number = "num_groups", arguments.integer(op, "num_groups", num_groups)
    else:
        name, number = "group_size", arguments.integer(op, "group_size", group_size)
    arguments.require(
        channels % number == 0,
        op,
        f"{name} (={number}) must divide the {channels} channels",
    )
    groups = number if group_size is None else channels // number
    return _grouped(
        op, x, groups, scale, bias, where, epsilon, return_statistics, implementation
    )


def _grouped(
    op, x, groups, scale, bias, where, epsilon, return_statistics, implementation
):
    """[N ... C] as [N ... G C/G]: the means are over all but N and G."""
    for name, value in {"scale": scale, "bias": bias}.items():
        if value is not None:
            got, want = jnp.shape(value), x.shape[-1:]
            each = f"{name} must have shape {want}, one number for each channel"
            arguments.require(got == want, op, f"{each}, got shape {got}")
    where = arguments.mask(op, "where", where, x.shape)

    def split(a) -> Any:
        """[... C] -> [... G C/G]."""
        if a is None:
            return None
        a = jnp.asarray(a)
        return sharding.split(a, a.ndim - 1, (groups, a.shape[-1] // groups))

    axes = (*range(1, x.ndim - 1), x.ndim)
    y, *statistics = compute(
        op,
        split(x),
        NormSpec(axes),
        epsilon,
        implementation,
        features=(x.ndim - 1, x.ndim),
        scale=split(scale),
        bias=split(bias),
        where=split(where),
    )
    y = sharding.merge(y, x.ndim - 1, x.ndim + 1)
    return result((y, *statistics), axes, return_statistics)


def instance_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    epsilon: float | jax.Array = 1e-6,
    where: jax.Array | None = None,
    return_statistics: bool = False,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array, jax.Array]:
    """Instance normalisation: over the pixels of each channel of each example.

    y = γ (x − μ) / √(σ² + ε) + β,  μ and σ² of each example and channel
    dx = r [g − mean(g) − x̂ mean(g x̂)],  g = γ dy;  dβ = Σ dy,  dγ = Σ dy x̂

    Args:
      x: floating-point array [N, ..., C] with one spatial dimension at least.
      scale: γ [C], or `None` for ones.
      bias: β [C], or `None` for zeros.
      epsilon: added to the variance; has a gradient.
      where: boolean array that broadcasts to `x`; elements that are `False` are
        normalised, but are no part of the statistics.
      return_statistics: whether to return (y, mean, variance).
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`, of its dtype; statistics [N, C] in at least float32.

    Raises:
      TypeError: an array is not floating point, or `where` not boolean.
      ValueError: the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.instance_norm(jnp.array([[[1.0], [3.0]]]), epsilon=0.0).ravel()
      Array([-1.,  1.], dtype=float32)

    Source: Ulyanov et al. 2016, arXiv:1607.08022; FORMULAS B8.
    """
    op = "instance_norm"
    x = arguments.array(op, "x", x, kind="floating")
    arguments.require(
        x.ndim >= 3, op, f"x must have shape [N, ..., C], got shape {x.shape}"
    )
    axes = tuple(range(1, x.ndim - 1))
    outputs = compute(
        op,
        x,
        NormSpec(axes),
        epsilon,
        implementation,
        features=(x.ndim - 1,),
        scale=scale,
        bias=bias,
        where=where,
    )
    return result(outputs, axes, return_statistics)
