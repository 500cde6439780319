"""Checks of numbers: values and cotangents against float64, element by element."""

import dataclasses

import jax
import numpy as np

from handgrad.testing.checks.verdict import (
    FailCheck,
    SkipCheck,
    attempt,
    check,
    judge,
    one_line,
)
from handgrad.testing.compare import Failure, compare, error_of, tolerance, widen
from handgrad.testing.subject import WIDE, Outcome, Point, Subject, cast, cast_arrays

JACOBIAN = 64  # results of a full Jacobian, one pull-back each


def _values(outcome: Outcome) -> Outcome:
    return outcome._replace(dxs=())


@check("values")
def values(subject: Subject) -> list[Failure]:
    """y, differentiated or not, is the reference's."""
    point, (dys, *_) = subject.point, subject.directions
    truth, limits = subject.truth(0), subject.limits()
    own = subject.outcome("reference", 0)
    with subject.precision(None):
        plain = subject.split(subject.f)(point.floats, point.fixed)
        others = subject.split(subject.reference)(point.floats, point.fixed)[1]
        plain, others = jax.device_get((plain, others))
    for mine, right in zip(plain[1], others, strict=True):
        if not np.array_equal(mine, right):
            raise FailCheck("an integer result is not the reference's")
    failures = []
    for ys, where in (
        (plain[0], " (not differentiated)"),
        (subject.outcome("rule", 0).ys, " (when differentiated)"),
    ):
        actual = Outcome(ys, truth.dxs)
        failures += judge(
            subject, actual, truth, limits, dys, reference=own, where=where
        )
    return failures


@check("cotangents")
def cotangents(subject: Subject) -> list[Failure]:
    """Each cotangent is the reference's in float64, for several random directions."""
    limits, found = subject.limits(), []
    for direction, dys in enumerate(subject.directions):
        truth = subject.truth(direction)
        actual = subject.outcome("rule", direction)._replace(ys=truth.ys)
        own = subject.outcome("reference", direction)
        found += judge(subject, actual, truth, limits, dys, reference=own)
    return found


@check("float64")
def float64(subject: Subject) -> list[Failure]:
    """In float64 nothing hides behind rounding: a wrong constant shows."""
    if not subject.independent:
        raise SkipCheck("there is no reference but finite differences")
    truth = subject.truth(0)
    actual = attempt(subject, lambda who: subject.outcome(who, 0, WIDE))
    # A rule that is not computed in float64 is held to what it is computed in.
    wide = all(a.dtype.itemsize >= 8 for a in jax.tree.leaves(actual))
    if not wide:
        raise SkipCheck("the rule does not compute in float64")
    limit = tolerance(0.0, np.float64, subject.budgets.get(WIDE, 1.0))
    limits = jax.tree.map(lambda t: limit, truth)
    return judge(subject, actual, truth, limits, subject.directions[0])


@check("jacobian")
def jacobian(subject: Subject) -> list[Failure]:
    """Every entry of the Jacobian, where it is small."""
    shapes = [y.shape for y in subject.directions[0]]
    sizes = [int(np.prod(shape)) for shape in shapes]
    if not 0 < sum(sizes) <= JACOBIAN:
        raise SkipCheck(f"{sum(sizes)} results; random directions stand for it")
    rows: dict[tuple[str, str | None], list[tuple[np.ndarray, ...]]] = {
        key: [] for key in (("rule", None), ("reference", None), ("reference", WIDE))
    }
    for k, like in enumerate(subject.directions[0]):
        for j in range(like.size):
            dys = tuple(np.zeros_like(dy) for dy in subject.directions[0])
            dys[k].reshape(-1)[j] = 1
            for (who, dtype), listed in rows.items():
                listed.append(subject.run(who, dys, None, dtype).dxs)
    found = []
    stacked = {k: [np.stack(a) for a in zip(*v, strict=True)] for k, v in rows.items()}
    actual, own, truth = stacked.values()
    limits = subject.limits().dxs
    for name, a, o, t, limit in zip(
        subject.names, actual, own, truth, limits, strict=True
    ):
        for index in subject.kinks.get(name, ()):
            t[(slice(None), *index)] = np.nan
        most = max(float(limit), 2 * error_of(o, t)[0])
        found.append(compare(f"Jacobian [result, …] of {name}", a, t, most, o))
    return found


@check("adjoint")
def adjoint(subject: Subject) -> list[Failure]:
    """⟨dy, J v⟩ = ⟨Jᵀdy, v⟩ with the reference's linearisation J."""
    if subject.kinks:
        raise SkipCheck("the arguments lie on kinks")
    function = subject.split(subject.reference)
    point = cast(subject.point, WIDE)
    v = cast_arrays(subject.random(subject.point.floats, 3), WIDE)

    def push(floats, fixed, v):
        return jax.jvp(lambda x: function(x, fixed)[0], (floats,), (v,))[1]

    try:
        with subject.precision(WIDE):
            jv = jax.device_get(
                subject.compiled("push", lambda: push)(point.floats, point.fixed, v)
            )
    except Exception as error:
        raise SkipCheck(
            f"the reference has no linearisation: {one_line(error)}"
        ) from error
    found = []
    limit = float(max(subject.limits().dxs))
    for direction, dys in enumerate(subject.directions):
        dxs = subject.outcome("rule", direction).dxs
        terms = [np.real(widen(dx) * a) for dx, a in zip(dxs, v, strict=True)]
        others = [np.real(widen(dy) * a) for dy, a in zip(dys, jv, strict=True)]
        left, right = (float(sum(np.sum(t) for t in ts)) for ts in (others, terms))
        size = float(sum(np.sum(np.abs(t)) for t in (*terms, *others))) or 1.0
        error = abs(left - right) / size
        if np.isfinite(left) and not error <= limit:
            found.append(Failure("⟨dx, v⟩", (), right, left, error, limit, np.inf))
    return found


@check("linear")
def linear(subject: Subject) -> list[Failure]:
    """The cotangent of a sum is the sum, of twice is twice, of zero is zero."""
    first, second = subject.directions[:2]
    one, two = subject.outcome("rule", 0), subject.outcome("rule", 1)
    limits = subject.limits()
    found = []

    def expect(dys, expected, where, factor):
        actual = subject.run("rule", dys)
        expected = Outcome(actual.ys, tuple(expected))
        return judge(subject, actual, expected, limits, dys, where=where, factor=factor)

    zero = tuple(np.zeros_like(dy) for dy in first)
    right = subject.run("reference", zero, None, None)
    for name, dx, ref in zip(
        subject.names, subject.run("rule", zero).dxs, right.dxs, strict=True
    ):
        failure = compare(f"gradient of {name}", dx, ref, 0.0)
        where = " for a cotangent of zeros"
        found.append(failure and dataclasses.replace(failure, where=where))
    pairs = zip(one.dxs, two.dxs, strict=True)
    total = tuple(np.asarray(a + b) for a, b in zip(first, second, strict=True))
    found += expect(
        total, (widen(a) + widen(b) for a, b in pairs), " for a sum of cotangents", 4
    )
    double = tuple(np.asarray(2 * dy).astype(dy.dtype) for dy in first)
    found += expect(
        double, (2 * widen(dx) for dx in one.dxs), " for twice the cotangent", 2
    )
    return found


@check("precision")
def precision(subject: Subject) -> list[Failure] | str:
    """In fewer bits the rule is no worse than the reference in as many."""
    own = {np.dtype(x.dtype) for x in subject.point.floats}
    dtypes = [d for d in subject.budgets if own == {np.dtype(np.float32)}]
    dtypes = [d for d in dtypes if d in ("bfloat16", "float16")]
    if subject.kinks:
        raise SkipCheck("the arguments lie on kinks")
    if not dtypes or not subject.independent:
        raise SkipCheck("only a rule in float32 with a reference has fewer bits to try")
    found, refused = [], []
    for dtype in dtypes:
        dys = cast_arrays(subject.directions[0], dtype)
        point = cast(subject.point, dtype)
        try:
            limits = subject.limits(dtype)
            actual = subject.run("rule", dys, point, dtype)
        except (TypeError, ValueError) as error:
            refused.append(f"{dtype}: {one_line(error)}")
            continue
        truth = subject.run("reference", dys, point, WIDE)
        own_error = subject.run("reference", dys, point, dtype)
        found += judge(
            subject,
            actual,
            truth,
            limits,
            dys,
            reference=own_error,
            where=f" in {dtype}",
        )
    return found or "; ".join(refused)


@check("finite")
def finite(subject: Subject) -> list[Failure]:
    """No NaN or infinity where the truth is finite: at zero, and for large numbers.

    Where the reference in the rule's own dtype is not finite either, the rule need not
    be.
    """
    found = []
    for where, point in _extremes(subject.point):
        dys = subject.directions[0]
        actual = subject.run("rule", dys, point)
        own = subject.run("reference", dys, point)
        truth = subject.run("reference", dys, point, WIDE)
        for kind, names in (("ys", subject.results), ("dxs", subject.names)):
            arrays = (getattr(o, kind) for o in (actual, own, truth))
            for name, a, o, t in zip(names, *arrays, strict=True):
                bad = ~np.isfinite(a) & np.isfinite(o) & np.isfinite(t)
                if np.any(bad):
                    index = tuple(int(i) for i in np.argwhere(bad)[0])
                    path = name if kind == "ys" else f"gradient of {name}"
                    a, t = np.asarray(a)[index].item(), np.asarray(t)[index].item()
                    found.append(
                        Failure(path, index, a, t, np.inf, 0.0, np.inf, f" {where}")
                    )
    return found


def _extremes(point: Point):
    """The point itself, each array of zeros, and everything a thousand times as large.

    Of an array of zeros one half keeps its numbers, too: 0 next to others.
    """
    yield "at the arguments", point
    for i, x in enumerate(point.floats):
        half = np.where(np.arange(x.size).reshape(x.shape) % 2 == 0, x.dtype.type(0), x)
        for zeros, name in ((np.zeros_like(x), "zeros"), (half, "every second zero")):
            floats = (*point.floats[:i], zeros, *point.floats[i + 1 :])
            yield f"where argument {i + 1} is {name}", point._replace(floats=floats)
    with np.errstate(over="ignore"):
        floats = tuple((x * 1000).astype(x.dtype) for x in point.floats)
    yield "for numbers 1000 times as large", point._replace(floats=floats)
