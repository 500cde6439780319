"""Measures a layer in each direction: handgrad, autodiff and PyTorch in turn."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import pytorch
from handgrad import cases, measure
from handgrad.cases import Case, activation, dense, loss, normalization, pooling
from handgrad.convolution import choose

# The rules whose layers `ops` measures.
MEASURED = (
    "conv",
    "conv_transpose",
    *dict.fromkeys(
        case.rule
        for family in (pooling, dense, activation, normalization, loss)
        for case in family.LAYERS
    ),
)

FORWARD, ALL = "forward", "all"
# What the gradient of an argument is called; its first word names it to --directions.
GRADIENTS = {
    "x": "input gradient",
    "lhs": "input gradient",
    "inputs": "input gradient",
    "a": "input gradient",
    "logits": "input gradient",
    "log_predictions": "input gradient",
    "predictions": "input gradient",
    "predictor_outputs": "input gradient",
    "scores": "input gradient",
    "kernel": "kernel gradient",
    "rhs": "kernel gradient",
}
DIRECTIONS = (FORWARD, *dict.fromkeys(GRADIENTS.values()), ALL)

# The sides that JAX computes, with their `implementation`; "torch" is the third.
_SIDES = {"handgrad": None, "autodiff": "autodiff"}
# A row falls short below this share of autodiff's speed, and above this many times its
# compile time.
SLOW, LONG = 0.95, 1.5
_EXAMPLES = 2  # enough to judge an error by; float64 is slow


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: about how long each side of a row may run, if three calls are not
            longer.
        compiles: how often each side is compiled; the shortest time counts.
    """

    seconds: float
    compiles: int


FULL, QUICK = Effort(0.6, 2), Effort(0.05, 1)


class Row(NamedTuple):
    """A layer in one direction: an entry of `rows` in the report."""

    rule: str
    case: str
    network: str | None
    direction: str
    formula: str | None
    ms: float
    autodiff_ms: float
    torch_ms: float | None
    autodiff_ratio: float | None
    torch_ratio: float | None
    error: float | None
    autodiff_error: float | None
    error_ratio: float | None
    temp_bytes: int | None
    autodiff_temp_bytes: int | None
    memory_ratio: float | None
    compile_s: float
    autodiff_compile_s: float
    compile_ratio: float | None
    gflops: float | None
    gbs: float

    @property
    def slow(self) -> bool:
        """Whether autodiff is clearly faster."""
        return self.autodiff_ratio is not None and self.autodiff_ratio < SLOW

    @property
    def long_to_compile(self) -> bool:
        """Whether autodiff compiles in much less time."""
        return self.compile_ratio is not None and self.compile_ratio > LONG

    @property
    def large(self) -> bool:
        """Whether autodiff needs less memory."""
        return (self.temp_bytes or 0) > (self.autodiff_temp_bytes or 0)


def directions(arrays: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The directions of an op, each with the arguments whose cotangents it computes.

    Args:
        arrays: the op's array arguments by name.
    """
    floating, _ = measure.split(arrays)
    gradients = {GRADIENTS[name]: (name,) for name in floating if name in GRADIENTS}
    return {FORWARD: (), **gradients, ALL: tuple(floating)}


def measure_layer(
    case: Case, wanted: Sequence[str], effort: Effort, torch: Any
) -> Iterator[Row]:
    """Measures a layer in each of the wanted directions that it has.

    Args:
        case: the layer.
        wanted: names of directions.
        effort: how long to measure.
        torch: the module, or `None` to leave PyTorch out.
    """
    arrays, dy = case.arrays("float32"), measure.cotangent(case, "float32", 0)
    layer = _torch_layer(torch, case, arrays, dy) if torch else None
    found, formulas = errors(case), _chosen(case)
    operands = jax.device_put((arrays, dy))
    for direction, names in directions(arrays).items():
        if direction not in wanted:
            continue
        functions = {
            side: _function(case, direction, names, implementation)
            for side, implementation in _SIDES.items()
        }
        compiled = compile_in_turns(functions, operands, effort.compiles)
        calls: dict[str, Callable[[], Any]] = {
            side: functools.partial(each.executable, *operands)
            for side, each in compiled.items()
        }
        if layer:
            calls["torch"] = _in_torch(layer, direction, names)
        seconds = measure.interleaved(calls, seconds=effort.seconds)
        yield _row(
            case,
            direction,
            formula=formulas.get(direction),
            seconds=seconds,
            errors=found.get(direction, (None, None)),
            compiled=compiled,
            work=_work(case, arrays, dy, direction),
        )


class _Compiled(NamedTuple):
    executable: Any
    seconds: float
    temp_bytes: int | None


class _Work(NamedTuple):
    operations: float | None  # multiplications and additions
    bytes: float  # of operands and results


def _row(
    case: Case,
    direction: str,
    *,
    formula: str | None,
    seconds: Mapping[str, float],
    errors: tuple[float | None, float | None],
    compiled: Mapping[str, _Compiled],
    work: _Work,
) -> Row:
    hand, autodiff, torch = (seconds.get(side) for side in (*_SIDES, "torch"))
    ours, theirs = (compiled[side] for side in _SIDES)
    error, autodiff_error = errors
    return Row(
        rule=case.rule,
        case=case.name,
        network=case.network,
        direction=direction,
        formula=formula,
        ms=1e3 * seconds["handgrad"],
        autodiff_ms=1e3 * seconds["autodiff"],
        torch_ms=None if torch is None else 1e3 * torch,
        autodiff_ratio=_ratio(autodiff, hand),
        torch_ratio=_ratio(torch, hand),
        error=_finite(error),
        autodiff_error=_finite(autodiff_error),
        error_ratio=_ratio(error, autodiff_error),
        temp_bytes=ours.temp_bytes,
        autodiff_temp_bytes=theirs.temp_bytes,
        memory_ratio=_ratio(ours.temp_bytes, theirs.temp_bytes),
        compile_s=ours.seconds,
        autodiff_compile_s=theirs.seconds,
        compile_ratio=_ratio(ours.seconds, theirs.seconds),
        gflops=work.operations and work.operations / seconds["handgrad"] / 1e9,
        gbs=work.bytes / seconds["handgrad"] / 1e9,
    )


def _finite(value: float | None) -> float | None:
    """The number, if JSON knows it."""
    return None if value is None or not math.isfinite(value) else float(value)


def _ratio(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return None
    if a == b:  # both may be 0
        return 1.0
    return _finite(a / b) if b else None


def _function(
    case: Case, direction: str, names: Sequence[str], implementation: Any
) -> Callable[..., Any]:
    """One direction as a function of the arrays and the value's cotangent."""
    op = case.function(implementation)
    if direction == FORWARD:
        return lambda arrays, dy: op(**arrays)

    def backward(arrays, dy):
        fixed = {name: a for name, a in arrays.items() if name not in names}
        moving = {name: arrays[name] for name in names}
        y, vjp = jax.vjp(lambda moving: op(**moving, **fixed), moving)
        (cotangents,) = vjp(dy)
        # The compiler removes a value that nobody asks for.
        return (y, cotangents) if direction == ALL else cotangents

    return backward


def compile_in_turns(
    functions: Mapping[str, Callable[..., Any]],
    operands: Any,
    times: int,
    **options: Any,
) -> dict[str, _Compiled]:
    """Compiles the functions in turn, each as often, and keeps the shortest times.

    Args:
        functions: the functions by name.
        operands: their arguments, the same for all.
        times: how often.
        **options: of `jax.jit`.
    """
    compiled: dict[str, _Compiled] = {}
    for index in range(times):
        sides = list(functions)[:: -1 if index % 2 else 1]
        for side in sides:
            # Its own function each time: a known one would not be traced again.
            fresh = functools.partial(functions[side])
            start = time.perf_counter()
            executable = jax.jit(fresh, **options).lower(*operands).compile()
            seconds = time.perf_counter() - start
            memory = executable.memory_analysis()
            temp_bytes = memory.temp_size_in_bytes if memory else None
            if side in compiled:
                seconds = min(seconds, compiled[side].seconds)
            compiled[side] = _Compiled(executable, seconds, temp_bytes)
    return compiled


def warm_up() -> None:
    """Compiles both sides once, so that the first row pays for no one's first time."""
    case = next(case for case in cases.LAYERS if case.rule in MEASURED)
    arrays, dy = case.arrays("float32"), measure.cotangent(case, "float32", 0)
    functions = {
        side: _function(case, ALL, tuple(arrays), implementation)
        for side, implementation in _SIDES.items()
    }
    compile_in_turns(functions, (arrays, dy), 1)


def _torch_layer(
    torch: Any, case: Case, arrays: Mapping[str, np.ndarray], dy: np.ndarray
) -> pytorch.Layer | None:
    try:
        return pytorch.Layer(torch, case, arrays, dy)
    except NotImplementedError:
        return None


def _in_torch(
    layer: pytorch.Layer, direction: str, names: Sequence[str]
) -> Callable[[], Any]:
    if direction == FORWARD:
        return layer.forward()
    return layer.value_and_gradients() if direction == ALL else layer.gradient(names)


def errors(case: Case) -> dict[str, tuple[float, float]]:
    """The largest error of each direction, handgrad's and autodiff's."""
    batch = min(
        s.shape[0] for n, s in case.samples.items() if n not in cases.PARAMETERS
    )
    few = case.with_examples(min(batch, _EXAMPLES))
    errors = {
        e.cotangent: (e.error, e.autodiff_error) for e in measure.errors(few, None)
    }
    measure.forget()  # the arrays of all layers together would fill the memory
    ours, theirs = zip(*errors.values(), strict=True)
    gradients = {GRADIENTS[n]: e for n, e in errors.items() if n in GRADIENTS}
    return {FORWARD: errors["value"], **gradients, ALL: (max(ours), max(theirs))}


def _chosen(case: Case) -> dict[str, str]:
    """The formula of each direction; several, where there is no one direction."""
    with choose.recording() as asked:
        jax.eval_shape(case.function(), **case.arrays("float32"))
    if not asked:  # one formula computes all
        return {}
    explained = choose.explain(asked[0], jax.devices()[0].platform)
    chosen = {way.replace("_", " "): name for way, (name, _) in explained.items()}
    return {**chosen, ALL: ", ".join(dict.fromkeys(chosen.values()))}


# Multiplications with an addition each, of an op and so of each of its gradients, for
# the sizes of the image, the kernel [K, L, C/G, O] and the value.
_MULTIPLICATIONS = {
    # each y[n p q o] has K·L·C/G of them
    "conv": lambda image, kernel, y: y.size * kernel.size / kernel.shape[-1],
    # each x[n h w c] has K·L·O of them
    "conv_transpose": lambda image, kernel, y: (
        image.size * kernel.size / kernel.shape[-2]
    ),
}


def _work(
    case: Case, arrays: Mapping[str, np.ndarray], dy: np.ndarray, direction: str
) -> _Work:
    """The operations and the bytes that the mathematics asks for."""
    floating, _ = measure.split(arrays)
    # A gradient reads what the forward pass writes and writes what it reads.
    size = dy.nbytes + sum(array.nbytes for array in floating.values())
    count = _MULTIPLICATIONS.get(case.rule)
    passes = 1 + sum(name in GRADIENTS for name in floating)
    operations = None
    if count:
        image, kernel = list(arrays.values())[:2]
        operations = 2.0 * count(image, kernel, dy)
    if direction != ALL:
        return _Work(operations, size)
    return _Work(operations and passes * operations, 2 * size)


def machine_limits(effort: Effort) -> dict[str, float]:
    """What a float32 matrix product and a copy reach here."""
    n = 2048
    square = jnp.asarray(np.random.default_rng(0).standard_normal((n, n), np.float32))
    line = jnp.zeros(2**24, jnp.float32)  # 64 MB
    multiply, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    seconds = measure.interleaved(
        {
            "product": functools.partial(multiply, square, square),
            "copy": functools.partial(copy, line),
        },
        seconds=effort.seconds,
    )
    return {
        "matmul_gflops": 2 * n**3 / seconds["product"] / 1e9,
        "copy_gbs": 2 * line.nbytes / seconds["copy"] / 1e9,
    }
