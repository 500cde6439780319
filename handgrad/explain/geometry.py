"""Who meets whom: pixel x[h] meets the kernel's k[k] in the output u[p].

Every sum of a convolution's or pool's derivation runs over the triples (p, k, h) with
h = s·p + d·k − b, in each of both dimensions. Grouped by p they are the forward pass,
grouped by k the kernel's gradient, grouped by h the input's.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, windows
from handgrad.explain.step import counted


class Meeting(NamedTuple):
    """The kernel's entry `place` lies on `pixel` while `output` is computed."""

    output: tuple[int, int]
    place: tuple[int, int]
    pixel: tuple[int, int]


class Geometry(NamedTuple):
    """A window over one image with one channel; each field is (rows, columns)."""

    image: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    output: tuple[int, int]

    @property
    def extent(self) -> tuple[int, int]:
        """Pixels from the window's first to its last."""
        rows, columns = (
            d * (k - 1) + 1 for d, k in zip(self.dilation, self.window, strict=True)
        )
        return rows, columns

    @property
    def plain(self) -> bool:
        """Whether it is the article's: stride 1, no padding, no dilation."""
        ones = self.stride == self.dilation == (1, 1)
        return ones and self.padding == ((0, 0), (0, 0))

    def options(self, dilation: str) -> dict:
        """The keywords of handgrad's ops, which call the dilation differently."""
        return {
            "strides": self.stride,
            "padding": self.padding,
            dilation: self.dilation,
        }

    def meetings(self) -> list[Meeting]:
        """All of them, output by output, place by place, in row-major order."""
        found = [
            Meeting(output, place, self._pixel(output, place))
            for output in np.ndindex(*self.output)
            for place in np.ndindex(*self.window)
        ]
        rows, columns = self.image
        return [
            m for m in found if 0 <= m.pixel[0] < rows and 0 <= m.pixel[1] < columns
        ]

    def _pixel(self, output, place) -> tuple[int, int]:
        h, w = (
            s * p + d * k - low
            for s, p, d, k, (low, _) in zip(
                self.stride, output, self.dilation, place, self.padding, strict=True
            )
        )
        return h, w

    def words(self) -> str:
        """The geometry as a title says it: `stride 1, no padding`."""
        parts = [f"stride {pair(self.stride)}"]
        (top, bottom), (left, right) = self.padding
        if not any((top, bottom, left, right)):
            parts.append("no padding")
        else:
            parts.append(f"padding {sides(self.padding)}")
        if self.dilation != (1, 1):
            parts.append(f"dilation {pair(self.dilation)}")
        return ", ".join(parts)


def describe(
    op: str,
    image: Sequence[int],
    window: Sequence[int],
    stride: int | Sequence[int],
    padding: arguments.Padding,
    dilation: int | Sequence[int],
) -> Geometry:
    """Checks the numbers and works the padding out.

    Raises:
      ValueError: a number does not fit, or no window fits the image.
    """
    described = windows.describe(
        op,
        image,
        window,
        stride,
        padding,
        dilation,
        name="window",
        stride_name="stride",
        dilation_name="dilation",
    )
    windows.require_fit(op, described, name="the window")
    rows, columns = described
    return Geometry(
        image=(rows.input, columns.input),
        window=(rows.size, columns.size),
        stride=(rows.stride, columns.stride),
        padding=((rows.low, rows.high), (columns.low, columns.high)),
        dilation=(rows.dilation, columns.dilation),
        output=(rows.output, columns.output),
    )


def busiest(meetings: Sequence[Meeting], field: str) -> list[Meeting]:
    """The meetings of the output, place or pixel that has most; the first of several.

    Raises:
      ValueError: there is no meeting at all: every window lies in padding.
    """
    if not meetings:
        raise ValueError("explain: every window lies in padding and sees no pixel")

    def key(meeting: Meeting) -> tuple[int, int]:
        return getattr(meeting, field)

    groups = {
        index: list(group)
        for index, group in itertools.groupby(sorted(meetings, key=key), key)
    }
    return max(groups.values(), key=len)


def padded(x: jax.Array, padding: Sequence, between: Sequence[int] = (1, 1)):
    """The matrix with zeros around it (or cropped) and between its entries."""
    config = [
        (low, high, d - 1) for (low, high), d in zip(padding, between, strict=True)
    ]
    return lax.pad(x, arguments.zero(x.dtype), config)


def dilated(x: jax.Array, distance: Sequence[int]) -> jax.Array:
    """The matrix with its entries `distance` apart, zeros between them."""
    return padded(x, ((0, 0), (0, 0)), distance)


def gathered(values: jax.Array, indices: Sequence[tuple[int, int]]) -> np.ndarray:
    """The entries at these indices."""
    return np.asarray(values)[tuple(np.transpose(np.asarray(indices)))]


def image(x: jax.Array) -> jax.Array:
    """A matrix as an image with one channel."""
    return jnp.expand_dims(x, 2)


def pair(numbers: Sequence[int]) -> str:
    """`2`, or `2×1` where rows and columns differ."""
    return "×".join(map(str, dict.fromkeys(numbers)))


def sides(padding: Sequence[tuple[int, int]]) -> str:
    """`1 on every side`, or each side's."""
    (top, bottom), (left, right) = padding
    if top == bottom == left == right:
        return f"{top} on every side"
    return f"{top} above, {bottom} below, {left} left, {right} right"


def zeros(padding: Sequence[tuple[int, int]]) -> str:
    """`2 zeros on every side`; a negative number crops."""
    (top, bottom), (left, right) = padding
    if top == bottom == left == right >= 0:
        return f"{counted(top, 'zero')} on every side"
    crops = min(top, bottom, left, right) < 0
    return f"zeros, {sides(padding)}" + (", where a negative number crops" * crops)
