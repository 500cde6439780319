"""Any JAX function with its convolutions and windows replaced by hand-derived rules."""

from handgrad._rewrite.function import rewrite

__all__ = ["rewrite"]
