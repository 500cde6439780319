"""Norms: one rule, and the axes that each of them takes its means over."""

from handgrad.normalization.batch import batch_norm
from handgrad.normalization.group import group_norm, instance_norm
from handgrad.normalization.layer import layer_norm, rms_norm, standardize

__all__ = [
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
    "standardize",
]
