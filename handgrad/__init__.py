"""JAX neural-network layers whose backward pass is derived by hand.

Every op is a pure function with a `jax.custom_vjp` rule that can be read as the
derivation it comes from, and takes `implementation=`: `None` for the best formula,
`"autodiff"` for JAX's own gradient, or a formula's name. `RULES` lists them all.
"""

from handgrad._dense import (
    dense,
)
from handgrad.activation import (
    log_softmax,
    relu,
    sigmoid,
    softmax,
    tanh,
)
from handgrad.bias import (
    add_bias,
)
from handgrad.convolution import (
    Choice,
    ConvFormulas,
    col2im,
    conv,
    conv_general_dilated,
    conv_transpose,
    explain_choice,
    im2col,
    load_tuned,
    tune,
)
from handgrad.loss import (
    sigmoid_binary_cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
    squared_error,
)
from handgrad.pooling import (
    avg_pool,
    max_pool,
)
from handgrad.rules import (
    RULES,
)

__version__ = "0.1.0"

__all__ = [
    "RULES",
    "Choice",
    "ConvFormulas",
    "add_bias",
    "avg_pool",
    "col2im",
    "conv",
    "conv_general_dilated",
    "conv_transpose",
    "dense",
    "explain_choice",
    "im2col",
    "load_tuned",
    "log_softmax",
    "max_pool",
    "relu",
    "sigmoid",
    "sigmoid_binary_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_error",
    "tanh",
    "tune",
]
