"""Mean and sum pooling: every error is spread evenly over its window.

    y[p] = (1/count) Σ_k x[s·p + d·k − b]

Each pixel of a window has the derivative 1/count, so each error value is spread over
its K·L block (the article's up-sampling); where windows overlap, the contributions add:

    dx[h] = Σ_{windows p that hold h} dy[p] / count[p]

`count` is K·L, or the number of real pixels where padding is not counted; a sum pool
divides by nothing. Both sums are separable: where they have many terms they are taken
one dimension after the other, K + L additions a pixel instead of K·L. Sums of 16-bit
numbers are accumulated in float32.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, sharding, windows
from handgrad.buffers import written_down
from handgrad.pooling.arguments import image_and_windows
from handgrad.pooling.upsample import upsample
from handgrad.pooling.views import by_strips, views_of
from handgrad.rules import RULES, register
from handgrad.windows import Windows


@dataclasses.dataclass(frozen=True)
class AverageSpec:
    """The static part of a mean pool.

    Attributes:
      windows: one for each spatial dimension.
      counted: the same windows over all that counts: the image, or the padded image.
    """

    windows: Windows
    counted: Windows

    def mean(self, total: jax.Array) -> jax.Array:
        """The sum of each window divided by its count."""
        return total / self._each(windows.count(self.counted), total)

    def share(self, dy: jax.Array) -> jax.Array:
        """What each pixel of a window gets of its error: the error by the count.

        By a factor: the loop of the sum computes a pixel's terms, and a division in
        each of them costs more than all else.
        """
        with np.errstate(divide="ignore"):  # no pixel, no share
            return dy * self._each(1 / windows.count(self.counted), dy)

    def _each(self, numbers: np.ndarray, like: jax.Array) -> jax.Array:
        """A number for each window, [P, Q, 1], or the one of all."""
        if not np.ptp(numbers):
            return jnp.asarray(numbers.flat[0], like.dtype)
        axes = range(like.ndim - numbers.ndim)
        return lax.expand_dims(jnp.asarray(numbers, like.dtype), axes)


def avg_pool(
    inputs: jax.Array,
    window_shape: Sequence[int] | None,
    strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    count_include_pad: bool = True,
    *,
    window_dilation: Sequence[int] | None = None,
    ceil_mode: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """Mean over each window.

    y[p, q] = (1/count) Σ_kl x[s·p + d·k − b, s·q + d·l − b]
    dx[h, w] = Σ dy[p, q] / count[p, q] over the windows that hold the pixel

    Args:
      inputs: floating-point image [..., H, W, C], any number of spatial dimensions and
        of leading batch axes.
      window_shape: pixels of the window in each spatial dimension; `None` for one
        window over all axes but the first and the last.
      strides: distance between neighbouring windows in pixels; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) pixels for each dimension.
      count_include_pad: whether padding counts as zeros in the mean; if not, a window
        that holds no pixel is NaN.
      window_dilation: distance between neighbouring window pixels; 1 by default.
      ceil_mode: whether a last window that sticks out of the padded image counts, if it
        begins in the image or the padding before it; what sticks out is never counted.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The means [..., P, Q, C].

    Raises:
      ValueError: the lengths do not match, or the window does not fit the image.
      TypeError: `inputs` is not floating point.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> x = jnp.arange(4.0).reshape(2, 2, 1)
      >>> handgrad.avg_pool(x, (2, 2)).squeeze()
      Array(1.5, dtype=float32)

    Source: the article's mean pooling, FORMULAS A4 and B7.
    """
    geometry = (window_shape, strides, padding, window_dilation)
    pool = functools.partial(image_and_windows, "avg_pool", inputs, *geometry)
    x, described = pool(ceil_mode, kind="floating")
    counted = described
    if count_include_pad:
        padded = pool(kind="floating")[1] if ceil_mode else described
        counted = tuple(
            dataclasses.replace(
                w, input=w.low + w.input + p.high, low=0, high=w.high - p.high
            )
            for w, p in zip(described, padded, strict=True)
        )
    spec = AverageSpec(described, counted)
    return RULES["avg_pool"].choose(implementation, spec)(x, spec)


def sum_pool(
    inputs: jax.Array,
    window_shape: Sequence[int] | None,
    strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    *,
    window_dilation: Sequence[int] | None = None,
    ceil_mode: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """Sum over each window.

    y[p, q] = Σ_kl x[s·p + d·k − b, s·q + d·l − b]
    dx[h, w] = Σ dy[p, q] over the windows that hold the pixel

    Args:
      inputs: real image [..., H, W, C]; see `avg_pool`, and so for the other arguments.
        Integers have a forward pass only.
      window_shape: pixels of the window in each spatial dimension, or `None` for all.
      strides: distance between neighbouring windows in pixels; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) pixels for each dimension.
      window_dilation: distance between neighbouring window pixels; 1 by default.
      ceil_mode: whether a last window that sticks out of the padded image counts.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The sums [..., P, Q, C]; that of a window wholly in padding is 0.

    Raises:
      ValueError: the lengths do not match, or the window does not fit the image.
      TypeError: `inputs` is complex or not a number.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.sum_pool(jnp.arange(6.0)[:, None], (3,), (3,)).squeeze()
      Array([ 3., 12.], dtype=float32)

    Source: the article's mean pooling without the mean, FORMULAS A4 and B7.
    """
    geometry = (window_shape, strides, padding, window_dilation, ceil_mode)
    x, spec = image_and_windows("sum_pool", inputs, *geometry, kind="real")
    return RULES["sum_pool"].choose(implementation, spec)(x, spec)


def autodiff_sum(x: jax.Array, spec: Windows) -> jax.Array:
    """The sum of each window with JAX's own gradient."""
    return windows.reduce_window(x, 0, lax.add, spec)


def window_totals(x: jax.Array, described: Windows) -> jax.Array:
    """Sum of each window: [..., P, Q, C]; of many places one dimension at a time.

    Args:
      x: image [..., H, W, C].
      described: one window for each spatial dimension.
    """
    if math.prod(w.size for w in described) <= windows.MANY_PLACES:
        return by_strips(x, described, _sum_of_views)
    x, described, parts = windows.padded_parts(x, described)
    for i, w in enumerate(described):
        axis = x.ndim - 1 - len(described) + i
        blocks = w.stride == w.size and w.dilation == 1
        if blocks and (w.size > windows.MANY_PLACES or w.output == 1):
            x = jnp.sum(sharding.split(x, axis, (w.output, w.size)), axis + 1)
        else:
            one = windows.line(described, i, x.shape[x.ndim - 1 - len(described) : -1])
            views = (windows.view(x, place, one) for place in windows.places(one))
            # The loop of the next line, or what reads the last, would add it up anew.
            x = written_down(functools.reduce(jnp.add, views))
    return windows.join_parts(x, described, parts)


def _sum_of_views(x, described):
    return functools.reduce(jnp.add, views_of(x, described))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def window_sum(x, spec):
    """The sum of each window; in float32 for 16-bit numbers."""
    total = window_totals(x.astype(arguments.accumulator(x.dtype)), spec)
    return total.astype(x.dtype)


def _window_sum_fwd(x, spec):
    residuals = ()  # linear: the gradient never looks at x
    return window_sum(x, spec), residuals


def _window_sum_bwd(spec, residuals, dy):
    """dx[h] = Σ_p dy[p] over the windows p that hold h."""
    del residuals
    return (spread(dy.astype(arguments.accumulator(dy.dtype)), spec).astype(dy.dtype),)


window_sum.defvjp(_window_sum_fwd, _window_sum_bwd)
register("sum_pool", source="the article, A4: up-sampling", autodiff=autodiff_sum)(
    window_sum
)


def _autodiff_avg_pool(x, spec):
    return spec.mean(autodiff_sum(x, spec.windows))


@register(
    "avg_pool", source="the article, A4: up-sampling", autodiff=_autodiff_avg_pool
)
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def average(x, spec):
    """The mean of each window."""
    total = window_totals(x.astype(arguments.accumulator(x.dtype)), spec.windows)
    return spec.mean(total).astype(x.dtype)


def _average_fwd(x, spec):
    residuals = ()  # linear: the gradient never looks at x
    return average(x, spec), residuals


def _average_bwd(spec, residuals, dy):
    """dx[h] = Σ_p dy[p] / count[p] over the windows p that hold h."""
    del residuals
    share = spec.share(dy.astype(arguments.accumulator(dy.dtype)))
    return (spread(share, spec.windows).astype(dy.dtype),)


average.defvjp(_average_fwd, _average_bwd)


def spread(share: jax.Array, described: Windows) -> jax.Array:
    """Each window's share to all of its pixels."""
    if all(w.stride == 1 and w.input_dilation == 1 for w in described):
        return window_totals(share, tuple(w.transposed for w in described))
    overlaps = [-(-w.extent // w.stride) for w in described]
    if math.prod(overlaps) <= windows.MANY_PLACES:
        return upsample(share, described)
    lengths = [w.output for w in described]
    for i, w in enumerate(described):
        share = upsample(share, windows.line(described, i, lengths), apart=True)
        lengths[i] = w.input
    return share
