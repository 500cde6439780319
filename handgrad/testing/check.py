"""`check_rule`: all that can be asked of a hand-written derivative, in one call."""

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.testing.checks import ALL, CHECKS, Result
from handgrad.testing.checks.verdict import one_line
from handgrad.testing.report import Report
from handgrad.testing.subject import WIDE, Subject, cast, cast_arrays

_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
_CUSTOM = (jax.custom_vjp, jax.custom_jvp)
BUDGETS = {"float32": 1.0, "bfloat16": 1.0, "float16": 1.0}


class RuleError(AssertionError):
    """A rule that fails a check; `report` says which and where."""

    def __init__(self, report: Report) -> None:
        """Takes the report, whose text is the message."""
        super().__init__(str(report))
        self.report = report


def check_rule(
    f: Callable[..., Any],
    args: Sequence[Any],
    *,
    reference: Callable[..., Any] | None = None,
    cotangents: Any = None,
    dtype_budget: Mapping[str, float] | None = None,
    checks: Iterable[str] = ALL,
    seed: int = 0,
    directions: int = 3,
    raise_on_failure: bool = True,
) -> Report:
    """Checks a hand-written derivative: its numbers, its form, its transformations.

    |dx_i − truth_i| / max(|truth_i|, rms(truth)) ≤ 2 · the reference's own + 4 ε

    for every element i of every cotangent. The truth is the reference in float64; the
    reference is the given function or else the undecorated function of a `custom_vjp`,
    each with JAX's own gradient, or else difference quotients of `f`.

    Args:
      f: the rule, any function of arrays with arrays as results.
      args: its positional arguments: pytrees of floating-point, complex and integer
        arrays. What is no array, and what `nondiff_argnums` names, is static.
      reference: the same function of the same arguments, with a gradient to trust. It
        decides which slope is right on a kink, too; without it any slope between the
        one-sided ones is.
      cotangents: a first cotangent of the result, in its structure; random ones follow.
      dtype_budget: by dtype, how many times the usual rounding is allowed, 1 by
        default. Arguments in float32 are tried in those of bfloat16 and float16 that
        are listed, both by default.
      checks: the names of the checks to run, of `handgrad.testing.ALL`.
      seed: chooses the random numbers.
      directions: how many random cotangents, at least 2.
      raise_on_failure: whether a failed check raises.

    Returns:
      The report: a table to print, `passed`, `worst`, `to_json()`, `plot(path)`.

    Raises:
      RuleError: a check failed; its message is the report.
      TypeError: there is nothing to check: no function, no floating-point argument or
        result, no derivative, a result that is no array.
      ValueError: an argument of `check_rule` does not fit, or `f` has side effects.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from handgrad.testing import check_rule
      >>> tanh = jax.custom_vjp(jnp.tanh)
      >>> tanh.defvjp(lambda x: (jnp.tanh(x),) * 2, lambda y, dy: (dy * (1 - y),))
      >>> x = np.linspace(-1, 1, 7, dtype=np.float32)
      >>> report = check_rule(tanh, (x,), raise_on_failure=False)
      >>> report.passed, report.worst.hint
      (False, 'the factor 1 + y is missing')

    Source: Griewank & Walther 2008, Evaluating Derivatives, ch. 3 (adjoint identity);
    the elementwise comparison is handgrad's own.
    """
    started = time.perf_counter()
    subject, names = prepare(
        f, args, reference, cotangents, dtype_budget, checks, seed, directions
    )
    results = [run_check(subject, name) for name in names]
    report = Report(
        name=name_of(f),
        results=tuple(results),
        seconds=time.perf_counter() - started,
        maps=_maps(subject, results),
    )
    if raise_on_failure and not report.passed:
        raise RuleError(report)
    return report


def run_check(subject: Subject, name: str) -> Result:
    """One check of a prepared subject."""
    start = time.perf_counter()
    with jax.default_matmul_precision("highest"), np.errstate(all="ignore"):
        if subject.broken and name != "structure":
            result = Result(name, "skipped", "there is no gradient: see structure")
        else:
            try:
                result = CHECKS[name](subject)
            except Exception as error:  # of the rule: all else was tried before
                result = Result(name, "failed", f"the rule raises {one_line(error)}")
        if name == "structure" and result.message.startswith("the rule raises"):
            subject.broken = True
    seconds = time.perf_counter() - start
    return Result(name, result.status, result.message, result.failures, seconds)


def prepare(
    f: Callable[..., Any],
    args: Sequence[Any],
    reference: Callable[..., Any] | None = None,
    cotangents: Any = None,
    dtype_budget: Mapping[str, float] | None = None,
    checks: Iterable[str] = ALL,
    seed: int = 0,
    directions: int = 3,
) -> tuple[Subject, list[str]]:
    """The subject of `check_rule` and the names of its checks; see there."""
    _require_type(callable(f), f"f must be a function, got {type(f).__name__}")
    sequence = isinstance(args, Sequence) and not isinstance(args, str)
    _require_type(sequence, f"args must be a tuple, got {type(args).__name__}")
    names = [checks] if isinstance(checks, str) else list(checks)
    unknown = [name for name in names if name not in CHECKS]
    _require(not unknown, f"checks (={unknown}) must be among {', '.join(ALL)}")
    names = [name for name in ALL if name in names]
    _require(
        isinstance(directions, int) and directions >= 2,
        f"directions (={directions}) must be a number of at least 2",
    )
    budgets = dict(BUDGETS if dtype_budget is None else dtype_budget)
    for dtype, budget in budgets.items():
        _require(
            dtype in (*BUDGETS, WIDE) and budget > 0,
            f"dtype_budget (={budgets}) must give positive numbers for float16, "
            "bfloat16, float32 or float64",
        )
    core, static = _core(f)
    if isinstance(core, jax.custom_vjp) and core.bwd is None:
        raise TypeError("check_rule: f has no backward pass: defvjp was not called")
    subject = Subject(
        f,
        args,
        reference or _undecorated(f),
        static,
        budgets,
        seed,
        strict=reference is not None,
    )
    _require_type(bool(subject.names), "args hold no floating-point array")
    _trace(subject)
    subject.directions = _directions(subject, cotangents, directions, seed)
    _require_derivative(subject)
    return subject, names


def name_of(f: Callable[..., Any]) -> str:
    """The function's name."""
    if isinstance(f, functools.partial):
        return name_of(f.func)
    return getattr(f, "__name__", type(f).__name__)


def _require(condition: bool, requirement: str) -> None:
    if not condition:
        raise ValueError(f"check_rule: {requirement}")


def _require_type(condition: bool, requirement: str) -> None:
    if not condition:
        raise TypeError(f"check_rule: {requirement}")


def _core(f: Callable[..., Any]) -> tuple[Callable[..., Any], frozenset[int]]:
    """What a partial function calls, and the positions that hold no arrays."""
    if isinstance(f, functools.partial):
        core, static = _core(f.func)
        bound = len(f.args)
        return core, frozenset(i - bound for i in static if i >= bound)
    if isinstance(f, _CUSTOM):
        count = len(inspect.signature(f).parameters)
        return f, frozenset(i % count for i in f.nondiff_argnums)
    return f, frozenset()


def _undecorated(f: Callable[..., Any]) -> Callable[..., Any] | None:
    if isinstance(f, functools.partial):
        inner = _undecorated(f.func)
        return inner and functools.partial(inner, *f.args, **f.keywords)
    return f.__wrapped__ if isinstance(f, _CUSTOM) else None


def _trace(subject: Subject) -> None:
    """Calls `f` and the reference with tracers; names the results."""
    shapes = {}
    for who in ("rule", "reference"):
        f = subject.function(who)
        structures: list[Any] = []

        def leaves(
            floats: Any, fixed: Any, f: Any = f, structures: Any = structures
        ) -> Any:
            found, tree = jax.tree_util.tree_flatten_with_path(
                subject.call(f, floats, fixed)
            )
            for path, leaf in found:
                _require_type(
                    isinstance(leaf, _ARRAYS),
                    f"{name_of(f)} must return arrays, got {type(leaf).__name__} at "
                    f"y{jax.tree_util.keystr(path)}",
                )
            structures.append((tree, [path for path, _ in found]))
            return [jnp.asarray(leaf) for _, leaf in found]

        try:
            with subject.precision(None):
                jaxpr = jax.make_jaxpr(leaves)(*subject.point)
        except Exception as error:
            if not str(error).startswith("check_rule:"):
                error.add_note(
                    f"check_rule: {name_of(f)} raises this when it is called"
                )
            raise
        _require(
            not jaxpr.effects,
            f"{name_of(f)} must have no side effects, it has "
            f"{', '.join(map(str, jaxpr.effects))}",
        )
        tree, paths = structures[0]
        avals = [(a.shape, a.dtype) for a in jaxpr.out_avals]
        shapes[who] = (tree, avals)
        if who == "rule":
            subject.results = [
                "y" + jax.tree_util.keystr(path)
                for path, (_, dtype) in zip(paths, avals, strict=True)
                if jnp.issubdtype(dtype, np.inexact)
            ]
    _require_type(bool(subject.results), "f has no floating-point result")
    (tree, avals), (right_tree, right) = shapes["rule"], shapes["reference"]
    _require(
        tree == right_tree and [s for s, _ in avals] == [s for s, _ in right],
        f"the reference must return what f returns, {_shown(avals)} as {tree}, got "
        f"{_shown(right)} as {right_tree}",
    )
    subject.result_tree, subject.result_avals = tree, avals


def _shown(avals: Sequence[tuple[tuple[int, ...], Any]]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in avals)


def _directions(
    subject: Subject, cotangents: Any, count: int, seed: int
) -> list[tuple[np.ndarray, ...]]:
    """The given cotangents of the floating-point results, then random ones."""
    like = [
        np.empty(shape, dtype)
        for shape, dtype in subject.result_avals
        if jnp.issubdtype(dtype, np.inexact)
    ]
    drawn = [subject.random(like, 100 + i) for i in range(count)]
    if cotangents is None:
        return drawn
    given, tree = jax.tree.flatten(cotangents)
    _require(
        tree == subject.result_tree,
        f"cotangents must have the structure of the result, {subject.result_tree}, "
        f"got {tree}",
    )
    chosen = []
    for array, (shape, dtype) in zip(given, subject.result_avals, strict=True):
        _require(
            np.shape(array) == shape,
            f"cotangents must have the shapes of the result, {list(shape)}, got "
            f"{list(np.shape(array))}",
        )
        if jnp.issubdtype(dtype, np.inexact):
            chosen.append(np.asarray(array).astype(dtype))
    return [tuple(chosen), *drawn]


def _require_derivative(subject: Subject) -> None:
    """Raises `TypeError` unless the reference has a gradient, here and in float64."""
    for dtype in (None, WIDE):
        point = cast(subject.point, dtype)
        dys = cast_arrays(subject.directions[0], dtype)
        try:
            with subject.precision(dtype):
                jax.eval_shape(subject.pull(subject.reference), *point, dys)
        except Exception as error:
            who = "the reference" if subject.independent else "f"
            if not subject.independent and _mentions_custom_rule(subject):
                return  # a wrong rule inside of f: the check of the structure tells
            where = " in float64" if dtype else ""
            raise TypeError(
                f"check_rule: {who} cannot be differentiated{where}: {one_line(error)}"
            ) from error


def _mentions_custom_rule(subject: Subject) -> bool:
    with subject.precision(None):
        jaxpr = jax.make_jaxpr(subject.split(subject.f))(*subject.point)
    return "custom_vjp_call" in str(jaxpr) or "custom_jvp_call" in str(jaxpr)


def _maps(subject: Subject, results: Sequence[Result]) -> tuple[Any, ...]:
    """What a picture shows: the wrong arrays or, if none is, every cotangent."""
    wrong = [
        (f.path, f.maps[0], f.maps[1])
        for result in results
        for f in result.failures
        if f.maps is not None
    ]
    if wrong or subject.broken or ("rule", 0, None) not in subject.remembered:
        return tuple(wrong)
    truth, own = subject.truth(0), subject.outcome("rule", 0)
    names = [f"gradient of {name}" for name in subject.names]
    return tuple(zip(names, truth.dxs, own.dxs, strict=True))
