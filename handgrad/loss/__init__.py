"""Loss layers: where the backward pass begins.

Forward: a value from predictions and labels. Backward: ∂L/∂predictions, scaled by the
cotangent `dy` of the value (1/N when the mean over N examples is minimised). Each loss
is per example; names, arguments and values are those of optax.
"""

from handgrad.loss.binary import sigmoid_binary_cross_entropy, sigmoid_focal_loss
from handgrad.loss.cross_entropy import (
    poly_loss_cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from handgrad.loss.distance import cosine_distance, kl_divergence
from handgrad.loss.margin import hinge_loss, multiclass_hinge_loss
from handgrad.loss.regression import huber_loss, l2_loss, log_cosh, squared_error

__all__ = [
    "cosine_distance",
    "hinge_loss",
    "huber_loss",
    "kl_divergence",
    "l2_loss",
    "log_cosh",
    "multiclass_hinge_loss",
    "poly_loss_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_error",
]
