"""Neighbouring equations as one jitted call, which JAX differentiates once.

The functions of `jnp` are jitted, so that JAX takes their derivative once for each
shape. A trace holds what is inside of them: evaluated under `grad`, it would be
differentiated equation by equation, every time. Here neighbours become a jitted call
again, the same object wherever the same equations stand, in the layers of a network
that repeat and in the next trace of it. As `jnp`'s are, the calls are inlined into what
is compiled.
"""

import functools
import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.core
import numpy as np
from jax.extend import core, source_info_util

from handgrad._rewrite.jaxprs import open_program, with_equations

# What stays where it is: names for a policy of `jax.checkpoint`, and other functions.
ALONE = ("name", "pure_callback")
# What newer JAX calls `inline=True` in a traced call.
_INLINE: Any = getattr(jax, "Inline", None)
INLINED = _INLINE.JAX_EARLY if _INLINE else True


def together(program: Any) -> Any:
    """The same program, neighbours among its equations as calls."""
    eqns, results = program.eqns, open_program(program).outvars
    last = {a: i for i, eqn in enumerate(eqns) for a in _variables(eqn.invars)}
    last |= {a: len(eqns) for a in _variables(results)}
    found: list[core.JaxprEqn] = []
    stop = 0
    for kind, group in itertools.groupby(eqns, _kind):
        run = list(group)
        stop += len(run)
        read = [v for eqn in run for v in eqn.outvars if last.get(v, -1) >= stop]
        found += [_called(_Run(run, read))] if kind and read else run
    return with_equations(program, found)


def _variables(atoms: Sequence[Any]) -> list[core.Var]:
    return [a for a in atoms if isinstance(a, core.Var)]


def _kind(eqn: core.JaxprEqn) -> Any:
    """What neighbours share; `None` if the equation stays as it is.

    They compute arrays from arrays with no effect, no program inside, no random key.
    """
    plain = (
        not eqn.effects
        and eqn.primitive.name not in ALONE
        and all(map(_is_array, eqn.invars))
        and all(map(_is_array, eqn.outvars))
        and not any(True for _ in core.jaxprs_in_params(eqn.params))
    )
    return (eqn.source_info.name_stack, eqn.ctx) if plain else None


def _is_array(atom: Any) -> bool:
    """Whether it is an array, and not of random keys."""
    plain = type(atom.aval) is jax.core.ShapedArray
    return plain and isinstance(atom.aval.dtype, np.dtype)


class _Run:
    """Equations, equal to others that compute the same of other variables.

    Attributes:
      eqns: the equations.
      invars: what they read from outside.
      outvars: what others read of them.
    """

    def __init__(self, eqns: list[core.JaxprEqn], outvars: list[Any]):
        self.eqns, self.outvars = eqns, outvars
        self.invars: list[Any] = []
        self._numbers: dict[core.Var, int] = {}
        steps = tuple(map(self._step, eqns))
        self._key = steps, tuple(self._numbers[v] for v in outvars)
        self._hash = hash(self._key)

    def _step(self, eqn: core.JaxprEqn) -> Hashable:
        operands = tuple(map(self._operand, eqn.invars))
        for v in eqn.outvars:
            self._numbers[v] = len(self._numbers)
        types = tuple(v.aval for v in eqn.outvars)
        parameters = tuple(sorted(eqn.params.items()))
        return eqn.primitive, parameters, operands, types, eqn.ctx

    def _operand(self, atom: Any) -> Hashable:
        if isinstance(atom, core.Literal):
            return atom.aval, np.asarray(atom.val).tobytes()
        if atom not in self._numbers:
            self._numbers[atom] = len(self._numbers)
            self.invars.append(atom)
        return atom.aval, self._numbers[atom]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Run) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __call__(self, *operands: jax.Array) -> list[jax.Array]:
        values: dict[Any, Any] = dict(zip(self.invars, operands, strict=True))
        for eqn in self.eqns:
            read = [
                a.val if isinstance(a, core.Literal) else values[a] for a in eqn.invars
            ]
            source = source_info_util.user_context(eqn.source_info.traceback)
            with source, eqn.ctx.manager:
                computed = eqn.primitive.bind(*read, **eqn.params)
            if not eqn.primitive.multiple_results:
                computed = [computed]
            values |= zip(eqn.outvars, computed, strict=True)
        return [values[v] for v in self.outvars]


def _called(run: _Run) -> core.JaxprEqn:
    """The call that computes the run."""
    first = run.eqns[0]
    return _call(run).replace(
        invars=run.invars,
        outvars=run.outvars,
        source_info=first.source_info,
        ctx=first.ctx,
    )


@functools.lru_cache(maxsize=4096)
def _call(run: _Run) -> core.JaxprEqn:
    """A call of the jitted run, the same for equal ones."""

    def piece(*operands):
        return run(*operands)

    (eqn,) = jax.make_jaxpr(jax.jit(piece))(*(v.aval for v in run.invars)).eqns
    return eqn.replace(params={**eqn.params, "inline": INLINED})
