"""How wrong and how fast a formula is: against float64, autodiff and the clock.

The truth about a gradient is autodiff of the same function in float64, on the very
numbers that the formula was given, with a *random* cotangent: ones hide a wrong flip. A
difference quotient in float64 checks that truth itself.

Errors are judged elementwise. The error of an element is measured against its own size
or, for an element that is small by cancellation, against the root mean square of its
array:

    error = max_i |a_i − t_i| / max(|t_i|, rms(t))

so one wrong entry in a million is as visible as a wrong array. A formula passes when
its error is at most twice autodiff's own on the same input, plus a few roundings. In
float64 autodiff is the truth itself; there anything but rounding is far larger.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.cases import Case
from handgrad.rules import RULES

AUTODIFF_FACTOR = 2.0
ROUNDINGS = 4.0
ROUNDINGS_FLOAT64 = 1e4

# How `interleaved` measures. OpenMP's threads, say, stay busy for some milliseconds
# after their work is done; a call much longer than that does not notice.
TURNS, LEAST_TURNS, MOST_CALLS = 7, 3, 100
SETTLING, SETTLED = 5e-3, 0.1  # seconds


@dataclasses.dataclass(frozen=True)
class Error:
    """The error of a formula's value or of one cotangent.

    Attributes:
      cotangent: "value", or the name of the argument whose cotangent it is.
      error: largest elementwise error against float64, see above.
      autodiff_error: the same for JAX's own gradient in the formula's dtype.
      tolerance: the largest error that passes.
      worst: index of the worst element.
      maps: truth, the formula's and autodiff's array, for pictures.
    """

    cotangent: str
    error: float
    autodiff_error: float
    tolerance: float
    worst: tuple[int, ...]
    maps: tuple[np.ndarray, np.ndarray, np.ndarray] = dataclasses.field(repr=False)

    @property
    def ratio(self) -> float:
        """The error relative to autodiff's; 1 where both are exact."""
        if self.error == self.autodiff_error:
            return 1.0
        return self.error / self.autodiff_error if self.autodiff_error else np.inf

    @property
    def passed(self) -> bool:
        """Whether the formula is as exact as autodiff, up to rounding."""
        return bool(self.error <= self.tolerance)


def elementwise_error(actual: Any, truth: Any) -> tuple[float, tuple[int, ...]]:
    """Returns the largest elementwise error and its index.

    Args:
      actual: array of any real or complex dtype.
      truth: float64 or complex128 array of the same shape.
    """
    wide = np.complex128 if np.iscomplexobj(truth) else np.float64
    truth = np.asarray(truth, wide)
    actual = np.asarray(actual).astype(wide)
    if actual.shape != truth.shape:
        raise ValueError(f"shapes differ: {actual.shape} and {truth.shape}")
    if truth.size == 0:
        return 0.0, ()
    finite = np.where(np.isfinite(truth), truth, 0.0)
    scale = np.maximum(np.abs(finite), np.sqrt(np.mean(np.square(np.abs(finite)))))
    same = (actual == truth) | (np.isnan(actual) & np.isnan(truth))
    with np.errstate(all="ignore"):
        relative = np.abs(actual - truth) / np.where(scale > 0, scale, 1.0)
    relative = np.where(same, 0.0, np.nan_to_num(relative, nan=np.inf, posinf=np.inf))
    worst = np.unravel_index(np.argmax(relative), relative.shape)
    return float(relative[worst]), tuple(int(i) for i in worst)


def forward_and_backward(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Returns a jitted (arrays, dy) -> (y, cotangents of the floating arrays)."""

    @jax.jit
    def run(arrays: Mapping[str, jax.Array], dy: jax.Array):
        floating, fixed = split(arrays)
        y, vjp = jax.vjp(lambda floating: function(**floating, **fixed), floating)
        return y, vjp(dy.astype(y.dtype))[0]

    return run


def split(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits named arrays into those with a gradient and those without."""
    floating = {n: a for n, a in arrays.items() if jnp.issubdtype(a.dtype, np.floating)}
    return floating, {n: a for n, a in arrays.items() if n not in floating}


def wide(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The same numbers in float64; integers stay as they are."""
    floating, fixed = split(arrays)
    return {n: np.asarray(a).astype(np.float64) for n, a in floating.items()} | fixed


def cotangent(case: Case, dtype: Any, seed: int) -> np.ndarray:
    """A random cotangent of the case's value."""
    arrays = case.arrays(dtype, seed)
    shape = jax.eval_shape(case.function("autodiff"), **arrays).shape
    random = np.random.default_rng((seed, 1))
    return random.standard_normal(shape).astype(jnp.dtype(dtype))


@functools.lru_cache(maxsize=64)
def _autodiff(case: Case) -> Callable[..., Any]:
    """Autodiff's own, compiled once for all formulas of a case: it is their judge."""
    return forward_and_backward(case.function("autodiff"))


@functools.lru_cache(maxsize=64)
def _reference(case: Case, dtype: str, seed: int):
    """Truth and autodiff's own result, shared by all formulas of a case."""
    arrays, dy = case.arrays(dtype, seed), cotangent(case, dtype, seed)
    run = _autodiff(case)
    with jax.enable_x64(True):
        truth = jax.device_get(run(wide(arrays), dy.astype(np.float64)))
    with jax.enable_x64(dtype == "float64"):
        return truth, jax.device_get(run(arrays, dy))


def forget() -> None:
    """Frees what `errors` keeps of a case's truth for the case's next formula."""
    _reference.cache_clear()


def errors(
    case: Case, implementation: Any, dtype: Any = "float32", seed: int = 0
) -> list[Error]:
    """Compares a formula with float64 truth and with autodiff.

    Args:
      case: the op, its arrays and options.
      implementation: the formula, `None` for the best.
      dtype: dtype of the arrays.
      seed: chooses the numbers and the cotangent.

    Returns:
      One `Error` for the value and one for each cotangent.
    """
    dtype = jnp.dtype(dtype)
    arrays, dy = case.arrays(dtype, seed), cotangent(case, dtype, seed)
    with jax.enable_x64(dtype == np.float64):
        y, cotangents = forward_and_backward(case.function(implementation))(arrays, dy)
    (y_truth, truth), (y_auto, auto) = _reference(case, dtype.name, seed)
    rows = [("value", y, y_truth, y_auto)]
    rows += [(name, cotangents[name], truth[name], auto[name]) for name in truth]
    formula = RULES[case.rule].formulas.get(implementation)
    rounding = formula.rounding if formula else 1.0
    return [_compare(*row, dtype, rounding) for row in rows]


def _compare(name, actual, truth, autodiff, dtype, rounding) -> Error:
    if actual.dtype != dtype:
        raise TypeError(f"the {name} is {actual.dtype}, expected {dtype}")
    error, worst = elementwise_error(actual, truth)
    autodiff_error, _ = elementwise_error(autodiff, truth)
    roundings = ROUNDINGS_FLOAT64 if dtype == np.float64 else ROUNDINGS
    eps = float(jnp.finfo(dtype).eps)
    return Error(
        cotangent=name,
        error=error,
        autodiff_error=autodiff_error,
        # An autodiff that is itself wrong is no licence: it counts up to √eps only.
        tolerance=rounding
        * (AUTODIFF_FACTOR * min(autodiff_error, eps**0.5) + roundings * eps),
        worst=worst,
        maps=(truth, np.asarray(actual), autodiff),
    )


def difference_quotient(case: Case, implementation: Any, seed: int = 0) -> float:
    """Relative error of a formula's float64 gradient against central differences.

    (f(x + hv) − f(x − hv)) / 2h is compared with ⟨gradient, v⟩ along a random direction
    v, for the scalar f = ⟨op, dy⟩.
    """
    with jax.enable_x64(True):
        arrays, dy = case.arrays("float64", seed), cotangent(case, "float64", seed)
        run = forward_and_backward(case.function(implementation))
        if implementation == "autodiff":
            run = _autodiff(case)
        floating, fixed = split(arrays)
        random = np.random.default_rng((seed, 2))
        v = {n: random.standard_normal(a.shape) for n, a in floating.items()}
        step = 1e-6

        def value(sign: float) -> float:
            moved = {n: a + sign * step * v[n] for n, a in floating.items()} | fixed
            y, _ = run(moved, dy)
            y = np.asarray(y)
            return float(np.sum(np.where(np.isfinite(y), y, 0.0) * dy))

        y, cotangents = run(arrays, dy)
        slopes = {n: np.asarray(cotangents[n]) * v[n] for n in floating}
        slope = sum(float(s.sum()) for s in slopes.values())
        size = sum(float(np.abs(s).sum()) for s in slopes.values())
        quotient = (value(1) - value(-1)) / (2 * step)
    # The quotient's own rounding, eps · |f| / step, counts for nothing.
    size += 1e-2 * float(np.sum(np.abs(np.where(np.isfinite(y), y, 0.0) * dy)))
    return abs(quotient - slope) / size if size else abs(quotient)


class Residuals(NamedTuple):
    """Bytes that live from the forward to the backward pass.

    Attributes:
      made: arrays that are neither arguments nor results.
      results: results of the function that the backward pass reads.
      arguments: arguments of the function that it reads.
    """

    made: int
    results: int
    arguments: int


def residuals(function: Callable[..., Any], floating: Any, fixed: Any) -> Residuals:
    """Counts what the gradient of `function(floating, fixed)` by `floating` keeps.

    Traced only: nothing is computed, and arrays may be `jax.ShapeDtypeStruct`s.
    """

    def forward(floating: Any, fixed: Any) -> tuple[Any, list[Any]]:
        y, vjp = jax.vjp(lambda floating: function(floating, fixed), floating)
        return y, jax.tree.leaves(vjp)

    traced, (y, _) = jax.make_jaxpr(forward, return_shape=True)(floating, fixed)
    jaxpr, results = traced.jaxpr, len(jax.tree.leaves(y))
    arguments = {id(v) for v in (*jaxpr.invars, *jaxpr.constvars)}
    returned = {id(v) for v in jaxpr.outvars[:results]} - arguments
    counts = {"made": 0, "results": 0, "arguments": 0}
    for v in {id(v): v for v in jaxpr.outvars[results:]}.values():
        if jnp.issubdtype(v.aval.dtype, jax.dtypes.extended):
            continue  # a key of random numbers, say: its size is JAX's affair
        kind = (
            "arguments"
            if id(v) in arguments
            else "results"
            if id(v) in returned
            else "made"
        )
        counts[kind] += v.aval.size * np.dtype(v.aval.dtype).itemsize
    return Residuals(**counts)


def interleaved(
    functions: Mapping[str, Callable[..., Any]], *args: Any, seconds: float = 0.2
) -> dict[str, float]:
    """Median seconds a call of each function, all of them measured in turns.

    In turns, so that a machine whose speed drifts is fair to all; the ratios are what
    to trust. A turn is a few calls in a row, the first of them not counted: it finds
    the caches, and perhaps busy threads, as another function left them.

    Args:
      functions: jitted functions by name.
      *args: their arguments, the same for all.
      seconds: about how long each function may run in all; a slow one has three turns
        of one call.
    """
    for function in functions.values():
        jax.block_until_ready(function(*args))  # compiles
    first = {name: _clock(function, args) for name, function in functions.items()}
    turns = {
        n: int(min(max(seconds / s, LEAST_TURNS), TURNS)) for n, s in first.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for index in range(TURNS):
        start = index % len(names) if names else 0
        for name in names[start:] + names[:start]:
            # True as often as the function has turns, evenly spread.
            if index * turns[name] % TURNS < turns[name]:
                if first[name] < SETTLED:
                    _turn(functions[name], args, SETTLING)
                samples[name] += _turn(functions[name], args, seconds / turns[name])
    return {name: statistics.median(times) for name, times in samples.items()}


def _turn(
    function: Callable[..., Any], args: Sequence[Any], seconds: float
) -> list[float]:
    """The seconds of each call in so many seconds, of one call at least."""
    first = _clock(function, args)
    calls = min(round(seconds / max(first, 1e-6)), MOST_CALLS)
    return [first, *(_clock(function, args) for _ in range(calls - 1))]


def _clock(function: Callable[..., Any], args: Sequence[Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def times(
    case: Case, implementations: Sequence[Any], *, seconds: float = 0.2
) -> dict[Any, float]:
    """Median seconds of value and cotangents for each implementation, interleaved."""
    arrays, dy = case.arrays("float32"), cotangent(case, "float32", 0)
    arrays, dy = jax.device_put((arrays, dy))
    functions = {
        name: forward_and_backward(case.function(name)) for name in implementations
    }
    return interleaved(functions, arrays, dy, seconds=seconds)


def pairs(rule: str | None = None) -> Iterator[tuple[str, Case]]:
    """Every hand formula with every case that it can do, in the order of `RULES`."""
    from handgrad import cases

    for name in RULES if rule is None else [rule]:
        for case in cases.of(name):
            for formula in RULES[name].formulas:
                if suitable(formula, case):
                    yield formula, case


@functools.cache
def suitable(formula: str, case: Case) -> bool:
    """Whether the formula can do the case's geometry."""
    try:
        jax.eval_shape(case.function(formula), **case.arrays("float32"))
    except ValueError as error:
        if f"implementation (={formula!r}) must be one of" in str(error):
            return False
        raise
    return True
