"""Activations as layers of their own: `y = f(x)`, `dx = f'(x) ⊙ dy`.

An activation has no parameters to learn (unless its slope is), so its backward pass
only hands the error on. What it keeps for that is the output wherever that suffices.
"""

from handgrad.activation.from_input import gelu, hard_silu, mish, silu
from handgrad.activation.from_output import (
    celu,
    elu,
    hard_sigmoid,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    relu,
    relu6,
    selu,
    sigmoid,
    soft_sign,
    softplus,
    squareplus,
    tanh,
)
from handgrad.activation.gated import glu
from handgrad.activation.log_sum_exp import log_softmax, logsumexp, softmax

swish = silu
hard_swish = hard_silu

__all__ = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_sign",
    "softmax",
    "softplus",
    "squareplus",
    "swish",
    "tanh",
]
