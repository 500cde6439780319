"""The gated linear unit: one half of the channels opens or closes the other."""

import functools

import jax
from jax import lax

from handgrad import arguments
from handgrad.rules import RULES, register


def glu(
    x: jax.Array, axis: int = -1, *, implementation: str | None = None
) -> jax.Array:
    """Gated linear unit.

    y = a σ(b),  da = σ(b) dy,  db = y (1 − σ(b)) dy,  with x = (a, b) along `axis`

    Args:
      x: floating-point array with an even number of entries along `axis`.
      axis: the axis to split in two halves.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x` with half of the entries along `axis`.

    Raises:
      TypeError: `x` is not floating point.
      ValueError: there is no such axis, or its length is odd.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.glu(jnp.array([3.0, 5.0, 0.0, 100.0]))
      Array([1.5, 5. ], dtype=float32)

    Source: Dauphin et al. 2017, arXiv:1612.08083. The input suffices.
    """
    x = arguments.array("glu", "x", x, kind="floating")
    (axis,) = arguments.axes(
        "glu", arguments.integer("glu", "axis", axis, least=-x.ndim), x.ndim
    )
    arguments.require(
        x.shape[axis] % 2 == 0,
        "glu",
        f"the {x.shape[axis]} entries along axis (={axis}) must be an even number",
    )
    return RULES["glu"].choose(implementation)(x, axis)


def _halves(x, axis):
    """a and b, in at least float32."""
    wide = x.astype(arguments.accumulator(x.dtype))
    half = x.shape[axis] // 2
    return tuple(
        lax.slice_in_dim(wide, i * half, (i + 1) * half, axis=axis) for i in (0, 1)
    )


@register("glu", source="Dauphin et al. 2017, arXiv:1612.08083", autodiff=jax.nn.glu)
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _glu(x, axis):
    a, b = _halves(x, axis)
    return (a * lax.logistic(b)).astype(x.dtype)


def _glu_fwd(x, axis):
    residuals = (x,)  # σ is computed anew: autodiff keeps it, and both halves
    return _glu(x, axis), residuals


def _glu_bwd(axis, residuals, dy):
    """da = σ(b) dy, db = a σ(b) (1 − σ(b)) dy."""
    (x,) = residuals
    a, b = _halves(x, axis)
    dy = dy.astype(a.dtype)
    p = lax.logistic(b)
    halves = (p * dy, a * p * (1 - p) * dy)
    return (lax.concatenate(halves, axis).astype(x.dtype),)


_glu.defvjp(_glu_fwd, _glu_bwd)
