"""The dense layer: two products and a sum."""

from typing import Any

import handgrad
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

INPUTS = [[1, 2, 3], [4, 0, -1]]
KERNEL = [[1, 0], [2, -1], [0, 3]]
BIAS = [1, -2]
ERROR = [[1, 2], [3, -1]]


def dense(
    image: Any = None, kernel: Any = None, error: Any = None, bias: Any = None
) -> list[Step]:
    """Two examples through a dense layer from three features to two.

    Args:
      image: the inputs [N, I], one example a row; the article's by default, as are
        the others.
      kernel: matrix [I, O].
      error: ∂L/∂u [N, O]; 1, −1, 1, ... by default where its shape is another.
      bias: [O]; 0 by default where its shape is another.

    Raises:
      ValueError: the matrices do not fit each other.
    """
    x = matrix(INPUTS if image is None else image)
    kernel = matrix(KERNEL if kernel is None else kernel)
    outputs = (x.shape[0], kernel.shape[1])
    if x.shape[1] != kernel.shape[0]:
        raise ValueError(
            f"dense: kernel (={size(kernel.shape)}) must have a row for each of the "
            f"{x.shape[1]} columns of the inputs"
        )
    if bias is None:
        bias = BIAS if outputs[1] == len(BIAS) else [0] * outputs[1]
    if error is None and outputs == (2, 2):
        error = ERROR
    elif error is None:
        error = [
            [(-1) ** (n + o) for o in range(outputs[1])] for n in range(outputs[0])
        ]
    b, error = matrix(bias), matrix(error)
    require_shape("dense", "bias", b, outputs[1:])
    require_shape("dense", "error", error, outputs)

    dkernel = x.T @ error
    db = error.sum(0)
    dx = error @ kernel.T
    by_x = plus(entry("x", (n, 0)) + entry("δ", (n, 0)) for n in range(outputs[0]))
    by_w = plus(entry("δ", (0, o)) + entry("W", (0, o)) for o in range(outputs[1]))
    title = "three features in, two out"
    if (x.shape[1], outputs[1]) != (3, 2):
        title = f"{x.shape[1]} features in, {outputs[1]} out"
    wide = "W₁₂ leads from feature 1 to output 2"
    return [
        Step(f"DENSE LAYER: {title}"),
        Step("The inputs x, one example a row.", x, "x"),
        Step(
            f"The kernel W: {wide}."
            if outputs[1] > 1
            else "The kernel W: W₂₁ leads from feature 2 to the output.",
            kernel,
            "W",
        ),
        Step("The bias b, one number an output.", b, "b"),
        Step(
            "Forward: u = x W + b. First entry:\n"
            f"u₁₁ = {products(x[0], kernel[:, 0])}, plus b₁.",
            handgrad.dense(x, kernel, b),
            "u",
        ),
        Step("Backward: the error δ = ∂L/∂u, one number an output.", error, "δ"),
        Step(
            "The kernel's gradient. Every example used W₁₁ once:\n"
            f"∂L/∂W₁₁ = {by_x} = {products(x[:, 0], error[:, 0])}.\n"
            "For all entries at once, ∂L/∂W = xᵀ δ.",
            dkernel,
            "∂L/∂W",
        ),
        Step(
            "The bias's gradient. Every example added b once, and the errors are "
            f"summed over the examples: ∂L/∂b₁ = {added(error[:, 0])}.",
            db,
            "∂L/∂b",
        ),
        Step(
            "The inputs' gradient. Every output used x₁₁ once:\n"
            f"∂L/∂x₁₁ = {by_w} = {products(error[0], kernel[0])}.\n"
            "For all entries at once, ∂L/∂x = δ Wᵀ: the error of the layer before.",
            dx,
            "∂L/∂x",
        ),
        *confirm(
            handgrad.dense,
            (x, kernel, b),
            error,
            {"∂L/∂x": dx, "∂L/∂W": dkernel, "∂L/∂b": db},
        ),
    ]
