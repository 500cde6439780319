"""What `handgrad.linen` and `handgrad.nnx` share: our ops where Flax's would stand.

Whoever changes one line of a model expects everything that worked to work, and every
error to be Flax's own. So an argument that our op refuses goes to the op that Flax
calls: there it works, or raises what it always raised.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import pooling
from jax import lax

import handgrad
from handgrad import arguments


def _where_it_can(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Makes an op that computes by ours, and by `stock` what ours refuses."""

    def decorate(ours):
        @functools.wraps(stock)
        def op(*args, **kwargs):
            try:
                return ours(*args, **kwargs)
            except (TypeError, ValueError):
                pass  # what follows has no part in an error that `stock` may raise
            return stock(*args, **kwargs)

        return op

    return decorate


conv_general_dilated = _where_it_can(lax.conv_general_dilated)(
    handgrad.conv_general_dilated
)
conv_transpose = _where_it_can(lax.conv_transpose)(handgrad.conv_transpose)
dot_general = _where_it_can(lax.dot_general)(handgrad.dot_general)
max_pool = _where_it_can(pooling.max_pool)(handgrad.max_pool)
min_pool = _where_it_can(pooling.min_pool)(handgrad.min_pool)
avg_pool = _where_it_can(pooling.avg_pool)(handgrad.avg_pool)


@_where_it_can(lax.conv_general_dilated_local)
def conv_general_dilated_local(
    lhs,
    rhs,
    window_strides,
    padding,
    filter_shape,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    precision=None,
):
    """y[n, pq, o] = Σ_ckl columns[n, ckl, pq] kernel[pq, ckl, o]: no kernel is shared.

    `lax` takes the columns by a convolution with an identity kernel, whose gradient is
    slow on a CPU; ours is `col2im`.
    """
    n = len(filter_shape)
    last = (0, n + 1, *range(1, n + 1)), (n + 1, n, *range(n)), (0, n + 1, *range(1, n + 1))
    if lhs_dilation != (1,) * n or tuple(dimension_numbers) != last:
        raise ValueError("conv_general_dilated_local: channels last, not dilated")
    columns = handgrad.im2col(
        lhs, filter_shape, window_strides, padding, kernel_dilation=rhs_dilation
    )
    *image, _, features = rhs.shape
    kernel = rhs.reshape(-1, *rhs.shape[-2:])
    # [n ckl pq] [pq ckl o] -> [pq n o]
    y = handgrad.dot_general(columns, kernel, (((1,), (1,)), ((2,), (0,))), precision)
    return jnp.swapaxes(y, 0, 1).reshape(-1, *image, features)


_LAX = types.SimpleNamespace(
    **{
        **vars(lax),
        "conv_transpose": conv_transpose,
        "conv_general_dilated_local": conv_general_dilated_local,
    }
)


def with_our_lax(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Flax's whose `lax` is ours, for the two layers that have no hook.

    It is the same code, with another value of one of its global names.
    """
    method = stock(method)
    copy = types.FunctionType(
        method.__code__,
        {**method.__globals__, "lax": _LAX},
        method.__name__,
        method.__defaults__,
        method.__closure__,
    )
    functools.update_wrapper(copy, method)
    del copy.__wrapped__  # it is no wrapper
    return copy


def stock(method: Callable[..., Any]) -> Any:
    """A method as Flax's authors wrote it, not as its class has wrapped it.

    The wrapper records each call, and ours was recorded.
    """
    return inspect.unwrap(method)


def takes(module: Any, x: Any, mask: Any) -> bool:
    """Whether our norms can do what a norm of Flax's is asked for."""
    if not isinstance(x, jax.Array | np.ndarray) or not x.size or not x.ndim:
        return False
    dtypes = [x.dtype] if module.dtype is None else [x.dtype, module.dtype]
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        return False
    if module.axis_name is not None and module.axis_index_groups is not None:
        return False
    if not getattr(module, "force_float32_reductions", True):
        return False
    return mask is None or _broadcasts(mask, x.shape)


def _broadcasts(mask: Any, shape: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(np.shape(mask), shape) == shape
    except ValueError:
        return False


def axes(value: Any, ndim: int) -> tuple[int, ...] | None:
    """Axes as positive numbers in order; `None` unless each is there, and named once."""
    if value is None:
        return None
    try:
        return tuple(sorted(arguments.axes("axes", value, ndim)))
    except (TypeError, ValueError):
        return None


def features(module: Any, x: Any, mask: Any) -> tuple[int, ...] | None:
    """The axes of a layer norm or an RMS norm, or `None` for one that ours is not."""
    if not takes(module, x, mask) or module.axis_name is not None:
        return None
    reduced = axes(module.reduction_axes, x.ndim)
    # Ours has a scale for each element of a mean: they are the same axes.
    return reduced if reduced == axes(module.feature_axes, x.ndim) else None


def takes_groups(module: Any, x: Any, mask: Any) -> bool:
    """Whether a group norm is one of ours: over all pixels, with groups that fit."""
    if not takes(module, x, mask) or module.axis_name is not None or x.ndim < 2:
        return False
    if mask is not None and np.shape(mask)[-1:] != x.shape[-1:]:
        return False
    all_axes = tuple(range(1, x.ndim))
    return module.reduction_axes is None or (
        axes(module.reduction_axes, x.ndim) == all_axes
    )


def takes_instances(module: Any, x: Any, mask: Any) -> bool:
    """Whether an instance norm is one of ours: its features are the last axis."""
    if not takes(module, x, mask) or module.axis_name is not None or x.ndim < 3:
        return False
    return axes(module.feature_axes, x.ndim) == (x.ndim - 1,)


def drops(module: Any, inputs: Any) -> bool:
    """Whether there is something to drop, and our mask would be Flax's."""
    if not isinstance(inputs, jax.Array | np.ndarray):
        return False
    if not jnp.issubdtype(inputs.dtype, jnp.floating) or not 0 < module.rate < 1:
        return False
    # With 64 bits Flax draws its numbers in float64, ours are float32.
    return jnp.result_type(float) == jnp.float32


def norm(
    op: Callable[..., Any],
    x: Any,
    *parameters: jax.Array | None,
    dtype: Any,
    mask: Any = None,
    statistics: bool = False,
    **options: Any,
) -> Any:
    """Computes a norm, in Flax's dtypes.

    Args:
      op: one of our norms.
      x: its input.
      *parameters: scale and bias, as the op takes them.
      dtype: of the result, or `None` for the widest of the operands'.
      mask: which elements are part of the statistics.
      statistics: whether to return (y, mean, variance), these in `dtype` or x's, but at
        least float32.
      **options: the op's other arguments.
    """
    x = jnp.asarray(x)
    present = [p for p in parameters if p is not None]
    result = jnp.dtype(jnp.result_type(x, *present) if dtype is None else dtype)
    least = jnp.promote_types(x.dtype if dtype is None else result, jnp.float32)
    if x.dtype != result:
        x = x.astype(jnp.promote_types(x.dtype, result))
    if statistics:
        options["return_statistics"] = True
    if mask is not None:
        options["where"] = jnp.asarray(mask, dtype=bool)
    y = op(x, *parameters, **options)
    if not statistics:
        return y.astype(result)
    return tuple(a.astype(t) for a, t in zip(y, (result, least, least), strict=True))
