"""The channels' groups as an axis of their own, where there are several."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from handgrad import sharding
from handgrad.convolution.spec import ConvSpec


def unsuitable(formula: str, spec: ConvSpec) -> str | None:
    """What a formula for several groups, all on one device, declines."""
    if spec.feature_group_count == 1:
        return f"'{formula}' does several groups"
    for where in (spec.x_sharding, spec.kernel_sharding, spec.y_sharding):
        if where is not None and where.spec[-1] is not None:
            return f"'{formula}' does no channels that an explicit mesh splits"
    return None


def split(x: jax.Array, spec: ConvSpec) -> jax.Array:
    """[... g·c] -> [... g c], if there are several groups."""
    return x if spec.feature_group_count == 1 else parted(x, spec.feature_group_count)


def parted(x: jax.Array, count: int) -> jax.Array:
    """The last axis as two, the first of which has so many."""
    for axis, size in ((-2, 1), (-1, x.shape[-1])):
        if count == size:  # an explicit mesh keeps the channels' sharding
            return jnp.expand_dims(x, axis)
    return x.reshape(*x.shape[:-1], count, x.shape[-1] // count)


def merge(x: jax.Array, spec: ConvSpec) -> jax.Array:
    """[... g c] -> [... g·c], `split` turned round."""
    return x if spec.feature_group_count == 1 else joined(x)


def joined(x: jax.Array) -> jax.Array:
    """The last two axes as one; beside an axis of one the other keeps its sharding."""
    for axis in (-2, -1):
        if x.shape[axis] == 1:
            return jnp.squeeze(x, axis)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def axis(
    where: NamedSharding | None, axes: Sequence[int | None], spec: ConvSpec
) -> tuple[str, NamedSharding | None]:
    """The letter of the groups' axis, if there are several, and a product's sharding.

    Args:
      where: the sharding of an array whose last axis the groups share.
      axes: those of its other axes that the product has.
      spec: the static part.
    """
    if spec.feature_group_count == 1:
        return "", sharding.rearranged(where, (*axes, -1))
    return "g", sharding.rearranged(where, (*axes, None, -1))
