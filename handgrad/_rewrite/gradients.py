"""Gradients that were taken inside of a function: autodiff's, by the rules' formulas.

A training step holds convolutions that are another one's gradient. With strides α,
dilation β and low padding b, in each dimension, a convolution of x and B computes

    out[k] = Σ_p x[α·k + β·p − b] · B[p],

which is the kernel gradient, for the error dy = B, of a convolution with strides β and
dilation α, examples and channels exchanged. Where x has zeros between its pixels, s
apart, and α is 1, it is the input gradient of a convolution with strides s, for the
error x and the kernel B turned by 180°, whose low padding is β·(K−1) − b. A formula
that is fast for a layer is so for its gradients if it knows them for what they are.

`select_and_scatter_add` is the gradient of a window's maximum or minimum.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from handgrad import arguments, sharding
from handgrad.convolution import choose, conv_general_dilated
from handgrad.convolution.geometry import Geometry
from handgrad.convolution.rule import COMPUTE
from handgrad.convolution.spec import ConvSpec
from handgrad.pooling import reduce_window_max, reduce_window_min
from handgrad.windows import Window, Windows

_POOLS = {primitives.ge_p: reduce_window_max, primitives.le_p: reduce_window_min}


def convolution(lhs: jax.Array, rhs: jax.Array, **parameters: Any) -> jax.Array:
    """The convolution, by the formulas of the direction that it is."""
    compute = {
        "forward": conv_general_dilated,
        "input_gradient": _input_gradient,
        "kernel_gradient": _kernel_gradient,
    }[direction(lhs, rhs, **parameters)]
    return compute(lhs, rhs, **parameters)


def direction(lhs: Any, rhs: Any, **parameters: Any) -> str:
    """Which direction of a layer a convolution looks like, by the arrays' types.

    A kernel gradient sums over more pixels than its kernel has places, or has groups of
    examples. An ungrouped input gradient is as fast as any convolution.
    """
    preferred = parameters["preferred_element_type"]
    if preferred not in (None, lhs.dtype) or sharding.of(lhs) or sharding.of(rhs):
        return "forward"
    seen = _windows(lhs, rhs, **parameters)
    if parameters["feature_group_count"] > 1:
        gradient = all(w.stride == 1 for w in seen)
        dilated = any(w.input_dilation > 1 for w in seen)
        return "input_gradient" if gradient and dilated else "forward"
    summed, places = (
        math.prod(w.size for w in seen),
        math.prod(w.output for w in seen),
    )
    groups = parameters["batch_group_count"]
    return "kernel_gradient" if places < summed or groups > 1 else "forward"


def extremum_gradient(
    source: jax.Array, operand: jax.Array, *, select_prim: Any, **geometry: Any
) -> jax.Array:
    """`select_and_scatter_add`: the error `source` to each window's extremum."""
    pool = _POOLS[select_prim]
    _, vjp = jax.vjp(lambda x: pool(x, **geometry), operand)
    return vjp(source)[0]


def _windows(lhs, rhs, **parameters) -> Windows:
    numbers = parameters["dimension_numbers"]
    return tuple(
        Window(lhs.shape[i], rhs.shape[j], s, low, high, d, e)
        for i, j, s, (low, high), d, e in zip(
            numbers.lhs_spec[2:],
            numbers.rhs_spec[2:],
            parameters["window_strides"],
            parameters["padding"],
            parameters["rhs_dilation"],
            parameters["lhs_dilation"],
            strict=True,
        )
    )


def _kernel_gradient(lhs, rhs, **parameters):
    """[c h w n] * [p q n o] -> [k l c o]."""
    numbers = parameters["dimension_numbers"]
    channels, examples, *pixels = numbers.lhs_spec
    x = lhs.transpose(examples, *pixels, channels)
    outputs, examples, *pixels = numbers.rhs_spec
    dy = rhs.transpose(examples, *pixels, outputs)
    windows = tuple(
        _with_output(
            Window(w.input, w.output, w.dilation, w.low, 0, w.stride, w.input_dilation),
            w.size,
        )
        for w in _windows(lhs, rhs, **parameters)
    )
    groups = parameters["batch_group_count"]
    inputs = x.shape[-1] // groups
    kernel_shape = (*(w.size for w in windows), inputs, dy.shape[-1])
    spec = _spec(x, windows, groups, parameters)
    x, dy = sharding.align(x, dy)
    dkernel = _compute("kernel_gradient", x, dy, x.shape, kernel_shape, spec)
    n = len(windows)
    return _laid_out(dkernel, numbers.out_spec, (n, n + 1, *range(n)))


def _input_gradient(lhs, rhs, **parameters):
    """[n p q o] * [k l o/g c] -> [n h w c]."""
    numbers, groups = parameters["dimension_numbers"], parameters["feature_group_count"]
    examples, outputs, *pixels = numbers.lhs_spec
    dy = lhs.transpose(examples, *pixels, outputs)
    inputs, outputs, *places = numbers.rhs_spec
    n = len(places)
    kernel = lax.rev(rhs.transpose(*places, outputs, inputs), range(n))
    # [k l o/g (g c/g)] -> [k l c/g (g o/g)]
    kernel = kernel.reshape(*kernel.shape[:-1], groups, kernel.shape[-1] // groups)
    kernel = kernel.transpose(*range(n), n + 2, n + 1, n)
    kernel = kernel.reshape(*kernel.shape[: n + 1], dy.shape[-1])
    windows = tuple(
        _with_output(
            Window(
                w.output, w.size, w.input_dilation, w.extent - 1 - w.low, 0, w.dilation
            ),
            w.input,
        )
        for w in _windows(lhs, rhs, **parameters)
    )
    shape = (dy.shape[0], *(w.input for w in windows), kernel.shape[-2] * groups)
    spec = _spec(dy, windows, groups, parameters)
    dy, kernel = sharding.align(dy, kernel)
    dx = _compute("input_gradient", dy, kernel, shape, kernel.shape, spec)
    return _laid_out(dx, numbers.out_spec, (0, n + 1, *range(1, n + 1)))


def _with_output(w: Window, output: int) -> Window:
    """The window whose high padding makes it have so many outputs."""
    high = w.stride * (output - 1) + w.extent - w.dilated - w.low
    return dataclasses.replace(w, high=high)


def _spec(x, windows, groups, parameters) -> ConvSpec:
    return ConvSpec(
        windows,
        groups,
        x.dtype,
        arguments.hashable_precision(parameters["precision"]),
    )


def _compute(direction, a, b, x_shape, kernel_shape, spec):
    geometry = Geometry(tuple(x_shape), tuple(kernel_shape), spec)
    spec = dataclasses.replace(spec, formulas=choose.formulas(geometry))
    return COMPUTE[direction](a, b, spec)


def _laid_out(array, out_spec, axes):
    """The array with its axes where `out_spec` (batch, feature, *spatial) says."""
    order = [0] * array.ndim
    for at, axis in zip(out_spec, axes, strict=True):
        order[at] = axis
    return jnp.transpose(array, order)
