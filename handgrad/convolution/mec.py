"""Half of im2col: a copy for each column of the kernel, a convolution along its rows.

MEC, *memory-efficient convolution*, copies the image once for each column of the
kernel, not once for each place,

    L[n,h,q,(l,c)] = x[n, h, s·q + d·l − b, c]

and a convolution with a kernel of one column is left:

    y[n,p,q,o] = Σ_k Σ_(l,c) L[n, s·p + d·k − b, q, (l,c)] · kernel[k,(l,c),o]

Its transposes are that convolution's own, and a sum over the columns:

    dL                         from dy and kernel
    dx[n, h, s·q + d·l − b, c] += dL[n,h,q,(l,c)]
    dkernel[k,(l,c),o] = Σ_p Σ_(n,q) L[n, s·p + d·k − b, q, (l,c)] · dy[n,p,q,o]

The last sums over the pixels (n,q) of a row as a convolution sums over its channels,
and over the rows p as it does over its window. So it is a convolution of one image,
(l,c) its columns and (n,q) its channels, with a kernel of P rows:

    dkernel = conv(L as [h, (l,c), (n,q)], dy as [p, (n,q), o])

where stride and dilation of the rows exchange places, as in conv(x, dy). That one has
the examples alone for its channels, and an engine for matrix products wants many. A
block of rows after the other: what is turned stays in the cache.

Source: Cho & Brand 2017, arXiv:1706.06873, forward; the transposes are ours.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, sharding, windows
from handgrad.buffers import written_down, zero_after
from handgrad.convolution import blocks, rot180
from handgrad.convolution.spec import ConvSpec
from handgrad.windows import Window

# Pixels of dy in a block: many for a product, few enough for the cache.
_PIXELS = 3200


def unsuitable(spec: ConvSpec) -> str | None:
    """It tells rows from columns."""
    if len(spec.windows) != 2:
        return f"'mec' does 2 dimensions, not {len(spec.windows)}"
    if spec.feature_group_count > 1:
        return f"'mec' does one group, not {spec.feature_group_count}"
    if any(w.input_dilation > 1 for w in spec.windows):
        return "'mec' does no dilated images"
    if spec.x_sharding is not None and spec.x_sharding.spec[-1] is not None:
        return "'mec' does no input channels that an explicit mesh splits"
    return None


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y = conv(L, kernel): [n h q lc] [k 1 lc o] -> [n p q o]."""
    columns = _columns(spec)
    image = windows.pad(x, columns)
    views = [windows.view(image, place, columns) for place in windows.places(columns)]
    image = sharding.merge(jnp.stack(views, -2), x.ndim - 1, x.ndim + 1)
    return rot180.forward(image, _lowered(kernel), _rows(spec))


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dL from dy, [n p q o] [k 1 lc o] -> [n h q lc], and the sum over l."""
    columns = _columns(spec)
    errors = rot180.input_gradient(dy, _lowered(kernel), _rows(spec))
    wide = arguments.accumulator(dy.dtype)
    errors = sharding.split(errors, dy.ndim - 1, kernel.shape[1:3]).astype(wide)
    dx = windows.spread(lambda _, place: errors[..., place, :], columns)
    return dx.astype(dy.dtype)


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel = conv(L, dy): [1 h lc nq] [p 1 nq o] -> [1 k lc o] a block of rows."""
    rows, columns = spec.windows
    at_once = max(round(_PIXELS / max(dy.shape[0] * columns.output, 1)), 1)
    steps = blocks.count(rows.output, at_once)
    height = -(-rows.output // max(steps, 1))
    more = steps * height - rows.output
    # Rows that no block cuts are padded by the convolution itself; where the kernel is
    # larger than the image that costs a third.
    whole = steps <= 1 and rows.input >= rows.size
    padded = _columns(spec) if whole else spec.windows
    image = windows.pad(x, padded, zero_after(dy, x.dtype))
    image = blocks.longer(image, more * rows.stride)
    image, errors = lax.optimization_barrier((image, blocks.longer(dy, more)))
    shape = (1, rows.size, columns.size * x.shape[-1], dy.shape[-1])
    where = sharding.rearranged(spec.kernel_sharding, (None, None, -2, -1))
    along_rows = _error_as_window(rows, height, whole)
    one = ConvSpec(
        windows=(along_rows, Window(shape[2], 1)),
        precision=spec.precision,
        y_sharding=where,
    )

    def step(i: jax.Array, total: jax.Array) -> jax.Array:
        start = i * height
        reach = along_rows.input
        seen = lax.dynamic_slice_in_dim(image, start * rows.stride, reach, axis=1)
        error = lax.dynamic_slice_in_dim(errors, start, height, axis=1)
        pair = _turned_image(seen, columns, error), _turned_error(error)
        lowered, error = lax.optimization_barrier(pair)
        return total + rot180.forward(lowered, error, one)

    dkernel = sharding.zeros(shape, arguments.accumulator(x.dtype), where, like=(x, dy))
    dkernel = lax.fori_loop(0, steps, step, dkernel)
    dkernel = sharding.split(dkernel[0], 1, (columns.size, x.shape[-1]))
    return dkernel.astype(x.dtype)


def _error_as_window(rows: Window, height: int, whole: bool) -> Window:
    """dy's rows of a block as the window: stride and dilation exchange places.

    It slides over a block of padded rows, or over the `whole` image, which it pads.
    """
    if whole:
        high = rows.covered - rows.low - rows.input
        image = Window(rows.input, height, low=rows.low, high=high)
    else:
        image = Window((height - 1) * rows.stride + rows.extent, height)
    return dataclasses.replace(image, stride=rows.dilation, dilation=rows.stride)


def _turned_image(x: jax.Array, columns: Window, error: jax.Array) -> jax.Array:
    """L of a block: [n h w c] -> [1 h lc nq], in the wide dtype."""
    x = x.astype(arguments.accumulator(x.dtype))
    x = written_down(jnp.transpose(x, (1, 3, 0, 2)), after=error)
    last = columns.stride * (columns.output - 1) + 1
    starts = range(0, columns.extent, columns.dilation)
    views = [
        lax.slice_in_dim(x, start, start + last, columns.stride, axis=-1)
        for start in starts
    ]
    lowered = sharding.merge(jnp.stack(views, 1), 3, 5)  # [h l c nq]
    return sharding.merge(lowered, 1, 3)[None]


def _turned_error(dy: jax.Array) -> jax.Array:
    """[n p q o] -> [p 1 nq o], in the wide dtype."""
    dy = dy.astype(arguments.accumulator(dy.dtype))
    return jnp.expand_dims(sharding.merge(jnp.swapaxes(dy, 0, 1), 1, 3), 1)


def _columns(spec: ConvSpec) -> windows.Windows:
    """The windows along the columns; the rows stay as they are."""
    rows, columns = spec.windows
    return Window(rows.input, 1), columns


def _rows(spec: ConvSpec) -> ConvSpec:
    """The convolution that is left, of one column."""
    rows, columns = spec.windows
    return dataclasses.replace(spec, windows=(rows, Window(columns.output, 1)))


def _lowered(kernel: jax.Array) -> jax.Array:
    """[k l c o] -> [k 1 lc o]."""
    return jnp.expand_dims(sharding.merge(kernel, 1, 3), 1)
