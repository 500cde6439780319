"""Checks under JAX's transformations: the rule computes the same, whoever calls it.

What is compared is the rule with itself: a rule that is wrong everywhere fails the
checks of numbers, and these only if a transformation changes it.
"""

from typing import Any

import jax
import numpy as np
from jax import lax

from handgrad.testing.checks.structure import eager
from handgrad.testing.checks.verdict import SkipCheck, attempt, check, judge, one_line
from handgrad.testing.compare import Failure, epsilon, widen
from handgrad.testing.subject import WIDE, Outcome, Subject, cast, cast_arrays, stack

FACTOR = 2.0  # two results, each of them within its limit of the truth


def _same(
    subject: Subject, actual: Any, expected: Outcome, where: str
) -> list[Failure]:
    return judge(
        subject,
        Outcome(*actual),
        expected,
        subject.limits(),
        subject.directions[0],
        factor=FACTOR,
        where=where,
    )


@check("jit")
def jit(subject: Subject) -> list[Failure]:
    """Compiled as a whole or operation by operation, the result is the same."""
    actual = attempt(subject, lambda who: eager(subject) if who == "rule" else None)
    return _same(subject, actual, subject.outcome("rule", 0), " without jit")


@check("vmap")
def vmap(subject: Subject) -> list[Failure]:
    """Batched: over everything, over the cotangents alone, over each argument alone."""
    point, other = subject.point, subject.neighbour
    dys = subject.directions[:2]
    floats, fixed, stacked = stack((*point, dys[0]), (*other, dys[1]))
    one, two = (subject.outcome("rule", i) for i in range(2))
    # What is batched, its two outcomes, and where that is.
    parts = [
        ((True,) * len(floats), True, True, subject.run("rule", dys[1], other), ""),
        ((False,) * len(floats), False, True, two, " of the cotangents"),
    ]
    for i, name in enumerate(subject.names if len(floats) > 1 else ()):
        alone = tuple(k == i for k in range(len(floats)))
        mixed = point._replace(floats=_choose(alone, other.floats, point.floats))
        expected = subject.run("rule", dys[0], mixed)
        parts.append((alone, False, False, expected, f" of {name} alone"))

    def compute(who):
        run = subject.pull(subject.function(who))

        def every_part(floats, fixed, stacked):
            outcomes = []
            for some, with_fixed, with_dys, *_ in parts:
                axes = tuple(0 if batched else None for batched in some)
                axes = (axes, 0 if with_fixed else None, 0 if with_dys else None)
                operands = (
                    _choose(some, floats, point.floats),
                    fixed if with_fixed else point.fixed,
                    stacked if with_dys else dys[0],
                )
                outcomes.append(jax.vmap(run, axes)(*operands))
            return outcomes

        program = subject.compiled(("vmap", who), lambda: every_part)
        return program(floats, fixed, stacked)

    with subject.precision(None):
        outcomes = attempt(subject, compute)
    found = []
    for outcome, (*_, expected, where) in zip(outcomes, parts, strict=True):
        for index, right in enumerate((one, expected)):
            actual = jax.tree.map(lambda a, index=index: a[index], outcome)
            found += _same(subject, actual, right, f" under vmap{where}")
    return found


def _choose(some: tuple[bool, ...], these: Any, others: Any) -> tuple[Any, ...]:
    """These arrays where `some` is true, the others elsewhere."""
    return tuple(a if yes else b for yes, a, b in zip(some, these, others, strict=True))


@check("remat")
def remat(subject: Subject) -> list[Failure]:
    """Recomputed in the backward pass instead of kept."""

    def compute(who):
        f = jax.checkpoint(subject.split(subject.function(who)))

        def run(floats, fixed, dys):
            ys, vjp, _ = jax.vjp(lambda x: f(x, fixed), floats, has_aux=True)
            return Outcome(ys, vjp(dys)[0])

        program = subject.compiled(("remat", who), lambda: run)
        return program(*subject.point, subject.directions[0])

    with subject.precision(None):
        actual = attempt(subject, compute)
    return _same(subject, actual, subject.outcome("rule", 0), " under remat")


@check("scan")
def scan(subject: Subject) -> list[Failure]:
    """In a loop's body: the cotangents of two turns add up."""
    dys = stack(*subject.directions[:2])

    def compute(who):
        f = subject.split(subject.function(who))

        def run(floats, fixed, dys):
            def loop(floats):
                return lax.scan(
                    lambda _, __: (None, f(floats, fixed)[0]), None, length=2
                )[1]

            ys, vjp = jax.vjp(loop, floats)
            return Outcome(tuple(y[1] for y in ys), vjp(dys)[0])

        program = subject.compiled(("scan", who), lambda: run)
        return program(*subject.point, dys)

    def loop_free(a, b):
        return tuple(widen(x) + widen(y) for x, y in zip(a.dxs, b.dxs, strict=True))

    with subject.precision(None):
        actual = attempt(subject, compute)
    one, two = (subject.outcome("rule", i) for i in range(2))
    expected = Outcome(one.ys, loop_free(one, two))
    return judge(
        subject,
        Outcome(*actual),
        expected,
        subject.limits(),
        subject.directions[0],
        factor=2 * FACTOR,
        where=" in a scan",
    )


@check("undifferentiated")
def undifferentiated(subject: Subject) -> list[Failure]:
    """One argument or one result alone: the others' cotangents are symbolic zeros."""
    floats, fixed = subject.point
    dys = subject.directions[0]
    function = subject.split(subject.f)
    expected = subject.outcome("rule", 0)
    if len(floats) == len(dys) == 1:
        raise SkipCheck("there is one argument and one result")
    found = []

    def one_argument(i):
        def alone(x):
            return function((*floats[:i], x, *floats[i + 1 :]), fixed)[0]

        ys, vjp = jax.vjp(alone, floats[i])
        return Outcome(ys, (vjp(dys)[0],))

    def one_result(j):
        y, vjp = jax.vjp(lambda x: function(x, fixed)[0][j], floats)
        return Outcome((y,), vjp(dys[j])[0])

    with subject.precision(None):
        for i, name in enumerate(subject.names if len(floats) > 1 else ()):
            actual = attempt(subject, lambda who, i=i: one_argument(i))
            dxs = (*expected.dxs[:i], actual.dxs[0], *expected.dxs[i + 1 :])
            where = f" with respect to {name} alone"
            found += _same(subject, Outcome(actual.ys, dxs), expected, where)
        for j, name in enumerate(subject.results if len(dys) > 1 else ()):
            actual = attempt(subject, lambda who, j=j: one_result(j))
            alone = tuple(
                dy if k == j else np.zeros_like(dy) for k, dy in enumerate(dys)
            )
            right = subject.run("rule", alone)
            ys = (*right.ys[:j], actual.ys[0], *right.ys[j + 1 :])
            where = f" of {name} alone"
            found += _same(subject, Outcome(ys, actual.dxs), right, where)
    return found


@check("second_order")
def second_order(subject: Subject) -> list[Failure]:
    """Reverse over reverse, in float64: ∂S/∂floats and ∂S/∂dys.

    S = ⟨dxs, v⟩ + ⟨ys, dys⟩: a gradient of a gradient differentiates what the forward
    rule computed its results by, too. Without a reference ⟨∂S/∂floats, u⟩ is compared
    with the difference quotient of S along u.
    """
    if subject.kinks:
        raise SkipCheck("the arguments lie on kinks")
    point = cast(subject.point, WIDE)
    dys = cast_arrays(subject.directions[0], WIDE)
    v = cast_arrays(subject.random(point.floats, 4), WIDE)

    def twice(f):
        run = subject.pull(f)

        def gradient_of_gradient(floats, fixed, dys, v):
            both, vjp = jax.vjp(lambda x, dy: run(x, fixed, dy), floats, dys)
            along = jax.tree.map(lambda a, b: a.astype(b.dtype), Outcome(dys, v), both)
            by_floats, by_dys = vjp(along)
            return Outcome(by_dys, by_floats)

        return gradient_of_gradient

    def compute(who):
        with subject.precision(WIDE):
            program = subject.compiled(
                ("twice", who),
                lambda: twice(subject.function(who)) if who else subject.both(twice),
            )
            return jax.device_get(program(*point, dys, v))

    if not subject.independent:
        return _quotient_of_gradient(subject, attempt(subject, compute), v)
    try:
        actual, truth = compute(None)
    except Exception:
        # One of the two raises: alone, each says which. If neither does, this stands.
        attempt(subject, compute)
        try:
            compute("reference")
        except Exception as error:
            raise SkipCheck(f"the reference raises {one_line(error)}") from error
        raise
    eps = max(epsilon(a.dtype) for a in jax.tree.leaves(actual))
    limit = 1e5 * eps if eps < 1e-12 else 1e2 * eps
    limit *= subject.budgets.get(WIDE, 1.0)
    limits = jax.tree.map(lambda a: limit, truth)
    return judge(subject, actual, truth, limits, dys, where=" (second order)")


def _quotient_of_gradient(
    subject: Subject, actual: Outcome, v: tuple[np.ndarray, ...]
) -> list[Failure]:
    """⟨w, u⟩ against (S(x + hu) − S(x − hu)) / 2h, S = ⟨dxs, v⟩ + ⟨ys, dys⟩."""
    from handgrad.testing.differences import directional_slope

    dys = subject.directions[0]
    u = cast_arrays(subject.random(subject.point.floats, 5), WIDE)

    def value(point):
        ys, dxs = subject.run("rule", dys, point, WIDE)
        pairs = zip((*dxs, *ys), (*v, *dys), strict=True)
        return float(sum(np.sum(np.real(widen(d) * a)) for d, a in pairs))

    quotient = directional_slope(value, cast(subject.point, WIDE), u)
    terms = [np.real(widen(w) * a) for w, a in zip(actual.dxs, u, strict=True)]
    slope = float(sum(np.sum(t) for t in terms))
    size = float(sum(np.sum(np.abs(t)) for t in terms))
    limit = 10 * quotient.uncertainty + 1e-6 * (size + abs(value(subject.point)))
    distance = abs(slope - quotient.central)
    if quotient.kinked or not np.isfinite(quotient.central) or distance <= limit:
        return []
    size = max(size, abs(quotient.central)) or 1.0
    path = "⟨∂(⟨dx, v⟩ + ⟨y, dy⟩)/∂x, u⟩ (second order)"
    error = distance / size
    return [
        Failure(path, (), slope, quotient.central, error, limit / size, float("inf"))
    ]
