"""Convolution's second route: im2col, one matrix product, col2im."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import handgrad
from handgrad import arguments
from handgrad.explain import geometry as geo
from handgrad.explain.convolution import counting, plain_conv
from handgrad.explain.step import (
    Step,
    added,
    confirm,
    entry,
    matrix,
    products,
    require_shape,
    size,
)

IMAGE = np.arange(1, 10).reshape(3, 3)
KERNEL = [[1, 2], [3, -1]]
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def im2col(
    image: Any = None,
    kernel: Any = None,
    error: Any = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: arguments.Padding = "VALID",
    dilation: int | tuple[int, int] = 1,
) -> list[Step]:
    """A 3×3 image and a 2×2 kernel: convolution as a matrix product.

    Args:
      image: matrix [H, W]; the article's by default, as are the others.
      kernel: matrix [K, L].
      error: ∂L/∂u [P, Q]; by default it counts 1, 2, 3, ...
      stride: pixels from one window to the next.
      padding: as `handgrad.conv` takes it.
      dilation: pixels from one entry of the kernel to the next.

    Raises:
      ValueError: the matrices do not fit each other.
    """
    x = matrix(IMAGE if image is None else image)
    k = matrix(KERNEL if kernel is None else kernel)
    g = geo.describe("im2col", x.shape, k.shape, stride, padding, dilation)
    error = matrix(counting(g.output) if error is None else error)
    require_shape("im2col", "error", error, g.output)
    options = g.options("kernel_dilation")

    def op(x, k, **more):
        return plain_conv(x, k, **options, **more)

    columns = handgrad.im2col(geo.image(x), g.window, **options)
    row, error_row = k.reshape(1, -1), error.reshape(1, -1)
    y = handgrad.dense(row, columns)
    drow = handgrad.dense(error_row, columns.T)
    dcolumns = handgrad.dense(row.T, error_row)
    dx = jnp.squeeze(handgrad.col2im(dcolumns, g.image, g.window, **options), 2)

    patches = word(y.size)
    padded = "" if not np.any(g.padding) else "padded "
    pixel = geo.busiest(g.meetings(), "pixel")
    back = geo.gathered(
        dcolumns,
        [(_flat(m.place, g.window), _flat(m.output, g.output)) for m in pixel],
    )
    target = entry("x", pixel[0].pixel)
    if g.plain and g.image == (3, 3) and g.window == (2, 2):
        sums = (
            "The middle pixel was in all four patches, the rising diagonal of dX:\n"
            f"∂L/∂{target} = {added(back)}."
        )
    else:
        sums = (
            f"Pixel {target} was in {word(len(pixel))} of them:\n"
            f"∂L/∂{target} = {added(back)}."
        )
    steps = [
        Step("IM2COL: convolution as one matrix product"),
        Step(f"The image x, {size(x.shape)}.", x, "x"),
    ]
    if not g.plain:
        steps[0] = Step(f"IM2COL: convolution as one matrix product; {g.words()}")
    if padded:
        steps.append(
            Step(f"Padded: {geo.zeros(g.padding)}.", geo.padded(x, g.padding), "pad(x)")
        )
    places = f"{patches} place" + "s" * (y.size != 1)
    return [
        *steps,
        Step(
            f"The kernel k, {size(k.shape)}. It fits in {places} of the {padded}image.",
            k,
            "k",
        ),
        Step(
            "Every patch under the kernel, read row by row, becomes one column: "
            f"{patches} patches, {patches} columns, X = im2col(x).",
            columns,
            "X",
        ),
        Step("The kernel, read the same way, becomes one row.", row, "K"),
        Step(
            "Forward: the convolution has become the product Y = K X. First entry:\n"
            f"Y₁₁ = {products(row, columns[:, :1].T)}.",
            y,
            "Y",
        ),
        Step(
            f"Folded to {size(g.output)}, Y is the output image u.",
            y.reshape(g.output),
            "u",
        ),
        Step("Backward: the error δ = ∂L/∂u ...", error, "δ"),
        Step("... read row by row is dY = ∂L/∂Y.", error_row, "dY"),
        Step(
            "The kernel's gradient, as in a dense layer: dK = dY Xᵀ. Folded to "
            f"{size(g.window)} it is ∂L/∂k.",
            drow,
            "dK",
        ),
        Step(
            "The patches' gradient, as in a dense layer: dX = Kᵀ dY. It still has one "
            "column a patch.",
            dcolumns,
            "dX",
        ),
        Step(
            "A pixel that was copied into several patches feels all their errors: "
            "col2im adds every column back to the pixels that it was taken from. "
            + sums,
            dx,
            "∂L/∂x",
        ),
        *confirm(op, (x, k), error, {"∂L/∂x": dx, "∂L/∂k": drow.reshape(g.window)}),
    ]


def word(number: int) -> str:
    """`four`, `12`."""
    return WORDS[number] if number < len(WORDS) else str(number)


def _flat(index: tuple[int, int], shape: tuple[int, int]) -> int:
    return index[0] * shape[1] + index[1]
