"""Batch norms, which no primitive stands for: known by what they are made of.

A batch norm is two groups of equations, of whatever library it is. The statistics are
means of x and x² over all axes but the channels',

    s1 = Σ x,   s2 = Σ x²

each a pass over x; here one. With them, or with running averages, follows

    y = (x − m) · w + b        x·w + b without m, (x − m) · w without b

with one number a channel each: batch norm with given statistics, σ² = 1. Its gradient
sums dy and dy ⊙ (x − m) in one pass,

    db = Σ dy,   dw = Σ dy ⊙ (x − m),   dm = −w Σ dy

where JAX's own takes a pass for each of the three. What lies between, the variance and
its root, has a number a channel and stays as it was.

Source: FORMULAS B8.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from handgrad.normalization import batch_norm
from handgrad.reductions import two_totals

NAME = "batch_norm"


@dataclasses.dataclass(frozen=True)
class Group:
    """Equations whose results one op computes.

    Attributes:
      op: the op.
      parameters: its static ones.
      at: the number of the equation in whose place it stands.
      members: the numbers of the equations that nobody else reads.
      invars: its operands.
      outvars: its results.
    """

    op: Callable[..., Any]
    parameters: dict[str, Any]
    at: int
    members: frozenset[int]
    invars: tuple[Any, ...]
    outvars: tuple[Any, ...]


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ x and Σ x² over all axes but the last: [... c] -> [c]."""
    axes = tuple(range(x.ndim - 1))
    s1, s2 = two_totals(x, lax.square(x), axes)
    return lax.squeeze(s1, axes), lax.squeeze(s2, axes)


def rescaled(x: jax.Array, *channels: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """(x − mean) · scale + bias: [... c] and [1 1 1 c] or [c] each -> [... c]."""
    flat = (lax.squeeze(a, range(a.ndim - 1)) for a in channels)
    given = dict(zip(names, flat, strict=True))
    given.setdefault("mean", jnp.zeros_like(given["scale"]))
    variance = jnp.ones_like(given["mean"])
    return batch_norm(x, variance=variance, epsilon=0.0, **given)  # type: ignore


def find(eqns: Sequence[Any], results: Sequence[Any]) -> list[Group]:
    """The groups of a program.

    Args:
      eqns: its equations.
      results: what it returns.
    """
    program = _Program(eqns, results)
    return [*program.moments(), *program.rescaled()]


class _Program:
    """Equations, and where each variable comes from and goes to."""

    def __init__(self, eqns: Sequence[Any], results: Sequence[Any]):
        self.eqns = eqns
        self.maker = {v: i for i, eqn in enumerate(eqns) for v in eqn.outvars}
        self.readers = collections.defaultdict(set)
        for i, variables in enumerate([*(eqn.invars for eqn in eqns), results]):
            for v in variables:
                if _is_variable(v):
                    self.readers[v].add(i)

    def moments(self) -> Iterator[Group]:
        """Each Σ x beside a Σ x²."""
        sums: dict[Any, tuple[list[int], list[int]]] = {}
        for i, eqn in enumerate(self.eqns):
            if eqn.primitive is primitives.reduce_sum_p and _is_over_pixels(eqn):
                (x,) = eqn.invars
                root = self.root(x)
                of_itself, of_square = sums.setdefault(root or x, ([], []))
                (of_square if root else of_itself).append(i)
        for x, numbers in sums.items():
            for pair in zip(*numbers, strict=False):
                (square,) = self.eqns[pair[1]].invars
                members = self.unread({*pair}, square)
                results = tuple(self.eqns[i].outvars[0] for i in pair)
                yield Group(moments, {}, min(pair), members, (x,), results)

    def rescaled(self) -> Iterator[Group]:
        """Each product with a number a channel, and what is subtracted and added."""
        for number, eqn in enumerate(self.eqns):
            if eqn.primitive is not primitives.mul_p:
                continue
            for x, scale in self.with_channels(eqn):
                given, last, members = {"scale": scale}, number, frozenset({number})
                for end, bias in self.added_to(eqn.outvars[0]):
                    given["bias"], last, members = bias, end, frozenset({number, end})
                for image, mean in self.with_channels(self.made(x, primitives.sub_p)):
                    given["mean"], members = mean, self.unread({*members}, x)
                    x = image
                if len(given) > 1:  # of one sum alone there is nothing to gain
                    names = {"names": tuple(given)}
                    results = tuple(self.eqns[last].outvars)
                    operands = (x, *given.values())
                    yield Group(rescaled, names, last, members, operands, results)

    def added_to(self, v: Any) -> Iterator[tuple[int, Any]]:
        """The one equation that reads v, and what it adds to each channel."""
        number, *others = self.readers[v] or [len(self.eqns)]
        if not others and number < len(self.eqns):
            eqn = self.eqns[number]
            if eqn.primitive is primitives.add_p:
                yield from ((number, b) for x, b in self.with_channels(eqn) if x is v)

    def with_channels(self, eqn: Any) -> Iterator[tuple[Any, Any]]:
        """An image and a number for each of its channels, if it is that it computes."""
        if eqn is None:
            return
        pairs = [eqn.invars, eqn.invars[::-1]]
        if eqn.primitive is primitives.sub_p:
            del pairs[1:]
        for x, other in pairs:
            channels = self.channels(other, x)
            if channels is not None and x.aval.shape == eqn.outvars[0].aval.shape:
                yield x, channels

    def channels(self, v: Any, image: Any) -> Any:
        """What v is of one number for each of the image's channels, if it is that."""
        x = image.aval
        if not (_is_variable(image) and _is_variable(v)):
            return None
        if x.ndim < 2 or x.size <= x.shape[-1]:
            return None
        if eqn := self.made(v, primitives.broadcast_in_dim_p):
            (source, *_), dimensions = eqn.invars, eqn.params["broadcast_dimensions"]
            last = tuple(range(x.ndim - source.aval.ndim, x.ndim))
            if _is_variable(source) and dimensions == last:
                v = source
        shape = v.aval.shape
        return v if shape and v.aval.size == shape[-1] == x.shape[-1] else None

    def root(self, v: Any) -> Any:
        """x, if v is x²."""
        if eqn := self.made(v, primitives.square_p):
            return eqn.invars[0]
        if eqn := self.made(v, primitives.integer_pow_p):
            return eqn.invars[0] if eqn.params["y"] == 2 else None
        if eqn := self.made(v, primitives.mul_p):
            a, b = eqn.invars
            return a if a is b and _is_variable(a) else None
        return None

    def made(self, v: Any, primitive: Any) -> Any:
        """The equation that makes v, if it is one of this primitive."""
        number = self.maker.get(v) if _is_variable(v) else None
        eqn = None if number is None else self.eqns[number]
        return eqn if eqn is not None and eqn.primitive is primitive else None

    def unread(self, members: set[int], v: Any) -> frozenset[int]:
        """The members, and what makes v if they alone read it."""
        maker = self.maker.get(v)
        more = {maker} if maker is not None and self.readers[v] <= members else set()
        return frozenset(members | more)


def _is_over_pixels(eqn: Any) -> bool:
    """Whether a sum is over all axes but the last."""
    (x,) = eqn.invars
    pixels = tuple(range(x.aval.ndim - 1))
    return _is_variable(x) and bool(pixels) and tuple(eqn.params["axes"]) == pixels


def _is_variable(v: Any) -> bool:
    return isinstance(v, core.Var)
