"""The checks: one function each, registered under its name, in the order of reports."""

from handgrad.testing.checks.verdict import CHECKS, Result  # isort: skip
from handgrad.testing.checks import (
    devices,
    exact,
    slopes,
    structure,
    transformations,
)

# In the order of a report: first what explains the most.
ALL: tuple[str, ...] = (
    "structure",
    "values",
    "cotangents",
    "float64",
    "jacobian",
    "differences",
    "kinks",
    "adjoint",
    "linear",
    "precision",
    "finite",
    "second_order",
    "jit",
    "repeatable",
    "undifferentiated",
    "vmap",
    "scan",
    "remat",
    "residuals",
    "shard_map",
    "explicit_mesh",
    "export",
)

__all__ = [
    "ALL",
    "CHECKS",
    "Result",
    "devices",
    "exact",
    "slopes",
    "structure",
    "transformations",
]
