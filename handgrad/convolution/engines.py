"""The convolution that a formula leaves over, by the formula that suits it.

A dilated image is a strided one turned round, a group of channels is a convolution of
its own, and so is a slice of a volume. On a CPU the table of formulas says what
computes it, among those that round no more than XLA's convolution; elsewhere the
platform's own does.
"""

import functools

import jax
from jax import lax

from handgrad.convolution import choose
from handgrad.convolution.geometry import Geometry
from handgrad.convolution.spec import ConvSpec

ENGINES = (
    "block_diagonal",
    "gemm",
    "grouped",
    "mec",
    "phases",
    "rot180",
    "slices",
    "taps",
)


def compute(direction: str, a: jax.Array, b: jax.Array, spec: ConvSpec) -> jax.Array:
    """One direction of a convolution.

    Args:
      direction: "forward", "input_gradient" or "kernel_gradient".
      a: x [n h w c], dy [n p q o] or x.
      b: kernel [k l c/g o], kernel or dy.
      spec: the static part.

    Returns:
      y, dx or dkernel.
    """
    from handgrad.convolution.rule import FORMULAS  # which is made of this

    geometry = Geometry(*_shapes(direction, a, b, spec), spec)
    name, _ = choose.by_table(geometry, "cpu", among=ENGINES)[direction]
    on_cpu, elsewhere = (
        functools.partial(getattr(FORMULAS[each], direction), spec=spec)
        for each in (name, "rot180")
    )
    if name == "rot180":
        return elsewhere(a, b)
    return lax.platform_dependent(a, b, cpu=on_cpu, default=elsewhere)


def _shapes(direction: str, a, b, spec: ConvSpec) -> tuple[tuple, tuple]:
    """Those of x and kernel."""
    groups = spec.feature_group_count
    if direction == "forward":
        return a.shape, b.shape
    if direction == "input_gradient":
        channels = groups * b.shape[-2]
        return (a.shape[0], *(w.input for w in spec.windows), channels), b.shape
    sizes = (w.size for w in spec.windows)
    return a.shape, (*sizes, a.shape[-1] // groups, b.shape[-1])
