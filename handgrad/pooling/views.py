"""What the windows of an image see, place by place, and what that costs.

A pool reads the pixel at place k of all windows, for each k. A padded copy makes every
such view a slice; but under a stride the views hold little more than the image, so that
the copy costs more than all of them. Then they are slices of the image itself, padded
one by one in the loop that reads them, and the windows at a large image's border are
computed apart from those inside.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, windows
from handgrad.buffers import written_down
from handgrad.pooling.upsample import FEW_CHANNELS
from handgrad.windows import Window, Windows

# With so many numbers it gains to compute the windows inside of an image by themselves.
LARGE_IMAGE = 2**16


def views_of(
    x: jax.Array, described: Windows, fill: np.ndarray | None = None
) -> list[jax.Array]:
    """The pixels of every window, [..., P, Q, C] for each place in row-major order.

    Args:
      x: image [..., H, W, C].
      described: one window for each spatial dimension.
      fill: what a window sees outside of the image; 0 by default.
    """
    if _seen_in_place(described) and windows.parts_of_rows(described) == 1:
        places = windows.places(described)
        return [_within(x, place, described, fill) for place in places]
    return windows.views(x, described, fill)


def _seen_in_place(described: Windows) -> bool:
    strided = any(w.stride > 1 for w in described)
    # A border in three dimensions has 26 parts: then a copy costs less.
    padded = sum(not w.real().all() for w in described)
    return strided and padded < 3 and all(w.input_dilation == 1 for w in described)


def _within(
    x: jax.Array, place: Sequence[int], described: Windows, fill: np.ndarray | None
) -> jax.Array:
    """`windows.view` of an image that is not padded, nor dilated."""
    config: list[tuple[int, int, int]] = [(0, 0, 0)] * x.ndim
    for axis, (w, k) in enumerate(
        zip(described, place, strict=True), x.ndim - 1 - len(described)
    ):
        real = np.flatnonzero(w.real()[:, k])
        if not real.size:
            x = lax.slice_in_dim(x, 0, 0, axis=axis)
            config[axis] = (w.output, 0, 0)
            continue
        before, behind = int(real[0]), int(real[-1])
        start, last = (w.stride * p + w.dilation * k - w.low for p in (before, behind))
        x = lax.slice_in_dim(x, start, last + 1, w.stride, axis)
        config[axis] = (before, w.output - 1 - behind, 0)
    if not any(any(ends) for ends in config):
        return x
    return lax.pad(x, arguments.zero(x.dtype) if fill is None else fill, config)


def by_strips(
    x: jax.Array, described: Windows, compute: Callable[[jax.Array, Windows], Any]
) -> Any:
    """What windows compute of an image, from their views; of a large one by strips.

    XLA on a CPU takes what computes x, a gelu say, into the loop over the places, and
    beside the question whether a pixel is padding that no longer fills the vector unit.
    The windows inside of the image need not ask.

    Args:
      x: image [..., H, W, C].
      described: one window for each spatial dimension.
      compute: of a part of the image and its windows: arrays [..., P, Q, C].

    Returns:
      The arrays for all windows.
    """

    def whole(x):
        return compute(x, described)

    def strips(x):
        return _strips(x, described, 0, compute)

    small = x.size < LARGE_IMAGE or windows.parts_of_rows(described) > 1
    if small or not _seen_in_place(described):
        return whole(x)
    return lax.platform_dependent(x, cpu=strips, default=whole)


def _strips(x, described, dimension, compute):
    """The windows that begin outside of a dimension, inside, and end outside of it."""
    if dimension == len(described):
        return compute(x, described)
    w, axis = described[dimension], x.ndim - 1 - len(described) + dimension
    inside = _inside(w)
    if not 0 < len(inside) < w.output:
        return _strips(x, described, dimension + 1, compute)
    found = []
    for start, stop in itertools.pairwise((0, inside.start, inside.stop, w.output)):
        if start == stop:
            continue
        first = w.stride * start - w.low
        last = w.stride * (stop - 1) - w.low + w.extent
        begin, end = max(first, 0), min(last, w.input)
        strip = dataclasses.replace(
            w, input=end - begin, low=begin - first, high=last - end
        )
        part = lax.slice_in_dim(x, begin, end, axis=axis)
        parts = (*described[:dimension], strip, *described[dimension + 1 :])
        found.append(_strips(part, parts, dimension + 1, compute))
    return jax.tree.map(functools.partial(_joined, axis), *found)


def _inside(w: Window) -> range:
    """The windows inside of the image, if all others reach into it."""
    if max(w.low, w.high) >= w.extent:
        return range(0)
    first = -(-max(w.low, 0) // w.stride)
    last = (w.input + w.low - w.extent) // w.stride
    return range(first, min(last + 1, w.output))


def _joined(axis, *parts):
    """The parts behind one another.

    Each fills up its place in the whole, and the position selects. A concatenation is
    as fast, but would be redistributed among devices that split its axis. Of few
    channels the short parts are read from memory: a loop that computes them, too, takes
    one number at a time.
    """
    if parts[0].shape[-1] < FEW_CHANNELS:
        longest = max(part.shape[axis] for part in parts)
        parts = [
            part if part.shape[axis] == longest else written_down(part)
            for part in parts
        ]
    ends = np.cumsum([part.shape[axis] for part in parts])
    whole = None
    for part, end in zip(parts, ends, strict=True):
        start = end - part.shape[axis]
        config = [(0, 0, 0)] * part.ndim
        config[axis] = (int(start), int(ends[-1] - end), 0)
        part = lax.pad(part, arguments.zero(part.dtype), config)
        before = lax.expand_dims(
            jnp.arange(ends[-1]) < start, range(1, part.ndim - axis)
        )
        whole = part if whole is None else jnp.where(before, whole, part)
    return whole
