"""What `implementation=None` would run for a convolution, and why."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from handgrad import arguments
from handgrad.convolution import choose
from handgrad.convolution.general import conv_general_dilated
from handgrad.convolution.spec import ConvFormulas

_PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The formulas that `implementation=None` takes; `str` makes it a table.

    Attributes:
      platform: where.
      formulas: the formula of each direction; a value of `implementation`, too.
      reasons: why, by direction: "forward", "input_gradient" and "kernel_gradient".
    """

    platform: str
    formulas: ConvFormulas
    reasons: Mapping[str, str]

    @property
    def forward(self) -> str:
        """The formula that computes y from x and kernel."""
        return self.formulas.forward

    @property
    def input_gradient(self) -> str:
        """The formula that computes dx from dy and kernel."""
        return self.formulas.input_gradient

    @property
    def kernel_gradient(self) -> str:
        """The formula that computes dkernel from x and dy."""
        return self.formulas.kernel_gradient

    def __str__(self) -> str:
        names = dataclasses.asdict(self.formulas)
        width = max(map(len, names.values()))
        return "\n".join(
            f"{direction:15}  {name:{width}}  {self.reasons[direction]}"
            for direction, name in names.items()
        )


def explain_choice(
    lhs_shape: Sequence[int],
    rhs_shape: Sequence[int],
    window_strides: Sequence[int],
    padding: arguments.Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    dtype: Any = "float32",
    platform: str | None = None,
) -> Choice:
    """Says which formulas `implementation=None` takes for a convolution, and why.

    The arguments are those of `conv_general_dilated`, with shapes in the place of
    arrays; nothing is computed. `conv` is `dimension_numbers=("NHWC", "HWIO", "NHWC")`;
    `conv_transpose` is that with strides of 1, its own strides as `lhs_dilation`, and
    the zeros around the dilated image as `padding`. Under `vmap` the choice sees the
    shapes of one example. An explicit mesh that splits the arrays may rule out a
    measured choice, and the default then stands in its place. Where several
    devices may split the images, no formula is chosen for which XLA would gather them.

    Args:
      lhs_shape: shape of the image.
      rhs_shape: shape of the kernel.
      window_strides: as in `conv_general_dilated`; so for all up to
        `preferred_element_type`.
      padding: "SAME", "VALID", "SAME_LOWER" or (low, high) pixels for each dimension.
      lhs_dilation: distance that neighbouring pixels are moved apart to.
      rhs_dilation: distance between neighbouring kernel pixels.
      dimension_numbers: strings, tuples or `ConvDimensionNumbers`; by default channels
        first, as in `jax.lax`.
      feature_group_count: independent groups of channels.
      batch_group_count: independent groups of examples.
      precision: as in `jax.lax`.
      preferred_element_type: dtype of the result.
      dtype: of image and kernel.
      platform: "cpu", "gpu" (or "cuda", "rocm") or "tpu"; `None` for
        `jax.default_backend()`.

    Returns:
      The formulas and the reasons.

    Raises:
      ValueError: as `conv_general_dilated` does, or the platform is unknown, or the
        result is empty, so that there is nothing to compute.
      TypeError: as `conv_general_dilated` does.

    Example:
      >>> import handgrad
      >>> choice = handgrad.explain_choice(
      ...     (8, 28, 28, 32), (3, 3, 1, 32), (1, 1), "SAME",
      ...     dimension_numbers=("NHWC", "HWIO", "NHWC"),
      ...     feature_group_count=32, platform="gpu")
      >>> print(choice)
      forward          rot180  the platform's own convolution is the right engine
      input_gradient   rot180  the platform's own convolution is the right engine
      kernel_gradient  rot180  the platform's own convolution is the right engine
    """
    op = "explain_choice"
    here = jax.default_backend()
    platform = here if platform is None else platform
    arguments.require(
        platform in (*_PLATFORMS, here),
        op,
        f"platform (={platform!r}) must be one of {', '.join(map(repr, _PLATFORMS))}",
    )
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    lhs, rhs = (
        jax.ShapeDtypeStruct(
            arguments.per_dimension(op, name, tuple(shape), len(shape), least=0), dtype
        )
        for name, shape in (("lhs_shape", lhs_shape), ("rhs_shape", rhs_shape))
    )
    # The op itself, so that the answer is its own.
    with choose.recording() as asked:
        jax.eval_shape(
            lambda lhs, rhs: conv_general_dilated(
                lhs,
                rhs,
                window_strides,
                padding,
                lhs_dilation,
                rhs_dilation,
                dimension_numbers,
                feature_group_count,
                batch_group_count,
                precision,
                preferred_element_type,
            ),
            lhs,
            rhs,
        )
    arguments.require(
        bool(asked),
        op,
        f"the kernel {tuple(rhs_shape)} must fit the padded image {tuple(lhs_shape)}: "
        "the result is empty",
    )
    (geometry,) = asked
    explained = choose.explain(geometry, platform)
    return Choice(
        platform,
        choose.on_platform(geometry, platform),
        {direction: because for direction, (_, because) in explained.items()},
    )
