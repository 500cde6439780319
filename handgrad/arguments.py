"""Canonical arguments, and every error message about them.

Each function takes the op's name first and raises `ValueError` (shapes, numbers) or
`TypeError` (dtypes) at trace time, in one wording: the op, the requirement, the values.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = str | int | Sequence[int | tuple[int, int]]


def require(condition: bool, op: str, requirement: str) -> None:
    """Raises `ValueError` with the op's name unless `condition` holds."""
    if not condition:
        raise ValueError(f"{op}: {requirement}")


def array(op: str, name: str, value: Any, *, kind: str = "real") -> jax.Array:
    """Returns `value` as an array of an allowed dtype.

    Args:
      op: the op's public name.
      name: the argument's name.
      value: an array, or a number.
      kind: "real" (integers allowed), "floating" or "integer".

    Raises:
      TypeError: `value` is no array, or its dtype is not of this `kind`.
    """
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{op}: {name} must be an array, got {type(value).__name__}"
        ) from error
    allowed = {
        "real": jnp.issubdtype(value.dtype, jnp.integer)
        or jnp.issubdtype(value.dtype, jnp.floating),
        "floating": jnp.issubdtype(value.dtype, jnp.floating),
        "integer": jnp.issubdtype(value.dtype, jnp.integer),
    }
    if not allowed[kind]:
        raise TypeError(f"{op}: {name} must be {kind}, got dtype {value.dtype}")
    return value


def mask(op: str, name: str, value: Any, shape: tuple[int, ...]) -> jax.Array | None:
    """Returns an optional boolean mask, broadcast to `shape`."""
    if value is None:
        return None
    value = jnp.asarray(value)
    if value.dtype != jnp.bool_:
        raise TypeError(f"{op}: {name} must be boolean, got dtype {value.dtype}")
    return broadcast(op, name, value, shape)


def broadcast(
    op: str, name: str, value: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Returns the array broadcast to `shape`."""
    try:
        return jnp.broadcast_to(value, shape)
    except ValueError as error:
        raise ValueError(
            f"{op}: {name} must broadcast to shape {shape}, got shape {value.shape}"
        ) from error


def same_dtype(op: str, **arrays: jax.Array) -> None:
    """Raises `TypeError` unless all arrays have one dtype."""
    if len({a.dtype for a in arrays.values()}) > 1:
        got = ", ".join(f"{name} {a.dtype}" for name, a in arrays.items())
        raise TypeError(f"{op}: the arguments must have one dtype, got {got}")


def same_shape(op: str, **arrays: jax.Array) -> None:
    """Raises `ValueError` unless all arrays have one shape."""
    got = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
    shapes = {a.shape for a in arrays.values()}
    require(len(shapes) <= 1, op, f"the arguments must have one shape, got {got}")


def integer(op: str, name: str, value: Any, *, least: int = 1) -> int:
    """Returns `value` as a static integer of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(
            f"{op}: {name} must be a static integer, got {type(value).__name__}"
        ) from error
    require(number >= least, op, f"{name} (={number}) must be at least {least}")
    return number


def axes(op: str, value: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Returns `axis` as non-negative axes of an array with `ndim` dimensions."""
    if value is None:
        return tuple(range(ndim))
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    numbers = [integer(op, "axis", v, least=-ndim) for v in values]
    require(
        all(n < ndim for n in numbers)
        and len({n % ndim for n in numbers}) == len(numbers),
        op,
        f"axis (={value}) must name distinct axes of an array with {ndim} dimensions",
    )
    return tuple(n % ndim for n in numbers)


def per_dimension(
    op: str, name: str, value: int | Sequence[int] | None, n: int, *, least: int = 1
) -> tuple[int, ...]:
    """Returns one integer for each of `n` spatial dimensions; `None` means ones."""
    if value is None:
        return (1,) * n
    if not isinstance(value, Sequence):
        return (integer(op, name, value, least=least),) * n
    numbers = tuple(integer(op, name, v, least=least) for v in value)
    require(
        len(numbers) == n,
        op,
        f"{name} (={numbers}) must have one entry for each of the {n} spatial "
        "dimensions",
    )
    return numbers


def paddings(
    op: str,
    value: Padding,
    image: Sequence[int],
    extents: Sequence[int],
    strides: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """Returns `(low, high)` padding for each spatial dimension.

    Args:
      op: the op's public name.
      value: "VALID", "SAME" (as many windows as ⌈image/stride⌉, the odd pixel at the
        end), "SAME_LOWER" (the odd pixel at the beginning), a number, or a sequence of
        numbers or `(low, high)` pairs. Negative padding crops.
      image: pixels of the image in each spatial dimension.
      extents: pixels from a window's first to its last.
      strides: distance between neighbouring windows.
    """
    if isinstance(value, str):
        require(
            value.upper() in ("SAME", "SAME_LOWER", "VALID"),
            op,
            f"padding (={value!r}) must be 'SAME', 'SAME_LOWER', 'VALID' or "
            "(low, high) pairs",
        )
        pairs = lax.padtype_to_pads(image, extents, strides, value.upper())
        return tuple((int(low), int(high)) for low, high in pairs)
    entries = value if isinstance(value, Sequence) else [value] * len(image)
    pairs = [tuple(e) if isinstance(e, Sequence) else (e, e) for e in entries]
    require(
        len(pairs) == len(image) and all(len(pair) == 2 for pair in pairs),
        op,
        f"padding (={value}) must hold a (low, high) pair for each of the "
        f"{len(image)} spatial dimensions",
    )
    any_integer = functools.partial(integer, op, "padding", least=-(2**31))
    return tuple((any_integer(low), any_integer(high)) for low, high in pairs)


def hashable_precision(value: Any) -> Any:
    """Returns a `precision` argument in a form that can be part of a static spec."""
    return tuple(value) if isinstance(value, list) else value


def accumulator(dtype: Any) -> Any:
    """The dtype in which sums of `dtype` are accumulated: at least float32."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        return jnp.dtype(jnp.float32)
    return jnp.dtype(dtype)


def lowest(dtype: Any) -> np.ndarray:
    """The value that never wins a maximum: -∞, or the smallest integer."""
    floating = jnp.issubdtype(dtype, jnp.floating)
    return np.array(-np.inf if floating else jnp.iinfo(dtype).min, dtype)


def highest(dtype: Any) -> np.ndarray:
    """The value that never wins a minimum: +∞, or the largest integer."""
    floating = jnp.issubdtype(dtype, jnp.floating)
    return np.array(np.inf if floating else jnp.iinfo(dtype).max, dtype)


def zero(dtype: Any) -> np.ndarray:
    """A scalar 0 of `dtype`, as `lax.pad` wants it."""
    return np.zeros((), dtype)
