"""`lax.reduce_window` with an extremum or a sum, over all axes, by the rules of pools.

    y[p] = max, min or Σ over k of x[s·p + d·k − b]     in every axis

Axes in front with windows of one element are a pool's batch, and such an axis at the
end its channels; the axes between them are its spatial dimensions. A `base_dilation` e
puts e − 1 elements between neighbours that never win and add nothing.
"""

import functools
from collections.abc import Sequence

import jax
from jax import lax

from handgrad import arguments, windows
from handgrad.pooling.average import autodiff_sum, window_sum
from handgrad.pooling.max import ExtremumSpec, autodiff_extremum, extremum
from handgrad.rules import RULES, register
from handgrad.windows import Window, Windows


def reduce_window_max(
    operand: jax.Array,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    base_dilation: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """`lax.reduce_window(operand, -inf, lax.max, ...)` with the gradient of `max_pool`.

    y[p] = max_k x[s·p + d·k − b] in every axis;  dx[t] = Σ dy[p] at each maximum t

    Args:
      operand: real array; integers have a forward pass only.
      window_dimensions: elements of the window in each axis.
      window_strides: distance between neighbouring windows in each axis; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) elements for each axis.
      base_dilation: distance between neighbouring elements of `operand`; 1 by default.
      window_dilation: distance between neighbouring elements of a window; 1 by default.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own
        (which JAX does not have for dilated windows).

    Returns:
      The maxima, with the ties, NaN and padding of `max_pool`.

    Raises:
      ValueError: the lengths do not match, or the window does not fit.
      TypeError: `operand` is complex or not a number.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.reduce_window_max(jnp.arange(6.0).reshape(2, 3), (2, 2))
      Array([[4., 5.]], dtype=float32)

    Source: FORMULAS A4 and B7.
    """
    geometry = (window_dimensions, window_strides, padding)
    dilations = (base_dilation, window_dilation)
    return _reduced("reduce_window_max", operand, geometry, dilations, implementation)


def reduce_window_min(
    operand: jax.Array,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    base_dilation: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """`lax.reduce_window(operand, inf, lax.min, ...)` with the gradient of `min_pool`.

    y[p] = min_k x[s·p + d·k − b] in every axis;  dx[t] = Σ dy[p] at each minimum t

    Args:
      operand: real array; integers have a forward pass only.
      window_dimensions: elements of the window in each axis.
      window_strides: distance between neighbouring windows in each axis; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) elements for each axis.
      base_dilation: distance between neighbouring elements of `operand`; 1 by default.
      window_dilation: distance between neighbouring elements of a window; 1 by default.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own
        (which JAX does not have for dilated windows).

    Returns:
      The minima, with the ties, NaN and padding of `min_pool`.

    Raises:
      ValueError: the lengths do not match, or the window does not fit.
      TypeError: `operand` is complex or not a number.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.reduce_window_min(jnp.arange(6.0).reshape(2, 3), (2, 2))
      Array([[0., 1.]], dtype=float32)

    Source: FORMULAS A4 and B7.
    """
    geometry = (window_dimensions, window_strides, padding)
    dilations = (base_dilation, window_dilation)
    return _reduced("reduce_window_min", operand, geometry, dilations, implementation)


def reduce_window_sum(
    operand: jax.Array,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    base_dilation: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """`lax.reduce_window(operand, 0, lax.add, ...)` with the gradient of `sum_pool`.

    y[p] = Σ_k x[s·p + d·k − b] in every axis;  dx[h] = Σ dy[p] over the windows with h

    Args:
      operand: real array; integers have a forward pass only.
      window_dimensions: elements of the window in each axis.
      window_strides: distance between neighbouring windows in each axis; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) elements for each axis.
      base_dilation: distance between neighbouring elements of `operand`; 1 by default.
      window_dilation: distance between neighbouring elements of a window; 1 by default.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The sums.

    Raises:
      ValueError: the lengths do not match, or the window does not fit.
      TypeError: `operand` is complex or not a number.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.reduce_window_sum(jnp.arange(6.0).reshape(2, 3), (2, 2))
      Array([[ 8., 12.]], dtype=float32)

    Source: FORMULAS A4 and B7.
    """
    geometry = (window_dimensions, window_strides, padding)
    dilations = (base_dilation, window_dilation)
    return _reduced("reduce_window_sum", operand, geometry, dilations, implementation)


# What is static beside the windows: whether the largest wins.
_SPECS = {
    "reduce_window_max": ExtremumSpec,
    "reduce_window_min": functools.partial(ExtremumSpec, largest=False),
    "reduce_window_sum": lambda windows: windows,
}


def _reduced(op, operand, geometry, dilations, implementation) -> jax.Array:
    x = arguments.array(op, "operand", operand)
    x, described, ending = _as_pool(op, x, *geometry, *dilations)
    spec = _SPECS[op](described)
    y = RULES[op].choose(implementation, spec)(x, spec)
    return lax.squeeze(y, [y.ndim - 1]) if ending else y


register("reduce_window_max", source="FORMULAS B7", autodiff=autodiff_extremum)(
    extremum
)
register("reduce_window_min", source="FORMULAS B7", autodiff=autodiff_extremum)(
    extremum
)
register("reduce_window_sum", source="FORMULAS B7", autodiff=autodiff_sum)(window_sum)


def _as_pool(
    op, x, dimensions, strides, padding, base_dilation, window_dilation
) -> tuple[jax.Array, Windows, bool]:
    """The operand as an image, its spatial windows, and whether a channel was added."""
    n = x.ndim
    arguments.require(n > 0, op, "operand must have an axis, got a number")
    names = {
        "name": "window_dimensions",
        "stride_name": "window_strides",
        "input_dilation_name": "base_dilation",
    }
    if isinstance(padding, str):  # of the dilated operand, as lax reckons it
        whole = windows.describe(
            op,
            x.shape,
            dimensions,
            strides,
            "VALID",
            window_dilation,
            base_dilation,
            **names,
        )
        padding = arguments.paddings(
            op,
            padding,
            [w.dilated for w in whole],
            [w.extent for w in whole],
            [w.stride for w in whole],
        )
    described = windows.describe(
        op,
        x.shape,
        dimensions,
        strides,
        padding,
        window_dilation,
        base_dilation,
        **names,
    )
    windows.require_fit(op, described, name="window_dimensions")
    ending = n == 1 or not _is_single(described[-1])
    if ending:
        x = lax.expand_dims(x, [n])
    else:
        described = described[:-1]
    spatial = [i for i, w in enumerate(described) if not _is_single(w)]
    first = spatial[0] if spatial else len(described) - 1
    return x, described[first:], ending


def _is_single(w: Window) -> bool:
    """Whether the windows are the elements themselves."""
    return w == Window(w.input, 1, dilation=w.dilation)
