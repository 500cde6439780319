"""Convolution's first route: the error slides over the image, the kernel is turned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import handgrad
from handgrad import arguments
from handgrad.explain import geometry as geo
from handgrad.explain.step import (
    Step,
    added,
    confirm,
    entry,
    matrix,
    plus,
    products,
    require_shape,
    size,
)

IMAGE = np.arange(1, 17).reshape(4, 4)
KERNEL = [[1, 2, 0], [0, 1, -1], [-1, 0, 2]]


def conv(
    image: Any = None,
    kernel: Any = None,
    error: Any = None,
    bias: Any = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: arguments.Padding = "VALID",
    dilation: int | tuple[int, int] = 1,
) -> list[Step]:
    """The 4×4 image, its 3×3 kernel, and both gradients as convolutions.

    Args:
      image: matrix [H, W]; the article's by default, as are the others.
      kernel: matrix [K, L].
      error: ∂L/∂u [P, Q]; by default it counts 1, 2, 3, ...
      bias: one number; 1 in the article's example, else 0 by default.
      stride: pixels from one window to the next.
      padding: as `handgrad.conv` takes it.
      dilation: pixels from one entry of the kernel to the next.

    Raises:
      ValueError: the matrices do not fit each other.
    """
    articles = image is None and kernel is None
    x = matrix(IMAGE if image is None else image)
    k = matrix(KERNEL if kernel is None else kernel)
    g = geo.describe("conv", x.shape, k.shape, stride, padding, dilation)
    b = matrix(int(articles) if bias is None else bias)
    require_shape("conv", "bias", b, ())
    error = matrix(counting(g.output) if error is None else error)
    require_shape("conv", "error", error, g.output)

    def op(x, k, b=None, **options):
        return plain_conv(x, k, b, **g.options("kernel_dilation"), **options)

    met = g.meetings()
    first, tap, pixel = (geo.busiest(met, by) for by in ("output", "place", "pixel"))
    if g.plain:  # they all have as many: the article takes the first
        first = [m for m in met if m.output == (0, 0)]

    far = geo.dilated(error, g.stride)
    kernel_far = geo.dilated(k, g.dilation)
    seen = geo.padded(x, seen_padding(g))
    dk = plain_conv(seen, far, strides=g.dilation)
    db = error.sum()
    around = error_padding(g)
    padded_error = geo.padded(far, around)
    rotated = jnp.rot90(kernel_far, 2)
    dx = plain_conv(padded_error, rotated)

    far_name = "δ" if g.stride == (1, 1) else "dilate(δ)"
    x_name = "x" if not np.any(g.padding) else "pad(x)"
    k_name = "k" if g.dilation == (1, 1) else "dilate(k)"
    steps = [
        Step(f"CONVOLUTION: one channel, {g.words()}"),
        Step(
            f"The image x, {size(x.shape)}"
            + ("; its numbers count the pixels row by row." if image is None else "."),
            x,
            "x",
        ),
    ]
    if x_name != "x":
        steps.append(
            Step(f"Padded: {geo.zeros(g.padding)}.", geo.padded(x, g.padding), x_name)
        )
    steps.append(Step(f"The kernel k, {size(k.shape)}.", k, "k"))
    if k_name != "k":
        steps.append(
            Step(
                f"Dilated: its entries lie {geo.pair(g.dilation)} pixels apart, and it "
                f"spans {size(g.extent)} of them; the zeros between them see nothing.",
                kernel_far,
                k_name,
            )
        )
    fits = "It fits in" if g.stride == (1, 1) else f"{_moves(g)} It fits in"
    place = (
        f"{size(g.output)} places. In the first of them"
        if first[0].output == (0, 0)
        else f"{size(g.output)} places. In one of them"
    )
    steps += [
        Step("The bias b, one number for the whole image.", b, "b"),
        Step(
            "Forward: the kernel slides over the image, u = conv("
            f"{x_name}, {k_name}) + b. {fits} {place} {entry('u', first[0].output)} "
            "is b plus\n"
            f"{_numbers(first, x, 'pixel', k, 'place')}.",
            op(x, k, b),
            "u",
        ),
        Step(
            "Backward: the next layer hands back the error δ = ∂L/∂u, one number "
            "for each output pixel.",
            error,
            "δ",
        ),
    ]
    if far_name != "δ":
        steps.append(
            Step(
                "Neighbouring output pixels come from windows "
                f"{geo.pair(g.stride)} pixels apart, so the error lies on the image "
                "with as much distance: zeros between its entries.",
                far,
                far_name,
            )
        )
    k_entry = entry("k", tap[0].place)
    steps += [
        Step(
            "The kernel's gradient. "
            + ("Every output pixel" if len(tap) == error.size else "Output pixels")
            + f" used {k_entry}, each on another pixel of the image, and the chain "
            "rule adds over all of them:\n"
            f"∂L/∂{k_entry} = {_letters(tap, 'δ', 'output', 'x', 'pixel')} = "
            f"{_numbers(tap, error, 'output', x, 'pixel')}.\n"
            + (
                "For k₁₂ the same errors meet the pixels one further to the right, and "
                "so on: the "
                if g.plain and g.window[1] > 1
                else "For its neighbours the same errors meet the pixels "
                f"{geo.pair(g.dilation)} further, and so on: the "
            )
            + "error slides over the image as if it were the kernel,\n"
            f"∂L/∂k = conv({x_name}, {far_name}).",
            dk,
            "∂L/∂k",
        ),
        Step(
            "The bias's gradient. Every output pixel added b once:\n"
            f"∂L/∂b = Σδ = {added(error)}.",
            db,
            "∂L/∂b",
        ),
        Step(
            f"The image's gradient. Pixel {entry('x', pixel[0].pixel)} met "
            f"{_met(pixel)}, so\n"
            f"∂L/∂{entry('x', pixel[0].pixel)} = "
            f"{_letters(pixel, 'δ', 'output', 'k', 'place')} = "
            f"{_numbers(pixel, error, 'output', k, 'place')}.\n"
            "While δ is read forwards, k is read backwards. Pixels near the border "
            "met fewer places of the kernel; "
            f"{_around(g, around)} stand for those they missed.",
            padded_error,
            f"pad({far_name})",
        ),
        Step(
            "The kernel read backwards is the kernel turned by 180°.",
            rotated,
            f"rot180({k_name})",
        ),
        Step(
            "The turned kernel slides over the padded error, a full convolution:\n"
            f"∂L/∂x = conv(pad({far_name}), rot180({k_name})).\n"
            "It has the size of the image and is the error δ of the layer before.",
            dx,
            "∂L/∂x",
        ),
        *confirm(op, (x, k, b), error, {"∂L/∂x": dx, "∂L/∂k": dk, "∂L/∂b": db}),
    ]
    return steps


def plain_conv(x, k, b=None, **options: Any) -> jax.Array:
    """`handgrad.conv` of one image with one channel, as plain matrices."""
    kernel = jnp.expand_dims(k, (2, 3))
    bias = None if b is None else jnp.reshape(b, 1)
    options = {"padding": "VALID", **options}
    return jnp.squeeze(handgrad.conv(geo.image(x), kernel, bias, **options), 2)


def counting(shape: tuple[int, int]) -> np.ndarray:
    """1, 2, 3, ... row by row."""
    return np.arange(1, shape[0] * shape[1] + 1).reshape(shape)


def seen_padding(g: geo.Geometry) -> list[tuple[int, int]]:
    """The image's padding up to the last pixel that a window sees: FORMULAS B1."""
    return [
        (low, s * (p - 1) + extent - h - low)
        for (low, _), s, p, extent, h in zip(
            g.padding, g.stride, g.output, g.extent, g.image, strict=True
        )
    ]


def error_padding(g: geo.Geometry) -> list[tuple[int, int]]:
    """The dilated error's padding in the full convolution: FORMULAS B1."""
    return [
        (extent - 1 - low, h + low - (s * (p - 1) + 1))
        for (low, _), s, p, extent, h in zip(
            g.padding, g.stride, g.output, g.extent, g.image, strict=True
        )
    ]


def _moves(g: geo.Geometry) -> str:
    rows, columns = g.stride
    if rows == columns:
        return f"It moves {rows} pixels at a time."
    return f"It moves {rows} down and {columns} to the right at a time."


def _around(g: geo.Geometry, around: list[tuple[int, int]]) -> str:
    count = around[0][0]
    if len({*around[0], *around[1]}) > 1 or count < 0:
        return f"the {geo.zeros(around)}, around the error"
    zeros = f"{geo.zeros(around)} of the error"
    return f"{g.window[0]} − 1 = {zeros}" if g.plain and count else zeros


def _met(meetings: list[geo.Meeting]) -> str:
    texts = [f"{entry('k', m.place)} in {entry('u', m.output)}" for m in meetings]
    if len(texts) > 8:
        texts = [*texts[:6], "…", texts[-1]]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _letters(meetings, a: str, by_a: str, b: str, by_b: str) -> str:
    """`δ₁₁x₁₁ + δ₁₂x₁₂`."""
    return plus(
        entry(a, getattr(m, by_a)) + entry(b, getattr(m, by_b)) for m in meetings
    )


def _numbers(meetings, a: jax.Array, by_a: str, b: jax.Array, by_b: str) -> str:
    """`1·1 + 2·2 = 5`."""
    return products(
        geo.gathered(a, [getattr(m, by_a) for m in meetings]),
        geo.gathered(b, [getattr(m, by_b) for m in meetings]),
    )
