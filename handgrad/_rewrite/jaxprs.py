"""Programs as JAX traces them, with some of their equations replaced.

An equation whose op has a rule here is replaced by what tracing that op gives; an
equation that holds programs (a loop's body, a branch, a jitted function) gets them
rewritten; every other equation stays the very object that it was, with its effects,
names, types and sharding. A program without any replacement is returned as it is, and
one with some always as the same object, so that JAX compiles neither of them again.
"""

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import primitives

from handgrad._rewrite import norms, replacements
from handgrad.convolution import tuned

Program = core.ClosedJaxpr | core.Jaxpr

# The parameters of a primitive that are programs. Those of custom_jvp and custom_vjp
# compute the value where nobody differentiates; their rules stay their author's.
HELD = {
    primitives.jit_p.name: ("jaxpr",),
    primitives.closed_call_p.name: ("call_jaxpr",),
    primitives.remat_p.name: ("jaxpr",),
    primitives.scan_p.name: ("jaxpr",),
    primitives.while_p.name: ("cond_jaxpr", "body_jaxpr"),
    primitives.cond_p.name: ("branches",),
    primitives.custom_jvp_call_p.name: ("call_jaxpr",),
    primitives.custom_vjp_call_p.name: ("call_jaxpr",),
    "shard_map": ("jaxpr",),
}
_OURS = str(Path(__file__).parents[1])

# What a program became, or `None` where it stayed as it is, by rules; and the measured
# choices of formulas that it followed.
_done: weakref.WeakKeyDictionary[
    Program, dict[frozenset[str], tuple[tuned.Tuned, Program | None]]
]
_done = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Found:
    """An equation, or a group of them, that has a rule here.

    Attributes:
      eqn: the equation, or that in whose place the group's op stands.
      name: what the rule is called.
      operands: the operands' types.
      inside: what is around it, outermost first.
      left_because: why it was left alone; "" if it was replaced.
      value_only: whether it stands in a function with a gradient of its own.
    """

    eqn: core.JaxprEqn
    name: str
    operands: tuple[str, ...]
    inside: tuple[str, ...]
    left_because: str
    value_only: bool


def rewrite(program: Program, rules: frozenset[str]) -> Program:
    """Returns the program with the primitives named by `rules` replaced."""
    done = _done.setdefault(program, {})
    followed, new = done.get(rules, (None, None))
    if followed is not tuned.followed():
        new = _Walk(rules).program(program)
        new = None if new is program else new  # a value must not keep its key alive
        done[rules] = tuned.followed(), new
    return program if new is None else new


def find(
    program: Program, rules: frozenset[str], tell: Callable[[Found], None]
) -> None:
    """Tells what `rewrite` meets in the program, where its mesh axes have names."""
    _Walk(rules, tell).program(program)


@dataclasses.dataclass(frozen=True)
class _Walk:
    """One pass over a program.

    Attributes:
      rules: the primitives to replace.
      tell: is told of every equation that has a rule; `None` if nobody asks.
      inside: what is around the program, outermost first.
      value_only: whether that has a gradient of its own.
      left_because: why nothing in the program is replaced, if so.
    """

    rules: frozenset[str]
    tell: Callable[[Found], None] | None = None
    inside: tuple[str, ...] = ()
    value_only: bool = False
    left_because: str = ""

    def program(self, program: Program) -> Program:
        eqns, changed = [], False
        groups = self.groups(program)
        for i, eqn in enumerate(program.eqns):
            new = groups[i] if i in groups else self.equation(eqn)
            changed = changed or new is not None
            eqns += [eqn] if new is None else new
        return with_equations(program, eqns) if changed else program

    def groups(self, program: Program) -> dict[int, list[core.JaxprEqn]]:
        """What takes the place of each equation of a group, of most nothing."""
        if norms.NAME not in self.rules:
            return {}
        places: dict[int, list[core.JaxprEqn]] = {}
        for group in norms.find(program.eqns, open_program(program).outvars):
            eqn, variables = program.eqns[group.at], (group.invars, group.outvars)
            body = self.left_because or replacements.in_place_of(
                eqn, group.op, group.parameters, *variables
            )
            self.told(eqn, body, norms.NAME, group.invars)
            if not isinstance(body, str):
                places |= {i: [] for i in group.members}
                places[group.at] = list(_spliced(eqn, body, *variables))
        return places

    def equation(self, eqn: core.JaxprEqn) -> list[core.JaxprEqn] | None:
        """What takes the equation's place; `None` if nothing does."""
        name = eqn.primitive.name
        if name in replacements.OPS or name in replacements.LEFT:
            return self.replaced(eqn)
        if name in HELD:
            return self.holder(eqn)
        if self.tell is not None:
            closed = dataclasses.replace(
                self,
                inside=(*self.inside, name),
                left_because=f"{name} is not looked into",
            )
            for program in core.jaxprs_in_params(eqn.params):
                closed.program(program)
        return None

    def replaced(self, eqn: core.JaxprEqn) -> list[core.JaxprEqn] | None:
        body = self.left_because or replacements.replacement(eqn, self.rules)
        self.told(eqn, body, eqn.primitive.name, eqn.invars)
        if isinstance(body, str):
            return None
        return list(_spliced(eqn, body, eqn.invars, eqn.outvars))

    def told(self, eqn: core.JaxprEqn, body: Any, name: str, operands: Any) -> None:
        """Tells what was found, and why it is left if `body` is no program."""
        if self.tell is not None:
            because = body if isinstance(body, str) else ""
            types = tuple(str(v.aval) for v in operands)
            found = Found(eqn, name, types, self.inside, because, self.value_only)
            self.tell(found)

    def holder(self, eqn: core.JaxprEqn) -> list[core.JaxprEqn] | None:
        if _is_ours(eqn):
            return None
        if eqn.primitive.name == "shard_map":
            held = _in_shard_map(eqn, self.held)
        else:
            held = self.held(eqn)
        return [eqn.replace(params={**eqn.params, **held})] if held else None

    def held(self, eqn: core.JaxprEqn) -> dict[str, Any]:
        """The parameters that change."""
        changed = {}
        for parameter in HELD[eqn.primitive.name]:
            before = eqn.params[parameter]
            if isinstance(before, tuple):
                after = tuple(self.within(eqn, each) for each in before)
                same = all(a is b for a, b in zip(after, before, strict=True))
            else:
                after = self.within(eqn, before)
                same = after is before
            if not same:
                changed[parameter] = after
        return changed

    def within(self, eqn: core.JaxprEqn, program: Program) -> Program:
        if self.tell is None:
            return rewrite(program, self.rules)
        walk = dataclasses.replace(
            self,
            inside=(*self.inside, eqn.params.get("name") or eqn.primitive.name),
            value_only=self.value_only or eqn.primitive.name.startswith("custom"),
        )
        return walk.program(program)


def open_program(program: Any) -> Any:
    """The program without its constants' values."""
    return getattr(program, "jaxpr", program)  # older JAX holds it apart


def with_equations(program: Any, eqns: list[core.JaxprEqn]) -> Any:
    """The program of other equations."""
    inner = open_program(program)
    if inner is program:
        return program.replace(eqns=eqns)
    return program.replace(jaxpr=inner.replace(eqns=eqns))


def _spliced(
    eqn: core.JaxprEqn, body: core.ClosedJaxpr, invars: Any, outvars: Any
) -> Iterator[core.JaxprEqn]:
    """The body's equations on these variables, under the equation's own name."""
    names: dict[core.Var, Any] = dict(zip(body.jaxpr.invars, invars, strict=True))
    names |= zip(body.jaxpr.outvars, outvars, strict=True)

    def renamed(atom):
        if isinstance(atom, core.Literal | core.DropVar):
            return atom
        if atom not in names:
            names[atom] = core.Var(atom.aval)
        return names[atom]

    for each in body.jaxpr.eqns:
        yield each.replace(
            invars=[renamed(atom) for atom in each.invars],
            outvars=[renamed(v) for v in each.outvars],
            source_info=eqn.source_info,
            ctx=eqn.ctx,
        )


def _is_ours(eqn: core.JaxprEqn) -> bool:
    """Whether a custom_vjp is handgrad's own: no part of it has a better gradient."""
    if eqn.primitive is not primitives.custom_vjp_call_p:
        return False
    program = eqn.params["call_jaxpr"]
    where = open_program(program).debug_info.func_src_info or ""
    return f" at {_OURS}" in where


def _in_shard_map(eqn: core.JaxprEqn, compute: Callable[..., Any]) -> Any:
    """Computes where the body's mesh axes have their names, as its own trace did."""
    params, results = eqn.params, []
    # What newer JAX calls it.
    axes: Any = params.get("manual_axes", params.get("newly_manual_axes"))

    def probe():
        results.append(compute(eqn))
        return ()

    mapped = jax.shard_map(
        probe,
        mesh=params["mesh"],
        in_specs=(),
        out_specs=(),
        axis_names=axes,
        check_vma=params["check_vma"],
    )
    jax.eval_shape(mapped)
    return results[0]
