"""Max pooling with the places of its maxima, and the way back.

`max_pool_with_argmax` returns with each maximum the pixel where it was,

    y[p] = x[t[p]],     t[p] = s·p + d·k − b for the place k of the first maximum,

counted in row-major order over the image. `max_unpool` puts numbers back there,

    x[h] = y[p]  for the window p with t[p] = h,  0 elsewhere.

Each pixel asks the few windows that hold it whether they name it (`upsample`), so
nothing is scattered; the gradient is a gather, dy[p] = dx[t[p]]. An index that is no
pixel of its own window names nothing: its number is left out and has no gradient, and
no other pixel is touched.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, windows
from handgrad.pooling.arguments import image_and_windows, image_shape
from handgrad.pooling.max import (
    ExtremumSpec,
    autodiff_extremum,
    extremum_and_offset,
)
from handgrad.pooling.upsample import replace, upsample
from handgrad.rules import RULES, register
from handgrad.windows import Windows


@dataclasses.dataclass(frozen=True)
class IndexSpec:
    """The static part: the windows, and whether an index counts pixels or places."""

    windows: Windows
    in_window: bool

    @property
    def places(self) -> int:
        """How many places a window has."""
        return math.prod(w.size for w in self.windows)


def max_pool_with_argmax(
    inputs: jax.Array,
    window_shape: Sequence[int] | None,
    strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    *,
    window_dilation: Sequence[int] | None = None,
    ceil_mode: bool = False,
    index: str = "image",
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Maximum of each window, and where it was.

    y[p, q] = max_kl x[s·p + d·k − b, s·q + d·l − b] = x[t[p, q]]
    dx[h, w] = Σ dy[p, q] over the windows whose maximum is that pixel

    Args:
      inputs: real image [..., H, W, C]; see `max_pool`, and so for the other arguments.
      window_shape: pixels of the window in each spatial dimension, or `None` for all.
      strides: distance between neighbouring windows in pixels; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) pixels for each dimension.
      window_dilation: distance between neighbouring window pixels; 1 by default.
      ceil_mode: whether a last window that sticks out of the padded image counts.
      index: "image" for h·W + w, the pixel in the image of its channel as PyTorch
        counts it; "window" for k·L + l, the place in the window.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The maxima and their int32 indices, both [..., P, Q, C]; of several equal ones the
      first in row-major order. The index of a window wholly in padding is −1.

    Raises:
      ValueError: the lengths do not match, the window does not fit the image, or
        `index` is another word.
      TypeError: `inputs` is complex or not a number.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> x = jnp.array([[1.0, 4.0], [3.0, 2.0]])[..., None]
      >>> y, t = handgrad.max_pool_with_argmax(x, (2, 2))
      >>> y.squeeze(), t.squeeze()
      (Array(4., dtype=float32), Array(1, dtype=int32))

    Source: the article's max pooling, FORMULAS A4 and B7.
    """
    op = "max_pool_with_argmax"
    geometry = (window_shape, strides, padding, window_dilation, ceil_mode)
    x, described = image_and_windows(op, inputs, *geometry, kind="real")
    spec = IndexSpec(described, _in_window(op, index))
    return RULES[op].choose(implementation, spec)(x, spec)


def max_unpool(
    inputs: jax.Array,
    indices: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    *,
    image_shape: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
    index: str = "image",
    implementation: str | None = None,
) -> jax.Array:
    """Puts each number back at the pixel where its window's maximum was.

    x[h, w] = y[p, q] for the window whose index names the pixel, 0 elsewhere
    dy[p, q] = dx[t[p, q]]

    Args:
      inputs: floating-point numbers [..., P, Q, C], one for each window.
      indices: integers of the same shape, as `max_pool_with_argmax` returns them.
      window_shape: pixels of the window in each spatial dimension.
      strides: distance between neighbouring windows in pixels; 1 by default.
      padding: that of the pool: "VALID", "SAME", ... or (low, high) pixels.
      image_shape: pixels (H, W) of the result; by default the fewest that have so many
        windows.
      window_dilation: distance between neighbouring window pixels; 1 by default.
      index: whether `indices` count in the "image" or in the "window".
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      An image [..., H, W, C]. An index that is no pixel of its own window (negative,
      beyond the image or in another window) is left out, and has no gradient. Of
      several windows that name one pixel the last in row-major order is kept; the
      pixel's error goes to each of them, as in PyTorch.

    Raises:
      ValueError: the shapes or lengths do not match, or an image of `image_shape` does
        not have so many windows.
      TypeError: `inputs` is not floating point, or `indices` not integer.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> y, t = jnp.array([[5.0]]), jnp.array([[2]])
      >>> handgrad.max_unpool(y, t, (3,)).ravel()
      Array([0., 0., 5.], dtype=float32)

    Source: Zeiler & Fergus 2014, arXiv:1311.2901, section 2.1.
    """
    op = "max_unpool"
    x = arguments.array(op, "inputs", inputs, kind="floating")
    t = arguments.array(op, "indices", indices, kind="integer")
    arguments.same_shape(op, inputs=x, indices=t)
    geometry = (window_shape, strides, padding, window_dilation)
    described = _windows_over(op, x, *geometry, image_shape)
    spec = IndexSpec(described, _in_window(op, index))
    return RULES[op].choose(implementation, spec)(x, t, spec)


def _in_window(op, index):
    arguments.require(
        index in ("image", "window"),
        op,
        f"index (={index!r}) must be 'image' or 'window'",
    )
    return index == "window"


def _windows_over(op, x, window_shape, strides, padding, dilation, image) -> Windows:
    """The windows of the pool that is undone."""
    outputs = image_shape(op, x, window_shape)
    n = len(outputs)
    if image is None:
        given = not isinstance(padding, str)
        described = windows.describe(
            op, [1] * n, window_shape, strides, padding if given else "VALID", dilation
        )
        image = [
            w.stride * (p - 1) + w.extent - w.low - w.high
            for w, p in zip(described, outputs, strict=True)
        ]
        if not given and padding.upper() != "VALID":
            steps = [w.stride for w in described]
            image = [s * p for s, p in zip(steps, outputs, strict=True)]
    image = arguments.per_dimension(op, "image_shape", tuple(image), n)
    described = windows.describe(op, image, window_shape, strides, padding, dilation)
    have = windows.output_shape(described)
    arguments.require(
        have == outputs,
        op,
        f"image_shape (={image}) must have the {outputs} windows of inputs, has {have}",
    )
    return described


def _image_index(offset: jax.Array, described: Windows) -> jax.Array:
    """The pixel h·W + w at place k·L + l of each window, −1 in padding."""
    rest = offset.astype(np.int32)
    pixel: Any = None
    real: Any = None
    first = offset.ndim - 1 - len(described)
    unit = math.prod(w.size for w in described)
    for axis, w in enumerate(described, first):
        unit //= w.size
        place, rest = jnp.divmod(rest, np.int32(unit))
        p = lax.broadcasted_iota(np.int32, (1,) * axis + (w.output,), axis)
        p = lax.expand_dims(p, range(axis + 1, offset.ndim))
        h = w.stride * p + w.dilation * place - w.low
        inside = (h >= 0) & (h < w.input)
        pixel = h if pixel is None else pixel * w.input + h
        real = inside if real is None else real & inside
    return jnp.where(real, pixel, np.int32(-1))


def _place(indices: jax.Array, described: Windows) -> jax.Array:
    """The place in the window of each pixel h·W + w, −1 if it is in another window."""
    pixels = math.prod(w.input for w in described)
    real = (indices >= 0) & (indices < pixels)
    rest = jnp.where(real, indices, 0).astype(np.int32)
    flat = jnp.zeros_like(rest)
    for axis, w in enumerate(described, indices.ndim - 1 - len(described)):
        pixels //= w.input
        h, rest = jnp.divmod(rest, np.int32(pixels))
        p = lax.broadcasted_iota(np.int32, (1,) * axis + (w.output,), axis)
        p = lax.expand_dims(p, range(axis + 1, indices.ndim))
        place, between = jnp.divmod(h + w.low - w.stride * p, np.int32(w.dilation))
        real = real & (between == 0) & (place >= 0) & (place < w.size)
        flat = flat * w.size + place
    return jnp.where(real, flat, np.int32(-1))


def _indices(offset, spec):
    pixel = _image_index(offset, spec.windows)
    if spec.in_window:
        return jnp.where(pixel < 0, pixel, offset.astype(np.int32))
    return pixel


def _max_pool_with_argmax(x, spec):
    y, offset = extremum_and_offset(x, ExtremumSpec(spec.windows))  # type: ignore[misc]
    return y, _indices(offset, spec)


def _autodiff_max_pool_with_argmax(x, spec):
    extremum = ExtremumSpec(spec.windows)
    _, offset = extremum_and_offset(lax.stop_gradient(x), extremum)  # type: ignore[misc]
    return autodiff_extremum(x, extremum), _indices(offset, spec)


register(
    "max_pool_with_argmax",
    source="the article, A4: max",
    autodiff=_autodiff_max_pool_with_argmax,
)(_max_pool_with_argmax)


def _autodiff_max_unpool(x, indices, spec):
    """A scatter: one image a channel, the pixels in one axis."""
    offset = _offset(indices, spec)
    pixel = _image_index(jnp.maximum(offset, 0), spec.windows)
    shape = [w.input for w in spec.windows]
    size, n = math.prod(shape), len(shape)
    pixel = jnp.where(offset < 0, size, pixel)

    def flat(a):  # [..., P, Q, C] to [..., C, P·Q]
        a = jnp.moveaxis(a, -1, a.ndim - 1 - n)
        return a.reshape(*a.shape[: a.ndim - n], -1)

    values, pixel = flat(x), flat(pixel)
    lead = [
        lax.broadcasted_iota(np.int32, values.shape, axis)
        for axis in range(values.ndim - 1)
    ]
    image = jnp.zeros((*values.shape[:-1], size), x.dtype)
    image = image.at[(*lead, pixel)].set(values, mode="drop")
    image = image.reshape(*image.shape[:-1], *shape)
    return jnp.moveaxis(image, image.ndim - 1 - n, -1)


def _offset(indices, spec):
    """The place that each index names, −1 if none."""
    if not spec.in_window:
        return _place(indices, spec.windows)
    # A place that lies in padding is no pixel.
    place = jnp.where((indices >= 0) & (indices < spec.places), indices, 0)
    real = (place == indices) & (_image_index(place, spec.windows) >= 0)
    return jnp.where(real, place.astype(np.int32), np.int32(-1))


@register(
    "max_unpool",
    source="Zeiler & Fergus 2014, arXiv:1311.2901, section 2.1",
    autodiff=_autodiff_max_unpool,
)
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _max_unpool(x, indices, spec):
    return upsample(x, spec.windows, _offset(indices, spec), replace)


def _max_unpool_fwd(x, indices, spec):
    residuals = (_offset(indices, spec),)  # linear in x: only where it goes
    return _max_unpool(x, indices, spec), residuals


def _max_unpool_bwd(spec, residuals, dy):
    """dx[p] = dy[t[p]]: of the window's pixels the one at the offset."""
    (offset,) = residuals
    dx = jnp.zeros_like(offset, dy.dtype)
    for k, view in enumerate(windows.views(dy, spec.windows)):
        dx = jnp.where(offset == k, view, dx)
    return dx, None


_max_unpool.defvjp(_max_unpool_fwd, _max_unpool_bwd)
