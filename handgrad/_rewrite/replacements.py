"""Which primitives have a better gradient here, and the op that takes their place.

A primitive's parameters are its op's arguments under the same names, so an op is
called with the parameters as they are. It is traced once for each geometry: `jax.jit`
remembers, and forgets when `load_tuned` changes the choice of formulas.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from handgrad import arguments
from handgrad._rewrite import gradients, norms
from handgrad.pooling import (
    reduce_window_max,
    reduce_window_min,
    reduce_window_sum,
)

OPS: dict[str, Callable[..., jax.Array]] = {
    "conv_general_dilated": gradients.convolution,
    "reduce_window_max": reduce_window_max,
    "reduce_window_min": reduce_window_min,
    "reduce_window_sum": reduce_window_sum,
    "select_and_scatter_add": gradients.extremum_gradient,
}
# Their relatives that stay as they are, and why.
LEFT = {
    "reduce_window": "its reducer is no maximum, minimum or sum",
    "select_and_gather_add": "forward mode",
}


def named(rules: Iterable[str] | None) -> frozenset[str]:
    """What to replace, primitives and groups of them; `None` means all."""
    known = (*OPS, norms.NAME)
    if rules is None:
        return frozenset(known)
    rules = (rules,) if isinstance(rules, str) else tuple(rules)
    unknown = [name for name in rules if name not in list(known)]
    arguments.require(
        not unknown,
        "rewrite",
        f"rules (={rules!r}) must be among {', '.join(map(repr, known))}",
    )
    return frozenset(rules)


def replacement(eqn: core.JaxprEqn, rules: frozenset[str]) -> core.ClosedJaxpr | str:
    """The op in the place of one equation, or why the equation stays as it is."""
    name = eqn.primitive.name
    if name in LEFT:
        return LEFT[name]
    if name not in rules:
        return "not among rules"
    return in_place_of(eqn, OPS[name], eqn.params, eqn.invars, eqn.outvars)


def in_place_of(
    eqn: core.JaxprEqn,
    op: Callable[..., Any],
    parameters: Mapping[str, Any],
    invars: Sequence[Any],
    outvars: Sequence[core.Var],
) -> core.ClosedJaxpr | str:
    """The op's program, or why it cannot stand in an equation's place.

    Args:
      eqn: the equation.
      op: computes the results from the operands.
      parameters: its static ones.
      invars: the operands.
      outvars: the results, with the types that they had.
    """
    before: list[Any] = [v.aval for v in outvars]
    for each in before:
        if not jnp.issubdtype(each.dtype, jnp.floating):
            return f"{each.dtype} has no gradient of ours"
    try:
        op = _jitted(op, **parameters)
        operands = [v.aval for v in invars]
        with eqn.ctx.manager:
            body = op.trace(*operands).jaxpr
            if body.consts:  # they stay inside of a call
                body = jax.make_jaxpr(op)(*operands)
    # What an op does not support is left as it was, whatever the reason.
    except Exception as error:
        return f"not supported: {error}".splitlines()[0]
    for old, new in zip(before, body.out_avals, strict=True):
        if new != old:
            return f"the type would change from {old} to {new}"
    computed = {v for each in body.jaxpr.eqns for v in each.outvars}
    if not computed.issuperset(body.jaxpr.outvars):
        return "nothing is computed"
    return body


@functools.lru_cache(maxsize=1024)
def _jitted(op: Callable[..., Any], **parameters: Any):
    return jax.jit(functools.partial(op, **parameters))
