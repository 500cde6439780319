"""Which usual mistake explains a wrong array?

Each explanation below is *tried*: the wrong array is flipped, transposed, shifted,
multiplied, or a term is added to it, and if the truth comes out, that is the mistake.
All of them allow for a constant factor on top, found by least squares.
"""

import fractions
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from handgrad.testing.compare import error_of, widen

EXPLAINS = 0.02  # largest error of an explanation
BETTER = 0.05  # of the unexplained error, at most so much is left
LARGEST = 2**20  # of a larger array only a part would be tried: it is left unexplained


class Known(NamedTuple):
    """What a missing term can be made of: the arrays of the call.

    `again` yields what the array `path` would be for other arguments, and which ones.
    """

    floats: tuple[np.ndarray, ...]
    names: list[str]
    ys: tuple[np.ndarray, ...]
    dys: tuple[np.ndarray, ...]
    again: Callable[[str, np.ndarray], Iterator[tuple[str, np.ndarray]]] | None = None
    path: str = ""
    limit: float = EXPLAINS


def explain(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    """The first explanation that turns `wrong` into `truth`, `None` if none does."""
    wrong, truth = widen(wrong), widen(truth)
    if wrong.shape != truth.shape or not 0 < wrong.size <= LARGEST:
        return None
    if not np.all(np.isfinite(wrong)):
        count = int(np.sum(~np.isfinite(wrong)))
        return f"{count} of {wrong.size} elements are NaN or infinite"
    if not np.all(np.isfinite(truth)):
        return None
    limit = min(EXPLAINS, BETTER * error_of(wrong, truth)[0])
    known = known._replace(limit=limit)
    with np.errstate(all="ignore"):
        for explanation in EXPLANATIONS:
            if hint := explanation(wrong, truth, known):
                return hint
    return None


def _scaled(candidate: np.ndarray, truth: np.ndarray, known: Known) -> float | None:
    """The factor that makes `candidate` the truth, if one does."""
    size = np.sum(np.abs(candidate) ** 2)
    if not size:
        return None
    factor = np.sum(np.conj(candidate) * truth) / size
    if abs(factor) < 1e-6 or abs(factor.imag) > 1e-3 * abs(factor):
        return None
    fits = error_of(factor * candidate, truth)[0] < known.limit
    return float(factor.real) if fits else None


def _number(value: float) -> str:
    """A factor as people write it: 2, 1/9, −1."""
    if abs(value - 1) < 1e-3:
        return f"{value:.7g}"
    simple = fractions.Fraction(value).limit_denominator(256)
    plain = simple.denominator <= 16 or abs(simple.numerator) == 1
    if plain and abs(float(simple) - value) < 1e-3 * abs(value):
        return str(simple)
    return f"{value:.4g}"


def _also(factor: float) -> str:
    return "" if abs(factor - 1) < 1e-3 else f" and multiplied by {_number(1 / factor)}"


def _zero(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    if np.any(wrong) or not np.any(truth):
        return None
    return "it is zero everywhere: the path is cut (stop_gradient, None, an integer?)"


def _sparse(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    """Few elements are wrong: say which part of the array they are."""
    scale = np.maximum(np.abs(truth), np.sqrt(np.mean(np.abs(truth) ** 2)) or 1.0)
    bad = np.abs(wrong - truth) > 1e-4 * scale
    count = int(bad.sum())
    if not 0 < count <= max(wrong.size // 2, 1) or wrong.size == 1:
        return None
    if count == 1:
        return f"it is the only wrong element of {wrong.size}"
    for axis, size in enumerate(bad.shape):
        others = tuple(a for a in range(bad.ndim) if a != axis)
        places = np.flatnonzero(bad.any(axis=others))
        for name, border in (("first", 0), ("last", size - 1)):
            if size > 2 and len(places) == 1 and places[0] == border:
                return f"only the {name} entry along axis {axis} is wrong: the border?"
        if size > 2 and list(places) == [0, size - 1]:
            return (
                f"only the first and last entries along axis {axis} are wrong: borders?"
            )
    part = f"{count} of {wrong.size} elements are wrong"
    if not np.any(wrong[bad]):
        return f"{part}, and zero: something is overwritten or left out"
    for x, name in zip(known.floats, known.names, strict=True):
        if x.shape == bad.shape and not np.any(widen(x)[bad]):
            return f"{part}, all of them where {name} is 0: a kink or a division?"
    if error_of(wrong, truth)[0] < 0.05:
        return None
    return f"{part}, the others are right: ties, overlaps or a mask?"


def _factor(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    factor = _scaled(wrong, truth, known)
    if factor is None:
        return None
    if abs(factor + 1) < 1e-3:
        return "its sign is wrong"
    return f"it is {_number(1 / factor)} times the truth: a factor"


def _rounded(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    """Few digits: was it computed in 16 bits?"""
    import ml_dtypes

    if error_of(wrong, truth)[0] > 0.05:
        return None
    for dtype in (ml_dtypes.bfloat16, np.float16):
        if not np.iscomplexobj(wrong) and np.array_equal(wrong.astype(dtype), wrong):
            name = np.dtype(dtype).name
            return f"every element is a {name} number: converted too early"
    return None


def _flipped(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    axes = [a for a, n in enumerate(wrong.shape) if n > 1][:6]
    for count in range(1, len(axes) + 1):
        for some in itertools.combinations(axes, count):
            if factor := _scaled(np.flip(wrong, some), truth, known):
                plural = "axes" if count > 1 else "axis"
                which = ", ".join(map(str, some))
                return f"it is flipped along {plural} {which}{_also(factor)}"
    return None


def _transposed(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    if wrong.ndim < 2 or wrong.ndim > 5:
        return None
    identity = tuple(range(wrong.ndim))
    for order in itertools.permutations(identity):
        moved = wrong.transpose(order)
        if order == identity or moved.shape != truth.shape:
            continue
        if factor := _scaled(moved, truth, known):
            return f"its axes are transposed: {order}{_also(factor)}"
    for order in itertools.permutations(identity):
        # The right numbers, reshaped in another order of axes.
        shape = tuple(truth.shape[a] for a in order)
        moved = np.argsort(order)
        if order != identity:
            again = wrong.reshape(shape).transpose(moved)
            if factor := _scaled(again, truth, known):
                return (
                    f"it is reshaped with its axes in the order {order}{_also(factor)}"
                )
    return None


def _shifted(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    """Compared where both arrays have an entry, so that the border may be anything."""
    axes = [a for a, n in enumerate(wrong.shape) if n > 2][:4]
    for count in (1, 2):
        for some in itertools.combinations(axes, count):
            for steps in itertools.product((1, -1, 2, -2), repeat=count):
                here, there = [slice(None)] * wrong.ndim, [slice(None)] * wrong.ndim
                for axis, step in zip(some, steps, strict=True):
                    size = wrong.shape[axis]
                    here[axis] = slice(max(step, 0), size + min(step, 0))
                    there[axis] = slice(max(-step, 0), size + min(-step, 0))
                part = wrong[tuple(here)]
                if part.size < 3:
                    continue
                if factor := _scaled(part, truth[tuple(there)], known):
                    by, along = (", ".join(map(str, n)) for n in (steps, some))
                    plural = "axes" if count > 1 else "axis"
                    return (
                        f"it is shifted by {by} along {plural} {along}{_also(factor)}"
                    )
    return None


def _permuted(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    """The entries along one axis are in another order."""
    for axis, size in enumerate(wrong.shape):
        if not 1 < size <= 64:
            continue
        ours = np.moveaxis(wrong, axis, 0).reshape(size, -1)
        right = np.moveaxis(truth, axis, 0).reshape(size, -1)
        distance = np.abs(ours[:, None] - right[None]).max(axis=-1)
        order = distance.argmin(axis=1)
        if sorted(order) != list(range(size)) or list(order) == list(range(size)):
            continue
        if _scaled(np.take(wrong, np.argsort(order), axis), truth, known):
            shown = tuple(int(i) for i in order)
            step = (size - shown[0]) % size
            if list(np.roll(range(size), step)) == list(shown):
                return f"it is shifted by {step} in a circle along axis {axis}"
            return f"its entries along axis {axis} are in the order {shown}"
    return None


def _conjugated(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    if np.iscomplexobj(truth) and _scaled(np.conj(wrong), truth, known):
        return "it is the complex conjugate"
    return None


def _constant_along(array: np.ndarray) -> tuple[int, ...]:
    """The axes along which an array does not change."""
    size = np.max(np.abs(array)) or 1.0
    return tuple(
        a
        for a, n in enumerate(array.shape)
        if n > 1 and np.all(np.ptp(array, axis=a) < 1e-3 * size)
    )


def _factor_varies(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    """A factor that is another one for each entry along some axes."""
    if np.iscomplexobj(truth) or np.any(wrong == 0):
        return None
    ratio = truth / wrong
    axes = _constant_along(ratio)
    varying = [a for a, n in enumerate(ratio.shape) if n > 1 and a not in axes]
    if not axes or not varying:
        return None
    numbers = [_number(1 / float(r)) for r in np.unique(ratio.round(6))[:4]]
    which = ", ".join(map(str, varying))
    return (
        f"a factor that varies along axis {which}: {', '.join(numbers)} times the truth"
    )


def _candidates(
    known: Known, shape: tuple[int, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """What a factor or a term can be: the call's arrays and their simple functions."""
    named = [*zip(known.names, known.floats, strict=True)]
    several = len(known.ys) > 1
    named += [(f"y[{i}]" if several else "y", y) for i, y in enumerate(known.ys)]
    for name, array in named:
        array = widen(array)
        if not array.size or not np.all(np.isfinite(array)):
            continue
        try:
            array = np.broadcast_to(array, shape)
        except ValueError:
            continue
        yield name, array
        for text, function in _FUNCTIONS.items():
            with np.errstate(all="ignore"):
                value = function(array)
            if np.all(np.isfinite(value)):
                yield text.format(name), value


_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "1 − {}": lambda a: 1 - a,
    "1 + {}": lambda a: 1 + a,
    "{}²": np.square,
    "1 − {}²": lambda a: 1 - a * a,
    "exp {}": np.exp,
    "1/{}": lambda a: 1 / a,
}


def _factor_missing(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    for name, array in _candidates(known, truth.shape):
        if np.ptp(np.abs(array)) > 1e-6:
            if factor := _scaled(wrong * array, truth, known):
                return f"the factor {name} is missing{_also(factor)}"
            if np.all(array) and (factor := _scaled(wrong / array, truth, known)):
                return f"the factor {name} is one too many{_also(factor)}"
    return None


def _term_missing(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    """What is missing is constant along axes, a sum, or a multiple of an array."""
    missing = truth - wrong
    axes = _constant_along(np.real(missing))
    if axes and wrong.size > 2:
        which = ", ".join(map(str, axes))
        return (
            f"a term is missing that is constant along axis {which}: a mean or a sum?"
        )
    terms = list(_candidates(known, truth.shape))
    for i, dy in enumerate(known.dys):
        name = "dy" if len(known.dys) == 1 else f"dy[{i}]"
        if dy.shape == truth.shape:
            dy = widen(dy)
            terms += [(name, dy)]
            terms += [(f"{name} · {n}", dy * a) for n, a in terms[:-1]]
    for name, term in terms:
        if factor := _scaled(term, missing, known):
            times = "" if abs(factor - 1) < 1e-3 else f"{_number(factor)} · "
            return f"the term {times}{name} is missing"
        if not np.all(term):
            continue
        per = _constant_along((missing / term).real)
        if per and wrong.size > 2 and np.ptp(np.abs(term)) > 1e-6:
            which = ", ".join(map(str, per))
            return (
                f"a term is missing: {name} times what is constant along axis {which} "
                "(a mean or a sum?)"
            )
    return None


def _statistics_missing(
    wrong: np.ndarray, truth: np.ndarray, known: Known
) -> str | None:
    """What is missing is a + b x along an axis: a mean or a variance is detached."""
    missing = truth - wrong
    for x, name in zip(known.floats, known.names, strict=True):
        if x.shape != truth.shape or np.iscomplexobj(truth):
            continue
        for axis, size in enumerate(x.shape):
            if size < 3:
                continue
            centred = widen(x) - widen(x).mean(axis, keepdims=True)
            mean = missing.mean(axis, keepdims=True)
            variance = (centred**2).mean(axis, keepdims=True)
            b = (missing * centred).mean(axis, keepdims=True) / variance
            if error_of(wrong + mean + b * centred, truth)[0] < known.limit:
                return (
                    f"a term is missing, a + b {name} with a and b constant along axis "
                    f"{axis}: the derivative of a mean or a variance?"
                )
    return None


def _other_arguments(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    """It would be right for a kernel that is flipped, for an error of ones."""
    for change, other in known.again(known.path, truth) if known.again else ():
        if other.shape != wrong.shape:
            continue
        if factor := _scaled(wrong, widen(other), known):
            return f"it is what it should be for {change}{_also(factor)}"
    return None


def changes(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """An array as it may be mistaken for: flipped, transposed, of ones or zeros."""
    axes = [a for a, n in enumerate(array.shape) if n > 1][:4]
    for count in range(1, len(axes) + 1):
        for some in itertools.combinations(axes, count):
            plural = "axes" if count > 1 else "axis"
            which = ", ".join(map(str, some))
            yield f"{{}} flipped along {plural} {which}", np.flip(array, some)
    identity = tuple(range(array.ndim))
    for order in itertools.permutations(identity) if array.ndim <= 4 else ():
        moved = array.transpose(order)
        if order != identity and moved.shape == array.shape:
            yield f"{{}} with its axes in the order {order}", moved
    yield "{} = 1", np.ones_like(array)
    yield "{} = 0", np.zeros_like(array)


def _few_digits(wrong: np.ndarray, truth: np.ndarray, known: Known) -> str | None:
    """Every element is right, but only to the digits of 16 bits."""
    size = np.maximum(np.abs(truth), np.sqrt(np.mean(np.abs(truth) ** 2)) or 1.0)
    typical = float(np.median(np.abs(wrong - truth) / size))
    for name, bits in (("bfloat16", 8), ("float16", 11)):
        if 2.0 ** -(bits + 3) < typical < 2.0 ** -(bits - 2) and wrong.size > 1:
            digits = round(-np.log10(typical))
            return f"most elements have {digits} right digits: computed in {name}?"
    return None


EXPLANATIONS: tuple[Callable[[np.ndarray, np.ndarray, Known], str | None], ...] = (
    _zero,
    _rounded,
    _factor,
    _flipped,
    _transposed,
    _permuted,
    _conjugated,
    _sparse,
    _shifted,
    _factor_missing,
    _other_arguments,
    _statistics_missing,
    _factor_varies,
    _term_missing,
    _few_digits,
)
