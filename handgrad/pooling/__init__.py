"""Pooling: `down` forward, `up` backward, no parameter."""

from handgrad.pooling.average import avg_pool
from handgrad.pooling.max import max_pool

__all__ = ["avg_pool", "max_pool"]
