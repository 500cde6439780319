"""JAX neural-network layers whose backward pass is derived by hand.

Every op is a pure function with a `jax.custom_vjp` rule that can be read as the
derivation it comes from, and takes `implementation=`: `None` for the best formula,
`"autodiff"` for JAX's own gradient, or a formula's name. `RULES` lists them all.
"""

from handgrad.activation import log_softmax as log_softmax
from handgrad.activation import relu as relu
from handgrad.activation import sigmoid as sigmoid
from handgrad.activation import softmax as softmax
from handgrad.activation import tanh as tanh
from handgrad.bias import add_bias as add_bias
from handgrad.convolution import ConvFormulas as ConvFormulas
from handgrad.convolution import col2im as col2im
from handgrad.convolution import conv as conv
from handgrad.convolution import im2col as im2col
from handgrad.dense import dense as dense
from handgrad.loss import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from handgrad.loss import softmax_cross_entropy as softmax_cross_entropy
from handgrad.loss import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from handgrad.loss import squared_error as squared_error
from handgrad.pooling import avg_pool as avg_pool
from handgrad.pooling import max_pool as max_pool
from handgrad.rules import RULES as RULES

__version__ = "0.1.0"
