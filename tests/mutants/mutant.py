"""What a mutant is: a rule with one deliberate mistake, and the call that shows it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A wrong rule.

    Attributes:
      family: what kind of layer or mistake it is.
      name: the mistake.
      rule: the wrong function.
      args: a call that shows the mistake.
      check: a check that must fail.
      hint: a part of the hint that must be given.
      reference: decides on kinks, too, where given.
    """

    family: str
    name: str
    rule: Callable[..., Any]
    args: tuple[Any, ...]
    check: str = "cotangents"
    hint: str = ""
    reference: Callable[..., Any] | None = None

    def __str__(self):
        return f"{self.family}: {self.name}"


def rule(primal, backward, value=None):
    """A custom_vjp of `primal`; `backward(dy, y, *args)` returns the cotangents.

    `value` is what the forward pass of a derivative returns, `primal` if not given.
    """
    primal_of = value or primal

    @jax.custom_vjp
    @functools.wraps(primal)
    def function(*args):
        return primal(*args)

    def forward(*args):
        y = primal_of(*args)
        return y, (y, args)

    def pull(residuals, dy):
        y, args = residuals
        return backward(dy, y, *args)

    function.defvjp(forward, pull)
    return function


def spoiled(primal, spoil):
    """JAX's own cotangents of `primal`, changed by `spoil`."""

    def backward(dy, y, *args):
        return spoil(*jax.vjp(primal, *args)[1](dy))

    return rule(primal, backward)


def normal(*shape, seed=0, scale=1.0, dtype=np.float32):
    """Normally distributed numbers."""
    random = np.random.default_rng((seed, *shape))
    return (scale * random.standard_normal(shape)).astype(dtype)


def tied(*shape, seed=0):
    """Small whole numbers: many of them are equal."""
    random = np.random.default_rng((seed, *shape))
    return random.integers(-1, 2, shape).astype(np.float32)
