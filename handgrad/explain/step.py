"""A step of a worked example, and how its numbers are written into sentences."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
TERMS = 16  # a sum of more is written with "…"


class Step(NamedTuple):
    """One step of a worked example.

    Attributes:
      sentence: what happens, in plain English; a longer equation is on a line of its
        own.
      matrix: the numbers, at most two-dimensional, or `None`.
      name: the matrix's name in the sentence's equations; unique within an example,
        except that autodiff's matrices repeat the names of those they confirm.
      block: draws a gap after every so many rows and columns; 0 draws none.
    """

    sentence: str
    matrix: jax.Array | np.ndarray | None = None
    name: str = ""
    block: tuple[int, int] = (0, 0)


def matrix(values: Any) -> jax.Array:
    """The values as handgrad's ops take them."""
    return jnp.array(values, jnp.float32)


def require_shape(op: str, name: str, value: jax.Array, shape: Sequence[int]) -> None:
    """Raises `ValueError` unless the option's matrix has this shape."""
    if value.shape != tuple(shape):
        raise ValueError(
            f"{op}: {name} must be {size(shape)} here, got {size(value.shape)}"
        )


def confirm(
    op: Callable[..., jax.Array],
    inputs: tuple[jax.Array, ...],
    error: jax.Array,
    derived: Mapping[str, jax.Array],
    block: tuple[int, int] = (0, 0),
) -> list[Step]:
    """Autodiff's gradients, and how far the derived ones and the rule's are from them.

    Args:
      op: function of `inputs` that also takes `implementation`.
      inputs: the arrays to differentiate.
      error: the cotangent of `op`'s value.
      derived: the gradients that the steps arrived at, in the order of `inputs`.
      block: as in `Step`.
    """

    def gradients(implementation):
        _, vjp = jax.vjp(lambda *a: op(*a, implementation=implementation), *inputs)
        return vjp(error)

    def difference(own):
        pairs = zip(own, autodiff, strict=True)
        return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)

    autodiff = gradients("autodiff")
    return [
        Step("JAX's autodiff, which knows nothing of these steps, finds:"),
        *(
            Step("", gradient, name, block)
            for name, gradient in zip(derived, autodiff, strict=True)
        ),
        Step(
            "Largest difference from autodiff: "
            f"{difference(derived.values()):.2g} in the steps, "
            f"{difference(gradients(None)):.2g} in handgrad's rule."
        ),
    ]


def numbers(values: jax.typing.ArrayLike) -> list[str]:
    """Each number as text, all with as few decimals as show them, four at most."""
    flat = np.asarray(values, np.float64).ravel()
    exact = (d for d in range(4) if np.allclose(np.round(flat, d), flat, 0, 1e-6))
    decimals = next(exact, 4)
    return [f"{np.round(v, decimals) + 0.0:.{decimals}f}" for v in flat]  # no −0


def factors(values: jax.typing.ArrayLike) -> list[str]:
    """Each number as it stands within a formula: negative ones in parentheses."""
    return [f"({text})" if text[0] == "-" else text for text in numbers(values)]


def added(values: jax.typing.ArrayLike) -> str:
    """`1 + 2 = 3`, in numbers."""
    return f"{plus(factors(values))} = {numbers(np.sum(values))[0]}"


def products(a: jax.typing.ArrayLike, b: jax.typing.ArrayLike) -> str:
    """`1·2 + 3·4 = 14`, in numbers."""
    pairs = zip(factors(a), factors(b), strict=True)
    total = np.sum(np.asarray(a) * np.asarray(b))
    return f"{plus(f'{p}·{q}' for p, q in pairs)} = {numbers(total)[0]}"


def plus(terms: Iterable[str]) -> str:
    """`a + b`, or of many terms the first ones, `…` and the last; `0` of none."""
    terms = list(terms)
    if len(terms) > TERMS:
        terms = [*terms[: TERMS - 2], "…", terms[-1]]
    return " + ".join(terms) or "0"


def entry(name: str, index: Sequence[int]) -> str:
    """`x₂₃` for the index (1, 2); `x[2,11]` where a number has two digits."""
    counted = [i + 1 for i in index]
    if max(counted) > 9:
        return f"{name}[{','.join(map(str, counted))}]"
    return name + "".join(SUBSCRIPTS[i] for i in counted)


def size(shape: Sequence[int]) -> str:
    """`3×2`."""
    return "×".join(map(str, shape)) or "one number"


def counted(number: int, noun: str) -> str:
    """`1 zero`, `2 zeros`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
