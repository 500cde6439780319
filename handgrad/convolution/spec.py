"""The static description of a convolution, and the names of its three formulas."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import NamedSharding

from handgrad.windows import Windows


@dataclasses.dataclass(frozen=True)
class ConvFormulas:
    """Which formula computes each of the three directions.

    The three need not agree: each direction has its own best formula.

    Attributes:
      forward: computes y from x and kernel.
      input_gradient: computes dx from dy and kernel.
      kernel_gradient: computes dkernel from x and dy.
    """

    forward: str
    input_gradient: str
    kernel_gradient: str


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """All that is static about a convolution x[N,H,W,C] * kernel[K,L,C/G,O].

    Attributes:
      windows: H, K, s, b, d and e in each spatial dimension.
      feature_group_count: G; group g sees its own C/G inputs and O/G outputs.
      dtype: of x and kernel.
      precision: as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of y, or `None` for that of x.
      x_sharding: where dx lives under an explicit mesh.
      kernel_sharding: where dkernel lives under an explicit mesh.
      y_sharding: where y lives under an explicit mesh; `None` lets JAX derive it.
      formulas: what computes which direction, for each platform and "default" last;
        empty while it is not chosen yet.
    """

    windows: Windows
    feature_group_count: int = 1
    dtype: Any = None
    precision: Any = None
    preferred_element_type: Any = None
    x_sharding: NamedSharding | None = None
    kernel_sharding: NamedSharding | None = None
    y_sharding: NamedSharding | None = None
    formulas: tuple[tuple[str, ConvFormulas], ...] = ()

    @property
    def places(self) -> int:
        """Places of the kernel, K·L."""
        return math.prod(w.size for w in self.windows)

    @property
    def splits_pixels(self) -> bool:
        """Whether an explicit mesh splits images of x along a spatial dimension."""
        return self.x_sharding is not None and any(self.x_sharding.spec[1:-1])


# Of a gradient's multiplications, that occupy two cores for a tenth of a millisecond.
_MANY_PRODUCTS = 2**24


def fills_the_cores(dy: jax.Array, kernel: jax.Array) -> bool:
    """Whether either gradient is work for all cores, N·P·Q·O · K·L·C/G products."""
    places_and_inputs = math.prod(kernel.shape[:-1])
    return dy.size * places_and_inputs >= _MANY_PRODUCTS
