"""Worked examples of backward passes, step by step, in numbers.

`python -m handgrad explain conv` prints one: the article's, or that of your own
matrices. Each example is a function that returns its steps: a sentence and, where there
is one, the matrix that it speaks of. Every number is computed when it is asked for, by
handgrad's public functions where one exists; the last steps compare the derivation,
handgrad's rule and JAX's autodiff.

The letters are the article's: x a layer's input, k its kernel, b its bias, u its
output, δ = ∂L/∂u the error that comes back to it.
"""

from collections.abc import Callable, Mapping

from handgrad.explain._dense import dense
from handgrad.explain._render import WIDTH, render
from handgrad.explain.convolution import conv
from handgrad.explain.loss import softmax_cross_entropy
from handgrad.explain.matrix_product import im2col
from handgrad.explain.pooling import avg_pool, max_pool
from handgrad.explain.step import Step

EXAMPLES: Mapping[str, Callable[..., list[Step]]] = {
    example.__name__: example
    for example in (conv, max_pool, avg_pool, im2col, dense, softmax_cross_entropy)
}

__all__ = [
    "EXAMPLES",
    "WIDTH",
    "Step",
    "avg_pool",
    "conv",
    "dense",
    "im2col",
    "max_pool",
    "render",
    "softmax_cross_entropy",
]
