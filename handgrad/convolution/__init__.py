"""Convolution: one rule, one file a formula."""

from handgrad.convolution.choice import Choice, explain_choice
from handgrad.convolution.gemm import col2im, im2col
from handgrad.convolution.general import conv_general_dilated, conv_transpose
from handgrad.convolution.rule import conv
from handgrad.convolution.spec import ConvFormulas
from handgrad.convolution.tuned import load_tuned
from handgrad.convolution.tuning import tune

__all__ = [
    "Choice",
    "ConvFormulas",
    "col2im",
    "conv",
    "conv_general_dilated",
    "conv_transpose",
    "explain_choice",
    "im2col",
    "load_tuned",
    "tune",
]
