"""What `rewrite` does to a function, and what it leaves alone."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import source_info_util

from handgrad._rewrite import function, gradients, jaxprs, norms, replacements
from handgrad.convolution import choose

_BECAUSE = {
    "reduce_window_max": "forward 1 to 9, gradient 1 to 48: an up-sampling of the "
    "errors, no select_and_scatter",
    "reduce_window_sum": "gradient 0.8 to 42: each error spread over its window",
    "select_and_scatter_add": "up to 48: an up-sampling of the errors",
    norms.NAME: "forward 1.6 to 4, with gradient 2 to 6: both sums in one pass",
}
_BECAUSE["reduce_window_min"] = _BECAUSE["reduce_window_max"]
_UNMEASURED = "not measured on this platform"


@dataclasses.dataclass(frozen=True)
class Row:
    """Equal equations of a program.

    Attributes:
      primitive: what JAX calls it.
      operands: the operands' types.
      parameters: of the window, those that are not plain.
      places: what the layers are called that it stands in, one for each time.
      formulas: direction -> what computes it and why, which is, in numbers, how many
        times as fast as JAX's own it was measured on two CPU cores.
      left_because: why it was left alone; "" if it is replaced.
    """

    primitive: str
    operands: tuple[str, ...]
    parameters: str
    places: tuple[str, ...]
    formulas: Mapping[str, tuple[str, str]]
    left_because: str

    def __str__(self) -> str:
        several = f"{len(self.places)} × " if len(self.places) > 1 else ""
        names = list(dict.fromkeys(self.places))
        more = f", and {len(names) - 2} more" if len(names) > 2 else ""
        lines = [
            f"{several}{self.primitive} of {', '.join(self.operands)}",
            f"  in {', '.join(names[:2])}{more}",
        ]
        if self.parameters:
            lines.insert(1, f"  {self.parameters}")
        together: dict[tuple[str, str], list[str]] = {}
        for direction, chosen in self.formulas.items():
            together.setdefault(chosen, []).append(direction)
        for (name, because), directions in together.items():
            lines.append(f"  {', '.join(directions)}: {name}, {because}")
        if self.left_because:
            lines.append(f"  left alone: {self.left_because}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found in a function; `str` makes it a table.

    Attributes:
      platform: where the formulas were chosen for.
      rows: equal equations together, in the order of the program.
    """

    platform: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        replaced = sum(len(row.places) for row in self.rows if not row.left_because)
        total = sum(len(row.places) for row in self.rows)
        head = f"{replaced} of {total} replaced, on {self.platform}"
        return "\n".join([head, *map(str, self.rows)])

    def to_json(self) -> str:
        """The same as JSON: {"platform": ..., "rows": [{"primitive": ...}, ...]}."""
        return json.dumps(dataclasses.asdict(self), indent=1)


def report(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Report:
    """Tells what `rewrite(fn)` replaces, by which formulas and why, and what it leaves.

    The function is traced, not run.

    Args:
      fn: the function, not rewritten.
      *args: its arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.
      **kwargs: its keyword arguments.

    Returns:
      A row for each kind of convolution and window; print it.

    Raises:
      TypeError: `fn` is not callable.

    Example:
      >>> import jax, jax.numpy as jnp, handgrad
      >>> def model(x, kernel):
      ...     return jax.lax.conv(x, kernel, (1, 1), "SAME")
      >>> x, kernel = jnp.ones((8, 64, 28, 28)), jnp.ones((64, 64, 1, 1))
      >>> report = handgrad.rewrite.report(model, x, kernel)
      >>> report.rows[0].formulas["kernel_gradient"]
      ('taps', '1×1, stride 1 and 2: 5 to 11, one product of the matrices as they \
lie there')
      >>> integers = x.astype(int), kernel.astype(int)
      >>> handgrad.rewrite.report(model, *integers).rows[0].left_because
      'int32 has no gradient of ours'
    """
    if not callable(fn):
        raise TypeError(f"rewrite.report: fn must be callable, got {type(fn).__name__}")
    platform = jax.default_backend()
    program = function.trace(fn, args, kwargs).program
    rows: dict[str, Row] = {}

    def tell(found: jaxprs.Found) -> None:
        row = _row(found, platform)
        key = repr(dataclasses.replace(row, places=()))
        if key in rows:
            row = dataclasses.replace(row, places=rows[key].places + row.places)
        rows[key] = row

    jaxprs.find(program, replacements.named(None), tell)
    return Report(platform, tuple(rows.values()))


def _row(found: jaxprs.Found, platform: str) -> Row:
    eqn = found.eqn
    return Row(
        primitive=found.name,
        operands=found.operands,
        parameters=_parameters(eqn.params),
        places=(_place(found),),
        formulas={} if found.left_because else _formulas(found, platform),
        left_because=found.left_because,
    )


def _parameters(params: Mapping[str, Any]) -> str:
    """Without ones, zeros, `None`, the layout and what is no number."""
    shown = {
        name: np.asarray(value)
        for name, value in params.items()
        if name.startswith(("window", "padding", "lhs", "rhs", "base"))
        or name.endswith("group_count")
    }
    return ", ".join(
        f"{name} {value.tolist()}"
        for name, value in shown.items()
        if not (value == (0 if name == "padding" else 1)).all()
    )


def _place(found: jaxprs.Found) -> str:
    """The layer's name as a profile shows it, or the line that computes it."""
    source = found.eqn.source_info
    name = str(source.name_stack) or source_info_util.summarize(source)
    return "/".join([*found.inside, name])


def _formulas(found: jaxprs.Found, platform: str) -> dict[str, tuple[str, str]]:
    name, params = found.name, found.eqn.params
    if name != "conv_general_dilated":
        because = _BECAUSE[name] if platform == "cpu" else _UNMEASURED
        return {"forward and gradient": ("hand", because)}
    directions = []

    def convolution(lhs, rhs):
        directions.append(gradients.direction(lhs, rhs, **params))
        return gradients.convolution(lhs, rhs, **params)

    with choose.recording() as asked, found.eqn.ctx.manager:
        jax.eval_shape(convolution, *(v.aval for v in found.eqn.invars))
    explained = choose.explain(asked[0], platform) if asked else {}
    (direction,) = directions
    if direction == "forward" and not found.value_only:
        return explained
    return {d: chosen for d, chosen in explained.items() if d == direction}
