"""Adaptive pooling: windows that divide any image into a given number of outputs.

Output p of P sees the pixels of its bin,

    ⌊p·H / P⌋ ≤ h < ⌈(p+1)·H / P⌉,

so bins differ by at most a pixel and share one where P does not divide H. Both pools
go one dimension after the other. Turned round, the outputs whose bin holds pixel h are
again neighbours, first(h) ≤ p < last(h): the transpose of a sum over bins is the same
sum over these *turned* bins, and

    mean:  dx[h] = Σ_p dy[p] / |bin p|              over the turned bin of h
    max:   dx[h] = Σ_p [offset[p] = h − ⌊p·H/P⌋] dy[p]     the same.

Where P divides H these are ordinary windows with stride H/P, and are computed so.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments
from handgrad.pooling.average import AverageSpec, average
from handgrad.pooling.max import (
    ExtremumSpec,
    autodiff_extremum,
    extremum,
    search_in_one_pass,
)
from handgrad.reductions import or_nan
from handgrad.rules import RULES, register
from handgrad.windows import Window, Windows

Bins = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class AdaptiveSpec:
    """The static part: the bin (start, stop) of each output, for each dimension."""

    image: tuple[int, ...]
    bins: tuple[Bins, ...]

    @property
    def most(self) -> list[int]:
        """Pixels of the largest bin in each dimension."""
        return [max(stop - start for start, stop in bins) for bins in self.bins]

    @property
    def turned(self) -> list[Bins]:
        """For each pixel the outputs (first, last) whose bin holds it."""
        return [
            tuple(
                (
                    sum(stop <= h for _, stop in bins),
                    sum(start <= h for start, _ in bins),
                )
                for h in range(pixels)
            )
            for bins, pixels in zip(self.bins, self.image, strict=True)
        ]

    @property
    def windows(self) -> Windows | None:
        """The bins as ordinary windows, if they share no pixel."""
        if any(h % len(bins) for h, bins in zip(self.image, self.bins, strict=True)):
            return None
        steps = [h // len(bins) for h, bins in zip(self.image, self.bins, strict=True)]
        return tuple(Window(h, s, s) for h, s in zip(self.image, steps, strict=True))


def adaptive_avg_pool(
    inputs: jax.Array,
    output_shape: Sequence[int | None],
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Mean over each of a given number of bins.

    y[p] = mean of x[h] over ⌊p·H/P⌋ ≤ h < ⌈(p+1)·H/P⌉, in each dimension
    dx[h] = Σ dy[p] / |bin p| over the bins that hold the pixel

    Args:
      inputs: floating-point image [..., H, W, C], any number of spatial dimensions and
        of leading batch axes.
      output_shape: how many outputs in each spatial dimension; `None` keeps its size.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The means [..., P, Q, C].

    Raises:
      ValueError: the lengths do not match, or a number is not positive.
      TypeError: `inputs` is not floating point.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.adaptive_avg_pool(jnp.arange(5.0)[:, None], (2,)).ravel()
      Array([1., 3.], dtype=float32)

    Source: PyTorch's AdaptiveAvgPool.
    """
    x, spec = _describe("adaptive_avg_pool", inputs, output_shape, "floating")
    return RULES["adaptive_avg_pool"].choose(implementation, spec)(x, spec)


def adaptive_max_pool(
    inputs: jax.Array,
    output_shape: Sequence[int | None],
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Maximum of each of a given number of bins.

    y[p] = max of x[h] over ⌊p·H/P⌋ ≤ h < ⌈(p+1)·H/P⌉, in each dimension
    dx[h] = Σ dy[p] over the bins whose maximum is that pixel

    Args:
      inputs: real image [..., H, W, C], any number of spatial dimensions and of leading
        batch axes; integers have a forward pass only.
      output_shape: how many outputs in each spatial dimension; `None` keeps its size.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The maxima [..., P, Q, C]; of several equal ones the first in row-major order
      takes the gradient. A bin with a NaN is NaN.

    Raises:
      ValueError: the lengths do not match, or a number is not positive.
      TypeError: `inputs` is complex or not a number.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.adaptive_max_pool(jnp.arange(5.0)[:, None], (2,)).ravel()
      Array([2., 4.], dtype=float32)

    Source: PyTorch's AdaptiveMaxPool.
    """
    x, spec = _describe("adaptive_max_pool", inputs, output_shape, "real")
    return RULES["adaptive_max_pool"].choose(implementation, spec)(x, spec)


def _describe(op, inputs, output_shape, kind):
    x = arguments.array(op, "inputs", inputs, kind=kind)
    arguments.require(
        isinstance(output_shape, Sequence) and not isinstance(output_shape, str),
        op,
        f"output_shape (={output_shape!r}) must have one entry for each spatial "
        "dimension",
    )
    n = len(output_shape)
    arguments.require(
        x.ndim >= n + 1,
        op,
        f"inputs must have {n} spatial dimensions and channels for output_shape "
        f"(={tuple(output_shape)}), got shape {x.shape}",
    )
    image = x.shape[x.ndim - 1 - n : -1]
    sizes: Any = tuple(
        h if p is None else p for h, p in zip(image, output_shape, strict=True)
    )
    sizes = arguments.per_dimension(op, "output_shape", sizes, n)
    arguments.require(
        all(image), op, f"inputs must have pixels to pool, got shape {x.shape}"
    )
    bins = tuple(
        tuple((p * h // size, -(-(p + 1) * h // size)) for p in range(size))
        for h, size in zip(image, sizes, strict=True)
    )
    return x, AdaptiveSpec(tuple(image), bins)


def _first_axis(x, spec):
    return x.ndim - 1 - len(spec.bins)


def _bins(
    bins: Bins, axis: int, compute: Callable[..., jax.Array], *arrays: jax.Array
) -> jax.Array:
    """`compute` of each bin's part of the arrays, side by side along the axis."""
    parts = [
        compute(*(lax.slice_in_dim(a, start, stop, axis=axis) for a in arrays))
        for start, stop in bins
    ]
    return jnp.concatenate(parts, axis)


def _sums(x, bins, axis):
    return _bins(bins, axis, lambda part: jnp.sum(part, axis, keepdims=True), x)


def _along(numbers, axis, ndim, dtype):
    """Numbers of a dimension, as an array that broadcasts against the image."""
    return np.asarray(numbers, dtype).reshape(
        [1] * axis + [-1] + [1] * (ndim - axis - 1)
    )


def _shares(x, bins, axis):
    sizes = [stop - start for start, stop in bins]
    return x / _along(sizes, axis, x.ndim, x.dtype)


def _autodiff_bins(x, spec, compute):
    """Each bin by itself, `compute` of a part of the image."""
    first, n = _first_axis(x, spec), len(spec.bins)

    def along(dimension, x):
        if dimension == n:
            return compute(x)
        return jnp.concatenate(
            [
                along(
                    dimension + 1,
                    lax.slice_in_dim(x, start, stop, axis=first + dimension),
                )
                for start, stop in spec.bins[dimension]
            ],
            first + dimension,
        )

    return along(0, x)


def _autodiff_adaptive_avg_pool(x, spec):
    axes = tuple(range(_first_axis(x, spec), x.ndim - 1))
    return _autodiff_bins(x, spec, lambda part: jnp.mean(part, axes, keepdims=True))


def _autodiff_adaptive_max_pool(x, spec):
    def compute(part):
        image = part.shape[_first_axis(x, spec) : -1]
        return autodiff_extremum(part, ExtremumSpec(tuple(Window(h, h) for h in image)))

    return _autodiff_bins(x, spec, compute)


def _adaptive_avg_pool(x, spec):
    if spec.windows:
        return average(x, AverageSpec(spec.windows, spec.windows))
    return _bin_means(x, spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _bin_means(x, spec):
    total = x.astype(arguments.accumulator(x.dtype))
    for axis, bins in enumerate(spec.bins, _first_axis(x, spec)):
        total = _shares(_sums(total, bins, axis), bins, axis)
    return total.astype(x.dtype)


def _bin_means_fwd(x, spec):
    residuals = ()  # linear: the gradient never looks at x
    return _bin_means(x, spec), residuals


def _bin_means_bwd(spec, residuals, dy):
    """dx[h] = Σ_p dy[p] / |bin p| over the turned bin of h."""
    del residuals
    dx = dy.astype(arguments.accumulator(dy.dtype))
    for axis, (bins, turned) in enumerate(
        zip(spec.bins, spec.turned, strict=True), _first_axis(dy, spec)
    ):
        dx = _sums(_shares(dx, bins, axis), turned, axis)
    return (dx.astype(dy.dtype),)


_bin_means.defvjp(_bin_means_fwd, _bin_means_bwd)


def _adaptive_max_pool(x, spec):
    if spec.windows:
        return extremum(x, ExtremumSpec(spec.windows))
    return _bin_maxima(x, spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _bin_maxima(x, spec):
    for axis, bins in enumerate(spec.bins, _first_axis(x, spec)):
        x = _maxima(x, bins, axis)
    return x


def _maxima(x, bins, axis):
    def maximum(part):
        return or_nan(jnp.max(part, axis, keepdims=True), part, (axis,))

    return _bins(bins, axis, maximum, x)


def _bin_maxima_fwd(x, spec):
    """The last dimension first: of equal maxima the first of the first row is found."""
    dtype = np.uint8 if math.prod(spec.most) <= 256 else np.uint32
    y, offset = x, jnp.zeros(x.shape, dtype)
    units = _units(spec.most)
    for i in reversed(range(len(units))):
        axis, bins = _first_axis(x, spec) + i, spec.bins[i]

        first = functools.partial(_first_offset, axis=axis, unit=dtype(units[i]))
        y, offset = _maxima(y, bins, axis), _bins(bins, axis, first, y, offset)
    residuals = (offset,)  # where the maximum was in its bin
    # By the rule: a second derivative goes to the first of equals, too.
    return _bin_maxima(x, spec), residuals


def _first_offset(part, found, *, axis, unit):
    best = jnp.max, lax.argmax
    _, at = search_in_one_pass(best, part, found, axis=axis, unit=unit)
    return lax.expand_dims(at, [axis])


def _units(sizes):
    """What a step in each dimension counts in row-major order."""
    return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]


def _bin_maxima_bwd(spec, residuals, dy):
    """dx[h] = Σ_p [offset[p] = h − start(p)] dy[p] over the turned bin of h."""
    (offset,) = residuals
    dx = dy.astype(arguments.accumulator(dy.dtype))
    offset = offset.astype(np.int32)
    for axis, (bins, turned, unit) in enumerate(
        zip(spec.bins, spec.turned, _units(spec.most), strict=True),
        _first_axis(dy, spec),
    ):
        place, rest = jnp.divmod(offset, np.int32(unit))
        starts = _along([start for start, _ in bins], axis, dy.ndim, np.int32)
        pixel = place + starts  # the pixel h that each output's maximum is at
        handed = [
            [
                jnp.where(part == np.int32(h), values, arguments.zero(values.dtype))
                for values in (
                    lax.slice_in_dim(dx, first, last, axis=axis),
                    lax.slice_in_dim(rest, first, last, axis=axis),
                )
            ]
            for h, (first, last) in enumerate(turned)
            for part in [lax.slice_in_dim(pixel, first, last, axis=axis)]
        ]
        errors, rests = zip(*handed, strict=True)
        dx = jnp.concatenate([jnp.sum(e, axis, keepdims=True) for e in errors], axis)
        # All outputs with their maximum in one line have it at the same pixel of it.
        offset = jnp.concatenate([jnp.max(r, axis, keepdims=True) for r in rests], axis)
    return (dx.astype(dy.dtype),)


_bin_maxima.defvjp(_bin_maxima_fwd, _bin_maxima_bwd)
_SOURCE = "FORMULAS B7 with windows of unlike sizes"
register("adaptive_avg_pool", source=_SOURCE, autodiff=_autodiff_adaptive_avg_pool)(
    _adaptive_avg_pool
)
register("adaptive_max_pool", source=_SOURCE, autodiff=_autodiff_adaptive_max_pool)(
    _adaptive_max_pool
)
