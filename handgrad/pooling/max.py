"""Max pooling: the error goes to where the maximum was.

    y[p] = max_k x[s·p + d·k − b] = x[t],     dx[t] = dy[p],  0 elsewhere in the window

The forward pass remembers `t` as the *offset in the window* of the maximum, one byte
while the window has up to 256 places; the input is not kept. Going backward,

    dx[h] = Σ_k [offset[p] = k] · dy[p]     over the windows p that hold h at place k,

which `upsample` computes without a scatter, so that the result does not depend on the
order of the additions' threads. Min pooling is the same with the other comparison.

A window of many places is searched one dimension after the other: the first maximum of
each row, then the first row that has it; K + L steps instead of K·L. The error goes
back the same way, first to the row, then to the pixel. One offset a window still
suffices: all windows that find their maximum in one row find it at the same pixel.

Ties: the first maximum in row-major order takes all, as in the gradient of
`jax.lax.reduce_window`. NaN: a window with a NaN is NaN, and its first NaN takes the
error. Padding never takes it: a window that holds a pixel hands its error to a pixel.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, sharding, windows
from handgrad.buffers import written_down
from handgrad.pooling.arguments import image_and_windows
from handgrad.pooling.upsample import largest, upsample
from handgrad.pooling.views import by_strips, views_of
from handgrad.reductions import or_nan
from handgrad.rules import RULES, register
from handgrad.windows import Windows

# Of an image with fewer numbers the search costs less than to write its result down.
SMALL_IMAGE = 2**17
# So many places of a long line are compared at once.
PIECE = 8


@dataclasses.dataclass(frozen=True)
class ExtremumSpec:
    """The static part of a max or min pool."""

    windows: Windows
    largest: bool = True

    @property
    def better(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The better of two numbers, NaN if one is."""
        return lax.max if self.largest else lax.min

    def worst(self, dtype) -> np.ndarray:
        """The value that never wins."""
        return arguments.lowest(dtype) if self.largest else arguments.highest(dtype)

    @property
    def places(self) -> int:
        """How many places a window has."""
        return math.prod(w.size for w in self.windows)

    @property
    def offset_dtype(self) -> np.dtype:
        """The smallest integers that tell the places of a window apart."""
        return np.dtype(np.uint8 if self.places <= 256 else np.uint32)


def max_pool(
    inputs: jax.Array,
    window_shape: Sequence[int] | None,
    strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    *,
    window_dilation: Sequence[int] | None = None,
    ceil_mode: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """Maximum of each window.

    y[p, q] = max_kl x[s·p + d·k − b, s·q + d·l − b]
    dx[h, w] = Σ dy[p, q] over the windows whose maximum is that pixel

    Args:
      inputs: real image [..., H, W, C], any number of spatial dimensions and of leading
        batch axes; integers have a forward pass only.
      window_shape: pixels of the window in each spatial dimension; `None` for one
        window over all axes but the first and the last.
      strides: distance between neighbouring windows in pixels; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) pixels for each dimension.
      window_dilation: distance between neighbouring window pixels; 1 by default.
      ceil_mode: whether a last window that sticks out of the padded image counts, if it
        begins in the image or the padding before it.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own
        (which JAX does not have for dilated windows).

    Returns:
      The maxima [..., P, Q, C]; of several equal ones the first in row-major order
      takes the gradient. A window with a NaN is NaN. A window wholly in padding is −∞
      (the smallest integer) and has no gradient.

    Raises:
      ValueError: the lengths do not match, or the window does not fit the image.
      TypeError: `inputs` is complex or not a number.

    Example:
      >>> import jax, jax.numpy as jnp, handgrad
      >>> x = jnp.array([[1.0, 4.0], [3.0, 2.0]])[..., None]
      >>> jax.grad(lambda x: handgrad.max_pool(x, (2, 2)).sum())(x).squeeze()
      Array([[0., 1.], [0., 0.]], dtype=float32)

    Source: the article's max pooling, FORMULAS A4 and B7.
    """
    return _pool(
        "max_pool",
        inputs,
        (window_shape, strides, padding, window_dilation, ceil_mode),
        implementation,
        largest=True,
    )


def min_pool(
    inputs: jax.Array,
    window_shape: Sequence[int] | None,
    strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    *,
    window_dilation: Sequence[int] | None = None,
    ceil_mode: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """Minimum of each window.

    y[p, q] = min_kl x[s·p + d·k − b, s·q + d·l − b]
    dx[h, w] = Σ dy[p, q] over the windows whose minimum is that pixel

    Args:
      inputs: see `max_pool`, and so for the other arguments.
      window_shape: pixels of the window in each spatial dimension, or `None` for all.
      strides: distance between neighbouring windows in pixels; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) pixels for each dimension.
      window_dilation: distance between neighbouring window pixels; 1 by default.
      ceil_mode: whether a last window that sticks out of the padded image counts.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The minima [..., P, Q, C]; of several equal ones the first in row-major order
      takes the gradient. A window with a NaN is NaN. A window wholly in padding is +∞
      (the largest integer) and has no gradient.

    Raises:
      ValueError: the lengths do not match, or the window does not fit the image.
      TypeError: `inputs` is complex or not a number.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.min_pool(jnp.arange(6.0)[:, None], (2,), (2,)).squeeze()
      Array([0., 2., 4.], dtype=float32)

    Source: the article's max pooling with the other comparison, FORMULAS B7.
    """
    return _pool(
        "min_pool",
        inputs,
        (window_shape, strides, padding, window_dilation, ceil_mode),
        implementation,
        largest=False,
    )


def _pool(op, inputs, geometry, implementation, *, largest):
    x, described = image_and_windows(op, inputs, *geometry, kind="real")
    spec = ExtremumSpec(described, largest)
    return RULES[op].choose(implementation, spec)(x, spec)


def autodiff_extremum(x: jax.Array, spec: ExtremumSpec) -> jax.Array:
    """The extremum of each window with JAX's own gradient."""
    return windows.reduce_window(x, spec.worst(x.dtype), spec.better, spec.windows)


def extremum(x: jax.Array, spec: ExtremumSpec) -> jax.Array:
    """The extremum of each window; its gradient is that of the next function."""
    y, _ = extremum_and_offset(x, spec)  # type: ignore[misc]  # a custom_vjp is untyped
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def extremum_and_offset(x, spec) -> tuple[jax.Array, jax.Array]:
    """The extremum of each window and the first place that has it."""
    best, offset = _find(x, spec)
    return best, written_down(offset) if x.size >= SMALL_IMAGE else offset


def _extremum_and_offset_fwd(x, spec):
    # By the rule, not by `_find`: a second derivative goes to the first of equals, too.
    y, offset = extremum_and_offset(x, spec)  # type: ignore[misc]
    residuals = (offset,)  # where the maximum was: one byte a window, not the input
    return (y, offset), residuals


def _extremum_and_offset_bwd(spec, residuals, cotangents):
    """dx[h] = Σ_k [offset[p] = k] dy[p] over the windows p that hold h at place k."""
    (offset,), (dy, _) = residuals, cotangents
    total = dy.astype(arguments.accumulator(dy.dtype))
    return (_hand_back(total, offset, spec, dy.dtype).astype(dy.dtype),)


extremum_and_offset.defvjp(_extremum_and_offset_fwd, _extremum_and_offset_bwd)
_SOURCE = "the article, A4: max"
register("max_pool", source=_SOURCE, autodiff=autodiff_extremum)(extremum)
register("min_pool", source=_SOURCE, autodiff=autodiff_extremum)(extremum)


def _find(x, spec) -> Any:
    """The extremum and the offset of each window."""
    if spec.places <= windows.MANY_PLACES:
        return by_strips(x, spec.windows, functools.partial(_find_in, spec=spec))
    worst, offset = spec.worst(x.dtype), None
    best, described, parts = windows.padded_parts(x, spec.windows, worst)
    best = best if best is x else lax.optimization_barrier(best)
    for line, unit in _lines(described):
        if offset is not None:
            # The loop of the next line would compute them for each of its views.
            best, offset = written_down(best), written_down(offset)
        best, offset = _search(best, offset, line, unit, spec)
    best, offset = (windows.join_parts(a, described, parts) for a in (best, offset))
    return best, _not_in_padding(best, offset, spec)


def _find_in(x, described, *, spec):
    """`_find` for a few places, all at once."""
    spec = dataclasses.replace(spec, windows=described)
    best, offset = _best_of(views_of(x, described, spec.worst(x.dtype)), None, 1, spec)
    return best, _not_in_padding(best, offset, spec)


def _not_in_padding(best, offset, spec):
    """Where all pixels are the worst, so is the padding before them: no place to be."""
    if all(w.real().all() for w in spec.windows):
        return offset
    return jnp.where(best == spec.worst(best.dtype), _first_real(spec), offset)


def _first_place(views, offsets, spec):
    """The best of the views, or NaN if one is, and the offset of the first that is it.

    The views are compared with each other, not with the extremum: where XLA computes x
    once more for this loop, it may round it another way, and no view would be equal.
    """
    better = lax.ge if spec.largest else lax.le
    best, found = views[-1], jnp.broadcast_to(offsets[-1], views[-1].shape)
    for view, at in zip(views[-2::-1], offsets[-2::-1], strict=True):
        wins = better(view, best) | _is_nan(view)
        best, found = jnp.where(wins, view, best), jnp.where(wins, at, found)
    return best, found


def _lines(described: Windows) -> Iterator[tuple[Windows, int]]:
    """The windows of each dimension alone, the last first, and what its places count.

    Each is searched in what the one before found.
    """
    lengths = [w.input for w in described]
    for i in reversed(range(len(described))):
        unit = math.prod(w.size for w in described[i + 1 :])
        yield windows.line(described, i, lengths), unit
        lengths[i] = described[i].output


def _search(image, offset, line, unit, spec):
    """The best of each window, and its offset: that place's own, plus unit · place."""
    (long,) = [w for w in line if w.size > windows.MANY_PLACES] or [None]
    if long and long.stride == long.size and long.dilation == 1:
        return _search_blocks(image, offset, line.index(long), long, unit, spec)
    views = [windows.view(image, place, line) for place in windows.places(line)]
    if offset is not None:
        offset = [windows.view(offset, place, line) for place in windows.places(line)]
    return _best_of(views, offset, unit, spec)


def _best_of(views, offsets, unit, spec):
    """The best of the views, and its offset: its own, plus unit · place."""
    steps = [spec.offset_dtype.type(unit * k) for k in range(len(views))]
    if offsets is not None:
        steps = [step + own for step, own in zip(steps, offsets, strict=True)]
    best = functools.reduce(spec.better, views)
    return best, _first_place(views, steps, spec)[1]


def _search_blocks(image, offset, dimension, w, unit, spec):
    """`_search` along a long line cut into blocks, piece by piece or in one pass.

    Not by a maximum and a search for what equals it: see `_first_place`. `argmax` knows
    the place from where it found the best; on a CPU it takes one number at a time.
    """
    axis = image.ndim - 1 - len(spec.windows) + dimension
    arrays = [a for a in (image, offset) if a is not None]
    arrays = [sharding.split(a, axis, (w.output, w.size)) for a in arrays]
    axis = axis + 1

    def in_pieces(best: jax.Array, offset: Any = None):
        step = unit
        while (n := best.shape[axis]) > 1:
            if step > unit:
                best, offset = written_down(best), written_down(offset)
            whole, found = n - n % PIECE, []
            for start, stop in ((0, whole), (whole, n)):
                views, offsets = (
                    a if a is None else _every(PIECE, a, start, stop, axis)
                    for a in (best, offset)
                )
                if views:
                    found.append(_best_of(views, offsets, step, spec))
            best, offset = jax.tree.map(
                lambda *parts: jnp.concatenate(parts, axis), *found
            )
            step *= PIECE
        return lax.squeeze(best, [axis]), lax.squeeze(offset, [axis])

    def in_one_pass(*arrays):
        best = (jnp.max, lax.argmax) if spec.largest else (jnp.min, lax.argmin)
        unit_ = spec.offset_dtype.type(unit)
        return search_in_one_pass(best, *arrays, axis=axis, unit=unit_)

    where = sharding.of(arrays[0])
    if where is not None and where.spec[axis] is not None:
        return in_one_pass(*arrays)  # no device has the whole line
    return lax.platform_dependent(*arrays, cpu=in_pieces, default=in_one_pass)


def _every(n, x, start, stop, axis):
    """From `start` on every n-th entry, from the next on every n-th, and so on."""
    firsts = range(start, min(start + n, stop))
    return [lax.slice_in_dim(x, first, stop, n, axis) for first in firsts]


def search_in_one_pass(
    best: tuple[Callable[..., Any], Callable[..., Any]],
    values: jax.Array,
    offset: jax.Array | None = None,
    *,
    axis: int,
    unit: np.unsignedinteger,
) -> tuple[jax.Array, jax.Array]:
    """The best along an axis, and the offset of the first: its own, plus unit · place.

    Args:
      best: what finds its value and its place, `(jnp.max, lax.argmax)` say.
      values: where to search.
      offset: what each place counts for already, of the same shape; nothing if `None`.
      axis: along which; it is gone in the results.
      unit: what a step along it counts for, in the offsets' dtype.
    """
    reduce, find = best
    place = find(values, axis, np.int32)
    found = unit * place.astype(unit.dtype)
    if offset is not None:
        here = lax.broadcasted_iota(np.int32, offset.shape, axis)
        here = here == lax.expand_dims(place, [axis])
        found = found + jnp.max(jnp.where(here, offset, unit.dtype.type(0)), axis)
    return or_nan(reduce(values, axis), values, (axis,)), found


def _hand_back(dy, offset, spec, dtype):
    """Each window's error to its maximum, in the order of `_lines` turned round.

    A norm's sums would add up the errors of overlapping windows anew, one at a time.
    """
    overlap = any(w.stride < w.extent for w in spec.windows)
    once = dtype if overlap else None
    if spec.places <= windows.MANY_PLACES or len(spec.windows) == 1 or not overlap:
        return upsample(dy, spec.windows, offset, once=once)
    lengths = [w.output for w in spec.windows]
    for i, w in enumerate(spec.windows):
        # In their own dtype: of bytes the vector unit compares the most at once.
        unit = offset.dtype.type(math.prod(w.size for w in spec.windows[i + 1 :]))
        place, offset = offset // unit, offset % unit
        line = windows.line(spec.windows, i, lengths)
        last = i + 1 == len(spec.windows)
        dy = upsample(dy, line, place, apart=True, once=once if last else None)
        if not last:
            offset = upsample(offset, line, place, largest, apart=True)
        lengths[i] = w.input
    return dy


def _is_nan(x):
    return x != x


def _first_real(spec):
    """The offset of each window's first pixel that is no padding, [P, Q, 1]."""
    first = np.zeros((), np.int64)
    for w in spec.windows:
        first = first[..., None] * w.size + np.argmax(w.real(), axis=1)
    return first[..., None].astype(spec.offset_dtype)
