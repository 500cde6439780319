"""Groups of channels, each a convolution of its own.

Group g sees its own C/G inputs and makes its own O/G outputs, so each of the three
directions is G independent ones:

    y_g = conv(x_g, kernel_g),  dx_g from (dy_g, kernel_g),  dkernel_g from (x_g, dy_g)

and each of those is at its engine's best where the group has channels enough. Where it
has few, r neighbouring groups make one convolution with a block-diagonal kernel:

    kernel[c in group i, o in group j] = kernel_i[c, o] if i = j else 0

r times the multiplications, most of them by zero, by an engine that is more than r
times as fast with r times the channels. The kernel gradient takes the diagonal blocks.
An infinity or NaN spreads over the r groups (0 · ∞).

Source: FORMULAS B4.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from handgrad import sharding
from handgrad.convolution import engines
from handgrad.convolution.spec import ConvSpec

# Inputs of a convolution that keep XLA's engine for CPUs busy, and how many of those
# convolutions are compiled at most.
_ENOUGH, _MOST = 16, 32


def unsuitable(spec: ConvSpec) -> str | None:
    """One group is done by any other formula."""
    if spec.feature_group_count == 1:
        return "'grouped' does several groups"
    for where in (spec.x_sharding, spec.kernel_sharding, spec.y_sharding):
        if where is not None and where.spec[-1] is not None:
            return "'grouped' does no channels that an explicit mesh splits"
    return None


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y: one convolution a block of groups, [n h w rc] [k l rc ro] -> [n p q ro]."""
    blocks, one = _blocks(kernel.shape[-2], spec), _ungrouped(spec)
    kernels = _block_diagonal(kernel, blocks, spec)
    pairs = zip(jnp.split(x, blocks, -1), kernels, strict=True)
    return jnp.concatenate(
        [engines.compute("forward", *pair, one) for pair in pairs], -1
    )


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx: likewise, [n p q ro] [k l rc ro] -> [n h w rc]."""
    blocks, one = _blocks(kernel.shape[-2], spec), _ungrouped(spec)
    kernels = _block_diagonal(kernel, blocks, spec)
    pairs = zip(jnp.split(dy, blocks, -1), kernels, strict=True)
    return jnp.concatenate(
        [engines.compute("input_gradient", *pair, one) for pair in pairs], -1
    )


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel: the diagonal of [n h w rc] [n p q ro] -> [k l rc ro]."""
    blocks = _blocks(x.shape[-1] // spec.feature_group_count, spec)
    merged, one = spec.feature_group_count // blocks, _ungrouped(spec)
    pairs = zip(jnp.split(x, blocks, -1), jnp.split(dy, blocks, -1), strict=True)
    return jnp.concatenate(
        [
            _diagonal(engines.compute("kernel_gradient", *pair, one), merged)
            for pair in pairs
        ],
        -1,
    )


def _ungrouped(spec: ConvSpec) -> ConvSpec:
    return dataclasses.replace(spec, feature_group_count=1)


def _blocks(inputs: int, spec: ConvSpec) -> int:
    """How many convolutions are made of the groups, each with `inputs` inputs."""
    groups = spec.feature_group_count
    wanted = min(groups, _MOST, max(groups * inputs // _ENOUGH, 1))
    return next(blocks for blocks in range(wanted, 0, -1) if groups % blocks == 0)


def _block_diagonal(kernel: jax.Array, blocks: int, spec: ConvSpec) -> list[jax.Array]:
    """The kernel of each block: [k l c o·r·blocks] -> [k l rc ro] each."""
    merged = spec.feature_group_count // blocks
    kernels = jnp.split(kernel, blocks, -1)
    if merged == 1:
        return kernels
    same = np.eye(merged, dtype=bool)[:, None, :, None]

    def spread(kernel):  # [k l c ro] -> [k l r c r o]
        *places, inputs, outputs = kernel.shape
        kernel = sharding.split(kernel, kernel.ndim - 1, (merged, outputs // merged))
        kernel = jnp.expand_dims(kernel, -4)
        mask = np.broadcast_to(same, (*(1 for _ in places), *same.shape))
        kernel = jnp.where(mask, kernel, np.zeros((), kernel.dtype))
        return kernel.reshape(*places, merged * inputs, outputs)

    return [spread(kernel) for kernel in kernels]


def _diagonal(dkernel: jax.Array, merged: int) -> jax.Array:
    """[k l rc ro] -> [k l c ro]: what each group's inputs did to its own outputs."""
    if merged == 1:
        return dkernel
    *places, inputs, outputs = dkernel.shape
    each = inputs // merged, outputs // merged
    dkernel = dkernel.reshape(*places, merged, each[0], merged, each[1])
    dkernel = jnp.diagonal(dkernel, axis1=-4, axis2=-2)  # [k l c o r]
    return jnp.swapaxes(dkernel, -1, -2).reshape(*places, each[0], outputs)
