r"""Sliding windows in N dimensions: what convolution and pooling share.

In each spatial dimension an image of `H` pixels becomes `P` windows of `K` pixels.
Window `p` sees, at its place `k`, the pixel

    h = s·p + d·k − b        (stride s, window dilation d, low padding b)

of the image, into which `e − 1` zeros are inserted between neighbours if its own
dilation `e` is not one. Two functions are each other's transpose:

- `view(x, k)` gathers, for every window, the pixel at place `k`;
- `spread(pieces)` gives every pixel the sum of what the windows hold for it.

`spread` works by *residues*. Write h = s·j + r with 0 ≤ r < s. A place k meets only the
pixels of residue r = (d·k − b) mod s, shifted by m = ⌊(d·k − b) / s⌋ windows, so that

    x[s·j + r] = Σ_{k: d·k − b = s·m + r} piece_k[j − m].

The s residues are dense arrays; interleaving them gives the image. There is no scatter
and no multiplication by an inserted zero. Dumoulin & Visin 2016, arXiv:1603.07285.

Images are channels last: the spatial axes are all but the last one, counted from the
right, so that any number of batch axes may lead.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, sharding


@dataclasses.dataclass(frozen=True)
class Window:
    """A sliding window along one dimension.

    Attributes:
      input: pixels of the image, H.
      size: pixels of the window, K.
      stride: s.
      low: padding before the first pixel, b; negative crops.
      high: padding after the last pixel; negative crops.
      dilation: distance between neighbouring window pixels, d.
      input_dilation: distance between neighbouring image pixels, e.
    """

    input: int
    size: int
    stride: int = 1
    low: int = 0
    high: int = 0
    dilation: int = 1
    input_dilation: int = 1

    @property
    def dilated(self) -> int:
        """Pixels of the image after the zeros are inserted."""
        return self.input_dilation * (self.input - 1) + 1 if self.input else 0

    @property
    def extent(self) -> int:
        """Pixels from the window's first to its last: d·(K−1)+1."""
        return self.dilation * (self.size - 1) + 1 if self.size else 0

    @property
    def output(self) -> int:
        """How many windows fit, P."""
        room = self.dilated + self.low + self.high - self.extent
        return room // self.stride + 1 if room >= 0 else 0

    @property
    def covered(self) -> int:
        """Padded pixels that some window sees: s·(P−1) + extent."""
        return self.stride * (self.output - 1) + self.extent if self.output else 0

    @property
    def transposed(self) -> "Window":
        """The windows which hold a pixel, as a window over them; of stride one only."""
        low = self.extent - 1 - self.low
        high = self.input + self.extent - 1 - self.output - low
        return Window(self.output, self.size, 1, low, high, self.dilation)

    def real(self) -> np.ndarray:
        """Whether window p sees a pixel of the image at place k: booleans [P, K]."""
        p, k = np.arange(self.output)[:, None], np.arange(self.size)[None, :]
        h = self.stride * p + self.dilation * k - self.low
        return (h >= 0) & (h < self.dilated) & (h % self.input_dilation == 0)


Windows = tuple[Window, ...]

# A window of more places is summed or searched by dimension, and a line of more places
# that is cut into blocks by one reduction.
MANY_PLACES = 16


def describe(
    op: str,
    image: Sequence[int],
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None,
    padding: arguments.Padding,
    dilation: int | Sequence[int] | None = None,
    input_dilation: int | Sequence[int] | None = None,
    *,
    name: str = "window_shape",
    stride_name: str = "strides",
    dilation_name: str = "window_dilation",
    input_dilation_name: str = "input_dilation",
) -> Windows:
    """Returns the windows of an op, one for each spatial dimension.

    Args:
      op: the op's public name, for its errors.
      image: pixels in each spatial dimension.
      window_shape: pixels of the window in each spatial dimension.
      strides: distance between neighbouring windows; `None` means 1.
      padding: see `arguments.paddings`.
      dilation: distance between neighbouring window pixels; `None` means 1.
      input_dilation: distance between neighbouring image pixels; `None` means 1.
      name: what the op calls its `window_shape`; so for the next three.
      stride_name: its `strides`.
      dilation_name: its `dilation`.
      input_dilation_name: its `input_dilation`.

    Raises:
      ValueError: a length or a number does not fit, or no window fits the image.
    """
    n = len(image)
    sizes = arguments.per_dimension(op, name, tuple(window_shape), n)
    strides = arguments.per_dimension(op, stride_name, strides, n)
    dilation = arguments.per_dimension(op, dilation_name, dilation, n)
    input_dilation = arguments.per_dimension(op, input_dilation_name, input_dilation, n)
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, sizes, strict=True)]
    pads = arguments.paddings(op, padding, image, extents, strides)
    windows = tuple(
        Window(h, k, s, low, high, d, e)
        for h, k, s, (low, high), d, e in zip(
            image, sizes, strides, pads, dilation, input_dilation, strict=True
        )
    )
    for w in windows:
        arguments.require(
            w.dilated + w.low + w.high >= 0,
            op,
            f"padding (={(w.low, w.high)}) must not crop more than the {w.dilated} "
            "pixels of the image",
        )
    return windows


def require_fit(op: str, windows: Windows, *, name: str) -> None:
    """Raises `ValueError` unless at least one window fits the padded image."""
    for w in windows:
        padded = w.dilated + w.low + w.high
        arguments.require(
            padded >= w.extent,
            op,
            f"{name} (={w.size}) with dilation (={w.dilation}) spans {w.extent} pixels "
            f"and does not fit an image of {w.input} pixels, {padded} with padding "
            f"(={(w.low, w.high)})",
        )


def output_shape(windows: Windows) -> tuple[int, ...]:
    """Windows in each spatial dimension: P, Q, ..."""
    return tuple(w.output for w in windows)


def places(windows: Windows) -> Iterator[tuple[int, ...]]:
    """The places of a window in row-major order."""
    return itertools.product(*(range(w.size) for w in windows))


def _on_spatial(x: jax.Array, entries: Sequence, *, other) -> list:
    """One entry for each axis of `x`: `entries` on the spatial axes, else `other`."""
    before = x.ndim - 1 - len(entries)
    return [other] * before + list(entries) + [other]


def pad(
    x: jax.Array, windows: Windows, fill: jax.Array | np.ndarray | None = None
) -> jax.Array:
    """Returns the image padded (or cropped) to exactly what the windows see.

    Args:
      x: image [..., H, W, C].
      windows: one for each spatial dimension.
      fill: the padding's value; 0 by default.
    """
    config = [
        (w.low, w.covered - w.low - w.dilated, w.input_dilation - 1) for w in windows
    ]
    if not any(any(c) for c in config):
        return x
    fill = arguments.zero(x.dtype) if fill is None else fill
    return lax.pad(x, fill, _on_spatial(x, config, other=(0, 0, 0)))


def view(padded: jax.Array, place: Sequence[int], windows: Windows) -> jax.Array:
    """Returns the pixel at one place of every window: [..., P, Q, C].

    Args:
      padded: what `pad` returned.
      place: the place (k, l, ...) in the window.
      windows: one for each spatial dimension.
    """
    starts = [
        w.dilation * k if w.output else 0 for w, k in zip(windows, place, strict=True)
    ]
    limits = [
        start + w.stride * (w.output - 1) + 1 if w.output else start
        for w, start in zip(windows, starts, strict=True)
    ]
    # The stride of one window says nothing, and XLA gets it wrong where the pixels are
    # split over devices: a long stride makes it read another device's part.
    strides = [w.stride if w.output > 1 else 1 for w in windows]
    shape = list(padded.shape)
    full = _on_spatial(padded, limits, other=None)
    return lax.slice(
        padded,
        _on_spatial(padded, starts, other=0),
        [
            size if limit is None else limit
            for size, limit in zip(shape, full, strict=True)
        ],
        _on_spatial(padded, strides, other=1),
    )


def views(
    x: jax.Array,
    windows: Windows,
    fill: jax.Array | np.ndarray | None = None,
    once: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> list[jax.Array]:
    """Returns the pixels of every window, [..., P, Q, C] for each place, in order.

    They are slices of a padded copy, which is written down: a pad in the loop that
    reads it costs more. Where devices may split the rows, the copy has them in parts.

    Args:
      x: image [..., H, W, C].
      windows: one for each spatial dimension.
      fill: what a window sees outside of the image; 0 by default.
      once: what is done to an image that needs no padding.
    """
    image, windows, parts = padded_parts(x, windows, fill)
    image = once(x) if image is x else lax.optimization_barrier(image)
    found = (view(image, place, windows) for place in places(windows))
    return [join_parts(v, windows, parts) for v in found]


def padded_parts(
    x: jax.Array, windows: Windows, fill: jax.Array | np.ndarray | None = None
) -> tuple[jax.Array, Windows, int]:
    """Returns what `pad` does, in parts, the windows of a part, and how many there are.

    Several parts have an axis of their own before the rows, [..., parts, H', W', C], as
    one more batch axis; a single one has none.
    """
    parts = parts_of_rows(windows)
    if parts > 1:
        first, *others = windows
        axis = x.ndim - 1 - len(windows)
        before, behind = first.low, first.extent - first.stride - first.low
        x = sharding.with_halos(x, axis, parts, before, behind, fill)
        rows = x.shape[axis + 1]
        windows = dataclasses.replace(first, input=rows, low=0, high=0), *others
    image = pad(x, windows, fill)
    seen = (Window(w.covered, w.size, w.stride, dilation=w.dilation) for w in windows)
    return image, tuple(seen), parts


def join_parts(x: jax.Array, windows: Windows, parts: int) -> jax.Array:
    """The rows of all parts, [..., parts, P', Q, C] to [..., P, Q, C]."""
    axis = x.ndim - 2 - len(windows)
    return x if parts == 1 else sharding.merge(x, axis, axis + 2)


def parts_of_rows(windows: Windows) -> int:
    """Into how many parts, each with a halo, the first dimension is to be cut.

    One, unless several devices may hold parts of it and its windows overlap, and can be
    cut like it. Else so many that every number of devices among which it falls evenly
    divides them, if a halo then lies in one neighbour.
    """
    if not windows or not sharding.may_be_split():
        return 1
    w = windows[0]
    alike = w.input == w.stride * w.output and w.input_dilation == 1
    overlap = 0 <= w.low <= w.extent - w.stride and w.extent > w.stride
    if not alike or not overlap or not w.output:
        return 1
    most = math.gcd(w.output, jax.device_count())
    counts = (n for n in range(most, 0, -1) if most % n == 0)
    return next((n for n in counts if w.input // n >= w.extent - 1), 1)


def disjoint(windows: Windows) -> bool:
    """Whether the windows are tiles: they share no pixel and leave none between out."""
    tiles = [w.extent == w.size and w.stride == w.size for w in windows]
    return bool(tiles) and all(tiles)


def to_tiles(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Cuts an image into tiles of these sizes: [... p·a q·b c] -> [... p q a b c]."""
    n = len(sizes)
    lead = x.ndim - 1 - n
    for i, size in enumerate(sizes):  # [... p a q b c]
        axis = lead + 2 * i
        x = sharding.split(x, axis, (x.shape[axis] // size, size))
    pairs = range(lead, lead + 2 * n)
    return x.transpose(*range(lead), *pairs[::2], *pairs[1::2], x.ndim - 1)


def from_tiles(tiles: jax.Array, dimensions: int) -> jax.Array:
    """`to_tiles` turned round, and transposed: [... p q a b c] -> [... p·a q·b c]."""
    n = dimensions
    lead = tiles.ndim - 1 - 2 * n
    pairs = (axis for i in range(n) for axis in (lead + i, lead + n + i))
    x = tiles.transpose(*range(lead), *pairs, tiles.ndim - 1)
    for axis in range(lead, lead + n):
        x = sharding.merge(x, axis, axis + 2)
    return x


def unpad(padded: jax.Array, windows: Windows) -> jax.Array:
    """`pad` transposed: the image's own pixels, zeros where no window sees one."""
    config = [(-w.low, w.low + w.dilated - w.covered, 0) for w in windows]
    zero = arguments.zero(padded.dtype)
    x = lax.pad(padded, zero, _on_spatial(padded, config, other=(0, 0, 0)))
    steps = [w.input_dilation for w in windows]
    return lax.slice(x, [0] * x.ndim, x.shape, _on_spatial(x, steps, other=1))


def spread(piece: Callable[..., jax.Array], windows: Windows) -> jax.Array:
    """Gives every pixel the sum of what the windows hold for it: `view` transposed.

    Args:
      piece: maps a place (k, l, ...) to an array [..., P, Q, C]: what each window
        holds for its pixel at that place.
      windows: one for each spatial dimension.

    Returns:
      An image [..., H, W, C].
    """

    def along(dimension: int, place: tuple[int, ...]) -> jax.Array:
        if dimension == len(windows):
            return piece(*place)
        window = windows[dimension]
        axis = dimension - len(windows) - 1
        return _spread_one(
            [along(dimension + 1, (*place, k)) for k in range(window.size)],
            window,
            axis,
        )

    return along(0, ())


def _spread_one(pieces: Sequence[jax.Array], window: Window, axis: int) -> jax.Array:
    """`spread` along one axis (counted from the right), by residues."""
    w = window
    axis = pieces[0].ndim + axis
    zero = arguments.zero(pieces[0].dtype)
    residues: list[jax.Array | None] = [None] * w.stride
    for k, y in enumerate(pieces):
        residue, first = _handed(w, k)
        config = [(0, 0, 0)] * y.ndim
        config[axis] = (-first, first + _of_residue(w) - w.output, 0)
        shifted = lax.pad(y, zero, config)
        before = residues[residue]
        residues[residue] = shifted if before is None else before + shifted
    empty = jnp.zeros_like(next(r for r in residues if r is not None))
    x = _interleave([empty if r is None else r for r in residues], axis)
    return lax.slice_in_dim(x, 0, w.dilated, w.input_dilation, axis)


def _of_residue(w: Window) -> int:
    """How many pixels s·j + r a residue r has, at most."""
    return -(-w.dilated // w.stride)


def _handed(w: Window, k: int) -> tuple[int, int]:
    """The residue r of the pixels at place k, and the window that holds its pixel 0.

    h = s·p + d·k − b is s·j + r for the window p = j + (r + b − d·k) / s.
    """
    h = w.dilation * k - w.low  # of window 0
    return h % w.stride, -(h // w.stride)


def _interleave(residues: Sequence[jax.Array], axis: int) -> jax.Array:
    """Entry j of residue r becomes entry s·j + r along the axis."""
    if len(residues) == 1:
        return residues[0]
    shape = list(residues[0].shape)
    shape[axis] *= len(residues)
    return jnp.stack(residues, axis + 1).reshape(shape)


def spread_views(
    term: Callable[..., jax.Array], array: jax.Array, windows: Windows
) -> jax.Array:
    """`spread` of pieces that are all made of one array, pixel by pixel.

    The array is padded once and shifted before the terms are made, so that each residue
    is one sum in one pass, where `spread` would shift every piece.

    Args:
      term: maps a place (k, l, ...) and some of the array's pixels to what those hold
        for theirs at that place, on any axes behind the spatial ones; zeros become
        zeros.
      array: [..., P, Q, C].
      windows: one for each spatial dimension.

    Returns:
      An image [..., H, W, C], the axes behind W being those of the terms.
    """
    counts = [_of_residue(w) for w in windows]
    starts = [[_handed(w, k)[1] for k in range(w.size)] for w in windows]
    config = [
        (-min(each), max(each) + n - w.output, 0)
        for w, each, n in zip(windows, starts, counts, strict=True)
    ]
    parts = parts_of_rows(windows)
    if parts > 1:
        (before, behind, _), *others = config
        rows = array.ndim - 1 - len(windows)
        array = sharding.with_halos(array, rows, parts, before, behind)
        config = [(0, 0, 0), *others]
        counts[0] //= parts
    zero = arguments.zero(array.dtype)
    axes = range(array.ndim - 1 - len(windows), array.ndim - 1)
    padded = lax.pad(array, zero, _on_spatial(array, config, other=(0, 0, 0)))
    padded = lax.optimization_barrier(padded)
    residues: dict[tuple[int, ...], jax.Array] = {}
    for place in places(windows):
        shifted, residue = padded, []
        for w, k, axis, each, n in zip(
            windows, place, axes, starts, counts, strict=True
        ):
            start = each[k] - min(each)
            shifted = lax.slice_in_dim(shifted, start, start + n, axis=axis)
            residue.append(_handed(w, k)[0])
        piece, key = term(place, shifted), tuple(residue)
        residues[key] = residues[key] + piece if key in residues else piece
    empty = jnp.zeros_like(next(iter(residues.values())))

    def along(dimension: int, residue: tuple[int, ...]) -> jax.Array:
        if dimension == len(windows):
            return residues.get(residue, empty)
        w, axis = windows[dimension], axes[dimension]
        pieces = [along(dimension + 1, (*residue, r)) for r in range(w.stride)]
        x = _interleave(pieces, axis)
        stop = min(w.dilated, x.shape[axis])  # a part of the rows has fewer
        return lax.slice_in_dim(x, 0, stop, w.input_dilation, axis)

    x = along(0, ())
    return x if parts == 1 else sharding.merge(x, axes[0] - 1, axes[0] + 1)


def count(windows: Windows) -> np.ndarray:
    """How many pixels of the image each window sees: [P, Q, ..., 1]."""
    total = np.ones(())
    for w in windows:
        total = total[..., None] * w.real().sum(1)
    return total[..., None]


def line(windows: Windows, dimension: int, lengths: Sequence[int]) -> Windows:
    """The windows of one dimension alone, over an image of these lengths."""
    return tuple(
        w if i == dimension else Window(input=length, size=1)
        for i, (w, length) in enumerate(zip(windows, lengths, strict=True))
    )


def reduce_window(x: jax.Array, init, operation, windows: Windows) -> jax.Array:
    """`lax.reduce_window` over the spatial axes: the ops' `"autodiff"` form.

    JAX has no gradient for negative padding, and on a CPU wrong values for a dilated
    image (openxla/xla issue 48714): then the image is padded beforehand.
    """
    init = np.asarray(init, x.dtype)
    padding = [(w.low, w.high) for w in windows]
    if any(w.low < 0 or w.high < 0 or w.input_dilation > 1 for w in windows):
        config = [(w.low, w.high, w.input_dilation - 1) for w in windows]
        x = lax.pad(x, init, _on_spatial(x, config, other=(0, 0, 0)))
        padding = [(0, 0)] * len(windows)
    return lax.reduce_window(
        x,
        init,
        operation,
        _on_spatial(x, [w.size for w in windows], other=1),
        _on_spatial(x, [w.stride for w in windows], other=1),
        _on_spatial(x, padding, other=(0, 0)),
        window_dilation=_on_spatial(x, [w.dilation for w in windows], other=1),
    )
