"""Checks against difference quotients, which know nothing of any backward pass."""

import numpy as np

from handgrad.testing import hints
from handgrad.testing.checks.verdict import SkipCheck, attempt, check
from handgrad.testing.compare import Failure, ulps
from handgrad.testing.differences import Findings, examine
from handgrad.testing.subject import Subject

SHOWN = 3


def _findings(subject: Subject) -> list[Findings]:
    """One for each argument, of the rule or, if there is one, of the reference."""
    who = "reference" if subject.independent else "rule"
    if not subject.findings:
        subject.findings = attempt(
            subject,
            lambda _: [examine(subject, who, i) for i in range(len(subject.names))],
        )
    return subject.findings


@check("differences")
def differences(subject: Subject) -> list[Failure] | str:
    """The truth is the slope of the values.

    Without a reference the difference quotients are the truth, and the rule's cotangent
    fails where it is another. With one, an unusual reference (a straight-through
    estimator, say) is told of and not counted: the rule is asked to be like it.
    """
    found, told = [], []
    for name, finding in zip(subject.names, _findings(subject), strict=True):
        if finding.wrong is None:
            continue
        index = finding.wrong
        actual, expected = finding.gradient[index], finding.slopes[index]
        size = max(
            abs(expected), float(np.sqrt(np.mean(np.abs(finding.gradient) ** 2)))
        )
        size = size or 1.0
        hint = None
        if finding.complete:
            truth = subject.outcome("rule", 0, "float64")
            dys = subject.directions[0]
            known = hints.Known(subject.point.floats, subject.names, truth.ys, dys)
            hint = hints.explain(finding.gradient, finding.slopes, known)
        failure = Failure(
            f"gradient of {name}",
            index,
            actual.item(),
            expected.item(),
            abs(actual - expected) / size,
            finding.limit / size,
            ulps(actual, expected, subject.point.floats[0].dtype),
            "",
            hint,
            (finding.slopes, finding.gradient, None) if finding.complete else None,
        )
        found.append(failure)
        told.append(f"the reference's own gradient is not its slope: {failure}")
    return "; ".join(told) if subject.independent and told else found


@check("kinks")
def kinks(subject: Subject) -> str:
    """Where the one-sided slopes differ, any gradient between them is right."""
    every = [kink for finding in _findings(subject) for kink in finding.kinks]
    complete = all(finding.complete for finding in _findings(subject))
    if not every:
        if not complete:
            raise SkipCheck("the arguments are too large to look at every number")
        return "none at these arguments"
    shown = "; ".join(str(kink) for kink in every[:SHOWN])
    return f"{len(every)} found, not counted as failures: {shown}"
