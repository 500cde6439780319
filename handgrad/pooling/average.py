"""Mean pooling: every error is spread evenly over its window.

    y[p] = (1/count) Σ_k x[s·p + d·k − b]

Each pixel of a window has the derivative 1/count, so each error value is spread over
its K·L block (the article's up-sampling); where windows overlap, the contributions add:

    dx[h] = Σ_{windows p that hold h} dy[p] / count[p]

`count` is K·L, or the number of real pixels where padding is not counted. Both sums are
separable: rows first, then columns, K + L additions a pixel instead of K·L. Sums of
16-bit numbers are accumulated in float32.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, windows
from handgrad.pooling.arguments import image_and_windows
from handgrad.rules import RULES, register


@dataclasses.dataclass(frozen=True)
class AverageSpec:
    """The static part of a mean pool."""

    windows: windows.Windows
    count_include_pad: bool

    def count(self, dtype) -> jax.Array:
        """What the sum of each window is divided by, [P, Q, 1] or a scalar."""
        if self.count_include_pad:
            return jnp.array(math.prod(w.size for w in self.windows), dtype)
        return jnp.array(windows.count(self.windows), dtype)


def avg_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    count_include_pad: bool = True,
    *,
    window_dilation: Sequence[int] | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Mean over each window.

    y[p, q] = (1/count) Σ_kl x[s·p + d·k − b, s·q + d·l − b]
    dx[h, w] = Σ dy[p, q] / count[p, q] over the windows that hold the pixel

    Args:
      inputs: floating-point image [..., H, W, C], any number of spatial dimensions and
        of leading batch axes.
      window_shape: pixels of the window in each spatial dimension.
      strides: distance between neighbouring windows in pixels; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) pixels for each dimension.
      count_include_pad: whether padding counts as zeros in the mean; if not, a window
        that holds no pixel is NaN.
      window_dilation: distance between neighbouring window pixels; 1 by default.
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
    x, described = image_and_windows(
        "avg_pool",
        inputs,
        window_shape,
        strides,
        padding,
        window_dilation,
        kind="floating",
    )
    spec = AverageSpec(described, bool(count_include_pad))
    return RULES["avg_pool"].choose(implementation, spec)(x, spec)


def _autodiff_avg_pool(x, spec):
    return _divide(windows.reduce_window(x, 0, lax.add, spec.windows), spec)


def _divide(total, spec):
    count = spec.count(total.dtype)
    return total / lax.expand_dims(count, range(total.ndim - count.ndim))


@register(
    "avg_pool", source="the article, A4: up-sampling", autodiff=_autodiff_avg_pool
)
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _avg_pool(x, spec):
    total = windows.window_sum(x.astype(arguments.accumulator(x.dtype)), spec.windows)
    return _divide(total, spec).astype(x.dtype)


def _avg_pool_fwd(x, spec):
    residuals = ()  # linear: the gradient never looks at x
    return _avg_pool(x, spec), residuals


def _avg_pool_bwd(spec, residuals, dy):
    """dx[h] = Σ_p dy[p] / count[p] over the windows p that hold h."""
    del residuals
    share = _divide(dy.astype(arguments.accumulator(dy.dtype)), spec)
    return (windows.spread(lambda *place: share, spec.windows).astype(dy.dtype),)


_avg_pool.defvjp(_avg_pool_fwd, _avg_pool_bwd)
