"""The rule that all elementwise functions share: `y = f(x)`, `dx = f'(x) ⊙ dy`.

What differs is the function, its derivative, and what the derivative is computed from.
Where it is a function of the *output*, the rule keeps the output and nothing else: the
next layer keeps that anyway, so the residual costs no memory of its own (FORMULAS B9).
Where it is not, the rule keeps the input.

A function may have parameters, a slope say. A number is part of the function; an array
is learnt: it has a cotangent, and x is kept, of which that cotangent is a function.

16-bit numbers are computed in float32 and rounded once, at the end.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, sharding
from handgrad.rules import RULES, register

SOURCE = "the article, A2: dx = f'(x) ⊙ dy"


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """An elementwise function and its derivative.

    Attributes:
      value: (x, *parameters) -> y.
      from_output: (y, dy, *parameters) -> dx; `None` if y does not determine it.
      from_input: (x, dy, *parameters) -> dx; `None` if the output always suffices.
      parameters: (x, dy, *parameters) -> what each parameter's cotangent sums up.
      output_suffices: whether y determines dx for these numbers as parameters.
    """

    value: Callable[..., Any]
    from_output: Callable[..., Any] | None = None
    from_input: Callable[..., Any] | None = None
    parameters: Callable[..., tuple[Any, ...]] | None = None
    output_suffices: Callable[..., bool] = lambda *parameters: True


CURVES: dict[str, Curve] = {}


def elementwise(
    op: str, *, autodiff: Callable[..., Any], source: str = SOURCE, **curve: Any
) -> None:
    """Registers the rule of an elementwise function.

    Args:
      op: the public name.
      autodiff: the same function with JAX's own gradient.
      source: where the derivation comes from.
      **curve: the attributes of its `Curve`.
    """
    CURVES[op] = Curve(**curve)

    def core(x, parameters):
        if any(isinstance(p, jax.Array) for p in parameters):
            return _learnt(x, tuple(jnp.asarray(p, x.dtype) for p in parameters), op)
        return _fixed(x, op, parameters)

    register(op, source=source, autodiff=lambda x, p: autodiff(x, *p))(core)


def apply(
    op: str, x: Any, *, implementation: str | None, kind: str = "floating", **parameters
) -> jax.Array:
    """Checks the arguments of an elementwise function and computes it."""
    x = arguments.array(op, "x", x, kind=kind)
    values = [_parameter(op, name, value, x) for name, value in parameters.items()]
    arrays = [v if isinstance(v, jax.Array) else None for v in values]
    x, *aligned = sharding.align(x, *arrays)
    values = tuple(v if a is None else a for v, a in zip(values, aligned, strict=True))
    return RULES[op].choose(implementation)(x, values)


def _parameter(op: str, name: str, value: Any, x: jax.Array) -> float | jax.Array:
    """A number, or an array of x's rank and dtype that broadcasts to x."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float | np.number):
        return float(value)
    value = arguments.array(op, name, value).astype(x.dtype)
    arguments.require(
        value.ndim <= x.ndim
        and all(
            n in (1, m) for n, m in zip(value.shape[::-1], x.shape[::-1], strict=False)
        ),
        op,
        f"{name} must broadcast to the shape of x {x.shape}, got {value.shape}",
    )
    return lax.expand_dims(value, range(x.ndim - value.ndim))


def _wide(x: jax.Array) -> jax.Array:
    return _cast(x, arguments.accumulator(x.dtype))


def _cast(x: jax.Array, dtype: Any) -> jax.Array:
    return x if x.dtype == dtype else x.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _fixed(x, op, parameters):
    return _cast(CURVES[op].value(_wide(x), *parameters), x.dtype)


def _fixed_fwd(x, op, parameters):
    y = _fixed(x, op, parameters)
    curve = CURVES[op]
    suffices = curve.from_output is not None and curve.output_suffices(*parameters)
    residuals = (y,) if suffices else (x,)
    return y, residuals


def _fixed_bwd(op, parameters, residuals, dy):
    """dx = f'(x) ⊙ dy, from y or from x."""
    (kept,) = residuals
    curve = CURVES[op]
    suffices = curve.from_output is not None and curve.output_suffices(*parameters)
    backward: Any = curve.from_output if suffices else curve.from_input
    return (_cast(backward(_wide(kept), _wide(dy), *parameters), dy.dtype),)


_fixed.defvjp(_fixed_fwd, _fixed_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _learnt(x, parameters, op):
    wide = [_wide(p) for p in parameters]
    return _cast(CURVES[op].value(_wide(x), *wide), x.dtype)


def _learnt_fwd(x, parameters, op):
    residuals = (x, parameters)  # the cotangents of both are functions of both
    return _learnt(x, parameters, op), residuals


def _learnt_bwd(op, residuals, dy):
    """dx = f'(x) ⊙ dy; dp = Σ ∂f/∂p ⊙ dy over the elements that share p."""
    x, parameters = residuals
    curve: Any = CURVES[op]
    operands = (_wide(x), _wide(dy), *(_wide(p) for p in parameters))
    dx = _cast(curve.from_input(*operands), x.dtype)
    terms = curve.parameters(*operands)
    return dx, tuple(
        _cast(_sum_to(term, p.shape), p.dtype)
        for term, p in zip(terms, parameters, strict=True)
    )


def _sum_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sums over the axes along which `shape` has one entry."""
    axes = [i for i, n in enumerate(shape) if n == 1 and x.shape[i] != 1]
    return jnp.sum(x, axes, keepdims=True)


_learnt.defvjp(_learnt_fwd, _learnt_bwd)
