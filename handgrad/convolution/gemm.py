"""The article's second route: convolution as one matrix product.

Every patch that the kernel meets is laid out as one column of a matrix X with C·K·L
rows, every kernel as one row of a matrix K. Then

    Y = K X              (each row of Y is one output image)
    dK = dY Xᵀ           (as in a dense layer)
    dX = Kᵀ dY           (still one column a patch)

and `col2im` adds dX's columns back to the pixels that they were taken from: it is the
transpose of `im2col`, because a pixel that several patches copied feels the sum of
their errors. Channels last, the same matrices stand transposed: one *row* a patch, so
that a patch's channels are neighbours in memory.

Source: the article, section "将卷积转化成矩阵乘法" (convolution as a matrix product);
Chellapilla, Puri & Simard 2006, "High performance convolutional neural networks for
document processing"; FORMULAS A5.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from handgrad import arguments, sharding, windows
from handgrad.buffers import written_down
from handgrad.convolution import groups
from handgrad.convolution.spec import ConvSpec
from handgrad.rules import RULES, register

_LETTERS = "pqrs"  # output pixels in each spatial dimension


def unsuitable(spec: ConvSpec) -> str | None:
    """No geometry is beyond it."""
    del spec
    return None


def patches(x: jax.Array, described: windows.Windows) -> jax.Array:
    """What each window sees: [... h w c] -> [... p q kl c]."""
    if windows.disjoint(described):
        image = windows.pad(x, described)
        tiles = windows.to_tiles(image, [w.size for w in described])
        return sharding.merge(tiles, x.ndim - 1, tiles.ndim - 1)
    return jnp.stack(windows.views(x, described), -2)


def add_patches(dpatches: jax.Array, described: windows.Windows) -> jax.Array:
    """`patches` transposed, overlaps added: [... p q kl c] -> [... h w c]."""
    if windows.disjoint(described):
        sizes = tuple(w.size for w in described)
        tiles = sharding.split(dpatches, dpatches.ndim - 2, sizes)
        return windows.unpad(windows.from_tiles(tiles, len(sizes)), described)
    index = {place: i for i, place in enumerate(windows.places(described))}
    total = dpatches.astype(arguments.accumulator(dpatches.dtype))
    dx = windows.spread(lambda *place: total[..., index[place], :], described)
    return dx.astype(dpatches.dtype)


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """Y = K X: [n p q kl g c] [kl c g o] -> [n p q g o]."""
    pixels = _LETTERS[: len(spec.windows)]
    columns = groups.split(patches(x, spec.windows), spec)
    g, where = groups.axis(spec.y_sharding, range(1 + len(pixels)), spec)
    equation = f"n{pixels}k{g}c,kc{g}o->n{pixels}{g}o"
    return groups.merge(
        _product(equation, columns, _rows(kernel, spec), spec, where), spec
    )


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dX = Kᵀ dY, then col2im: [n p q g o] [kl c g o] -> [n p q kl g c]."""
    pixels = _LETTERS[: len(spec.windows)]
    g, where = groups.axis(spec.x_sharding, (*range(1 + len(pixels)), None), spec)
    errors, rows = groups.split(dy, spec), _rows(kernel, spec)
    # XLA turns the kernel over before the product, 9 MB for 3×3 on 512 channels. If
    # that is more than the errors, it had better turn those, and does where both have
    # an axis in common, be it of one group.
    alone = not g and rows.size > errors.size
    if alone:
        errors, rows = jnp.expand_dims(errors, -2), jnp.expand_dims(rows, -2)
        g, where = "g", sharding.rearranged(where, (*range(2 + len(pixels)), None, -1))
    equation = f"n{pixels}{g}o,kc{g}o->n{pixels}k{g}c"
    dcolumns = _product(equation, errors, rows, spec, where)
    dcolumns = jnp.squeeze(dcolumns, -2) if alone else groups.merge(dcolumns, spec)
    dx = add_patches(dcolumns, spec.windows)
    # A norm's sums would add up the patches anew.
    return dx if windows.disjoint(spec.windows) else written_down(dx)


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dK = dY Xᵀ: [n p q kl g c] [n p q g o] -> [kl c g o]."""
    pixels = _LETTERS[: len(spec.windows)]
    g, where = groups.axis(spec.kernel_sharding, (None, -2), spec)
    equation = f"n{pixels}k{g}c,n{pixels}{g}o->kc{g}o"
    columns = groups.split(patches(x, spec.windows), spec)
    drows = _product(equation, columns, groups.split(dy, spec), spec, where)
    drows = groups.merge(drows, spec)
    return sharding.split(drows, 0, tuple(w.size for w in spec.windows))


def _rows(kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """[k l c/g o] -> [kl c/g g o/g]."""
    kernel = kernel.reshape(math.prod(kernel.shape[:-2]), *kernel.shape[-2:])
    return groups.split(kernel, spec)


def _product(equation: str, a, b, spec: ConvSpec, out_sharding=None) -> jax.Array:
    """One matrix product, accumulated in at least float32."""
    dtype = spec.preferred_element_type or a.dtype
    return jnp.einsum(
        equation,
        a,
        b,
        precision=spec.precision,
        preferred_element_type=arguments.accumulator(dtype),
        out_sharding=out_sharding,
    ).astype(dtype)


def im2col(
    x: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    *,
    kernel_dilation: int | Sequence[int] | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Lays out every patch under a sliding window as one column.

    columns[c·KL + k·L + l, p·Q + q] = x[s·p + d·k − b, s·q + d·l − b, c]

    Args:
      x: real image [..., H, W, C], any number of spatial dimensions and of leading
        batch axes.
      window_shape: pixels of the window in each spatial dimension.
      strides: distance between neighbouring windows in pixels; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) pixels for each dimension.
      kernel_dilation: distance between neighbouring window pixels; 1 by default.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The columns [..., C·K·L, P·Q]; its transpose is `col2im`.

    Raises:
      ValueError: the lengths do not match, or the window does not fit the image.
      TypeError: `x` is complex or not a number.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> x = jnp.arange(9).reshape(3, 3, 1)
      >>> handgrad.im2col(x, (2, 2))
      Array([[0, 1, 3, 4],
             [1, 2, 4, 5],
             [3, 4, 6, 7],
             [4, 5, 7, 8]], dtype=int32)

    Source: the article, "convolution as a matrix product"; FORMULAS A5.
    """
    op = "im2col"
    x = arguments.array(op, "x", x)
    n = len(tuple(window_shape))
    arguments.require(
        x.ndim > n,
        op,
        f"x must have {n} spatial dimensions and channels, got shape {x.shape}",
    )
    image = x.shape[x.ndim - 1 - n : -1]
    spec = _describe(op, image, window_shape, strides, padding, kernel_dilation)
    return RULES[op].choose(implementation, spec)(x, spec)


def col2im(
    columns: jax.Array,
    image_shape: Sequence[int],
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: arguments.Padding = "VALID",
    *,
    kernel_dilation: int | Sequence[int] | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Adds every column back to the pixels that it was taken from.

    x[h, w, c] = Σ columns[c·KL + k·L + l, p·Q + q] over all (k, l, p, q) with
    h = s·p + d·k − b and w = s·q + d·l − b

    Args:
      columns: real array [..., C·K·L, P·Q], as `im2col` returns it.
      image_shape: pixels (H, W, ...) of the image.
      window_shape: pixels of the window in each spatial dimension.
      strides: distance between neighbouring windows in pixels; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or (low, high) pixels for each dimension.
      kernel_dilation: distance between neighbouring window pixels; 1 by default.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The image [..., H, W, C].

    Raises:
      ValueError: the shapes do not match, or the window does not fit the image.
      TypeError: `columns` is complex or not a number.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> x = jnp.ones((3, 3, 1))
      >>> handgrad.col2im(handgrad.im2col(x, (2, 2)), (3, 3), (2, 2)).squeeze()
      Array([[1., 2., 1.],
             [2., 4., 2.],
             [1., 2., 1.]], dtype=float32)

    Source: the article, "convolution as a matrix product"; FORMULAS A5.
    """
    op = "col2im"
    columns = arguments.array(op, "columns", columns)
    image = arguments.per_dimension(
        op, "image_shape", tuple(image_shape), len(tuple(window_shape))
    )
    spec = _describe(op, image, window_shape, strides, padding, kernel_dilation)
    places = math.prod(w.size for w in spec)
    count = math.prod(windows.output_shape(spec))
    arguments.require(
        columns.ndim >= 2
        and columns.shape[-2] % places == 0
        and columns.shape[-1] == count,
        op,
        f"columns must have shape [..., C·{places}, {count}] for window_shape "
        f"(={tuple(window_shape)}) and {count} windows, got shape {columns.shape}",
    )
    return RULES[op].choose(implementation, spec)(columns, spec)


def _describe(op, image, window_shape, strides, padding, kernel_dilation):
    spec = windows.describe(
        op,
        image,
        window_shape,
        strides,
        padding,
        kernel_dilation,
        dilation_name="kernel_dilation",
    )
    windows.require_fit(op, spec, name="window_shape")
    return spec


def _take_columns(x, spec):
    """[... h w c] -> [... ckl pq]."""
    n = len(spec)
    x = patches(x, spec)
    lead = x.ndim - n - 2
    x = x.transpose(*range(lead), x.ndim - 1, x.ndim - 2, *range(lead, lead + n))
    x = sharding.merge(x, lead, lead + 2)
    return sharding.merge(x, lead + 1, x.ndim)


def _add_columns(columns, spec):
    """[... ckl pq] -> [... h w c]."""
    n = len(spec)
    lead = columns.ndim - 2
    x = sharding.split(columns, lead + 1, windows.output_shape(spec))
    x = sharding.split(x, lead, (-1, math.prod(w.size for w in spec)))
    x = x.transpose(*range(lead), *range(lead + 2, lead + 2 + n), lead + 1, lead)
    return add_patches(x, spec)


@register("im2col", source="the article, A5: im2col", autodiff=_take_columns)
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _im2col(x, spec):
    return _take_columns(x, spec)


def _im2col_fwd(x, spec):
    residuals = ()  # linear: the gradient never looks at x
    return _im2col(x, spec), residuals


def _im2col_bwd(spec, residuals, dcolumns):
    """Every copy of a pixel hands its error back: dx = col2im(dcolumns)."""
    del residuals
    return (_col2im(dcolumns, spec),)


_im2col.defvjp(_im2col_fwd, _im2col_bwd)


@register("col2im", source="the article, A5: col2im", autodiff=_add_columns)
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _col2im(columns, spec):
    return _add_columns(columns, spec)


def _col2im_fwd(columns, spec):
    residuals = ()  # linear: the gradient never looks at the columns
    return _col2im(columns, spec), residuals


def _col2im_bwd(spec, residuals, dx):
    """Every column was added to the pixels it names: dcolumns = im2col(dx)."""
    del residuals
    return (_im2col(dx, spec),)


_col2im.defvjp(_col2im_fwd, _col2im_bwd)
