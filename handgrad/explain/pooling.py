"""Pooling: the error goes to where the maximum was, or is spread evenly."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import handgrad
from handgrad import arguments
from handgrad.explain import geometry as geo
from handgrad.explain.convolution import counting
from handgrad.explain.matrix_product import word
from handgrad.explain.step import (
    Step,
    confirm,
    entry,
    matrix,
    numbers,
    plus,
    require_shape,
    size,
)

MAX_IMAGE = [[1, 3, 2, 0], [4, 2, 1, 5], [7, 0, 3, 8], [1, 6, 4, 2]]
AVG_IMAGE = [[1, 3, 2, 0], [4, 4, 1, 5], [7, 0, 3, 8], [1, 4, 7, 2]]


def max_pool(
    image: Any = None,
    error: Any = None,
    *,
    window: int | tuple[int, int] = 2,
    stride: int | tuple[int, int] | None = None,
    padding: arguments.Padding = "VALID",
    dilation: int | tuple[int, int] = 1,
) -> list[Step]:
    """A 4×4 image in 2×2 blocks: the error goes to where the maximum was.

    Args:
      image: matrix [H, W]; the article's by default.
      error: ∂L/∂u [P, Q]; by default it counts 1, 2, 3, ...
      window: pixels of the window.
      stride: pixels from one window to the next; the window's size by default.
      padding: as `handgrad.max_pool` takes it.
      dilation: pixels from one pixel of the window to the next.

    Raises:
      ValueError: the matrices do not fit each other.
    """
    x = matrix(MAX_IMAGE if image is None else image)
    g = _geometry("max_pool", x, window, stride, padding, dilation)
    error = matrix(counting(g.output) if error is None else error)
    require_shape("max_pool", "error", error, g.output)
    if {m.output for m in g.meetings()} != set(np.ndindex(*g.output)):
        raise ValueError("max_pool: a window lies wholly in padding: it has no maximum")

    options = g.options("window_dilation")
    inside = g.options("kernel_dilation")
    # Padding never wins: it is −∞, and has no pixel to hand an error to.
    config = [(low, high, 0) for low, high in g.padding]
    padded = lax.pad(x, arguments.lowest(x.dtype), config)
    columns = handgrad.im2col(
        geo.image(padded), g.window, g.stride, kernel_dilation=g.dilation
    )
    offset = jnp.argmax(columns, 0)  # one window a column
    places = math.prod(g.window)
    chosen = jax.nn.one_hot(offset, places, dtype=x.dtype, axis=0)
    dcolumns = chosen * error.reshape(1, -1)
    dx = jnp.squeeze(handgrad.col2im(dcolumns, g.image, g.window, **inside), 2)

    def op(x, **more):
        pooled = handgrad.max_pool(geo.image(x), g.window, **options, **more)
        return jnp.squeeze(pooled, 2)

    def reference(x, implementation):
        if implementation == "autodiff" and g.dilation != (1, 1):
            return _read_maxima(x, g)
        return op(x, implementation=implementation)

    window_words = "block" if any(_blocks(g)) else "window"
    if any(_blocks(g)) and g.window == (2, 2):
        counts = "counted 0, 1 in the upper row and 2, 3 in the lower"
    else:
        counts = "counted row by row from 0"
    goes = (
        "So the error goes to place t of its block, and the others get 0."
        if any(_blocks(g))
        else "So the error goes to place t of its window; a pixel that is the maximum "
        "of several windows gets the sum of their errors, all others 0."
    )
    return [
        Step(f"MAX POOLING: {_title(g)}, no parameter"),
        *_image(x, g),
        Step(
            f"Forward: of each {window_words} only the maximum is kept."
            + (" Padding never wins." if np.any(g.padding) else ""),
            op(x),
            "u",
        ),
        Step(
            f"The layer remembers where it was: t is the maximum's place in its "
            f"{window_words}, {counts}. The image itself can be forgotten.",
            offset.reshape(g.output),
            "t",
        ),
        Step(
            f"Backward: the error δ = ∂L/∂u, one number a {window_words}.", error, "δ"
        ),
        Step(
            "Up-sampling. If the maximum changes a little, u changes as much; if any "
            f"other pixel does, u stays. {goes}",
            dx,
            "∂L/∂x",
            _blocks(g),
        ),
        *confirm(reference, (x,), error, {"∂L/∂x": dx}, _blocks(g)),
    ]


def avg_pool(
    image: Any = None,
    error: Any = None,
    *,
    window: int | tuple[int, int] = 2,
    stride: int | tuple[int, int] | None = None,
    padding: arguments.Padding = "VALID",
    dilation: int | tuple[int, int] = 1,
) -> list[Step]:
    """A 4×4 image in 2×2 blocks: the error is spread evenly.

    Args:
      image: matrix [H, W]; the article's by default.
      error: ∂L/∂u [P, Q]; by default multiples of the window's number of pixels.
      window: pixels of the window.
      stride: pixels from one window to the next; the window's size by default.
      padding: as `handgrad.avg_pool` takes it; its zeros count in the mean.
      dilation: pixels from one pixel of the window to the next.

    Raises:
      ValueError: the matrices do not fit each other.
    """
    x = matrix(AVG_IMAGE if image is None else image)
    g = _geometry("avg_pool", x, window, stride, padding, dilation)
    places = math.prod(g.window)
    error = matrix(places * counting(g.output) if error is None else error)
    require_shape("avg_pool", "error", error, g.output)

    options = g.options("window_dilation")
    copies = jnp.broadcast_to(error.reshape(1, -1), (places, error.size))
    up = handgrad.col2im(copies, g.image, g.window, **g.options("kernel_dilation"))
    up = jnp.squeeze(up, 2)
    dx = up / places

    def op(x, **more):
        pooled = handgrad.avg_pool(geo.image(x), g.window, **options, **more)
        return jnp.squeeze(pooled, 2)

    first = geo.busiest(g.meetings(), "output")
    terms = plus(numbers(geo.gathered(x, [m.pixel for m in first])))
    window_words = "block" if any(_blocks(g)) else "window"
    factor = "·".join(map(str, g.window))
    part = (
        "a quarter" if places == 4 else f"one {places}th" if places > 3 else "its part"
    )
    return [
        Step(f"MEAN POOLING: {_title(g)}, no parameter"),
        *_image(x, g),
        Step(
            f"Forward: the mean of each {window_words}, "
            f"{entry('u', first[0].output)} = ({terms}) / {places} "
            + ("first." if first[0].output == (0, 0) else "for example.")
            + (" The padding's zeros count." if np.any(g.padding) else ""),
            op(x),
            "u",
        ),
        Step(
            f"Backward: the error δ = ∂L/∂u, one number a {window_words}.", error, "δ"
        ),
        Step(
            f"Up-sampling: each error is repeated over its {window_words}"
            + (" ..." if any(_blocks(g)) else "; where windows overlap, they add ..."),
            up,
            "up(δ)",
            _blocks(g),
        ),
        Step(
            f"... and divided by {factor}, because each pixel made up {part} of its "
            f"mean: ∂L/∂x = up(δ) / {places}.",
            dx,
            "∂L/∂x",
            _blocks(g),
        ),
        *confirm(op, (x,), error, {"∂L/∂x": dx}, _blocks(g)),
    ]


def _geometry(op, x, window, stride, padding, dilation) -> geo.Geometry:
    window = (window, window) if isinstance(window, int) else window
    return geo.describe(
        op, x.shape, window, window if stride is None else stride, padding, dilation
    )


def _blocks(g: geo.Geometry) -> tuple[int, int]:
    """The window where it cuts the image into blocks, else (0, 0)."""
    whole = g.image == tuple(n * k for n, k in zip(g.output, g.window, strict=True))
    apart = g.stride == g.window and g.dilation == (1, 1) and not np.any(g.padding)
    return g.window if whole and apart else (0, 0)


def _title(g: geo.Geometry) -> str:
    if any(_blocks(g)):
        return f"{size(g.window)} blocks"
    return f"{size(g.window)} windows, {g.words()}"


def _image(x: jax.Array, g: geo.Geometry) -> list[Step]:
    count = math.prod(g.output)
    if any(_blocks(g)):
        blocks = f"{word(count)} block" + "s" * (count != 1)
        return [Step(f"The image x, {size(x.shape)}, in {blocks}.", x, "x", g.window)]
    return [Step(f"The image x, {size(x.shape)}; {word(count)} windows fit.", x, "x")]


def _read_maxima(x: jax.Array, g: geo.Geometry) -> jax.Array:
    """The pixel of each window's first maximum, read by its index.

    JAX has no gradient for the maximum of dilated windows, but for an index it has.
    """
    config = [(low, high, 0) for low, high in g.padding]
    padded = lax.pad(x, arguments.lowest(x.dtype), config)
    h, w = (
        s * np.arange(p)[:, None] + d * np.arange(k)
        for s, p, d, k in zip(g.stride, g.output, g.dilation, g.window, strict=True)
    )
    seen = padded[h[:, None, :, None], w[None, :, None, :]].reshape(*g.output, -1)
    where = jnp.argmax(seen, 2, keepdims=True)
    return jnp.squeeze(jnp.take_along_axis(seen, where, 2), 2)
