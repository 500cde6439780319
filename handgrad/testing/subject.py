"""What is checked: a rule at a point, and the programs that the checks share.

Nearly all of a check's time is compilation, so each program is compiled once and called
often. The one that most checks need is

    run(floats, fixed, dys) -> (ys, dxs):    dxs = (∂ys/∂floats)ᵀ dys

for the rule and for its reference, in the arguments' own dtype and *wide*, that is in
float64. Only the arguments' own dtype is compiled as users compile it; the other
programs leave LLVM's optimisations out, which halves their time.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.testing.compare import error_of, tolerance

WIDE = "float64"
LARGEST = 2**12  # numbers of a cotangent that is computed again and again for a hint
QUICK_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


class Point(NamedTuple):
    """The arrays of a call: those with a gradient, and those without."""

    floats: tuple[np.ndarray, ...]
    fixed: tuple[Any, ...]


class Outcome(NamedTuple):
    """Floating-point results and the cotangents of `Point.floats`."""

    ys: tuple[np.ndarray, ...]
    dxs: tuple[np.ndarray, ...]


class Subject:
    """A rule with arguments, a reference, and cotangents to pull back.

    Attributes:
      f: the rule, a function of the caller's arguments.
      reference: what it must be equal to; `f` itself if there is nothing else.
      independent: whether the reference is another function than `f`.
      point: the arguments' arrays.
      names: the path of each of `point.floats`, as messages show it.
      results: the path of each floating-point result.
      directions: cotangents of the floating-point results, one tuple a direction.
      strict: whether the reference decides on kinks, too: the caller gave it.
      budgets: by dtype, how many times the usual rounding a result may have.
      seed: chooses every random number.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        args: Sequence[Any],
        reference: Callable[..., Any] | None,
        static: frozenset[int],
        budgets: dict[str, float],
        seed: int,
        *,
        strict: bool = True,
    ) -> None:
        """Splits the arguments; `static` are the positions that hold no arrays."""
        self.f = f
        self.reference = reference or f
        self.independent = reference is not None
        self.strict = strict
        self.budgets = budgets
        self.seed = seed
        self.directions: list[tuple[np.ndarray, ...]] = []
        self._static = static
        self._args = tuple(args)
        traced = [a for i, a in enumerate(args) if i not in static]
        positions = [i for i in range(len(args)) if i not in static]
        paths, self._tree = jax.tree_util.tree_flatten_with_path(traced)
        self._leaves = [leaf for _, leaf in paths]
        arrays = [_as_array(leaf) for leaf in self._leaves]
        self._kinds = [_kind(array) for array in arrays]
        self.point = Point(
            tuple(a for a, k in zip(arrays, self._kinds, strict=True) if k == "float"),
            tuple(a for a, k in zip(arrays, self._kinds, strict=True) if k == "fixed"),
        )
        labels = _labels(f, len(args))
        self.names = [
            labels[positions[path[0].idx]] + jax.tree_util.keystr(path[1:])
            for (path, _), kind in zip(paths, self._kinds, strict=True)
            if kind == "float"
        ]
        self._programs: dict[Any, Callable[..., Any]] = {}
        self.remembered: dict[Any, Outcome] = {}
        self._limits: dict[str | None, Outcome] = {}
        self.results: list[str] = []
        self.result_tree: Any = None
        self.result_avals: list[Any] = []
        self.broken = False  # the rule cannot be differentiated at all
        self.findings: list[Any] = []  # of difference quotients

    # The function of the arrays alone.

    def call(self, f: Callable[..., Any], floats: Any, fixed: Any) -> Any:
        """The value of `f` with these arrays in the caller's arguments."""
        floats, fixed = iter(floats), iter(fixed)
        leaves = [
            next(floats) if k == "float" else next(fixed) if k == "fixed" else leaf
            for leaf, k in zip(self._leaves, self._kinds, strict=True)
        ]
        traced = iter(jax.tree_util.tree_unflatten(self._tree, leaves))
        return f(
            *(
                a if i in self._static else next(traced)
                for i, a in enumerate(self._args)
            )
        )

    def split(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """(floats, fixed) -> (floating-point results, the others)."""

        def function(floats: Any, fixed: Any) -> Any:
            leaves = jax.tree.leaves(self.call(f, floats, fixed))
            leaves = [jnp.asarray(leaf) for leaf in leaves]
            ys = tuple(leaf for leaf in leaves if _is_float(leaf.dtype))
            return ys, tuple(leaf for leaf in leaves if not _is_float(leaf.dtype))

        return function

    def pull(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """(floats, fixed, dys) -> (ys, dxs): value and cotangents."""
        function = self.split(f)

        def run(floats: Any, fixed: Any, dys: Any) -> Outcome:
            ys, vjp, _ = jax.vjp(lambda x: function(x, fixed), floats, has_aux=True)
            dys = tuple(dy.astype(y.dtype) for dy, y in zip(dys, ys, strict=True))
            return Outcome(ys, vjp(dys)[0])

        return run

    # Programs and what they computed.

    def precision(self, dtype: str | None) -> contextlib.AbstractContextManager[Any]:
        """The state of JAX in which a dtype is computed; `None` is the own one."""
        wide = dtype == WIDE or any(_is_wide(x.dtype) for x in self.point.floats)
        if not wide:
            return contextlib.nullcontext()
        return jax.enable_x64(True)

    def function(self, who: str) -> Callable[..., Any]:
        """The rule or the reference."""
        return self.f if who == "rule" else self.reference

    def compiled(
        self, key: Any, make: Callable[[], Callable[..., Any]], *, quick: bool = True
    ) -> Callable[..., Any]:
        """The jitted function that `make` returns, the same one for the same key."""
        if key not in self._programs:
            options = QUICK_TO_COMPILE if quick else None
            self._programs[key] = jax.jit(make(), compiler_options=options)
        return self._programs[key]

    def run(
        self,
        who: str,
        dys: tuple[np.ndarray, ...],
        point: Point | None = None,
        dtype: str | None = None,
    ) -> Outcome:
        """Value and cotangents of the rule or of the reference, on the host."""
        point = cast(point or self.point, dtype)
        both = self.independent and dtype not in (None, WIDE)
        key = ("pull", "both" if both else who if self.independent else "rule")
        program = self.compiled(
            (*key, dtype is None),
            lambda: self.both(self.pull) if both else self.pull(self.function(who)),
            quick=dtype is not None,
        )
        with self.precision(dtype):
            outcome = program(*point, cast_arrays(dys, dtype))
            outcome = outcome[who != "rule"] if both else outcome
            return jax.tree.map(np.array, jax.device_get(outcome))

    def both(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Rule and reference in one program: it compiles faster than two."""
        rule, reference = make(self.f), make(self.reference)
        return lambda *args: (rule(*args), reference(*args))

    def outcome(self, who: str, direction: int, dtype: str | None = None) -> Outcome:
        """`run` at the given point, remembered.

        On a kink the reference is NaN, which no comparison looks at.
        """
        key = (who, direction, dtype)
        if key not in self.remembered:
            found = self.run(who, self.directions[direction], None, dtype)
            if who == "reference":
                for i, name in enumerate(self.names):
                    for index in self.kinks.get(name, ()):
                        found.dxs[i][index] = np.nan
            self.remembered[key] = found
        return self.remembered[key]

    @functools.cached_property
    def kinks(self) -> dict[str, list[tuple[int, ...]]]:
        """Elements where the rule takes another slope of a kink than the reference.

        A reference that the caller gave says which slope to take; there are none then.
        """
        from handgrad.testing.differences import other_slopes

        return {} if self.strict or not self.independent else other_slopes(self)

    def truth(self, direction: int) -> Outcome:
        """The reference in float64."""
        return self.outcome("reference", direction, WIDE)

    def limits(self, dtype: str | None = None) -> Outcome:
        """The largest error that each array may have, from the reference's own."""
        if dtype not in self._limits:
            worst: list[Any] = []
            for dys in self.directions:
                point, dys = cast(self.point, dtype), cast_arrays(dys, dtype)
                truth = self.run("reference", dys, point, WIDE)
                own = self.run("reference", dys, point, dtype)
                errors = jax.tree.map(lambda a, t: error_of(a, t)[0], own, truth)
                worst.append(errors)
            largest = jax.tree.map(lambda *e: max(e, default=0.0), *worst)
            self._limits[dtype] = jax.tree.map(
                lambda error, a: tolerance(
                    error, a.dtype, self.budgets.get(jnp.dtype(a.dtype).name, 1.0)
                ),
                largest,
                own,
            )
        return self._limits[dtype]

    # Other points and cotangents.

    @functools.cached_property
    def neighbour(self) -> Point:
        """Another point of the same shapes, in the domain wherever the first one is.

        Every number is moved by up to a tenth of itself; integers change places.
        """
        random = np.random.default_rng((self.seed, 2))
        return Point(
            tuple(
                (x * (1 + random.uniform(-0.1, 0.1, x.shape))).astype(x.dtype)
                for x in self.point.floats
            ),
            tuple(a[::-1] if a.ndim else a for a in self.point.fixed),
        )

    def others(self, dys: tuple[np.ndarray, ...]) -> Callable[..., Any]:
        """What a cotangent would be for other arguments, for `hints.explain`."""
        from handgrad.testing.hints import changes

        def again(path: str, truth: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
            if path not in self.names or truth.size > LARGEST:
                return
            of = self.names.index(path)
            floats = self.point.floats
            for i, (name, x) in enumerate(zip(self.names, floats, strict=True)):
                for change, other in changes(x):
                    point = Point(
                        (*floats[:i], other, *floats[i + 1 :]), self.point.fixed
                    )
                    outcome = self.run("reference", dys, point, WIDE)
                    yield change.format(name), outcome.dxs[of]
            for i, dy in enumerate(dys):
                name = "dy" if len(dys) == 1 else f"dy[{i}]"
                for change, other in changes(np.asarray(dy)):
                    moved = (*dys[:i], other, *dys[i + 1 :])
                    outcome = self.run("reference", moved, None, WIDE)
                    yield change.format(name), outcome.dxs[of]

        return again

    def random(self, like: Sequence[np.ndarray], stream: int) -> tuple[np.ndarray, ...]:
        """Normally distributed arrays like these."""
        random = np.random.default_rng((self.seed, stream))
        return tuple(_normal(random, a.shape, a.dtype) for a in like)


def stack(*trees: Any) -> Any:
    """One tree of several: each array has a new leading axis."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *trees)


def cast(point: Point, dtype: str | None) -> Point:
    """The point's numbers in another precision; `None` leaves them as they are."""
    return Point(cast_arrays(point.floats, dtype), point.fixed)


def cast_arrays(
    arrays: Sequence[np.ndarray], dtype: str | None
) -> tuple[np.ndarray, ...]:
    """The arrays' numbers in another precision; `None` leaves them as they are."""
    if dtype is None:
        return tuple(arrays)
    real = jnp.dtype(dtype)
    complex_ = np.dtype(np.complex128 if real.itemsize == 8 else np.complex64)
    return tuple(
        np.asarray(a).astype(complex_ if np.iscomplexobj(a) else real) for a in arrays
    )


def _normal(random: np.random.Generator, shape: Any, dtype: Any) -> np.ndarray:
    numbers = random.standard_normal(shape)
    if jnp.issubdtype(dtype, np.complexfloating):
        numbers = numbers + 1j * random.standard_normal(shape)
    return np.asarray(numbers).astype(dtype)


def _as_array(leaf: Any) -> Any:
    """An array on the host, or `None` for what is no array: it is static."""
    if isinstance(leaf, jax.Array):
        extended = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)  # a random key
        return leaf if extended else np.asarray(leaf)
    if isinstance(leaf, np.ndarray | np.generic):
        return np.asarray(leaf)
    if isinstance(leaf, float | complex):
        return np.asarray(leaf, np.complex64 if isinstance(leaf, complex) else "f4")
    return None


def _kind(array: Any) -> str:
    if array is None:
        return "static"
    return "float" if _is_float(array.dtype) else "fixed"


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.inexact)


def _is_wide(dtype: Any) -> bool:
    return dtype in (np.float64, np.complex128)


def _labels(f: Callable[..., Any], count: int) -> list[str]:
    """The names of the positional arguments, as the function's signature has them."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        return [f"args[{i}]" for i in range(count)]
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    names = [p.name for p in parameters if p.kind in positional]
    names += [f"args[{i}]" for i in range(len(names), count)]
    return names[:count]
