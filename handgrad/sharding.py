"""What a hand-written rule needs on more than one device.

Autodiff inserts these steps by itself; a `jax.custom_vjp` has to say them.

*shard_map*: a replicated kernel meets a sharded image. Inside the op the kernel must
count as *varying* over the image's mesh axes, so that its cotangent is one partial sum
a device, and the transpose of that cast, a sum over the devices, must stand outside of
the rule: `align` is called before the `custom_vjp` function.

*Explicit meshes*: sharding is part of an array's type. A contraction over a sharded
axis is ambiguous until it is told its result's sharding. For a cotangent that is the
primal's own: `of(primal)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from handgrad import arguments


def align(*arrays: jax.Array | None) -> tuple:
    """Makes all arrays vary over the union of their manual mesh axes.

    Args:
      *arrays: the operands of one op; `None` stands for an absent one.

    Returns:
      The same operands; outside of `shard_map` they are unchanged.
    """
    varying = [
        frozenset() if a is None else frozenset(jax.typeof(a).manual_axis_type.varying)  # type: ignore
        for a in arrays
    ]
    union = frozenset().union(*varying)
    return tuple(
        a
        if a is None or have == union
        else lax.pcast(a, tuple(union - have), to="varying")
        for a, have in zip(arrays, varying, strict=True)
    )


def of(array: jax.Array) -> NamedSharding | None:
    """The sharding in the array's type, `None` without an explicit mesh.

    What was made before the mesh was set counts as replicated on it.
    """
    sharding = jax.typeof(array).sharding  # type: ignore[attr-defined]
    if sharding.mesh.empty:
        mesh = jax.sharding.get_abstract_mesh()
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * array.ndim))
    return sharding if sharding.mesh.explicit_axes else None


def of_convolution(x: jax.Array, kernel: jax.Array) -> NamedSharding | None:
    """Where y lives if the kernel [..., I, O] is split over its outputs, else `None`.

    `None` lets JAX derive it from `x`, which it can while the kernel is replicated.
    """
    x_sharding, kernel_sharding = of(x), of(kernel)
    if x_sharding is None or kernel_sharding is None or not kernel_sharding.spec[-1]:
        return None
    spec = (*x_sharding.spec[:-1], kernel_sharding.spec[-1])
    return NamedSharding(x_sharding.mesh, PartitionSpec(*spec))


def may_be_split() -> bool:
    """Whether several devices may hold parts of an array of which its type tells none.

    An automatic mesh splits arrays after they are traced, and need not be set then.
    Within `shard_map` an array is what one device holds.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() > 1 and (mesh.empty or bool(mesh.auto_axes))


def with_halos(
    x: jax.Array, axis: int, parts: int, before: int, behind: int, fill: Any = None
) -> jax.Array:
    """Cuts an axis into equal parts, each with some of its neighbours' entries.

    Devices that split the axis exchange those entries, and no others; in a padded copy,
    which is longer, XLA would give each device other rows than it has.

    Args:
      x: the array, its axis long enough to take a neighbour's entries from one part.
      axis: which.
      parts: how many; devices that split the axis each hold some.
      before: how many entries of the part before.
      behind: how many entries of the part behind.
      fill: what is before the first and behind the last part; 0 by default.

    Returns:
      The parts, along an axis of their own before that of their entries.
    """
    x = split(x, axis, (parts, x.shape[axis] // parts))
    size = x.shape[axis + 1]
    fill = arguments.zero(x.dtype) if fill is None else fill

    def of_neighbour(step: int, start: int, stop: int) -> jax.Array:
        part = lax.slice_in_dim(x, start, stop, axis=axis + 1)
        config = [(0, 0, 0)] * x.ndim
        config[axis] = (step, -step, 0)
        return lax.pad(part, fill, config)

    pieces = [
        of_neighbour(1, size - before, size),
        x,
        of_neighbour(-1, 0, behind),
    ]
    return jnp.concatenate([p for p in pieces if p.shape[axis + 1]], axis + 1)


def named(
    sharding: NamedSharding | PartitionSpec, like: jax.Array
) -> NamedSharding | None:
    """A sharding that the caller gave, on the mesh of `like`; `None` without one."""
    if isinstance(sharding, NamedSharding):
        return sharding
    primal = of(like)
    return None if primal is None else NamedSharding(primal.mesh, sharding)


def rearranged(
    sharding: NamedSharding | None, axes: tuple[int | None, ...]
) -> NamedSharding | None:
    """The sharding of an array whose axis `i` was the old axis `axes[i]`.

    `None` as an entry stands for a new, unsharded axis.
    """
    if sharding is None:
        return None
    spec = tuple(None if a is None else sharding.spec[a] for a in axes)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def zeros(
    shape: tuple[int, ...],
    dtype: Any,
    where: NamedSharding | None,
    like: tuple[jax.Array, ...],
) -> jax.Array:
    """Zeros to add to in a loop: they live `where` and vary as the arrays `like`."""
    return align(jnp.zeros(shape, dtype, out_sharding=where), *like)[0]


def merge(x: jax.Array, start: int, stop: int) -> jax.Array:
    """Merges the axes `start` to `stop` into one.

    One reshape an axis: an explicit mesh supports no reshape of several axes at once.
    """
    for _ in range(stop - start - 1):
        pair = x.shape[start] * x.shape[start + 1]
        x = x.reshape(*x.shape[:start], pair, *x.shape[start + 2 :])
    return x


def split(x: jax.Array, axis: int, sizes: tuple[int, ...]) -> jax.Array:
    """Splits one axis into several, the reverse of `merge`."""
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])
