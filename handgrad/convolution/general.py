"""`jax.lax.conv_general_dilated`'s signature over the convolution rule.

Any layout is a transposition of channels-last, which the compiler folds into the
convolution. Groups of examples are groups of channels in disguise: with B of them,
example b·n + i of channel c becomes example i of channel b·C + c, and B feature groups
do the rest.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from handgrad import arguments, sharding, windows
from handgrad.convolution.rule import check_channels, choose_formulas, register_rule
from handgrad.convolution.spec import ConvFormulas, ConvSpec

_OP = "conv_general_dilated"
register_rule(_OP)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: arguments.Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: NamedSharding | PartitionSpec | None = None,
    *,
    implementation: str | ConvFormulas | None = None,
) -> jax.Array:
    """Convolution with the arguments of `jax.lax.conv_general_dilated`.

    y[n,p,q,o] = Σ_klc x[n, s·p + d·k − b, s·q + d·l − b, c] · kernel[k,l,c,o]

    Args:
      lhs: real image x, with 0 to 4 spatial dimensions, in the layout that
        `dimension_numbers` says.
      rhs: kernel of the same dtype.
      window_strides: s, one number for each spatial dimension.
      padding: "SAME", "VALID", "SAME_LOWER" or (low, high) pixels for each dimension.
      lhs_dilation: e, distance that neighbouring pixels are moved apart to.
      rhs_dilation: d, distance between neighbouring kernel pixels.
      dimension_numbers: strings, tuples or `ConvDimensionNumbers`; by default channels
        first, as in `jax.lax`.
      feature_group_count: independent groups of channels.
      batch_group_count: independent groups of examples.
      precision: as in `jax.lax`.
      preferred_element_type: dtype of the result.
      out_sharding: where the result lives under an explicit mesh.
      implementation: as in `handgrad.conv`.

    Returns:
      The image y; empty where the kernel is larger than the padded image.

    Raises:
      ValueError: the shapes or numbers do not fit, or the formula is unknown or
        unsuitable.
      TypeError: the dtypes differ, or are complex.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> x, kernel = jnp.ones((1, 3, 8, 8)), jnp.ones((4, 3, 3, 3))
      >>> handgrad.conv_general_dilated(x, kernel, (2, 2), "SAME").shape
      (1, 4, 4, 4)

    Source: FORMULAS B1, B4.
    """
    lhs = arguments.array(_OP, "lhs", lhs)
    rhs = arguments.array(_OP, "rhs", rhs)
    arguments.same_dtype(_OP, lhs=lhs, rhs=rhs)
    arguments.require(
        lhs.ndim == rhs.ndim and 2 <= lhs.ndim <= 6,
        _OP,
        "lhs and rhs must have the same number of dimensions, 2 to 6, got lhs "
        f"{lhs.shape} and rhs {rhs.shape}",
    )
    try:
        numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{_OP}: dimension_numbers (={dimension_numbers}) must fit lhs {lhs.shape} "
            f"and rhs {rhs.shape}: {error}"
        ) from error
    batch, feature, *pixels = numbers.lhs_spec
    outputs, inputs, *taps = numbers.rhs_spec
    x = lhs.transpose(batch, *pixels, feature)
    kernel = rhs.transpose(*taps, inputs, outputs)
    x, groups = _batch_groups_as_channels(
        x, kernel, feature_group_count, batch_group_count
    )
    check_channels(_OP, x.shape[-1], kernel.shape, groups)
    x, kernel = sharding.align(x, kernel)
    y_sharding = sharding.of_convolution(x, kernel)
    # From y[n, p, q, o] to the layout asked for: axis out_spec[i] comes from axis i.
    sources = [0, x.ndim - 1, *range(1, x.ndim - 1)]
    order = [sources[numbers.out_spec.index(axis)] for axis in range(x.ndim)]
    if out_sharding is not None:
        y_sharding = sharding.named(out_sharding, x)
        y_sharding = sharding.rearranged(
            y_sharding, tuple(order.index(axis) for axis in range(x.ndim))
        )
    spec = ConvSpec(
        windows=windows.describe(
            _OP,
            x.shape[1:-1],
            kernel.shape[:-2],
            window_strides,
            padding,
            rhs_dilation,
            lhs_dilation,
            name="rhs",
            stride_name="window_strides",
            dilation_name="rhs_dilation",
            input_dilation_name="lhs_dilation",
        ),
        feature_group_count=groups,
        precision=arguments.hashable_precision(precision),
        preferred_element_type=preferred_element_type
        and jnp.dtype(preferred_element_type),
        x_sharding=sharding.of(x),
        kernel_sharding=sharding.of(kernel),
        y_sharding=y_sharding,
    )
    core = choose_formulas(_OP, implementation, spec)
    if 0 in windows.output_shape(spec.windows):  # depends on nothing
        shape = (x.shape[0], *windows.output_shape(spec.windows), kernel.shape[-1])
        return jnp.zeros(shape, spec.preferred_element_type or x.dtype).transpose(order)
    return core(x, kernel, spec).transpose(order)


def _batch_groups_as_channels(x, kernel, feature_groups, batch_groups):
    """[b·n h w c] -> [n h w b·c]: the image and its number of feature groups."""
    arguments.integer(_OP, "feature_group_count", feature_groups)
    arguments.integer(_OP, "batch_group_count", batch_groups)
    arguments.require(
        feature_groups == 1 or batch_groups == 1,
        _OP,
        f"feature_group_count (={feature_groups}) and batch_group_count "
        f"(={batch_groups}) must not both exceed 1",
    )
    if batch_groups == 1:
        return x, feature_groups
    arguments.require(
        x.shape[0] % batch_groups == 0,
        _OP,
        f"batch_group_count (={batch_groups}) must divide the {x.shape[0]} examples",
    )
    arguments.require(
        kernel.shape[-1] % batch_groups == 0,
        _OP,
        f"batch_group_count (={batch_groups}) must divide the {kernel.shape[-1]} "
        "output channels",
    )
    x = x.reshape(batch_groups, -1, *x.shape[1:])
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], -1), batch_groups
