"""Max pooling: the error goes to where the maximum was.

    y[p] = max_k x[s·p + d·k − b] = x[t],     dx[t] = dy[p],  0 elsewhere in the window

The forward pass remembers `t` as the *offset in the window* of the maximum, one byte
while the window has up to 256 places; the input is not kept. Going backward,

    dx[h] = Σ_k [offset[p] = k] · dy[p]     over the windows p that hold h at place k,

a sum of masked copies of the error, placed by `windows.spread`. Nothing is scattered,
so the result does not depend on the order of the additions' threads.

Ties: the first maximum in row-major order takes all, as in the gradient of
`jax.lax.reduce_window`. NaN: a window with a NaN is NaN, and its first NaN takes the
error. Padding never takes it: a window that holds a pixel hands its error to a pixel.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, windows
from handgrad.pooling.arguments import image_and_windows
from handgrad.rules import RULES, register


def max_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    *,
    window_dilation: Sequence[int] | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Maximum of each window.

    y[p, q] = max_kl x[s·p + d·k − b, s·q + d·l − b]
    dx[h, w] = Σ dy[p, q] over the windows whose maximum is that pixel

    Args:
      inputs: real image [..., H, W, C], any number of spatial dimensions and of leading
        batch axes; integers have a forward pass only.
      window_shape: pixels of the window in each spatial dimension.
      strides: distance between neighbouring windows in pixels; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) pixels for each dimension.
      window_dilation: distance between neighbouring window pixels; 1 by default.
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
    x, spec = image_and_windows(
        "max_pool", inputs, window_shape, strides, padding, window_dilation, kind="real"
    )
    return RULES["max_pool"].choose(implementation, spec)(x, spec)


def _autodiff_max_pool(x, spec):
    return windows.reduce_window(x, arguments.lowest(x.dtype), lax.max, spec)


def _max_pool(x, spec):
    y, _ = _max_and_offset(x, spec)  # type: ignore[misc]  # a custom_vjp is untyped
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_and_offset(x, spec) -> tuple[jax.Array, jax.Array]:
    """Looks through the places in order; only a greater value replaces the best."""
    image = windows.pad(x, spec, arguments.lowest(x.dtype))
    first, *others = windows.places(spec)
    best = windows.view(image, first, spec)
    offset = jnp.broadcast_to(_first_real(spec), best.shape)
    for k, place in enumerate(others, start=1):
        x_k = windows.view(image, place, spec)
        greater = (x_k > best) | (_is_nan(x_k) & ~_is_nan(best))
        best = jnp.where(greater, x_k, best)
        offset = jnp.where(greater, offset.dtype.type(k), offset)
    return best, offset


def _max_and_offset_fwd(x, spec):
    y, offset = _max_and_offset(x, spec)  # type: ignore[misc]
    residuals = (offset,)  # where the maximum was: one byte a window, not the input
    return (y, offset), residuals


def _max_and_offset_bwd(spec, residuals, cotangents):
    """dx[h] = Σ_k [offset[p] = k] dy[p] over the windows p that hold h at place k."""
    (offset,), (dy, _) = residuals, cotangents
    total = dy.astype(arguments.accumulator(dy.dtype))
    flat = np.arange(math.prod(w.size for w in spec), dtype=offset.dtype)
    flat = flat.reshape([w.size for w in spec])
    dx = windows.spread(lambda *k: jnp.where(offset == flat[k], total, 0), spec)
    return (dx.astype(dy.dtype),)


_max_and_offset.defvjp(_max_and_offset_fwd, _max_and_offset_bwd)
register("max_pool", source="the article, A4: max", autodiff=_autodiff_max_pool)(
    _max_pool
)


def _is_nan(x):
    return x != x


def _first_real(spec):
    """The offset of each window's first pixel that is no padding, [P, Q, 1]."""
    places = math.prod(w.size for w in spec)
    dtype = np.uint8 if places <= 256 else np.uint32
    first = np.zeros((), np.int64)
    for w in spec:
        first = first[..., None] * w.size + np.argmax(w.real(), axis=1)
    return first[..., None].astype(dtype)
