"""A convolution slice by slice: a sum of convolutions with one dimension less.

    y[n,f,p,q]  = Σ_j conv(x[n, s·f + d·j − b], kernel[j])[p,q]

over the kernel's slices j along its first dimension; the frames f of all examples are
the examples of one convolution a slice. Its transposes go the same way, each slice by
the formula that suits it:

    dx[n, s·f + d·j − b] += input_gradient(dy[n,f], kernel[j])
    dkernel[j]            = kernel_gradient(x[n, s·f + d·j − b], dy[n,f])

It is for volumes: XLA's engine for CPUs does images, and nothing else, at the speed of
a matrix product. Source: FORMULAS B3, for one dimension instead of all.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, sharding, windows
from handgrad.buffers import zero_after
from handgrad.convolution import engines
from handgrad.convolution.spec import ConvSpec


def unsuitable(spec: ConvSpec) -> str | None:
    """A slice must be a convolution."""
    if len(spec.windows) < 2:
        return f"'slices' does 2 dimensions or more, not {len(spec.windows)}"
    return None


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y = Σ_j conv(x_j, kernel[j]): [nf h w c] [k l c o] -> [nf p q o] a slice."""
    dtype = spec.preferred_element_type or x.dtype
    wide = arguments.accumulator(dtype)
    one = dataclasses.replace(_slice(spec), preferred_element_type=wide)
    terms = (
        engines.compute("forward", frames, kernel[j], one)
        for j, frames in _frames(x, spec)
    )
    y = functools.reduce(jnp.add, terms)
    return _split(y, x.shape[0], spec).astype(dtype)


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx: each slice's own, added to the frames that it saw."""
    one, wide = _slice(spec), arguments.accumulator(dy.dtype)
    errors = sharding.merge(dy, 0, 2)

    def piece(j, *_):
        frames = engines.compute("input_gradient", errors, kernel[j], one)
        return _split(frames, dy.shape[0], spec).astype(wide)

    return windows.spread(piece, _line(spec)).astype(dy.dtype)


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel[j] = conv(x_j, dy): [nf h w c] [nf p q o] -> [k l c o] a slice."""
    one, errors = _slice(spec), sharding.merge(dy, 0, 2)
    slices = (
        engines.compute("kernel_gradient", frames, errors, one)
        for _, frames in _frames(x, spec, zero_after(dy, x.dtype))
    )
    return jnp.stack(list(slices))


def _slice(spec: ConvSpec) -> ConvSpec:
    """The convolution of one slice."""
    axes = tuple(range(len(spec.windows) + 2))
    without_first = (0, *axes[2:])
    return dataclasses.replace(
        spec,
        windows=spec.windows[1:],
        preferred_element_type=None,
        x_sharding=sharding.rearranged(spec.x_sharding, without_first),
        y_sharding=sharding.rearranged(spec.y_sharding, without_first),
        kernel_sharding=sharding.rearranged(spec.kernel_sharding, axes[1:]),
    )


def _line(spec: ConvSpec) -> windows.Windows:
    """The windows along the first dimension; the others' pixels stay as they are."""
    first, *others = spec.windows
    return first, *(windows.Window(w.input, 1) for w in others)


def _frames(x: jax.Array, spec: ConvSpec, zero: jax.Array | np.ndarray | None = None):
    """Each slice of the kernel with the frame that every window sees: [nf h w c]."""
    line = _line(spec)
    image = lax.optimization_barrier(windows.pad(x, line, zero))
    for place in windows.places(line):
        yield place[0], sharding.merge(windows.view(image, place, line), 0, 2)


def _split(frames: jax.Array, examples: int, spec: ConvSpec) -> jax.Array:
    """[nf ...] -> [n f ...]."""
    return sharding.split(frames, 0, (examples, spec.windows[0].output))
