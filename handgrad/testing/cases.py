"""A project's list of rules with sample arguments, and the single checks of each.

CASES = [RuleCase("tanh", tanh, (x,)), RuleCase("dense", dense, (x, kernel))]

@pytest.mark.check_rules(*CASES)
def test_rules(rule_check):
rule_check()
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.testing.check import RuleError, prepare, run_check
from handgrad.testing.checks import ALL
from handgrad.testing.report import Report
from handgrad.testing.subject import Subject


@dataclasses.dataclass(frozen=True, eq=False)  # itself is its identity
class RuleCase:
    """A rule with sample arguments.

    Attributes:
      name: the case's name in the names of tests.
      f: the rule; `args`, `reference`, `dtype_budget` are as in `check_rule`.
      args: its arguments.
      reference: what it must be equal to.
      dtypes: what the floating-point arguments are converted to, one test each.
      checks: the names of the checks.
      dtype_budget: by dtype, how many times the usual rounding is allowed.
    """

    name: str
    f: Callable[..., Any]
    args: Sequence[Any]
    reference: Callable[..., Any] | None = None
    dtypes: Sequence[str] = ("float32",)
    checks: Sequence[str] = ALL
    dtype_budget: Mapping[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class RuleCheck:
    """One check of a case in one dtype; a call makes it."""

    case: RuleCase
    check: str
    dtype: str

    def __str__(self) -> str:
        """Rule, check and dtype, as in the names of tests."""
        return f"{self.case.name}-{self.check}-{self.dtype}"

    def __call__(self) -> None:
        """Makes the check.

        Raises:
          RuleError: it failed.
          unittest.SkipTest: it says nothing about this rule; test runners know it.
        """
        import unittest

        result = run_check(_subject(self.case, self.dtype), self.check)
        if result.status == "failed":
            raise RuleError(Report(str(self), (result,), result.seconds))
        if result.status == "skipped":
            raise unittest.SkipTest(result.message)


def rule_checks(cases: Iterable[RuleCase]) -> list[RuleCheck]:
    """Every check of every case in each of its dtypes."""
    listed = []
    for case in cases:
        if not isinstance(case, RuleCase):
            raise TypeError(
                f"check_rules: every case must be a RuleCase, got {type(case).__name__}"
            )
        listed += [
            RuleCheck(case, check, dtype)
            for dtype in case.dtypes
            for check in case.checks
        ]
    return listed


@functools.lru_cache(maxsize=8)
def _subject(case: RuleCase, dtype: str) -> Subject:
    """The case in a dtype, its programs shared by all checks."""

    def convert(leaf: Any) -> Any:
        array = isinstance(leaf, np.ndarray | np.generic | jax.Array)
        real = array and jnp.issubdtype(leaf.dtype, np.floating)
        return np.asarray(leaf).astype(jnp.dtype(dtype)) if real else leaf

    args = jax.tree.map(convert, tuple(case.args))
    subject, _ = prepare(
        case.f, args, case.reference, dtype_budget=case.dtype_budget, checks=case.checks
    )
    run_check(subject, "structure")  # without it nothing else can be said
    return subject
