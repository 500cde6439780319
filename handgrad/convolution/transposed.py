"""A convolution of a dilated image is a strided convolution, transposed.

With e − 1 zeros between its pixels, x reaches window h at the places k where

    y[h] = Σ_k x[(h + d·k − b) / e] · kernel[k]       (if that is whole)

Write k' = K−1−k. Then h = e·p + d·k' − b' with b' = d(K−1) − b, and y is the *input
gradient* of a convolution u of stride e from images like y to images like x, with the
kernel turned and its channels exchanged:

    u[p] = Σ_k' y[e·p + d·k' − b'] · turned[k'],   turned = rot180(kernel), C ↔ O

In T(x, kernel, δ) the image and the error exchange places, so the three directions are
the other convolution's, and none of them multiplies by an inserted zero:

    y       = u's input gradient of the error x
    dx      = u(dy), a strided convolution
    dkernel = turned back, u's kernel gradient of the image dy and the error x

Source: FORMULAS B5; Dumoulin & Visin 2016, arXiv:1603.07285, chapter 4.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import sharding
from handgrad.convolution import engines, phases, rot180
from handgrad.convolution.spec import ConvSpec
from handgrad.windows import Window


def unsuitable(spec: ConvSpec) -> str | None:
    """The other convolution's image would be dilated by this one's stride."""
    strides = tuple(w.stride for w in spec.windows)
    if any(stride > 1 for stride in strides):
        return f"'transposed' does strides of 1, not {strides}"
    if all(w.input_dilation == 1 for w in spec.windows):
        return "'transposed' does dilated images: nothing is gained otherwise"
    return None


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y = u's input gradient of the error x: [n h w c] [k l c o] -> [n p q o]."""
    other = exchanged(spec)
    dtype = spec.preferred_element_type or x.dtype
    engine = rot180 if phases.unsuitable(other) else phases
    return engine.input_gradient(
        x.astype(dtype), turned(kernel.astype(dtype), spec), other
    )


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx = u(dy): [n p q o] [k l c o] -> [n h w c]."""
    return engines.compute("forward", dy, turned(kernel, spec), exchanged(spec))


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel from the image dy and the error x: [n p q o] [n h w c] -> [k l c o]."""
    dkernel = engines.compute("kernel_gradient", dy, x, exchanged(spec))
    return turned(dkernel, spec)


def exchanged(spec: ConvSpec) -> ConvSpec:
    """The strided convolution u whose transpose this one is."""

    def window(w: Window) -> Window:
        last = w.extent - 1
        low, high = last - w.low, last - w.high
        return Window(w.output, w.size, w.input_dilation, low, high, w.dilation)

    swapped = (*range(len(spec.windows)), -1, -2)
    return dataclasses.replace(
        spec,
        windows=tuple(window(w) for w in spec.windows),
        preferred_element_type=None,
        x_sharding=spec.y_sharding,
        y_sharding=spec.x_sharding,
        kernel_sharding=sharding.rearranged(spec.kernel_sharding, swapped),
    )


def turned(kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """rot180 with channels exchanged in each group: [k l c/g o] <-> [k l o/g c]."""
    kernel = lax.rev(kernel, range(len(spec.windows)))
    groups = spec.feature_group_count
    if groups == 1:
        return jnp.swapaxes(kernel, -1, -2)
    spatial, (inputs, outputs) = kernel.shape[:-2], kernel.shape[-2:]
    kernel = kernel.reshape(*spatial, inputs, groups, outputs // groups)
    kernel = jnp.moveaxis(kernel, -3, -1)  # [k l g o/g c/g]
    kernel = jnp.swapaxes(kernel, -3, -2)  # [k l o/g g c/g]
    return kernel.reshape(*spatial, outputs // groups, groups * inputs)
