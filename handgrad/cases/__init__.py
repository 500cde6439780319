"""The named cases: one list that tests, benchmarks, documents and tables share.

A case is an op, the arrays it gets and its options. `CASES` are checked: the geometries
in which a rule is most easily wrong. `LAYERS` are measured: layers of real networks,
which carry the network's name. Those that are small enough are in both.
"""

from handgrad.cases import (
    activation,
    convolution,
    dense,
    loss,
    normalization,
    pooling,
)
from handgrad.cases.case import (
    PARAMETERS,
    Case,
    Sample,
    classes,
    constant,
    key,
    normal,
    one_hot,
    tied,
    uniform,
)

_FAMILIES = (convolution, dense, pooling, activation, normalization, loss)

CASES: tuple[Case, ...] = tuple(case for family in _FAMILIES for case in family.CASES)
LAYERS: tuple[Case, ...] = (
    *(case for case in CASES if case.network),
    *(case for family in _FAMILIES for case in getattr(family, "LAYERS", ())),
)


def of(rule: str) -> list[Case]:
    """The cases of one rule."""
    return [case for case in CASES if case.rule == rule]


__all__ = [
    "CASES",
    "LAYERS",
    "PARAMETERS",
    "Case",
    "Sample",
    "classes",
    "constant",
    "key",
    "normal",
    "of",
    "one_hot",
    "tied",
    "uniform",
]
