"""What the choice of formulas looks at: the shapes of a convolution, in words."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from handgrad.convolution import block_diagonal, narrow
from handgrad.convolution.spec import ConvSpec
from handgrad.rules import RULES
from handgrad.windows import Window


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What the table looks at: x[N, H, W, C] * kernel[K, L, C/G, O].

    Attributes:
      x_shape: [N, H, W, C].
      kernel_shape: [K, L, C/G, O].
      spec: the static description.
    """

    x_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    spec: ConvSpec

    def suits(self, formula: str) -> bool:
        """Whether a formula can do it, on its explicit mesh, too."""
        return not RULES["conv"].formulas[formula].unsuitable(self.spec)

    @property
    def groups(self) -> int:
        """G."""
        return self.spec.feature_group_count

    @property
    def inputs(self) -> int:
        """Input channels of one group, C/G."""
        return self.kernel_shape[-2]

    @property
    def outputs(self) -> int:
        """Output channels of all groups, O."""
        return self.kernel_shape[-1]

    @property
    def places(self) -> int:
        """Places of the kernel, K·L."""
        return self.spec.places

    @property
    def depthwise(self) -> bool:
        """Whether every channel is a group of its own."""
        return self.groups == self.outputs > 1 and self.inputs == 1

    def elementwise(self, kernels: int) -> bool:
        """Whether `taps` does many groups of so few kernels number by number."""
        few = 1 < self.inputs * self.outputs // self.groups <= kernels
        many = self.groups >= 8 and self.places > 1
        return few and many and narrow.knows(self.kernel_shape[-2:], self.spec)

    @property
    def narrow_groups(self) -> bool:
        """Whether an image's groups have few channels, outputs and places each."""
        few = max(self.inputs, self.outputs // self.groups) <= block_diagonal.ENOUGH
        image = self.dimensions == 2 and self.places < 256
        return few and image and self.suits("block_diagonal")

    @property
    def dilated_image(self) -> bool:
        """Whether it is the transpose of a strided convolution."""
        return self.suits("transposed")

    @property
    def dimensions(self) -> int:
        """Spatial dimensions."""
        return len(self.spec.windows)

    @property
    def least(self) -> int:
        """The fewer of inputs and outputs."""
        return min(self.inputs, self.outputs)

    @property
    def most(self) -> int:
        """The more of inputs and outputs."""
        return max(self.inputs, self.outputs)

    @property
    def pixels(self) -> int:
        """Pixels of y in one example, P·Q."""
        return math.prod(w.output for w in self.spec.windows)

    @property
    def examples(self) -> int:
        """N."""
        return self.x_shape[0]

    @property
    def many_small(self) -> bool:
        """Whether the examples together have as many tiles as a large image."""
        return self.pixels >= 49 and self.examples * self.pixels >= 2000

    @property
    def errors(self) -> int:
        """Numbers of dy, N·P·Q·O."""
        return self.examples * self.pixels * self.outputs

    def smaller_than_kernel(self, length: Callable[[Window], int]) -> bool:
        """Whether the pixels are few, and fewer than the kernel's places, 3 or more."""
        few = all(length(w) < w.size > 2 for w in self.spec.windows)
        return few and self.dimensions > 0 and self.pixels <= 64

    @property
    def strided(self) -> bool:
        """Whether one group is seen in strides, and no zero is inserted beforehand."""
        strides = any(w.stride > 1 for w in self.spec.windows)
        return strides and self.groups == 1 and self.suits("phases")

    @property
    def few_channels(self) -> bool:
        """Whether few filters see an image of few channels, without strides."""
        few = self.inputs <= 8 and self.outputs <= 16
        return few and self.groups == 1 and self.places > 1 and not self.strided

    @property
    def disjoint(self) -> bool:
        """Whether the windows are the tiles of a strided image."""
        return self.strided and all(w.stride == w.size for w in self.spec.windows)

    @property
    def row(self) -> bool:
        """Whether the kernel has one place along the first dimension."""
        return self.dimensions > 1 and self.spec.windows[0].size == 1

    @property
    def dilated_kernel(self) -> bool:
        """Whether the kernel leaves out pixels in every dimension."""
        return all(w.dilation > 1 for w in self.spec.windows)

    @property
    def column(self) -> bool:
        """Whether the kernel has one place along the last dimension."""
        return self.dimensions > 1 and self.spec.windows[-1].size == 1

    @property
    def three_by_three(self) -> bool:
        """Whether it is Winograd's 3×3, in float32."""
        image = self.dimensions == 2 and self.spec.dtype == np.float32
        return image and self.suits("winograd")

    @property
    def few_places(self) -> bool:
        """Whether `taps` writes the kernel out place by place."""
        return self.suits("taps")
