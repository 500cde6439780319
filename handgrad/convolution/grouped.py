"""Groups of channels, each a convolution of its own.

Group g sees its own C/G inputs and makes its own O/G outputs, so each of the three
directions is G independent ones:

    y_g = conv(x_g, kernel_g),  dx_g from (dy_g, kernel_g),  dkernel_g from (x_g, dy_g)

and each of those is at its engine's best where the group has channels enough. Where it
has few, neighbouring groups are merged beforehand, as in `block_diagonal`.

Source: FORMULAS B4.
"""

import dataclasses

import jax
import jax.numpy as jnp

from handgrad.convolution import block_diagonal, engines, groups
from handgrad.convolution.spec import ConvSpec

# How many convolutions are compiled at most.
_MOST = 32


def unsuitable(spec: ConvSpec) -> str | None:
    """One group is done by any other formula."""
    return groups.unsuitable("grouped", spec)


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y: one convolution a block of groups, [n h w rc] [k l rc ro] -> [n p q ro]."""
    blocks = block_diagonal.blocks(kernel.shape[-2], spec, _MOST)
    kernel = block_diagonal.spread(kernel, blocks, spec)
    return _of_each_block("forward", x, kernel, blocks, spec)


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx: likewise, [n p q ro] [k l rc ro] -> [n h w rc]."""
    blocks = block_diagonal.blocks(kernel.shape[-2], spec, _MOST)
    kernel = block_diagonal.spread(kernel, blocks, spec)
    return _of_each_block("input_gradient", dy, kernel, blocks, spec)


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel: the diagonal of [n h w rc] [n p q ro] -> [k l rc ro]."""
    inputs = x.shape[-1] // spec.feature_group_count
    blocks = block_diagonal.blocks(inputs, spec, _MOST)
    dkernel = _of_each_block("kernel_gradient", x, dy, blocks, spec)
    return block_diagonal.diagonal(dkernel, blocks, spec)


def _of_each_block(direction: str, a, b, blocks: int, spec: ConvSpec) -> jax.Array:
    """A direction, block by block along the last axes."""
    one = dataclasses.replace(spec, feature_group_count=1)
    pairs = zip(jnp.split(a, blocks, -1), jnp.split(b, blocks, -1), strict=True)
    parts = [engines.compute(direction, *pair, one) for pair in pairs]
    return jnp.concatenate(parts, -1)
