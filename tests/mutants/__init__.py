"""Deliberately wrong rules, a family a file, that every checker is measured with.

`RIGHT` holds the same rules without the mistake: a checker must let them pass.
"""

from tests.mutants import activation, convolution, form, normalization, pooling
from tests.mutants.mutant import Mutant

_FAMILIES = (convolution, pooling, normalization, activation, form)
MUTANTS: tuple[Mutant, ...] = tuple(m for f in _FAMILIES for m in f.MUTANTS)
RIGHT = {name: call for f in _FAMILIES for name, call in f.RIGHT.items()}

__all__ = ["MUTANTS", "RIGHT", "Mutant"]
