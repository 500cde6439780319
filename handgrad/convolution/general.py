"""`jax.lax`'s two signatures over the convolution rule.

Any layout is a transposition of channels-last, which the compiler folds into the
convolution. Groups of examples are groups of channels in disguise: with B of them,
example b·n + i of channel c becomes example i of channel b·C + c, and B feature groups
do the rest. A transposed convolution is the convolution of a dilated image.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from handgrad import arguments, sharding, windows
from handgrad.convolution.rule import choose_formulas, describe, register_rule
from handgrad.convolution.spec import ConvFormulas, ConvSpec

register_rule("conv_general_dilated")
register_rule("conv_transpose")


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
    op = "conv_general_dilated"
    x, kernel, layout = _channels_last(op, lhs, rhs, dimension_numbers)
    n = x.ndim - 2
    lhs_dilation = arguments.per_dimension(op, "lhs_dilation", lhs_dilation, n)
    arguments.require(
        not (isinstance(padding, str) and lhs_dilation != (1,) * n),
        op,
        f"padding (={padding!r}) must be (low, high) pairs with lhs_dilation "
        f"(={lhs_dilation}); conv_transpose knows what the names mean there",
    )
    arguments.require(
        out_sharding is None or isinstance(out_sharding, NamedSharding | PartitionSpec),
        op,
        f"out_sharding (={out_sharding!r}) must be a NamedSharding or a PartitionSpec",
    )
    x, groups = _batch_groups_as_channels(
        op, x, kernel, feature_group_count, batch_group_count
    )
    x, kernel = sharding.align(x, kernel)
    spec = describe(
        op,
        x,
        kernel,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        groups=groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
        y_sharding=layout.y_sharding(x, kernel, out_sharding),
        name="rhs",
        stride_name="window_strides",
        dilation_name="rhs_dilation",
        input_dilation_name="lhs_dilation",
    )
    return layout.result(_compute(op, x, kernel, spec, implementation))


def conv_transpose(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    padding: arguments.Padding,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    use_consistent_padding: bool = False,
    *,
    implementation: str | ConvFormulas | None = None,
) -> jax.Array:
    """Transposed convolution with the arguments of `jax.lax.conv_transpose`.

    y[n,h,w,o] = Σ_klc x[n, (h + d·k − b)/s, (w + d·l − b)/s, c] · kernel[k,l,c,o]

    over the places where the divisions are exact: a convolution of x with s − 1 zeros
    between its pixels. None of its gradients meets those zeros: dx is the strided
    convolution that this one is the transpose of.

    Args:
      lhs: real image x, with 0 to 4 spatial dimensions, channels last unless
        `dimension_numbers` says otherwise.
      rhs: kernel [K, L, C, O] of the same dtype.
      strides: s, how many times larger y is, one number for each spatial dimension.
      padding: "SAME" for s·H pixels, "VALID" for s·H + max(Kd − s, 0) of them, or
        (low, high) pairs: the zeros around the dilated x, b the low one.
      rhs_dilation: d, distance between neighbouring kernel pixels.
      dimension_numbers: strings, tuples or `ConvDimensionNumbers`.
      transpose_kernel: turns the kernel by 180° and exchanges its channels first: y is
        then what `conv`'s input gradient would be for the same kernel.
      precision: as in `jax.lax`.
      preferred_element_type: dtype of the result.
      use_consistent_padding: whether pairs mean the padding of the convolution that
        this is the transpose of, as in PyTorch.
      implementation: as in `handgrad.conv`.

    Returns:
      The image y.

    Raises:
      ValueError: the shapes or numbers do not fit, or the formula is unknown or
        unsuitable.
      TypeError: the dtypes differ, or are complex.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> x, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((4, 4, 3, 2))
      >>> handgrad.conv_transpose(x, kernel, (2, 2), "SAME").shape
      (1, 16, 16, 2)

    Source: FORMULAS B5; Dumoulin & Visin 2016, arXiv:1603.07285, chapter 4.
    """
    op = "conv_transpose"
    x, kernel, layout = _channels_last(op, lhs, rhs, dimension_numbers, "last")
    n = x.ndim - 2
    if transpose_kernel:
        kernel = jnp.swapaxes(lax.rev(kernel, range(n)), -1, -2)
    x, kernel = sharding.align(x, kernel)
    strides = arguments.per_dimension(op, "strides", strides, n)
    dilation = arguments.per_dimension(op, "rhs_dilation", rhs_dilation, n)
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel.shape, strict=False)]
    spec = describe(
        op,
        x,
        kernel,
        1,
        _transposed_padding(padding, extents, strides, use_consistent_padding),
        strides,
        dilation,
        groups=1,
        precision=precision,
        preferred_element_type=preferred_element_type,
        y_sharding=layout.y_sharding(x, kernel, None),
        name="rhs",
    )
    return layout.result(_compute(op, x, kernel, spec, implementation))


def _transposed_padding(
    padding: arguments.Padding,
    extents: Sequence[int],
    strides: Sequence[int],
    consistent: bool,
) -> arguments.Padding:
    """The zeros around the dilated image, which has s·(H−1)+1 pixels."""
    names = ("SAME", "VALID")
    if isinstance(padding, str):
        arguments.require(
            padding.upper() in names,
            "conv_transpose",
            f"padding (={padding!r}) must be 'SAME', 'VALID' or (low, high) pairs",
        )
        padding = padding.upper()
    if padding == "SAME":
        # In all Kd + s − 2, for s·H pixels; the odd zero before the first pixel.
        lows = [
            k - 1 if s > k - 1 else (k + s - 1) // 2
            for k, s in zip(extents, strides, strict=True)
        ]
        pads = zip(lows, extents, strides, strict=True)
        return [(low, k + s - 2 - low) for low, k, s in pads]
    if padding == "VALID":
        # Every product counts, and what would have been left over is zero.
        return [(k - 1, max(k, s) - 1) for k, s in zip(extents, strides, strict=True)]
    if consistent:
        pairs = arguments.paddings("conv_transpose", padding, extents, extents, strides)
        both = zip(pairs, extents, strict=True)
        return [(k - 1 - low, k - 1 - high) for (low, high), k in both]
    return padding


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the axes of y[n, p, q, o] stand in the result: axis i is `order[i]`."""

    order: tuple[int, ...]

    def result(self, y: jax.Array) -> jax.Array:
        return y.transpose(self.order)

    def y_sharding(self, x, kernel, out_sharding) -> NamedSharding | None:
        """Where y lives, given where the result shall."""
        if out_sharding is None:
            return sharding.of_convolution(x, kernel)
        back = tuple(self.order.index(axis) for axis in range(x.ndim))
        return sharding.rearranged(sharding.named(out_sharding, x), back)


def _channels_last(
    op: str, lhs: Any, rhs: Any, dimension_numbers: Any, channels: str = "first"
) -> tuple[jax.Array, jax.Array, _Layout]:
    """Image [n h w c], kernel [k l c o], and the layout of the result."""
    lhs = arguments.array(op, "lhs", lhs)
    rhs = arguments.array(op, "rhs", rhs)
    arguments.same_dtype(op, lhs=lhs, rhs=rhs)
    arguments.require(
        lhs.ndim == rhs.ndim and 2 <= lhs.ndim <= 6,
        op,
        "lhs and rhs must have the same number of dimensions, 2 to 6, got lhs "
        f"{lhs.shape} and rhs {rhs.shape}",
    )
    if dimension_numbers is None and channels == "last":
        pixels = "HWDT"[: lhs.ndim - 2]
        dimension_numbers = (f"N{pixels}C", f"{pixels}IO", f"N{pixels}C")
    try:
        numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{op}: dimension_numbers (={dimension_numbers}) must fit lhs {lhs.shape} "
            f"and rhs {rhs.shape}: {error}"
        ) from error
    axes = list(range(lhs.ndim))
    arguments.require(
        all(sorted(spec) == axes for spec in numbers),
        op,
        f"dimension_numbers (={numbers}) must name each axis of lhs {lhs.shape} and "
        f"rhs {rhs.shape} once",
    )
    batch, feature, *pixels = numbers.lhs_spec
    outputs, inputs, *taps = numbers.rhs_spec
    # From y[n, p, q, o] to the layout asked for: axis out_spec[i] comes from axis i.
    sources = [0, lhs.ndim - 1, *range(1, lhs.ndim - 1)]
    order = tuple(sources[numbers.out_spec.index(axis)] for axis in range(lhs.ndim))
    return (
        lhs.transpose(batch, *pixels, feature),
        rhs.transpose(*taps, inputs, outputs),
        _Layout(order),
    )


def _compute(op: str, x, kernel, spec: ConvSpec, implementation) -> jax.Array:
    core = choose_formulas(op, implementation, spec)
    if 0 in windows.output_shape(spec.windows):  # depends on nothing
        shape = (x.shape[0], *windows.output_shape(spec.windows), kernel.shape[-1])
        return jnp.zeros(shape, spec.preferred_element_type or x.dtype)
    return core(x, kernel, spec)


def _batch_groups_as_channels(op, x, kernel, feature_groups, batch_groups):
    """[b·n h w c] -> [n h w b·c]: the image and its number of feature groups."""
    arguments.integer(op, "feature_group_count", feature_groups)
    arguments.integer(op, "batch_group_count", batch_groups)
    arguments.require(
        feature_groups == 1 or batch_groups == 1,
        op,
        f"feature_group_count (={feature_groups}) and batch_group_count "
        f"(={batch_groups}) must not both exceed 1",
    )
    if batch_groups == 1:
        return x, feature_groups
    arguments.require(
        x.shape[0] % batch_groups == 0,
        op,
        f"batch_group_count (={batch_groups}) must divide the {x.shape[0]} examples",
    )
    arguments.require(
        kernel.shape[-1] % batch_groups == 0,
        op,
        f"batch_group_count (={batch_groups}) must divide the {kernel.shape[-1]} "
        "output channels",
    )
    x = x.reshape(batch_groups, x.shape[0] // batch_groups, *x.shape[1:])
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], batch_groups * x.shape[-1]), batch_groups
