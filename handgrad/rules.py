"""The list of rules: each op's name, its formulas, and where they come from.

A *rule* is an op with a hand-derived backward pass. A *formula* is one way to compute
it. `RULES` maps the op's public name to its `Rule`; tests, benchmarks, documents and
`python -m handgrad` walk this list, so a rule that is registered is also tested,
measured and documented.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

RULES: dict[str, "Rule"] = {}


@dataclasses.dataclass(frozen=True)
class Formula:
    """One way to compute a rule.

    Attributes:
      core: the function of the arrays and the static `spec` that carries the
        hand-derived backward pass.
      unsuitable: tells why the formula cannot do a `spec`, or returns `None` if it
        can.
      rounding: how many times as much as others it may round, as its file derives; 1
        unless it trades digits for time.
    """

    core: Callable[..., Any]
    unsuitable: Callable[[Any], str | None] = lambda spec: None
    rounding: float = 1.0


@dataclasses.dataclass(frozen=True)
class Rule:
    """An op whose backward pass is derived by hand.

    Attributes:
      name: the op's public name, as in `handgrad.<name>`.
      source: where the derivation comes from.
      formulas: the hand-derived formulas by name, in the order of their derivation.
      autodiff: the same forward mathematics with JAX's own gradient.
      best: picks the core for a `spec` when the caller names no formula.
    """

    name: str
    source: str
    formulas: Mapping[str, Formula]
    autodiff: Callable[..., Any]
    best: Callable[[Any], Callable[..., Any]]

    def choose(
        self, implementation: str | None, spec: Hashable = None
    ) -> Callable[..., Any]:
        """Returns the function that computes the op as `implementation` asks.

        Args:
          implementation: `None` for the best formula, `"autodiff"` for JAX's own
            gradient, or the name of a formula.
          spec: the static description of the call.

        Raises:
          ValueError: the name is unknown, or the formula cannot do this `spec`.
        """
        if implementation is None:
            return self.best(spec)
        if implementation == "autodiff":
            return self.autodiff
        named = isinstance(implementation, str)
        formula = self.formulas.get(implementation) if named else None
        reason = formula.unsuitable(spec) if formula else "there is no such formula"
        if formula is None or reason:
            raise ValueError(
                f"{self.name}: implementation (={implementation!r}) must be one of "
                f"{', '.join(self.suitable(spec))}: {reason}"
            )
        return formula.core

    def suitable(self, spec: Hashable = None) -> list[str]:
        """The values of `implementation` that can do this `spec`, written as code."""
        names = [n for n, f in self.formulas.items() if not f.unsuitable(spec)]
        return [repr(name) for name in (None, "autodiff", *names)]


def register(
    name: str,
    *,
    source: str,
    autodiff: Callable[..., Any],
    formulas: Mapping[str, Formula] | None = None,
    best: Callable[[Any], Callable[..., Any]] | None = None,
) -> Callable[[Any], Any]:
    """Adds the decorated `jax.custom_vjp` function to `RULES` and returns it unchanged.

    Args:
      name: the op's public name.
      source: where the derivation comes from (paper and section).
      autodiff: the same forward mathematics with JAX's own gradient; it takes what the
        decorated function takes.
      formulas: the op's formulas; by default one, named "hand", which is the decorated
        function.
      best: picks the core for a `spec`; by default the decorated function.
    """

    def decorate(core: Any) -> Any:
        RULES[name] = Rule(
            name=name,
            source=source,
            formulas=formulas or {"hand": Formula(core)},
            autodiff=autodiff,
            best=best or (lambda spec: core),
        )
        return core

    return decorate
