"""The article's worked examples, step by step, in numbers.

`python -m handgrad explain conv` prints one. Each example is a function that returns
its steps: a sentence and, where there is one, the matrix that it speaks of. Every
number is computed when it is asked for, by handgrad's public functions where one
exists; the last steps compare the derivation, handgrad's rule and JAX's autodiff.

The letters are the article's: x a layer's input, k its kernel, b its bias, u its
output, δ = ∂L/∂u the error that comes back to it.
"""

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import handgrad

WIDTH = 78


class Step(NamedTuple):
    """One step of a worked example.

    Attributes:
      sentence: what happens, in plain English; a longer equation is on a line of its
        own.
      matrix: the numbers, at most two-dimensional, or `None`.
      name: the matrix's name in the sentence's equations; unique within an example,
        except that autodiff's matrices repeat the names of those they confirm.
      block: draws a gap after every so many rows and columns; 0 draws none.
    """

    sentence: str
    matrix: jax.Array | None = None
    name: str = ""
    block: int = 0


def conv() -> list[Step]:
    """The 4×4 image, its 3×3 kernel, and both gradients as convolutions."""
    x = _matrix(np.arange(1, 17).reshape(4, 4))
    k = _matrix([[1, 2, 0], [0, 1, -1], [-1, 0, 2]])
    b = _matrix(1)
    error = _matrix([[1, 2], [3, 4]])

    dk = _conv(x, error)
    db = error.sum()
    padded = jnp.pad(error, 2)
    rotated = jnp.rot90(k, 2)
    dx = _conv(padded, rotated)
    return [
        Step("CONVOLUTION: one channel, stride 1, no padding"),
        Step("The image x, 4×4; its numbers count the pixels row by row.", x, "x"),
        Step("The kernel k, 3×3.", k, "k"),
        Step("The bias b, one number for the whole image.", b, "b"),
        Step(
            "Forward: the kernel slides over the image, u = conv(x, k) + b. It fits "
            "in 2×2 places. In the first of them u₁₁ is b plus\n"
            f"{_products(x[:3, :3], k)}.",
            _conv(x, k, b),
            "u",
        ),
        Step(
            "Backward: the next layer hands back the error δ = ∂L/∂u, one number "
            "for each output pixel.",
            error,
            "δ",
        ),
        Step(
            "The kernel's gradient. Every output pixel used k₁₁, each on another "
            "pixel of the image, and the chain rule adds over all of them:\n"
            "∂L/∂k₁₁ = δ₁₁x₁₁ + δ₁₂x₁₂ + δ₂₁x₂₁ + δ₂₂x₂₂ = "
            f"{_products(error, x[:2, :2])}.\n"
            "For k₁₂ the same errors meet the pixels one further to the right, and "
            "so on: the error slides over the image as if it were the kernel,\n"
            "∂L/∂k = conv(x, δ).",
            dk,
            "∂L/∂k",
        ),
        Step(
            "The bias's gradient. Every output pixel added b once:\n"
            f"∂L/∂b = Σδ = {_sum(error)}.",
            db,
            "∂L/∂b",
        ),
        Step(
            "The image's gradient. Pixel x₂₂ met k₂₂ in u₁₁, k₂₁ in u₁₂, k₁₂ in u₂₁ "
            "and k₁₁ in u₂₂, so\n"
            "∂L/∂x₂₂ = δ₁₁k₂₂ + δ₁₂k₂₁ + δ₂₁k₁₂ + δ₂₂k₁₁ = "
            f"{_products(error, rotated[1:, 1:])}.\n"
            "While δ is read forwards, k is read backwards. Pixels near the border "
            "met fewer places of the kernel; 3 − 1 = 2 zeros on every side of the "
            "error stand for those they missed.",
            padded,
            "pad(δ)",
        ),
        Step(
            "The kernel read backwards is the kernel turned by 180°.",
            rotated,
            "rot180(k)",
        ),
        Step(
            "The turned kernel slides over the padded error, a full convolution:\n"
            "∂L/∂x = conv(pad(δ), rot180(k)).\n"
            "It has the size of the image and is the error δ of the layer before.",
            dx,
            "∂L/∂x",
        ),
        *_confirm(_conv, (x, k, b), error, {"∂L/∂x": dx, "∂L/∂k": dk, "∂L/∂b": db}),
    ]


def max_pool() -> list[Step]:
    """A 4×4 image in 2×2 blocks: the error goes to where the maximum was."""
    x = _matrix([[1, 3, 2, 0], [4, 2, 1, 5], [7, 0, 3, 8], [1, 6, 4, 2]])
    error = _matrix([[1, 2], [3, 4]])

    pool = functools.partial(_pool, handgrad.max_pool)
    blocks = handgrad.im2col(jnp.expand_dims(x, 2), (2, 2), (2, 2))  # one a column
    offset = jnp.argmax(blocks, 0)
    chosen = jax.nn.one_hot(offset, 4, dtype=x.dtype, axis=0)
    dblocks = chosen * error.reshape(1, 4)
    dx = jnp.squeeze(handgrad.col2im(dblocks, (4, 4), (2, 2), (2, 2)), 2)
    return [
        Step("MAX POOLING: 2×2 blocks, no parameter"),
        Step("The image x, 4×4, in four blocks.", x, "x", block=2),
        Step("Forward: of each block only the maximum is kept.", pool(x), "u"),
        Step(
            "The layer remembers where it was: t is the maximum's place in its "
            "block, counted 0, 1 in the upper row and 2, 3 in the lower. The image "
            "itself can be forgotten.",
            offset.reshape(2, 2),
            "t",
        ),
        Step("Backward: the error δ = ∂L/∂u, one number a block.", error, "δ"),
        Step(
            "Up-sampling. If the maximum changes a little, u changes as much; if any "
            "other pixel does, u stays. So the error goes to place t of its block, "
            "and the others get 0.",
            dx,
            "∂L/∂x",
            block=2,
        ),
        *_confirm(pool, (x,), error, {"∂L/∂x": dx}, block=2),
    ]


def avg_pool() -> list[Step]:
    """A 4×4 image in 2×2 blocks: the error is spread evenly."""
    x = _matrix([[1, 3, 2, 0], [4, 4, 1, 5], [7, 0, 3, 8], [1, 4, 7, 2]])
    error = _matrix([[4, 8], [12, 16]])

    pool = functools.partial(_pool, handgrad.avg_pool)
    repeated = jnp.kron(error, jnp.ones((2, 2), error.dtype))
    dx = repeated / 4
    first = " + ".join(_numbers(x[:2, :2]))
    return [
        Step("MEAN POOLING: 2×2 blocks, no parameter"),
        Step("The image x, 4×4, in four blocks.", x, "x", block=2),
        Step(
            f"Forward: the mean of each block, u₁₁ = ({first}) / 4 first.",
            pool(x),
            "u",
        ),
        Step("Backward: the error δ = ∂L/∂u, one number a block.", error, "δ"),
        Step(
            "Up-sampling: each error is repeated over its block ...",
            repeated,
            "up(δ)",
            block=2,
        ),
        Step(
            "... and divided by 2·2, because each pixel made up a quarter of its "
            "mean: ∂L/∂x = up(δ) / 4.",
            dx,
            "∂L/∂x",
            block=2,
        ),
        *_confirm(pool, (x,), error, {"∂L/∂x": dx}, block=2),
    ]


def im2col() -> list[Step]:
    """A 3×3 image and a 2×2 kernel: convolution as a matrix product."""
    x = _matrix(np.arange(1, 10).reshape(3, 3))
    k = _matrix([[1, 2], [3, -1]])
    error = _matrix([[1, 2], [3, 4]])

    columns = handgrad.im2col(jnp.expand_dims(x, 2), (2, 2))
    row, error_row = k.reshape(1, 4), error.reshape(1, 4)
    y = handgrad.dense(row, columns)
    drow = handgrad.dense(error_row, columns.T)
    dcolumns = handgrad.dense(row.T, error_row)
    dx = jnp.squeeze(handgrad.col2im(dcolumns, (3, 3), (2, 2)), 2)
    return [
        Step("IM2COL: convolution as one matrix product"),
        Step("The image x, 3×3.", x, "x"),
        Step("The kernel k, 2×2. It fits in four places of the image.", k, "k"),
        Step(
            "Every patch under the kernel, read row by row, becomes one column: four "
            "patches, four columns, X = im2col(x).",
            columns,
            "X",
        ),
        Step("The kernel, read the same way, becomes one row.", row, "K"),
        Step(
            "Forward: the convolution has become the product Y = K X. First entry:\n"
            f"Y₁₁ = {_products(row, columns[:, :1].T)}.",
            y,
            "Y",
        ),
        Step("Folded to 2×2, Y is the output image u.", y.reshape(2, 2), "u"),
        Step("Backward: the error δ = ∂L/∂u ...", error, "δ"),
        Step("... read row by row is dY = ∂L/∂Y.", error_row, "dY"),
        Step(
            "The kernel's gradient, as in a dense layer: dK = dY Xᵀ. Folded to 2×2 it "
            "is ∂L/∂k.",
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
            "The middle pixel was in all four patches, the rising diagonal of dX:\n"
            f"∂L/∂x₂₂ = {_sum(dcolumns[::-1].diagonal())}.",
            dx,
            "∂L/∂x",
        ),
        *_confirm(_conv, (x, k), error, {"∂L/∂x": dx, "∂L/∂k": drow.reshape(2, 2)}),
    ]


def dense() -> list[Step]:
    """Two examples through a dense layer from three features to two."""
    x = _matrix([[1, 2, 3], [4, 0, -1]])
    kernel = _matrix([[1, 0], [2, -1], [0, 3]])
    b = _matrix([1, -2])
    error = _matrix([[1, 2], [3, -1]])

    dkernel = x.T @ error
    db = error.sum(0)
    dx = error @ kernel.T
    return [
        Step("DENSE LAYER: three features in, two out"),
        Step("The inputs x, one example a row.", x, "x"),
        Step("The kernel W: W₁₂ leads from feature 1 to output 2.", kernel, "W"),
        Step("The bias b, one number an output.", b, "b"),
        Step(
            "Forward: u = x W + b. First entry:\n"
            f"u₁₁ = {_products(x[0], kernel[:, 0])}, plus b₁.",
            handgrad.dense(x, kernel, b),
            "u",
        ),
        Step("Backward: the error δ = ∂L/∂u, one number an output.", error, "δ"),
        Step(
            "The kernel's gradient. Every example used W₁₁ once:\n"
            f"∂L/∂W₁₁ = x₁₁δ₁₁ + x₂₁δ₂₁ = {_products(x[:, 0], error[:, 0])}.\n"
            "For all entries at once, ∂L/∂W = xᵀ δ.",
            dkernel,
            "∂L/∂W",
        ),
        Step(
            "The bias's gradient. Every example added b once, and the errors are "
            f"summed over the examples: ∂L/∂b₁ = {_sum(error[:, 0])}.",
            db,
            "∂L/∂b",
        ),
        Step(
            "The inputs' gradient. Every output used x₁₁ once:\n"
            f"∂L/∂x₁₁ = δ₁₁W₁₁ + δ₁₂W₁₂ = {_products(error[0], kernel[0])}.\n"
            "For all entries at once, ∂L/∂x = δ Wᵀ: the error of the layer before.",
            dx,
            "∂L/∂x",
        ),
        *_confirm(
            handgrad.dense,
            (x, kernel, b),
            error,
            {"∂L/∂x": dx, "∂L/∂W": dkernel, "∂L/∂b": db},
        ),
    ]


def softmax_cross_entropy() -> list[Step]:
    """Two examples, three classes: the error is prediction minus truth."""
    x = _matrix([[2, 1, 0], [0, 3, 1]])
    labels = jax.nn.one_hot(np.array([0, 2]), 3, dtype=x.dtype)
    g = _matrix([[0.5], [0.5]])

    def loss(x, **options):
        return jnp.expand_dims(handgrad.softmax_cross_entropy(x, labels, **options), 1)

    p = handgrad.softmax(x)
    dx = (p - labels) * g
    return [
        Step("SOFTMAX WITH CROSS-ENTROPY: the loss, where the backward pass begins"),
        Step("The logits x of two examples, one a row, for three classes.", x, "x"),
        Step(
            "Softmax makes them probabilities, pᵢ = exp(xᵢ) / Σⱼ exp(xⱼ): each row "
            "sums to 1.",
            p,
            "p",
        ),
        Step(
            "The right classes, the first and the third, as one-hot rows.",
            labels,
            "y",
        ),
        Step(
            "Forward: ℓ = −Σᵢ yᵢ log pᵢ, minus the logarithm of the right class's "
            "probability. The second example is misjudged, and its loss is large.",
            loss(x),
            "ℓ",
        ),
        Step(
            "Backward: L is the mean of the two losses, and each gets g = ∂L/∂ℓ.",
            g,
            "g",
        ),
        Step(
            "−log p of the right class has the derivative p − 1 by its own logit, and "
            "p by any other class's: exp and log cancel. So ∂L/∂x = (p − y) · g, "
            "prediction minus truth. Each row sums to 0: what the right class gains, "
            "the others lose.",
            dx,
            "∂L/∂x",
        ),
        *_confirm(loss, (x,), g, {"∂L/∂x": dx}),
    ]


EXAMPLES: Mapping[str, Callable[[], list[Step]]] = {
    example.__name__: example
    for example in (conv, max_pool, avg_pool, im2col, dense, softmax_cross_entropy)
}


def _matrix(values: Any) -> jax.Array:
    return jnp.array(values, jnp.float32)


def _conv(x, k, b=None, **options) -> jax.Array:
    """`handgrad.conv` of one image with one channel, as plain matrices."""
    image, kernel = jnp.expand_dims(x, 2), jnp.expand_dims(k, (2, 3))
    bias = None if b is None else jnp.reshape(b, 1)
    u = handgrad.conv(image, kernel, bias, padding="VALID", **options)
    return jnp.squeeze(u, 2)


def _pool(op, x, **options) -> jax.Array:
    """A pool of one image with one channel, in 2×2 blocks."""
    return jnp.squeeze(op(jnp.expand_dims(x, 2), (2, 2), (2, 2), **options), 2)


def _confirm(
    op: Callable[..., jax.Array],
    inputs: tuple[jax.Array, ...],
    error: jax.Array,
    derived: Mapping[str, jax.Array],
    block: int = 0,
) -> list[Step]:
    """Autodiff's gradients, and how far the derived ones and the rule's are from them.

    Args:
      op: function of `inputs` that also takes `implementation`.
      inputs: the arrays to differentiate.
      error: the cotangent of `op`'s value.
      derived: the gradients that the steps arrived at, in the order of `inputs`.
      block: as in `Step`.
    """

    def gradients(implementation):
        _, vjp = jax.vjp(lambda *a: op(*a, implementation=implementation), *inputs)
        return vjp(error)

    def difference(own):
        pairs = zip(own, autodiff, strict=True)
        return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)

    autodiff = gradients("autodiff")
    return [
        Step("JAX's autodiff, which knows nothing of these steps, finds:"),
        *(
            Step("", gradient, name, block)
            for name, gradient in zip(derived, autodiff, strict=True)
        ),
        Step(
            "Largest difference from autodiff: "
            f"{difference(derived.values()):.2g} in the steps, "
            f"{difference(gradients(None)):.2g} in handgrad's rule."
        ),
    ]


def render(steps: Sequence[Step]) -> str:
    """Writes the steps as text: numbered sentences, and matrices with aligned names."""
    margin = max(len(step.name) for step in steps) + 4
    paragraphs, number = [], 0
    for sentence, matrix, name, block in steps:
        if sentence:
            number += matrix is not None
            bullet = "" if matrix is None else f"{number}. "
            paragraphs.append(_paragraph(sentence, bullet))
        if matrix is not None:
            lines = _brackets(np.asarray(matrix), block)
            paragraphs.append(_equation(name, lines, margin))
    return "\n\n".join(paragraphs)


def _paragraph(sentence: str, bullet: str) -> str:
    """Wraps each line of a sentence, all indented as deep as the bullet."""
    indent = " " * len(bullet)
    lines = (
        textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent)
        for line in sentence.split("\n")
    )
    return bullet + "\n".join(lines)[len(bullet) :]


def _equation(name: str, lines: Sequence[str], margin: int) -> str:
    """`name = matrix`, with the name beside the matrix's middle row."""
    middle = (len(lines) - 1) // 2
    names = (f"{name} = " if i == middle else "" for i in range(len(lines)))
    return "\n".join(
        left.rjust(margin + 3) + line for left, line in zip(names, lines, strict=True)
    )


def _brackets(matrix: np.ndarray, block: int) -> list[str]:
    """The rows of a matrix between brackets, columns aligned; a scalar has none."""
    texts = _numbers(matrix)
    if matrix.ndim == 0:
        return texts
    columns = matrix.shape[-1]
    width = max(map(len, texts))
    rows = []
    for start in range(0, len(texts), columns):
        cells = [text.rjust(width) for text in texts[start : start + columns]]
        for place in range(block, columns, block) if block else ():
            cells[place] = "  " + cells[place]
        rows.append("  ".join(cells))
        below = start // columns + 1
        if block and below % block == 0 and below * columns < len(texts):
            rows.append(" " * len(rows[-1]))
    if len(rows) == 1:
        return [f"[ {rows[0]} ]"]
    left, right = (
        top + middle * (len(rows) - 2) + bottom
        for top, middle, bottom in ("⎡⎢⎣", "⎤⎥⎦")
    )
    return [f"{a} {row} {b}" for a, row, b in zip(left, rows, right, strict=True)]


def _numbers(values: jax.typing.ArrayLike) -> list[str]:
    """Each number as text, all with as few decimals as show them, four at most."""
    flat = np.asarray(values, np.float64).ravel()
    exact = (d for d in range(4) if np.allclose(np.round(flat, d), flat, 0, 1e-6))
    decimals = next(exact, 4)
    return [f"{np.round(v, decimals) + 0.0:.{decimals}f}" for v in flat]  # no −0


def _factors(values: jax.typing.ArrayLike) -> list[str]:
    """Each number as it stands within a formula: negative ones in parentheses."""
    return [f"({text})" if text[0] == "-" else text for text in _numbers(values)]


def _sum(values: jax.typing.ArrayLike) -> str:
    """`1 + 2 = 3`, in numbers."""
    return f"{' + '.join(_factors(values))} = {_numbers(np.sum(values))[0]}"


def _products(a: jax.typing.ArrayLike, b: jax.typing.ArrayLike) -> str:
    """`1·2 + 3·4 = 14`, in numbers."""
    pairs = zip(_factors(a), _factors(b), strict=True)
    total = np.sum(np.asarray(a) * np.asarray(b))
    return f"{' + '.join(f'{p}·{q}' for p, q in pairs)} = {_numbers(total)[0]}"
