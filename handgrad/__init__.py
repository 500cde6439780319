"""JAX neural-network layers whose backward pass is derived by hand.

Every op is a pure function with a `jax.custom_vjp` rule that can be read as the
derivation it comes from, and takes `implementation=`: `None` for the best formula,
`"autodiff"` for JAX's own gradient, or a formula's name. `RULES` lists them all.
"""

from handgrad._dense import (
    dense,
)
from handgrad._dot_general import (
    dot_general,
)
from handgrad._dropout import (
    dropout,
)
from handgrad.activation import (
    celu,
    elu,
    gelu,
    glu,
    hard_sigmoid,
    hard_silu,
    hard_swish,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    logsumexp,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    soft_sign,
    softmax,
    softplus,
    squareplus,
    swish,
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
from handgrad.local_response import (
    local_response_norm,
)
from handgrad.loss import (
    cosine_distance,
    hinge_loss,
    huber_loss,
    kl_divergence,
    l2_loss,
    log_cosh,
    multiclass_hinge_loss,
    poly_loss_cross_entropy,
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
    squared_error,
)
from handgrad.normalization import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
    standardize,
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
    "batch_norm",
    "celu",
    "col2im",
    "conv",
    "conv_general_dilated",
    "conv_transpose",
    "cosine_distance",
    "dense",
    "dot_general",
    "dropout",
    "elu",
    "explain_choice",
    "gelu",
    "glu",
    "group_norm",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
    "hard_tanh",
    "hinge_loss",
    "huber_loss",
    "im2col",
    "instance_norm",
    "kl_divergence",
    "l2_loss",
    "layer_norm",
    "leaky_relu",
    "load_tuned",
    "local_response_norm",
    "log_cosh",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "max_pool",
    "mish",
    "multiclass_hinge_loss",
    "poly_loss_cross_entropy",
    "relu",
    "relu6",
    "rms_norm",
    "selu",
    "sigmoid",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "silu",
    "soft_sign",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softplus",
    "squared_error",
    "squareplus",
    "standardize",
    "swish",
    "tanh",
    "tune",
]
