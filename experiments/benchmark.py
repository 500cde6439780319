"""Measures every rule on the layers of real networks, next to autodiff and PyTorch.

`python -m experiments.benchmark ops` takes the layers of `handgrad.cases.LAYERS` in
each direction: forward, each gradient alone, and all of them together. Three sides
compute the same numbers in turn: handgrad, JAX's own gradient ("autodiff") and, where
it is installed, PyTorch. `--help` lists the flags. It prints a table and a summary, and
writes to the work directory

    benchmark.json    every number, the device and the versions; anew after each layer
    benchmark.png     the speed of handgrad and of PyTorch, relative to autodiff's

In `benchmark.json`, `rows` has a row for each layer and direction:

    formula                 what handgrad computed by
    ms, autodiff_ms, ...    median milliseconds a call
    autodiff_ratio          autodiff's time / handgrad's: above 1, handgrad is faster
    torch_ratio             PyTorch's time / handgrad's
    error, error_ratio      largest elementwise error against float64 on one or two of
                            the examples (`handgrad.measure`), and handgrad's /
                            autodiff's
    temp_bytes, ...         memory of the compiled function beside arguments and results
    compile_s, ...          seconds to trace and compile
    gflops, gbs             work done a second: the convolution's own multiplications
                            and additions, and the bytes of operands and results

`limits` holds what a matrix product and a copy reach on this machine in the same run;
`summary` holds geometric means and the rows that fall short; `failures` lists what
raised. What is missing or not finite is `null`. `finished` is false while it runs.
"""

import argparse
import dataclasses
import functools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from experiments import benchmark_torch
from experiments.benchmark_figure import bars
from experiments.compare_gradients import open_workdir
from experiments.runs import UsageError, describe_environment, write_json
from handgrad import cases, measure, windows
from handgrad.cases import Case
from handgrad.convolution import choose
from handgrad.convolution.spec import ConvSpec

# The rules whose layers `ops` measures.
MEASURED = ("conv", "conv_transpose")

FORWARD, ALL = "forward", "all"
# What the gradient of an argument is called; its first word names it to --directions.
GRADIENTS = {
    "x": "input gradient",
    "lhs": "input gradient",
    "inputs": "input gradient",
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
_ABOUT = "Measures every rule next to JAX's own gradient and to PyTorch."


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
    errors, formulas = _errors(case), _chosen(case)
    operands = jax.device_put((arrays, dy))
    for direction, names in directions(arrays).items():
        if direction not in wanted:
            continue
        functions = {
            side: _function(case, direction, names, implementation)
            for side, implementation in _SIDES.items()
        }
        compiled = _compile(functions, operands, effort.compiles)
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
            errors=errors.get(direction, (None, None)),
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


def _compile(
    functions: Mapping[str, Callable[..., Any]], operands: Any, times: int
) -> dict[str, _Compiled]:
    """Compiles the functions in turn, each as often, and keeps the shortest times."""
    compiled: dict[str, _Compiled] = {}
    for index in range(times):
        sides = list(functions)[:: -1 if index % 2 else 1]
        for side in sides:
            # Its own function each time: a known one would not be traced again.
            fresh = functools.partial(functions[side])
            start = time.perf_counter()
            executable = jax.jit(fresh).lower(*operands).compile()
            seconds = time.perf_counter() - start
            memory = executable.memory_analysis()
            temp_bytes = memory.temp_size_in_bytes if memory else None
            if side in compiled:
                seconds = min(seconds, compiled[side].seconds)
            compiled[side] = _Compiled(executable, seconds, temp_bytes)
    return compiled


def _warm_up() -> None:
    """Compiles both sides once, so that the first row pays for no one's first time."""
    case = next(case for case in cases.LAYERS if case.rule in MEASURED)
    arrays, dy = case.arrays("float32"), measure.cotangent(case, "float32", 0)
    functions = {
        side: _function(case, ALL, tuple(arrays), implementation)
        for side, implementation in _SIDES.items()
    }
    _compile(functions, (arrays, dy), 1)


def _torch_layer(
    torch: Any, case: Case, arrays: Mapping[str, np.ndarray], dy: np.ndarray
) -> benchmark_torch.Layer | None:
    try:
        return benchmark_torch.Layer(torch, case, arrays, dy)
    except NotImplementedError:
        return None


def _in_torch(
    layer: benchmark_torch.Layer, direction: str, names: Sequence[str]
) -> Callable[[], Any]:
    if direction == FORWARD:
        return layer.forward()
    return layer.value_and_gradients() if direction == ALL else layer.gradient(names)


def _errors(case: Case) -> dict[str, tuple[float, float]]:
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
    image, kernel = (sample.shape for sample in list(case.samples.values())[:2])
    options = case.options
    transposed = case.rule == "conv_transpose"
    described = windows.describe(
        case.rule,
        image[1:-1],
        kernel[:-2],
        1 if transposed else options.get("strides", 1),
        "VALID" if transposed else options.get("padding", "SAME"),
        options.get("kernel_dilation", 1),
        options["strides"] if transposed else options.get("input_dilation", 1),
    )
    spec = ConvSpec(described, options.get("feature_group_count", 1))
    geometry = choose.Geometry(image, kernel, spec)
    explained = choose.explain(geometry, jax.devices()[0].platform)
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


@dataclasses.dataclass
class Findings:
    """What a benchmark has measured so far.

    Attributes:
        about: device, versions and flags.
        limits: see `machine_limits`.
        rows: the rows so far.
        failures: layers that raised, with the reason.
        finished: whether every layer has had its turn.
    """

    about: dict[str, Any]
    limits: dict[str, float]
    rows: list[Row] = dataclasses.field(default_factory=list)
    failures: list[dict[str, str]] = dataclasses.field(default_factory=list)
    finished: bool = False

    def report(self) -> dict[str, Any]:
        """What `benchmark.json` holds."""
        return {
            "finished": self.finished,
            **self.about,
            "limits": self.limits,
            "summary": summary(self.rows),
            "failures": self.failures,
            "rows": [row._asdict() for row in self.rows],
        }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Geometric means of the speed, over all and by direction; what falls short."""

    def names(falls_short: Callable[[Row], bool]) -> list[str]:
        return [f"{r.rule}: {r.case}, {r.direction}" for r in rows if falls_short(r)]

    found = dict.fromkeys(row.direction for row in rows)
    means = {"overall": _means(rows)}
    means |= {d: _means([row for row in rows if row.direction == d]) for d in found}
    return {
        "speed": means,
        "slower_than_autodiff": names(lambda row: row.slow),
        "longer_to_compile": names(lambda row: row.long_to_compile),
        "more_memory": names(lambda row: row.large),
    }


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    def mean(ratios: Sequence[float | None]) -> float | None:
        known = [ratio for ratio in ratios if ratio]
        return statistics.geometric_mean(known) if known else None

    return {
        "rows": len(rows),
        "autodiff_ratio": mean([row.autodiff_ratio for row in rows]),
        "torch_ratio": mean([row.torch_ratio for row in rows]),
    }


def print_table(findings: Findings, console: Console) -> None:
    """Prints a line for each row."""
    limits = findings.limits
    table = Table(
        box=box.SIMPLE_HEAD,
        title="autodiff, torch: their time / handgrad's; error, memory, compile: "
        "handgrad's / autodiff's",
        title_justify="left",
    )
    for column in ("layer", "direction", "formula"):
        table.add_column(column, no_wrap=column != "formula")
    for column in (
        "ms",
        "autodiff",
        "torch",
        "error",
        "memory",
        "compile",
        f"GFLOP/s\nof {limits['matmul_gflops']:.0f}",
        f"GB/s\nof {limits['copy_gbs']:.0f}",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    before = None
    for row in findings.rows:
        if before and before.case != row.case:
            table.add_section()
        name = row.case if row.rule == "conv" else f"{row.case} ({row.rule})"
        table.add_row(
            "" if before and before.case == row.case else name,
            row.direction,
            row.formula or "–",
            _text(row.ms),
            _text(row.autodiff_ratio, style="red" if row.slow else ""),
            _text(row.torch_ratio),
            _text(row.error_ratio),
            _text(row.memory_ratio, style="red" if row.large else ""),
            _text(row.compile_ratio, style="red" if row.long_to_compile else ""),
            "–" if row.gflops is None else f"{row.gflops:.0f}",
            f"{row.gbs:.1f}",
        )
        before = row
    console.print(table)


def _text(number: float | None, style: str = "") -> str:
    """Three digits, or what stands for none."""
    if number is None:
        return "–"
    digits = 2 if number < 10 else 1 if number < 100 else 0
    text = f"{number:.{digits}f}"
    return f"[{style}]{text}[/{style}]" if style else text


def print_summary(findings: Findings, console: Console) -> None:
    """Prints the means, then every row that falls short."""
    found = summary(findings.rows)
    table = Table(
        box=box.SIMPLE_HEAD,
        title="Speed, geometric mean: above 1, handgrad is faster",
        title_justify="left",
    )
    table.add_column("direction")
    for column in ("rows", "against autodiff", "against torch"):
        table.add_column(column, justify="right")
    for direction, means in found["speed"].items():
        ratios = (_text(means[key]) for key in ("autodiff_ratio", "torch_ratio"))
        table.add_row(direction, str(means["rows"]), *ratios)
    console.print(table)
    _print_short(
        f"below {SLOW} of autodiff's speed",
        [(row, _text(row.autodiff_ratio)) for row in findings.rows if row.slow],
        console,
    )
    _print_short(
        f"above {LONG} of autodiff's compile time",
        [(r, _text(r.compile_ratio)) for r in findings.rows if r.long_to_compile],
        console,
    )
    _print_short(
        "more memory than autodiff",
        [
            (r, f"{_megabytes(r.temp_bytes)}, not {_megabytes(r.autodiff_temp_bytes)}")
            for r in findings.rows
            if r.large
        ],
        console,
    )
    for failure in findings.failures:
        console.print(f"failed: {failure['case']}: {failure['reason']}", markup=False)


def _print_short(what: str, short: Sequence[tuple[Row, str]], console: Console) -> None:
    console.print(f"{what}: {len(short)} rows", highlight=False)
    for row, figure in short:
        place = f"{row.case}, {row.direction} ({row.formula or '–'})"
        console.print(f"  {figure:>6}  {place}", highlight=False, markup=False)


def _megabytes(number: int | None) -> str:
    return "–" if number is None else f"{number / 1e6:.1f} MB"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the flags")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a command line; `layers` are the cases that it names."""
    parser = _Parser(
        prog="python -m experiments.benchmark", description=_ABOUT, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="ops", required=True)
    ops = commands.add_parser(
        "ops",
        help="layers of real networks, one at a time",
        description=_ABOUT,
        allow_abbrev=False,
    )
    ops.add_argument(
        "names",
        nargs="*",
        metavar="TEXT",
        help="only layers with this text in the name of rule, layer or network",
    )
    ops.add_argument(
        "--filter", action="append", default=[], metavar="TEXT", help="the same"
    )
    ops.add_argument(
        "--directions",
        type=_directions,
        default=DIRECTIONS,
        metavar="NAMES",
        help="some of forward,input,kernel,all (all four)",
    )
    ops.add_argument(
        "--quick",
        action="store_true",
        help="one layer of each network unless layers are named, and fewer calls",
    )
    ops.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    ops.add_argument(
        "--workdir",
        type=Path,
        default=Path("runs/benchmark"),
        help="where to write (runs/benchmark)",
    )
    flags = parser.parse_args(arguments)
    flags.layers = select([*flags.names, *flags.filter], flags.quick)
    return flags


def _directions(text: str) -> tuple[str, ...]:
    known = {direction.split()[0]: direction for direction in DIRECTIONS}
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"{name!r}: choose from {', '.join(known)}, with commas between them"
            )
    return tuple(direction for name, direction in known.items() if name in names)


def select(texts: Sequence[str], quick: bool) -> list[Case]:
    """The layers that any of the texts names, all of them without a text.

    Args:
        texts: parts of the names of rules, layers or networks, in any case.
        quick: whether to take the first layer of each network where no text chooses.

    Raises:
        UsageError: a text names nothing.
    """
    layers = [case for case in cases.LAYERS if case.rule in MEASURED]
    if not texts and quick:
        firsts: dict[str | None, Case] = {}
        for case in layers:
            firsts.setdefault(case.network, case)
        return list(firsts.values())
    for text in texts:
        if not any(_named(case, text) for case in layers):
            networks = dict.fromkeys(case.network for case in layers if case.network)
            raise UsageError(
                f"{text!r} names no layer; the networks are {', '.join(networks)}"
            )
    if not texts:
        return layers
    return [case for case in layers if any(_named(case, text) for text in texts)]


def _named(case: Case, text: str) -> bool:
    names = (case.rule, case.name, case.network or "")
    return any(text.lower() in name.lower() for name in names)


def run(flags: argparse.Namespace, console: Console) -> Findings:
    """Measures as the flags say, prints the tables and writes the files."""
    open_workdir(flags.workdir)
    effort = QUICK if flags.quick else FULL
    torch = None if flags.no_torch else _load_torch(console)
    path, figure = (flags.workdir / f"benchmark.{end}" for end in ("json", "png"))
    try:
        figure.unlink(missing_ok=True)  # an earlier run's
        findings = Findings(_about(flags, torch), machine_limits(effort))
        write_json(path, findings.report())
        _warm_up()
        with _progress() as progress:
            bar = progress.add_task("", total=len(flags.layers))
            for case in flags.layers:
                progress.update(bar, description=case.name)
                _add(findings, case, flags.directions, effort, torch)
                write_json(path, findings.report())
                progress.advance(bar)
        findings.finished = True
        write_json(path, findings.report())
        if findings.rows:
            bars([row._asdict() for row in findings.rows], figure)
    except OSError as error:
        raise UsageError(
            f"--workdir {flags.workdir}: cannot be written ({error.strerror}); name "
            "another directory"
        ) from error
    print_table(findings, console)
    print_summary(findings, console)
    return findings


def _add(
    findings: Findings,
    case: Case,
    wanted: Sequence[str],
    effort: Effort,
    torch: Any,
) -> None:
    try:
        findings.rows += measure_layer(case, wanted, effort, torch)
    # Whatever one layer raises, the others are measured.
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        reason = f"{type(error).__name__}: {line}"
        findings.failures.append({"case": str(case), "reason": reason})


def _load_torch(console: Console) -> Any:
    if jax.devices()[0].platform != "cpu":
        console.print("PyTorch is left out: it is measured on a CPU only")
        return None
    torch = benchmark_torch.load()
    if torch is None:
        console.print("PyTorch is left out: the module torch is not installed")
    return torch


def _about(flags: argparse.Namespace, torch: Any) -> dict[str, Any]:
    about = describe_environment()
    about["versions"]["torch"] = torch.__version__ if torch else None
    return {
        **about,
        "threads": torch.get_num_threads() if torch else os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "quick": flags.quick,
        "dtype": "float32",
    }


def _progress() -> Progress:
    """A bar for a person at a terminal, nothing for a log file."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    # A log file is as wide as the table.
    console = Console(width=None if sys.stdout.isatty() else 180)
    try:
        flags = parse(arguments)
        findings = run(flags, console)
    except UsageError as error:
        print(f"experiments.benchmark: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("experiments.benchmark: interrupted", file=sys.stderr)
        return 130
    print(f"{len(findings.rows)} rows measured; see {flags.workdir}")
    return 1 if findings.failures else 0


if __name__ == "__main__":
    sys.exit(main())
