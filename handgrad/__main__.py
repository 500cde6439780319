"""`python -m handgrad`: the table of rules on this machine, `explain` and `check`."""

import argparse
import collections
import dataclasses
import io
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from handgrad import cases, measure
from handgrad.explain import command as explain
from handgrad.rules import RULES, Rule
from handgrad.testing import command as check

SECONDS = 0.05  # each measured function may run about so long
WIDTH = 200  # columns where there is no terminal to ask, wide enough for every row


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
      arguments: the command line's words; those of the process by default.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a narrow encoding shows "?" for δ
    parser = argparse.ArgumentParser(
        prog="python -m handgrad",
        description="Prints the table of rules, measured on this machine: how far each "
        "gradient is from float64 and how fast it is, both next to autodiff.",
    )
    commands = parser.add_subparsers(dest="command", metavar="explain | check")
    explain.add_parser(commands)
    check.add_parser(commands)
    options = parser.parse_args(arguments)

    if options.command is None:
        return _print_table()
    if options.command == "check":
        return check.run(options)
    return explain.run(options)


def _fail(message: str) -> int:
    print(f"python -m handgrad: {message}", file=sys.stderr)
    return 2


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of a rule.

    Attributes:
      rule: the rule.
      error: largest elementwise error against float64 of value and gradients, over all
        cases, in float32.
      autodiff_error: the same for JAX's own gradient.
      speedup: autodiff's time divided by the rule's, geometric mean over the layers of
        real networks.
    """

    rule: Rule
    error: float | None
    autodiff_error: float | None
    speedup: float | None


def _measure(advance: Callable[[], Any]) -> list[Row]:
    """Measures every rule's best formulas; calls `advance` after each measurement."""
    errors, speedups = collections.defaultdict(list), collections.defaultdict(list)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # nearly all of it is compiling
        found = pool.map(lambda case: measure.errors(case, None), cases.CASES)
        for case, some in zip(cases.CASES, found, strict=True):
            errors[case.rule] += some
            advance()
    for case in _timed_cases():  # one at a time, on a machine that is quiet again
        seconds = measure.times(case, (None, "autodiff"), seconds=SECONDS)
        speedups[case.rule].append(seconds["autodiff"] / seconds[None])
        advance()
    return [
        Row(
            rule,
            error=max((e.error for e in errors[name]), default=None),
            autodiff_error=max((e.autodiff_error for e in errors[name]), default=None),
            speedup=statistics.geometric_mean(speedups[name])
            if speedups[name]
            else None,
        )
        for name, rule in RULES.items()
    ]


def _timed_cases() -> list[cases.Case]:
    return [case for case in cases.CASES if case.network]


def _print_table() -> int:
    try:  # the core does without rich
        from rich import box
        from rich.console import Console
        from rich.progress import Progress
        from rich.table import Table
    except ModuleNotFoundError:
        return _fail("the table needs rich: pip install 'handgrad[experiments]'")

    with Progress(
        console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    ) as progress:
        total = len(cases.CASES) + len(_timed_cases())
        task = progress.add_task("measuring the rules", total=total)
        rows = _measure(lambda: progress.advance(task))

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # A name is never folded while there is room for it: people search for it.
    table.add_column("rule", overflow="fold", min_width=max(len(n) for n in RULES))
    for header in ("formulas", "source"):
        table.add_column(header, overflow="fold")
    for header in ("error", "autodiff's\nerror", "speed\n(geom. mean)"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.rule.name,
            ", ".join(row.rule.formulas),
            row.rule.source,
            _text(row.error, ".1e"),
            _text(row.autodiff_error, ".1e"),
            _text(row.speedup, ".2f", "×"),
        )
    width = None if sys.stdout.isatty() else WIDTH
    console = Console(width=width, highlight=False, markup=False)
    console.print(table)
    console.print(
        "error: largest elementwise error of value and gradients in float32 against "
        "float64, over all cases; next to it that of JAX's own gradient.\n"
        "speed: autodiff's time / ours for value and gradients, geometric mean over "
        "the layers of real networks; more than 1 is faster.\n"
        f"measured with jax {jax.__version__} on {_device()}"
    )
    return 0


def _text(number: float | None, form: str, unit: str = "") -> str:
    """The number, or what stands for none; an exact 0 is written plainly."""
    if number is None:
        return "–"
    return f"{number:{form}}{unit}" if number else "0"


def _device() -> str:
    device = jax.devices()[0]
    kinds = " ".join(dict.fromkeys((device.platform, device.device_kind)))
    count = jax.device_count()
    return f"{count} × {kinds}" if count > 1 else kinds


if __name__ == "__main__":
    sys.exit(main())
