"""Groups of channels, merged into fewer and wider ones.

A group of four channels leaves most of a vector register empty. r neighbouring groups
make one with a block-diagonal kernel:

    kernel[c in group i, o in group j] = kernel_i[c, o] if i = j else 0

r times the multiplications, most of them by zero, by an engine that is as fast with r
times the channels a group. The three directions are those of `rot180` with b = G/r
groups, each one grouped convolution, whose parts nobody cuts out and joins again:

    y  = conv(x, kernel),  dx = conv(pad(dy), rot180(kernel))
    dkernel = the diagonal blocks of conv(x, dy)

In conv(x, dy) the inputs c of a merged group act as the examples and the examples n as
its channels. Autodiff says so by *batch groups*, which XLA's engine for CPUs does not
know. With the groups put beside the examples they are groups of channels,

    dkernel = conv(x as [c, h, w, (b,n)], dy as [p, q, n, (b,o)])

An infinity or NaN spreads over the r groups (0 · ∞).

Source: FORMULAS B4.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from handgrad import sharding, windows
from handgrad.buffers import written_down
from handgrad.convolution import groups, rot180
from handgrad.convolution.spec import ConvSpec

# Inputs of a group that keep XLA's engine for CPUs busy.
ENOUGH = 16


def unsuitable(spec: ConvSpec) -> str | None:
    """One group is done by any other formula."""
    return groups.unsuitable("block_diagonal", spec)


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y: [n h w brc] [k l rc bro] -> [n p q bro] for b merged groups."""
    one = _merged(kernel.shape[-2], spec)
    return rot180.forward(x, spread(kernel, one.feature_group_count, spec), one)


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx: [n p q bro] [k l rc bro] -> [n h w brc]."""
    one = _merged(kernel.shape[-2], spec)
    kernel = spread(kernel, one.feature_group_count, spec)
    return rot180.input_gradient(dy, kernel, one)


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel: [rc h w bn] [p q n bro] -> [rc k l bro], of which the diagonal."""
    one = _merged(x.shape[-1] // spec.feature_group_count, spec)
    b = one.feature_group_count
    if spec.x_sharding is not None:  # an explicit mesh may split the examples
        return diagonal(rot180.kernel_gradient(x, dy, one), b, spec)
    image = windows.pad(x, spec.windows)
    image = sharding.split(image, x.ndim - 1, (b, x.shape[-1] // b))  # [n h w b rc]
    image = image.transpose(x.ndim, *range(1, x.ndim), 0)
    image = written_down(sharding.merge(image, x.ndim - 1, x.ndim + 1), after=dy)
    along = tuple(
        windows.Window(w.covered, w.output, w.dilation, dilation=w.stride)
        for w in spec.windows
    )
    one = ConvSpec(along, feature_group_count=b, precision=spec.precision)
    dkernel = rot180.forward(image, jnp.moveaxis(dy, 0, -2), one)
    return diagonal(jnp.moveaxis(dkernel, 0, -2), b, spec)


def _merged(inputs: int, spec: ConvSpec) -> ConvSpec:
    """The convolution of the merged groups; one had so many inputs."""
    merged = blocks(inputs, spec, spec.feature_group_count)
    return dataclasses.replace(spec, feature_group_count=merged)


def blocks(inputs: int, spec: ConvSpec, most: int) -> int:
    """How many groups are left, `most` at most, when those of so many inputs merge."""
    count = spec.feature_group_count
    wanted = min(count, most, max(count * inputs // ENOUGH, 1))
    return next(each for each in range(wanted, 0, -1) if count % each == 0)


def spread(kernel: jax.Array, blocks: int, spec: ConvSpec) -> jax.Array:
    """The block-diagonal kernels, side by side: [k l c b·r·o] -> [k l r·c b·r·o]."""
    merged = spec.feature_group_count // blocks
    if merged == 1:
        return kernel
    *places, inputs, outputs = kernel.shape
    each = blocks, merged, outputs // spec.feature_group_count
    kernel = sharding.split(kernel, kernel.ndim - 1, each)
    kernel = jnp.expand_dims(kernel, -5)  # [k l 1 c b r o]
    same = np.eye(merged, dtype=bool)[:, None, None, :, None]
    same = same.reshape(*(1 for _ in places), *same.shape)
    kernel = jnp.where(same, kernel, np.zeros((), kernel.dtype))  # [k l r c b r o]
    return kernel.reshape(*places, merged * inputs, outputs)


def diagonal(dkernel: jax.Array, blocks: int, spec: ConvSpec) -> jax.Array:
    """`spread` transposed: [k l r·c b·r·o] -> [k l c b·r·o]."""
    merged = spec.feature_group_count // blocks
    if merged == 1:
        return dkernel
    *places, inputs, outputs = dkernel.shape
    each = blocks, merged, outputs // spec.feature_group_count
    dkernel = sharding.split(dkernel, dkernel.ndim - 1, each)
    rows = merged, inputs // merged
    dkernel = sharding.split(dkernel, len(places), rows)  # [k l r c b r o]
    dkernel = jnp.diagonal(dkernel, axis1=-5, axis2=-2)  # [k l c b o r]
    dkernel = jnp.swapaxes(dkernel, -1, -2)
    return dkernel.reshape(*places, inputs // merged, outputs)
