"""Two arrays, element by element: which is the worst, and by how much.

The error of an element is that of `handgrad.measure.elementwise_error`: measured
against its own size or, if it is small by cancellation, against the root mean square of
its array. It may be twice the error that the reference itself has in this dtype, plus a
few roundings.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from handgrad.measure import (
    AUTODIFF_FACTOR,
    ROUNDINGS,
    ROUNDINGS_FLOAT64,
    elementwise_error,
)


@dataclasses.dataclass(frozen=True)
class Failure:
    """An element that is too far from what it should be.

    Attributes:
      path: the argument whose cotangent it is, or the result.
      index: where the element is in the array.
      actual: its value.
      expected: what it should be.
      error: the distance, relative to the element's or the array's size.
      tolerance: the largest error that passes.
      ulps: the distance in units of the last place of `expected` in the array's dtype.
      where: under which transformation or in which dtype, if not plainly.
      hint: the usual mistake that explains the whole array, if one does.
      maps: the expected array, the actual one, and the reference's own in the same
        precision, for pictures.
    """

    path: str
    index: tuple[int, ...]
    actual: complex
    expected: complex
    error: float
    tolerance: float
    ulps: float
    where: str = ""
    hint: str | None = None
    maps: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    def __str__(self) -> str:
        """One sentence, and the hint in a second."""
        place = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        sentence = (
            f"{self.path}{place}{self.where} is {self.actual:.6g}, should be "
            f"{self.expected:.6g}: off by {self.error:.1e}, at most "
            f"{self.tolerance:.1e} ({self.ulps:.3g} ulp)"
        )
        return f"{sentence}. Hint: {self.hint}" if self.hint else sentence


def epsilon(dtype: Any) -> float:
    """The distance from 1 to the next number of a dtype."""
    return float(jnp.finfo(dtype).eps)


def tolerance(reference_error: float, dtype: Any, budget: float = 1.0) -> float:
    """The largest error that passes, given the reference's own error in the dtype."""
    eps = epsilon(dtype)
    roundings = ROUNDINGS_FLOAT64 if eps < 1e-12 else ROUNDINGS
    # A reference that is itself wrong is no licence: it counts up to √eps only.
    return budget * (AUTODIFF_FACTOR * min(reference_error, eps**0.5) + roundings * eps)


def error_of(actual: Any, expected: Any) -> tuple[float, tuple[int, ...]]:
    """The largest elementwise error; an element that should be NaN may be anything."""
    expected = np.asarray(expected)
    unknown = np.isnan(expected)
    actual = np.where(unknown, expected, np.asarray(actual).astype(expected.dtype))
    return elementwise_error(actual, expected)


def widen(array: Any) -> np.ndarray:
    """The same numbers in float64 or complex128."""
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def compare(
    path: str,
    actual: Any,
    expected: Any,
    limit: float,
    reference: Any = None,
) -> Failure | None:
    """The worst element of an array, if it is further off than `limit`.

    Args:
      path: what the array is.
      actual: the array.
      expected: what it should be.
      limit: the largest error that passes.
      reference: the reference's own array in the dtype of `actual`, for pictures.
    """
    actual, expected = np.asarray(actual), widen(expected)
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: {actual.shape} and {expected.shape}")
    error, worst = error_of(actual, expected)
    if error <= limit:
        return None
    a, e = widen(actual)[worst], expected[worst]
    return Failure(
        path,
        worst,
        a.item(),
        e.item(),
        error,
        limit,
        ulps(a, e, actual.dtype),
        maps=(expected, actual, reference),
    )


def ulps(actual: Any, expected: Any, dtype: Any) -> float:
    """|actual − expected| in units of the last place of `expected`."""
    size = max(float(np.abs(expected)), float(jnp.finfo(dtype).tiny))
    if not np.isfinite(size):
        return np.inf
    place = epsilon(dtype) * 2.0 ** np.floor(np.log2(size))
    distance = float(np.abs(actual - expected))
    return distance / place if np.isfinite(distance) else np.inf
