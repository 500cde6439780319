"""What a check says, and the list of checks."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from handgrad.testing import hints
from handgrad.testing.compare import Failure, compare
from handgrad.testing.subject import Outcome, Subject

CHECKS: dict[str, Callable[[Subject], "Result"]] = {}


@dataclasses.dataclass(frozen=True)
class Result:
    """What one check found.

    Attributes:
      check: its name.
      status: "passed", "failed" or "skipped".
      message: why it failed or was skipped, or what else there is to know.
      failures: the worst element of each array that is wrong.
      seconds: how long the check took.
    """

    check: str
    status: str
    message: str = ""
    failures: tuple[Failure, ...] = ()
    seconds: float = 0.0

    @property
    def worst(self) -> Failure | None:
        """The failure with the largest error."""
        return max(self.failures, key=lambda f: f.error, default=None)


class SkipCheck(Exception):  # noqa: N818
    """A check that says nothing about this rule, and why."""


class FailCheck(Exception):  # noqa: N818
    """A check that fails without an element to show, and why."""


def check(name: str) -> Callable[[Callable[[Subject], Any]], Callable[..., Result]]:
    """Registers a check in `CHECKS`.

    The decorated function of a `Subject` returns its failures, none if it passes, or a
    sentence to know; it raises `SkipCheck` or `FailCheck`.
    """

    def register(function: Callable[[Subject], Any]) -> Callable[..., Result]:
        def checked(subject: Subject) -> Result:
            try:
                found = function(subject)
            except SkipCheck as reason:
                return Result(name, "skipped", str(reason))
            except FailCheck as reason:
                return Result(name, "failed", str(reason))
            if isinstance(found, str):
                return Result(name, "passed", found)
            failures = tuple(f for f in found if f is not None)
            if not failures:
                return Result(name, "passed")
            worst = max(failures, key=lambda f: f.error)
            return Result(name, "failed", str(worst), failures)

        checked.__doc__ = function.__doc__
        CHECKS[name] = checked
        return checked

    return register


def attempt(subject: Subject, compute: Callable[[str], Any]) -> Any:
    """`compute("rule")`: what the reference can do, the rule must be able to do.

    Raises:
      SkipCheck: the reference cannot do it either.
      FailCheck: the rule alone cannot.
    """
    try:
        return jax.device_get(compute("rule"))
    except Exception as error:
        reason = one_line(error)
        if subject.independent:
            try:
                compute("reference")
            except Exception as other:
                raise SkipCheck(f"the reference raises {one_line(other)}") from error
        raise FailCheck(f"the rule raises {reason}") from error


def one_line(error: BaseException) -> str:
    """The kind of an exception and the first line of what it says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def judge(
    subject: Subject,
    actual: Outcome,
    expected: Outcome,
    limits: Outcome,
    dys: Iterable[np.ndarray],
    *,
    reference: Outcome | None = None,
    factor: float = 1.0,
    where: str = "",
) -> list[Failure]:
    """The worst element of each result and each cotangent that is further off.

    Args:
      subject: what is checked.
      actual: what the rule computed.
      expected: what it should be.
      limits: the largest error that each array may have.
      dys: the cotangents that were pulled back, for hints.
      reference: the reference's own outcome in the same precision, for pictures.
      factor: how many times the limits.
      where: under which transformation or in which dtype.
    """
    dys = tuple(dys)
    known = hints.Known(
        subject.point.floats, subject.names, expected.ys, dys, subject.others(dys)
    )
    failures = []
    for kind, names in (("ys", subject.results), ("dxs", subject.names)):
        others = getattr(reference, kind) if reference else [None] * len(names)
        arrays = (getattr(o, kind) for o in (actual, expected, limits))
        for name, a, e, limit, other in zip(names, *arrays, others, strict=True):
            label = name if kind == "ys" else f"gradient of {name}"
            if failure := compare(label, a, e, factor * limit, other):
                known = known._replace(path=name)
                hint = hints.explain(np.asarray(a), np.asarray(e), known)
                failures.append(dataclasses.replace(failure, where=where, hint=hint))
    return failures
