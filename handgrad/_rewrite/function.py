"""`rewrite`: trace a function, rewrite the trace, evaluate it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from handgrad._rewrite import jaxprs, pieces, replacements

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Files whose frames say nothing about the user's error.
_BETWEEN = tuple(str(Path(f).parent) + "/" for f in (jax.__file__, __file__))


def rewrite(fn: _Function, *, rules: Iterable[str] | None = None) -> _Function:
    """Returns the same function with handgrad's rules in place of JAX's own gradients.

    f(x) = rewrite(f)(x), and the gradients are equal, up to rounding: each convolution
    and each maximum, minimum or sum over windows, wherever it stands (in `jit`, `scan`,
    `while_loop`, `cond`, `checkpoint`, `shard_map`, under `vmap`, in another library's
    layers), is computed by the op of that name here, and so is a batch norm, which is
    known by its equations. All else stays as it was. Write
    `jax.jit(jax.grad(handgrad.rewrite(loss)))`, or rewrite a whole training step: the
    gradients that JAX took inside of it are known for what they are.

    As `jax.jit` does, it traces the function: arrays are tracers to it, and a change
    of an argument in place is not seen outside. Unlike `jit` it traces at every call,
    so it follows what the function reads from elsewhere, compiles nothing by itself,
    and leaves arguments and results that are no arrays (numbers, strings) alone.

    The value of a function with a `jax.custom_jvp` or `jax.custom_vjp` rule is
    rewritten, its rule is not: that is its author's gradient. Kernels and solvers
    (`pallas_call`, `custom_linear_solve`) are not looked into. A variant without a
    rule here (complex numbers, integers) stays as it was; `rewrite.report` tells.

    The rules are `jax.custom_vjp` functions, so forward mode (`jax.jvp`, `jacfwd`,
    `linear_transpose`) of the result does not go through what was replaced: use `fn`
    itself there. Inside of `fn` all modes work.

    Args:
      fn: any function of pytrees.
      rules: what to replace, of the primitives "conv_general_dilated",
        "reduce_window_max", "reduce_window_min", "reduce_window_sum" and
        "select_and_scatter_add" (the gradient of a window's extremum, if `fn` takes
        it), and "batch_norm": Σ x and Σ x² over all axes but the last, together, and
        (x − μ)·w + β with a number for each channel; `None` for all.

    Returns:
      The function; rewriting it again changes nothing.

    Raises:
      TypeError: `fn` is not callable.
      ValueError: a rule is unknown.

    Example:
      >>> import jax, jax.numpy as jnp, handgrad
      >>> def loss(x):
      ...     k = (1, 2, 2, 1)
      ...     y = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, k, k, "VALID")
      ...     return y.sum()
      >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
      >>> jax.grad(handgrad.rewrite(loss))(x).squeeze()
      Array([[0., 0., 0., 0.],
             [0., 1., 0., 1.],
             [0., 0., 0., 0.],
             [0., 1., 0., 1.]], dtype=float32)
    """
    if not callable(fn):
        raise TypeError(f"rewrite: fn must be callable, got {type(fn).__name__}")
    names = replacements.named(rules)

    @_named_like(fn)
    def rewritten(*args, **kwargs):
        __tracebackhide__ = True  # of pytest and IPython
        try:
            traced = trace(fn, args, kwargs)
        except Exception as error:
            error.__traceback__ = _from_user(error.__traceback__)
            raise
        return traced.rewritten(names)()

    return rewritten  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class Traced:
    """A call of a function, as a program.

    Attributes:
      program: computes the results that are computed.
      arrays: its arguments.
      leaves: the results in order, `_COMPUTED` for those that the program computes.
      tree: the structure of the results.
    """

    program: core.ClosedJaxpr
    arrays: list[Any]
    leaves: list[Any]
    tree: Any

    def rewritten(self, rules: frozenset[str]) -> "Traced":
        """The same call of the rewritten program."""
        return dataclasses.replace(self, program=jaxprs.rewrite(self.program, rules))

    def __call__(self) -> Any:
        """The results."""
        program = self.program
        if any(map(_is_tracer, (*self.arrays, *program.consts))):
            program = pieces.together(program)  # it may be differentiated
        computed = iter(
            jax.core.eval_jaxpr(program.jaxpr, program.consts, *self.arrays)
        )
        leaves = [next(computed) if each is _COMPUTED else each for each in self.leaves]
        return jax.tree.unflatten(self.tree, leaves)


_COMPUTED = object()


@jax.tree_util.register_static
class _Constant:
    """A leaf that is no array, as it goes through a trace."""

    def __init__(self, value: Any):
        self.value = value


def trace(fn: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Traced:
    """Traces the call; what is no array, argument or result, stays as it is."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    if constants := len(arrays) < len(leaves):
        leaves = [leaf if _is_array(leaf) else _Constant(leaf) for leaf in leaves]
        args, kwargs = jax.tree.unflatten(tree, leaves)
    results = []

    @_named_like(fn)
    def traced(*args, **kwargs):
        if constants:
            args, kwargs = jax.tree.map(_value, (args, kwargs), is_leaf=_is_constant)
        found, structure = jax.tree.flatten(fn(*args, **kwargs))
        computed = list(map(_is_tracer, found))
        both = list(zip(found, computed, strict=True))
        results[:] = [_COMPUTED if traced else leaf for leaf, traced in both], structure
        return [leaf for leaf, traced in both if traced]

    program = jax.make_jaxpr(traced)(*args, **kwargs)
    return Traced(program, arrays, *results)


def _is_constant(leaf: Any) -> bool:
    return isinstance(leaf, _Constant)


def _value(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, _Constant) else leaf


def _named_like(fn: Callable[..., Any]) -> Callable[[Any], Any]:
    """Makes JAX see the name, the signature and the source of `fn`."""

    def named(wrapper):
        wrapper = functools.wraps(fn, updated=())(wrapper)
        inner = fn
        while isinstance(inner, functools.partial):
            inner = inner.func
        wrapper.__name__ = getattr(inner, "__name__", type(inner).__name__)
        return wrapper

    return named


def _is_tracer(leaf: Any) -> bool:
    return isinstance(leaf, jax.core.Tracer)


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == np.bool_
    return isinstance(leaf, jax.Array | jax.core.Tracer | jax.ShapeDtypeStruct)


def _from_user(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback from the user's own function on; all of it if that was not met."""
    frame = traceback
    while frame and frame.tb_frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.tb_next
    return frame or traceback
