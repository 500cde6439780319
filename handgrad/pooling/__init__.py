"""Pooling: `down` forward, `up` backward, no parameter."""

from handgrad.pooling.adaptive import adaptive_avg_pool, adaptive_max_pool
from handgrad.pooling.average import avg_pool, sum_pool
from handgrad.pooling.max import max_pool, min_pool
from handgrad.pooling.power import lp_pool
from handgrad.pooling.reduce_window import (
    reduce_window_max,
    reduce_window_min,
    reduce_window_sum,
)
from handgrad.pooling.unpool import max_pool_with_argmax, max_unpool

__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "avg_pool",
    "lp_pool",
    "max_pool",
    "max_pool_with_argmax",
    "max_unpool",
    "min_pool",
    "reduce_window_max",
    "reduce_window_min",
    "reduce_window_sum",
    "sum_pool",
]
