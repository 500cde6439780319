"""Convolution: one rule, one file a formula."""

from handgrad.convolution.gemm import col2im, im2col
from handgrad.convolution.general import conv_general_dilated, conv_transpose
from handgrad.convolution.rule import conv
from handgrad.convolution.spec import ConvFormulas

__all__ = [
    "ConvFormulas",
    "col2im",
    "conv",
    "conv_general_dilated",
    "conv_transpose",
    "im2col",
]
