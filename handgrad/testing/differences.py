"""Difference quotients, and the kinks that they find.

The slope of a scalar g along v is compared with two central differences,

    D(h) = (g(x + hv) − g(x − hv)) / 2h,    slope ≈ (4 D(h/2) − D(h)) / 3

whose error is of the order h⁴; the distance of the two says how far to trust it. Where
the one-sided differences differ and go on to differ at half the step, g has a *kink*:
the slope to the left and the slope to the right are two numbers, and any gradient
between them is right.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from handgrad.testing.compare import widen
from handgrad.testing.subject import WIDE, Point, Subject, cast

STEP = 1e-4
COORDINATES = 128  # of an argument with more numbers a random direction is taken


class Slope(NamedTuple):
    """The slope of a scalar function along a direction.

    Attributes:
      central: of both sides together.
      uncertainty: how far it may be off.
      left: from below.
      right: from above.
      kinked: whether left and right are two numbers.
    """

    central: float
    uncertainty: float
    left: float
    right: float
    kinked: bool


class Kink(NamedTuple):
    """An element of an argument at which the one-sided slopes differ."""

    path: str
    index: tuple[int, ...]
    left: float
    right: float
    gradient: float

    def __str__(self) -> str:
        """One line."""
        place = f"{self.path}[{', '.join(map(str, self.index))}]"
        return (
            f"{place}: slopes {self.left:.4g} and {self.right:.4g}, the rule takes "
            f"{self.gradient:.4g}"
        )


def directional_slope(
    value: Callable[[Point], float],
    point: Point,
    v: tuple[np.ndarray, ...],
    *,
    step: float = STEP,
    here: float | None = None,
) -> Slope:
    """The slope of `value` at `point` along `v`."""
    here = value(point) if here is None else here

    def at(t: float) -> float:
        floats = tuple(x + t * a for x, a in zip(point.floats, v, strict=True))
        return value(point._replace(floats=floats))

    right, left, right_half, left_half = (
        (at(step) - here) / step,
        (here - at(-step)) / step,
        2 * (at(step / 2) - here) / step,
        2 * (here - at(-step / 2)) / step,
    )
    coarse, fine = (right + left) / 2, (right_half + left_half) / 2
    gap, gap_half = abs(right - left), abs(right_half - left_half)
    size = max(abs(right), abs(left))
    noise = 1e-16 * abs(here) / step
    # Of a smooth function half the step halves the gap.
    kinked = gap_half > 0.7 * gap and gap_half > 1e-4 * size + 100 * noise
    return Slope(
        (4 * fine - coarse) / 3,
        abs(fine - coarse) + noise,
        left_half,
        right_half,
        bool(kinked or abs(fine - coarse) > 1e-3 * size + 100 * noise),
    )


def scalar(subject: Subject, who: str) -> Callable[[Point], float]:
    """x ↦ Re⟨y(x), dy⟩ for the first direction, in float64; infinities count as 0."""
    dys = subject.directions[0]

    def value(point: Point) -> float:
        ys = subject.run(who, dys, point, WIDE).ys
        pairs = zip(ys, dys, strict=True)
        return float(
            sum(
                np.sum(np.real(np.where(np.isfinite(y), widen(y), 0) * widen(dy)))
                for y, dy in pairs
            )
        )

    return value


class Findings(NamedTuple):
    """What difference quotients say about one argument's cotangent.

    Attributes:
      slopes: the quotient of each element, NaN where none was taken or there is a kink.
      gradient: the cotangent in float64.
      wrong: an element where the two differ, or `None`.
      limit: how far apart they may be there.
      kinks: elements at which the one-sided slopes differ.
      complete: whether every element was looked at by itself.
    """

    slopes: np.ndarray
    gradient: np.ndarray
    wrong: tuple[int, ...] | None
    limit: float
    kinks: list[Kink]
    complete: bool


def examine(subject: Subject, who: str, argument: int) -> Findings:
    """Compares an argument's float64 cotangent with difference quotients.

    Each element of a small argument; of a large one a random direction, which is then
    halved again and again until a single element is left that explains it.
    """
    point = cast(subject.point, WIDE)
    value = scalar(subject, who)
    here = value(point)
    gradient, ours = (subject.outcome(w, 0, WIDE).dxs[argument] for w in (who, "rule"))
    slopes = np.full(gradient.shape, np.nan, gradient.dtype)
    kinks: list[Kink] = []
    rms = float(np.sqrt(np.mean(np.abs(gradient) ** 2))) if gradient.size else 0.0
    limits: dict[tuple[int, ...], float] = {}

    def slope(v: np.ndarray) -> Slope:
        directions = [np.zeros_like(a) for a in point.floats]
        directions[argument] = v
        return directional_slope(value, point, tuple(directions), here=here)

    def look_at(index: tuple[int, ...]) -> bool:
        """Whether the element is wrong."""
        total, limit = 0.0, 0.0
        for unit in (1, 1j) if np.iscomplexobj(gradient) else (1,):
            v = np.zeros_like(gradient)
            v[index] = unit
            found = slope(v)
            if found.kinked:
                g = float(np.real(ours[index] * unit))
                path = subject.names[argument]
                kinks.append(Kink(path, index, found.left, found.right, g))
                return False
            # JAX's cotangent of a complex number: slope = Re(cotangent · direction).
            total += found.central * (1 if unit == 1 else -1j)
            limit += found.uncertainty
        slopes[index] = total
        size = max(abs(total), rms, 1e-3 * abs(here))
        limits[index] = 10 * limit + 1e-7 * size
        return not abs(gradient[index] - total) <= limits[index]

    if gradient.size <= COORDINATES:
        wrong = [index for index in np.ndindex(gradient.shape) if look_at(index)]
        worst = max(
            wrong, key=lambda place: abs(gradient[place] - slopes[place]), default=None
        )
        limit = limits.get(worst, 0.0) if worst is not None else 0.0
        return Findings(slopes, gradient, worst, limit, kinks, True)

    v = np.asarray(subject.random(point.floats, 6)[argument])

    def off(mask: np.ndarray) -> bool:
        found = slope(v * mask)
        terms = np.real(gradient * v)[mask]
        size = float(np.sum(np.abs(terms))) + 1e-3 * abs(here)
        limit = 10 * found.uncertainty + 1e-7 * size
        return found.kinked or not abs(found.central - np.sum(terms)) <= limit

    suspect = find(gradient.shape, off)
    wrong = suspect if suspect is not None and look_at(suspect) else None
    limit = limits.get(wrong, 0.0) if wrong is not None else 0.0
    return Findings(slopes, gradient, wrong, limit, kinks, False)


def other_slopes(subject: Subject) -> dict[str, list[tuple[int, ...]]]:
    """Where the rule is not its reference, but a slope of a kink all the same."""
    value, point = scalar(subject, "reference"), cast(subject.point, WIDE)
    dys, found = subject.directions[0], {}
    rule, truth = (subject.run(who, dys, None, WIDE) for who in ("rule", "reference"))
    for i, name in enumerate(subject.names):
        ours, right = rule.dxs[i], truth.dxs[i]
        if np.iscomplexobj(ours) or ours.shape != right.shape:
            continue
        size = max(float(np.abs(right).max(initial=0)), 1e-30)
        different = np.argwhere(np.abs(ours - right) > 1e-6 * size)
        if not 0 < len(different) <= COORDINATES:
            continue
        if _off_along_ones(value, point, i, ours):
            continue
        for place in different:
            index = tuple(int(k) for k in place)
            v = tuple(np.zeros_like(x) for x in point.floats)
            v[i][index] = 1
            slope = directional_slope(value, point, v)
            low, high = sorted((slope.left, slope.right))
            margin = 1e-4 * (high - low)
            if slope.kinked and low - margin <= ours[index] <= high + margin:
                found.setdefault(name, []).append(index)
    return found


def _off_along_ones(
    value: Callable[[Point], float], point: Point, argument: int, ours: np.ndarray
) -> bool:
    """Whether the cotangent is wrong where all of an argument moves at once.

    A tie stays a tie then, and a maximum is smooth along that direction.
    """
    v = tuple(np.zeros_like(x) for x in point.floats)
    v[argument][...] = 1
    slope = directional_slope(value, point, v)
    limit = 10 * slope.uncertainty + 1e-6 * float(np.sum(np.abs(ours)))
    return not slope.kinked and abs(float(np.sum(ours)) - slope.central) > limit


def find(
    shape: tuple[int, ...], guilty: Callable[[np.ndarray], bool]
) -> tuple[int, ...] | None:
    """An element for which `guilty` of a mask holds, by bisection."""
    mask = np.ones(shape, bool)
    if not guilty(mask):
        return None
    while mask.sum() > 1:
        half = next((half for half in _halves(mask) if guilty(half)), None)
        if half is None:
            return None
        mask = half
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _halves(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The two halves of a mask's elements, in row-major order."""
    places = np.flatnonzero(mask)
    for part in (places[: len(places) // 2], places[len(places) // 2 :]):
        half = np.zeros(mask.size, bool)
        half[part] = True
        yield half.reshape(mask.shape)
