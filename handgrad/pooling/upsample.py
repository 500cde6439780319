"""Up-sampling: every window hands what it holds to its pixels, without a scatter.

Number the pixels h = s·i + a with 0 ≤ a < s. Pixel h is the place k of the window
p = i − m when

    d·k = s·m + a + b,

so that a pixel meets only the few shifts m that have such a place k(m, a), and

    x[s·i + a] = Σ_m [window i−m hands its value to place k(m, a)] · value[i − m].

All residues `a` are computed in one loop: the values are broadcast along an axis of
length s beside i, and a table of s entries tells each its place. So x is written once
and in order; no zero is inserted, and no phases are interleaved afterwards. A window
whose stride is its size has one shift: the article's up-sampling of s×s blocks.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import sharding
from handgrad.arguments import zero
from handgrad.buffers import written_down, zero_after
from handgrad.windows import Window, Windows, join_parts, parts_of_rows

# Below this many channels the innermost loop is too short to fill the vector unit: then
# a line's pixels of one residue and their channels become one axis.
FEW_CHANNELS = 16
# With so few shifts it costs less to ask in the loop what is a window than to fill a
# buffer with windows around the image.
FEW_SHIFTS = 4
# An array of more is mapped anew in each call: to compute it twice costs less.
_MOST_BYTES = 2**25

Step = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def add(total: jax.Array, chosen: jax.Array, value: jax.Array) -> jax.Array:
    """What the windows hand to a pixel is added."""
    return total + jnp.where(chosen, value, zero(value.dtype))


def largest(total: jax.Array, chosen: jax.Array, value: jax.Array) -> jax.Array:
    """The largest of what the windows hand to a pixel, and zero."""
    return jnp.maximum(total, jnp.where(chosen, value, zero(value.dtype)))


def replace(total: jax.Array, chosen: jax.Array, value: jax.Array) -> jax.Array:
    """What the last window in row-major order hands to a pixel."""
    return jnp.where(chosen, value, total)


def upsample(
    values: jax.Array,
    windows: Windows,
    offset: jax.Array | None = None,
    step: Step = add,
    *,
    apart: bool = False,
    once: np.dtype | None = None,
) -> jax.Array:
    """Hands the value of each window to its pixels.

    Args:
      values: one for each window and channel, [..., P, Q, C].
      windows: one for each spatial dimension.
      offset: the one place of each window that gets its value, counted in row-major
        order, [..., P, Q, C]; a negative one is no place. By default all places get it.
      step: how a pixel takes what is handed to it; it begins with zero.
      apart: whether the loop is to be kept apart from the one before, which computes
        the values, by a buffer between them.
      once: the dtype in which the image is written down, so that not the loop of each
        reader computes it, if that is of use.

    Returns:
      An image [..., H, W, C].
    """
    axes = [_axis(w) for w in windows]
    arrays = [values] if offset is None else [values, offset]
    joins = _joins_channels(values, axes)
    shifts = math.prod(len(axis.places) for axis in axes)
    parts = parts_of_rows(windows)
    # Whether the image is cut out of what is written down, which is one more array.
    cut = any(w.input % w.stride or w.input_dilation > 1 for w in windows)
    per_window = math.prod(w.input / w.output for w in windows if w.output)
    if cut and values.nbytes * per_window > _MOST_BYTES:
        once = None
    if apart or joins or shifts > FEW_SHIFTS or parts > 1:
        arrays = [_pad(x, axes, windows, parts) for x in arrays]
        axes = [dataclasses.replace(axis, before=max(axis.places)) for axis in axes]
    if parts > 1:
        axes[0] = dataclasses.replace(axes[0], count=axes[0].count // parts)
    if joins:
        *rows, line = axes
        joined = [sharding.merge(x, x.ndim - 2, x.ndim) for x in arrays]
        unit = values.shape[-1]
        residues = [
            sharding.split(x, x.ndim - 1, (line.count, unit))
            for a in range(line.residues)
            for x in [_sum(joined, [*rows, line.alone(a)], step, unit)]
        ]
        x = residues[0]
        if len(residues) > 1:  # [..., J, C] of each residue to [..., J·t, C]
            x = jnp.stack(residues, -2)
            x = sharding.merge(x, x.ndim - 3, x.ndim - 1)
    else:
        x = _sum(arrays, axes, step, once=once if cut else None)
    x = join_parts(x, windows, parts)
    found = x
    for axis, w in enumerate(windows, x.ndim - 1 - len(windows)):
        if x.shape[axis] != w.input:
            x = lax.slice_in_dim(x, 0, w.dilated, w.input_dilation, axis)
    if once is None:
        return x
    if joins or not cut:
        return written_down(x.astype(once))
    # A second reader: else the loop that cuts would compute what is written down.
    return x + zero_after(found, x.dtype)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """The pixels s·i + a of one spatial axis.

    Attributes:
      places: for each shift m the places k(m, a) of every residue a, −1 where there is
        none; from the largest shift, that of the first window which holds a pixel.
      count: how many pixels i a residue has.
      size: how many places a window has.
      before: the number of the first window is −before.
    """

    places: dict[int, np.ndarray]
    count: int
    size: int
    before: int = 0

    @property
    def residues(self) -> int:
        """How many residues there are, s."""
        return len(next(iter(self.places.values())))

    def alone(self, a: int) -> "_Axis":
        """The pixels of one residue only."""
        places = {m: each[a : a + 1] for m, each in self.places.items()}
        return dataclasses.replace(self, places=places)


def _axis(w: Window) -> _Axis:
    count = -(-w.dilated // w.stride)
    least = max(-((w.low + w.stride - 1) // w.stride), 1 - w.output)
    most = min((w.extent - 1 - w.low) // w.stride, count - 1)
    places = {}
    for m in range(most, least - 1, -1):
        k, rest = np.divmod(w.stride * m + np.arange(w.stride) + w.low, w.dilation)
        k = np.where((rest == 0) & (k >= 0) & (k < w.size), k, -1)
        if (k >= 0).any():
            places[m] = k
    return _Axis(places or {0: np.full(w.stride, -1)}, count, w.size)


def _pad(
    x: jax.Array, axes: Sequence[_Axis], windows: Windows, parts: int
) -> jax.Array:
    """Adds windows outside of the image, which hold nothing, wherever some i − m is.

    Entry i + max(m) − m is then window i − m. Several parts of the rows have an axis of
    their own, [..., parts, P/parts, Q, C].
    """
    config = [
        (max(axis.places), axis.count - min(axis.places) - w.output, 0)
        for axis, w in zip(axes, windows, strict=True)
    ]
    if parts > 1:
        (before, behind, _), *others = config
        first = x.ndim - 1 - len(axes)
        x = sharding.with_halos(x, first, parts, before, behind, _nothing(x))
        config = [(0, 0, 0), *others]
    if not any(any(ends) for ends in config):
        return x
    config = [*[(0, 0, 0)] * (x.ndim - 1 - len(axes)), *config, (0, 0, 0)]
    return lax.optimization_barrier(lax.pad(x, _nothing(x), config))


def _nothing(x: jax.Array) -> np.ndarray:
    """What a window outside of the image holds: no value, no place."""
    signed = jnp.issubdtype(x.dtype, jnp.signedinteger)
    return np.array(-1 if signed else 0, x.dtype)


def _part(
    x: jax.Array, nothing: jax.Array | np.ndarray, start: int, stop: int, axis: int
) -> jax.Array:
    """x[start:stop] along an axis, with nothing beyond its ends."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (-start, stop - x.shape[axis], 0)
    return lax.pad(x, nothing, config)


def _joins_channels(values: jax.Array, axes: Sequence[_Axis]) -> bool:
    """Whether the pixels of a line and their few channels are computed as one axis."""
    where = sharding.of(values)
    whole = where is None or not any(where.spec[-2:])
    overlap = any(len(axis.places) > 1 for axis in axes)
    return overlap and whole and 0 < values.shape[-1] < FEW_CHANNELS


def _sum(
    arrays: Sequence[jax.Array],
    axes: Sequence[_Axis],
    step: Step,
    unit: int = 0,
    *,
    once: np.dtype | None = None,
) -> jax.Array:
    """The sum over the shifts of [values] or [values, offset].

    Args:
      arrays: [..., P', Q', C]; with a `unit`, [..., P', Q'·C].
      axes: one for each spatial dimension; with a `unit`, the last has one residue.
      step: see `upsample`.
      unit: how many channels the last axis' pixels are joined with.
      once: see `upsample`.

    Returns:
      [..., I·s, J·t, C]; with a `unit`, [..., I·s, J·C].
    """
    first = arrays[0].ndim - len(axes) - (0 if unit else 1)  # the first spatial axis
    apart = axes[:-1] if unit else axes  # those with an axis of residues beside i

    outside: list[Any] = [_nothing(x) for x in arrays]
    if len(arrays) > 1:
        # Else XLA pads the offsets before there are values, and keeps them twice.
        outside[1] = outside[1] + zero_after(arrays[0], arrays[1].dtype)

    def shifted(x: jax.Array, nothing: Any, shifts: Sequence[int]) -> jax.Array:
        """What the windows i − m hold, [..., I, 1, J, 1, C]."""
        for number, (axis, m) in enumerate(zip(axes, shifts, strict=True)):
            each = unit if unit and axis is axes[-1] else 1
            start = axis.before - m
            stop = start + axis.count
            x = _part(x, nothing, each * start, each * stop, first + number)
        return lax.expand_dims(x, [first + 2 * i + 1 for i in range(len(apart))])

    def table(shifts: Sequence[int]) -> np.ndarray:
        """The places of all residues, counted in row-major order: [1, s, 1, t, 1].

        Where there is none it is −2, which no offset is.
        """
        flat = np.zeros((), np.int32)
        for axis, m in zip(axes, shifts, strict=True):
            k = axis.places[m].astype(np.int32)
            flat = flat[..., None]
            flat = np.where((flat < 0) | (k < 0), np.int32(-2), flat * axis.size + k)
        pairs = [size for axis in apart for size in (1, axis.residues)]
        return flat.reshape([1] * first + pairs + [1])

    total: Any = None
    for shifts in itertools.product(*(axis.places for axis in axes)):
        places = table(shifts)
        pairs = zip(arrays, outside, strict=True)
        value, *offset = (shifted(*pair, shifts) for pair in pairs)
        chosen = jnp.asarray(places >= 0)
        if offset:
            chosen = offset[0].astype(np.int32) == places
        if total is None:
            total = jnp.where(chosen, value, zero(value.dtype))
        else:
            total = step(total, chosen, value)
    x = total if once is None else written_down(total.astype(once))
    for number in range(len(apart)):  # [I, s] to [I·s]
        x = sharding.merge(x, first + number, first + number + 2)
    return x
