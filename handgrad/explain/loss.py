"""Softmax with cross-entropy: prediction minus truth."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import handgrad
from handgrad.explain.step import Step, confirm, matrix, require_shape

LOGITS = [[2, 1, 0], [0, 3, 1]]
LABELS = [0, 2]


def softmax_cross_entropy(
    image: Any = None, error: Any = None, labels: Any = None
) -> list[Step]:
    """Two examples, three classes: the error is prediction minus truth.

    Args:
      image: the logits [N, C], one example a row.
      error: g = ∂L/∂ℓ [N, 1]; 1/N by default, that of the mean.
      labels: the right class of each example, counted from 0; class 0 by default.

    Raises:
      ValueError: the matrices do not fit each other, or a label is no class.
    """
    op = "softmax_cross_entropy"
    x = matrix(LOGITS if image is None else image)
    count, classes = x.shape
    if labels is None:
        labels = LABELS if image is None else np.zeros(count)
    right = np.asarray(labels).ravel()
    if right.shape != (count,):
        raise ValueError(
            f"{op}: labels must be {count} here, one for each row of logits, got "
            f"{right.size}"
        )
    if not all(label in range(classes) for label in right):
        raise ValueError(f"{op}: labels must be whole numbers from 0 to {classes - 1}")
    y = jax.nn.one_hot(right.astype(np.int32), classes, dtype=x.dtype)
    mean = error is None
    g = matrix(np.full((count, 1), 1 / count) if mean else error)
    require_shape(op, "error", g, (count, 1))

    def loss(x, **options):
        return jnp.expand_dims(handgrad.softmax_cross_entropy(x, y, **options), 1)

    p = handgrad.softmax(x)
    dx = (p - y) * g
    losses = loss(x)
    article = image is None and mean
    words = ("two ", "three classes") if article else ("", f"{classes} classes")
    each = (
        f"Backward: L is the mean of the {'two ' if count == 2 else ''}losses, and "
        "each gets g = ∂L/∂ℓ."
        if mean
        else "Backward: each loss gets its g = ∂L/∂ℓ."
    )
    worst = int(jnp.argmax(losses)) + 1
    misjudged = (
        " The second example is misjudged, and its loss is large."
        if image is None and list(right) == LABELS
        else f" Example {worst} has the largest loss."
    )
    return [
        Step("SOFTMAX WITH CROSS-ENTROPY: the loss, where the backward pass begins"),
        Step(f"The logits x of {words[0]}examples, one a row, for {words[1]}.", x, "x"),
        Step(
            "Softmax makes them probabilities, pᵢ = exp(xᵢ) / Σⱼ exp(xⱼ): each row "
            "sums to 1.",
            p,
            "p",
        ),
        Step(
            "The right classes, the first and the third, as one-hot rows."
            if image is None and list(right) == LABELS
            else "The right classes as one-hot rows.",
            y,
            "y",
        ),
        Step(
            "Forward: ℓ = −Σᵢ yᵢ log pᵢ, minus the logarithm of the right class's "
            f"probability.{misjudged}",
            losses,
            "ℓ",
        ),
        Step(each, g, "g"),
        Step(
            "−log p of the right class has the derivative p − 1 by its own logit, and "
            "p by any other class's: exp and log cancel. So ∂L/∂x = (p − y) · g, "
            "prediction minus truth. Each row sums to 0: what the right class gains, "
            "the others lose.",
            dx,
            "∂L/∂x",
        ),
        *confirm(loss, (x,), g, {"∂L/∂x": dx}),
    ]
