"""Checks of form: what cotangents look like, what is kept, and whether it repeats."""

from typing import Any

import jax
import numpy as np

from handgrad import measure
from handgrad.testing.checks.verdict import (
    FailCheck,
    SkipCheck,
    attempt,
    check,
)
from handgrad.testing.compare import Failure, error_of, ulps, widen
from handgrad.testing.subject import Subject


def _avals(subject: Subject, who: str) -> Any:
    run = subject.pull(subject.function(who))
    with subject.precision(None):
        return jax.eval_shape(run, *subject.point, subject.directions[0])


@check("structure")
def structure(subject: Subject) -> list[Failure]:
    """Cotangents have their primals' shape, dtype and weak type."""
    ours = attempt(subject, lambda who: _avals(subject, who))
    wanted = _avals(subject, "reference")
    for kind, names in (("ys", subject.results), ("dxs", subject.names)):
        for name, a, e in zip(
            names, getattr(ours, kind), getattr(wanted, kind), strict=True
        ):
            label = name if kind == "ys" else f"the gradient of {name}"
            if (a.shape, a.dtype) != (e.shape, e.dtype):
                raise FailCheck(
                    f"{label} is {a.dtype}{list(a.shape)}, should be "
                    f"{e.dtype}{list(e.shape)}"
                )
            if a.weak_type and not e.weak_type:
                raise FailCheck(f"{label} is weakly typed, the reference's is not")
    return []


@check("repeatable")
def repeatable(subject: Subject) -> list[Failure]:
    """The same bits every time, compiled, and traced afresh."""
    dys = subject.directions[0]
    found = []
    for how, (one, two) in {
        "compiled": (subject.outcome("rule", 0), subject.run("rule", dys)),
        "not compiled": (eager(subject), eager(subject)),
    }.items():
        pairs = zip(
            [*subject.results, *(f"gradient of {n}" for n in subject.names)],
            jax.tree.leaves(one),
            jax.tree.leaves(two),
            strict=True,
        )
        for name, a, b in pairs:
            different = np.asarray(a != b) & ~(np.isnan(a) & np.isnan(b))
            if np.any(different):
                index = tuple(int(i) for i in np.argwhere(different)[0])
                old, new = widen(a)[index], widen(b)[index]
                error, place = error_of(b, a)[0], ulps(new, old, b.dtype)
                where = f", {how} a second time,"
                found.append(
                    Failure(
                        name, index, new.item(), old.item(), error, 0.0, place, where
                    )
                )
    return found


def eager(subject: Subject) -> Any:
    """The rule's outcome without a compilation of the whole."""
    with subject.precision(None):
        arrays = jax.device_put((*subject.point, subject.directions[0]))
        return jax.device_get(subject.pull(subject.f)(*arrays))


@check("residuals")
def residuals(subject: Subject) -> str:
    """What lives until the backward pass is no more than the reference keeps.

    Or, if that is more, than all arguments and results: they live anyway, mostly.
    """
    if not subject.independent:
        raise SkipCheck("there is no reference to compare with")
    ours = attempt(subject, lambda who: _kept(subject, who))
    theirs = _kept(subject, "reference")
    point, dys = subject.point, subject.directions[0]
    alive = sum(a.nbytes for a in (*point.floats, *dys))
    alive += sum(a.nbytes for a in point.fixed if isinstance(a, np.ndarray))
    said = (
        f"{_bytes(ours)} kept beside the arguments, {_bytes(theirs)} by the reference"
    )
    if ours > max(theirs, alive):
        raise FailCheck(f"{said}, {_bytes(alive)} in arguments and results")
    return said


def _kept(subject: Subject, who: str) -> int:
    """Bytes that a pull-back holds and that are no arguments."""
    function = subject.split(subject.function(who))
    with subject.precision(None):
        kept = measure.residuals(lambda *point: function(*point)[0], *subject.point)
    return kept.made + kept.results


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
