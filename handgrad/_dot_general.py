"""The general product: some axes contracted, some batched, each cotangent a product.

    y[b, m, n] = Σ_k lhs[b, m, k] rhs[b, n, k]

for any number of axes in place of each of b, m, n and k, in any order. From
∂y[b, m, n] / ∂lhs[b, m, k] = rhs[b, n, k], and the other way round,

    dlhs[b, m, k] = Σ_n dy[b, m, n] rhs[b, n, k]
    drhs[b, n, k] = Σ_m dy[b, m, n] lhs[b, m, k]

so a cotangent contracts over what y got from the other operand alone; its axes are then
put back into the operand's order.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from handgrad import arguments, sharding
from handgrad.rules import RULES, register

Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class DotSpec:
    """The static part of a product: which axes, how, and where the results live."""

    lhs_contracting: Axes
    rhs_contracting: Axes
    lhs_batch: Axes
    rhs_batch: Axes
    precision: Any = None
    preferred_element_type: Any = None
    out_sharding: NamedSharding | None = None
    lhs_sharding: NamedSharding | None = None
    rhs_sharding: NamedSharding | None = None


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    out_sharding: Any = None,
    implementation: str | None = None,
) -> jax.Array:
    """General product of two arrays, with `jax.lax.dot_general`'s arguments.

    y[b, m, n] = Σ_k lhs[b, m, k] · rhs[b, n, k]
    dlhs[b, m, k] = Σ_n dy[b, m, n] · rhs[b, n, k],  drhs likewise

    Args:
      lhs: array of any shape.
      rhs: array of the same dtype.
      dimension_numbers: ((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)),
        each a sequence of axes.
      precision: as in `jax.lax.dot_general`.
      preferred_element_type: dtype of the result, as in `jax.lax.dot_general`.
      out_sharding: sharding of the result under an explicit mesh.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array with the batch axes, then the free ones of `lhs`, then those of `rhs`.

    Raises:
      ValueError: the axes do not fit the shapes.
      TypeError: the dtypes differ, or are complex.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> a, b = jnp.ones((2, 3)), jnp.ones((4, 3))
      >>> handgrad.dot_general(a, b, (((1,), (1,)), ((), ()))).shape
      (2, 4)

    Source: FORMULAS A1, with more axes.
    """
    op = "dot_general"
    lhs, rhs = arguments.array(op, "lhs", lhs), arguments.array(op, "rhs", rhs)
    arguments.same_dtype(op, lhs=lhs, rhs=rhs)
    (lhs_c, rhs_c), (lhs_b, rhs_b) = dimension_numbers
    each = [
        arguments.axes(op, tuple(int(i) for i in axes), array.ndim)
        for axes, array in ((lhs_c, lhs), (rhs_c, rhs), (lhs_b, lhs), (rhs_b, rhs))
    ]
    for kind, left, right in (
        ("contracting", each[0], each[1]),
        ("batch", each[2], each[3]),
    ):
        sizes = [
            tuple(a.shape[i] for i in axes) for a, axes in ((lhs, left), (rhs, right))
        ]
        arguments.require(
            sizes[0] == sizes[1],
            op,
            f"the {kind} axes must have the same sizes, got {sizes[0]} of lhs "
            f"{lhs.shape} and {sizes[1]} of rhs {rhs.shape}",
        )
    arguments.require(
        not set(each[0]) & set(each[2]) and not set(each[1]) & set(each[3]),
        op,
        f"an axis is either contracted or batched, got dimension_numbers "
        f"(={dimension_numbers})",
    )
    lhs, rhs = sharding.align(lhs, rhs)
    spec = DotSpec(
        *each,
        precision=arguments.hashable_precision(precision),
        preferred_element_type=preferred_element_type,
        out_sharding=None
        if out_sharding is None
        else sharding.named(out_sharding, lhs),
        lhs_sharding=sharding.of(lhs),
        rhs_sharding=sharding.of(rhs),
    )
    return RULES[op].choose(implementation, spec)(lhs, rhs, spec)


def _product(lhs, rhs, spec):
    return lax.dot_general(
        lhs,
        rhs,
        (
            (spec.lhs_contracting, spec.rhs_contracting),
            (spec.lhs_batch, spec.rhs_batch),
        ),
        precision=spec.precision,
        preferred_element_type=spec.preferred_element_type,
        out_sharding=spec.out_sharding,
    )


@register("dot_general", source="FORMULAS A1", autodiff=_product)
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot_general(lhs, rhs, spec):
    return _product(lhs, rhs, spec)


def _dot_general_fwd(lhs, rhs, spec):
    residuals = (lhs, rhs)  # each is the other's derivative
    return _dot_general(lhs, rhs, spec), residuals


def _dot_general_bwd(spec, residuals, dy):
    """dlhs = Σ_n dy rhs, drhs = Σ_m dy lhs."""
    lhs, rhs = residuals
    batch = len(spec.lhs_batch)
    split = dy.ndim - len(_free(rhs.ndim, spec.rhs_contracting, spec.rhs_batch))
    m, n = tuple(range(batch, split)), tuple(range(split, dy.ndim))
    left = (lhs, spec.lhs_contracting, spec.lhs_batch, spec.lhs_sharding)
    right = (rhs, spec.rhs_contracting, spec.rhs_batch, spec.rhs_sharding)
    dlhs = _cotangent(dy, n, *left, *right[:3], spec)
    return dlhs, _cotangent(dy, m, *right, *left[:3], spec)


def _cotangent(
    dy, summed, own, own_contracting, own_batch, where, other, other_contracting,
    other_batch, spec,
):  # fmt: skip
    """dy's axes `summed`, which y got from `other`, are contracted with `other`'s."""
    other_free = _free(other.ndim, other_contracting, other_batch)
    # What is left of `other` comes in its own order: k by k, the axes that they met.
    met = [own_contracting[k] for k in np.argsort(other_contracting)]
    own_free = _free(own.ndim, own_contracting, own_batch)
    order = (*own_batch, *own_free, *met)
    product = lax.dot_general(
        dy,
        other.astype(dy.dtype),
        ((summed, other_free), (tuple(range(len(own_batch))), other_batch)),
        precision=spec.precision,
        out_sharding=sharding.rearranged(where, order),
    )
    return product.transpose(np.argsort(order)).astype(own.dtype)


def _free(ndim: int, contracting: Axes, batch: Axes) -> Axes:
    return tuple(i for i in range(ndim) if i not in contracting and i not in batch)


_dot_general.defvjp(_dot_general_fwd, _dot_general_bwd)
