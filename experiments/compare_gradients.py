"""Compares every hand-derived gradient with float64 truth and with autodiff.

`python -m experiments.compare_gradients` takes every rule, formula and named case on
this device; `--help` lists the flags. It prints a table, exits with status 1 if any
comparison failed, and writes to the work directory

    report.json       every comparison, the device and the versions
    error_maps.png    where a few telling gradients err, pixel by pixel

`report.json` holds `passed`, which is true if every row passed; and `rules`, a row for
each comparison: `rule`, `formula`, `case`, `dtype`, `cotangent`, `error`,
`autodiff_error`, `ratio` and `passed`. `cotangent` is

    "value"                   for the forward value,
    an argument's name        for its cotangent: both as `handgrad.measure.errors`,
    "difference quotient"     for the float64 gradient against central differences,
    "none"                    where the formula gave nothing to compare: it raised, and
                              `notes` tells what.

A number that is missing or not finite (the ratio to an autodiff that is exact, say) is
`null`. `skipped` lists what was not compared and why, `notes` what else to know.
"""

import argparse
import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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

from experiments.error_maps import Map, error_maps
from experiments.runs import UsageError, describe_environment, write_json
from handgrad import measure
from handgrad.cases import Case
from handgrad.rules import RULES

# Central differences of step h = 1e-6 err by rounding, ε/h, and by curvature, h²: seven
# digits are what they can promise, and one wrong entry of a million shows.
QUOTIENT_TOLERANCE = 1e-7
_DTYPES = ("float32", "bfloat16")
_ABOUT = "Compares every hand-derived gradient with float64 truth and with autodiff."
# Compiling is most of the work, and leaves Python to the other threads.
_THREADS = min(4, os.cpu_count() or 1)
_MAPS_SHOWN = 4


class Row(NamedTuple):
    """One comparison: an entry of `rules` in the report."""

    rule: str
    formula: str
    case: str
    dtype: str
    cotangent: str
    error: float | None
    autodiff_error: float | None
    ratio: float | None
    passed: bool


@dataclasses.dataclass
class Findings:
    """What the comparison of a formula, or of many, brought to light.

    Attributes:
        rows: the comparisons.
        skipped: what was not compared, and the reason.
        notes: sentences about rows.
        maps: what `error_maps` draws.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    maps: list[Map] = dataclasses.field(default_factory=list)

    def __iadd__(self, other: "Findings") -> "Findings":
        for field in dataclasses.fields(self):
            getattr(self, field.name).extend(getattr(other, field.name))
        return self

    @property
    def failures(self) -> list[Row]:
        """The rows that failed."""
        return [row for row in self.rows if not row.passed]

    @property
    def passed(self) -> bool:
        """Whether there was something to compare and all of it passed."""
        return bool(self.rows) and not self.failures


# The gradients whose error maps tell most, the cotangent and the formula of each. Of a
# rule that has none here, its first cases are drawn.
_TELLING = {
    ("conv", "article 4x4 with 3x3"): ("rot180", "x"),
    ("conv", "lenet5 conv 2"): ("gemm", "kernel"),
    ("avg_pool", "overlapping 3x3/1"): ("hand", "inputs"),
    ("max_pool", "overlapping 3x3/1"): ("hand", "inputs"),
}


def compare(rule: str | None, dtypes: Sequence[str]) -> Findings:
    """Compares every formula of a rule, or of all of them, in every named case.

    Args:
        rule: the rule's name, `None` for all.
        dtypes: what the formulas compute in; the difference quotient is in float64.
    """
    names = list(RULES) if rule is None else [rule]
    findings = Findings()
    drawn = _drawn(names)
    tasks = [(formula, case) for name in names for formula, case in measure.pairs(name)]
    with _progress() as progress, ThreadPoolExecutor(_THREADS) as pool:
        futures = [
            pool.submit(_compare_formula, formula, case, dtypes, drawn.get(case))
            for formula, case in tasks
        ]
        bar = progress.add_task("", total=len(tasks))
        try:
            for (_, case), future in zip(tasks, futures, strict=True):
                progress.update(bar, description=case.rule)
                findings += future.result()
                progress.advance(bar)
        finally:  # after Ctrl-C too, nothing is left to wait for
            pool.shutdown(cancel_futures=True)
    for name in set(names) - {case.rule for _, case in tasks}:
        findings += _nothing(name, "", "", "", "handgrad.cases has no case of it")
    return findings


def _drawn(rules: Sequence[str]) -> dict[Case, tuple[str, str]]:
    """The cases to draw, each with the formula and the cotangent."""
    pairs = [pair for rule in rules for pair in measure.pairs(rule)]
    telling = {
        case: _TELLING[case.rule, case.name]
        for formula, case in pairs
        if _TELLING.get((case.rule, case.name), ("",))[0] == formula
    }
    if telling:
        return telling
    drawn = {}
    for formula, case in pairs:
        floating, _ = measure.split(case.arrays("float32"))
        if floating and all(array.size for array in floating.values()):
            drawn.setdefault(case, (formula, next(iter(floating))))
    return dict(list(drawn.items())[: _MAPS_SHOWN - 1])


def _compare_formula(
    formula: str, case: Case, dtypes: Sequence[str], drawn: tuple[str, str] | None
) -> Findings:
    """Compares one formula in one case: each dtype, then the difference quotient."""
    findings = Findings()
    # A formula is judged by its own rounding, not by that of an accelerator which takes
    # fewer bits than the dtype has; and infinities fail without NumPy's warning.
    with jax.default_matmul_precision("highest"), np.errstate(invalid="ignore"):
        for dtype in dtypes:
            try:
                errors = measure.errors(case, formula, dtype)
            # Whatever one formula raises, the others are compared, and this one failed.
            except Exception as error:
                findings += _raised(case, formula, dtype, error)
                continue
            findings += _judge(case, formula, dtype, errors)
            if drawn and drawn[0] == formula and dtype == dtypes[0]:
                findings.maps += [
                    _map(f"{case.rule} ({formula}), {case.name}", error)
                    for error in errors
                    if error.cotangent == drawn[1]
                ]
        try:
            findings += _compare_quotient(case, formula)
        except Exception as error:
            findings += _raised(case, formula, "float64", error)
    return findings


def _judge(
    case: Case, formula: str, dtype: str, errors: Sequence[measure.Error]
) -> Findings:
    findings = Findings()
    trusted = float(jnp.finfo(dtype).eps) ** 0.5
    for e in errors:
        numbers = (_number(e.error), _number(e.autodiff_error), _number(e.ratio))
        row = Row(case.rule, formula, case.name, dtype, e.cotangent, *numbers, e.passed)
        findings.rows.append(row)
        if not e.autodiff_error <= trusted:
            findings.notes.append(
                f"{_place(row)}: autodiff itself is off, by {e.autodiff_error:.1e} "
                f"(the formula by {e.error:.1e})"
            )
    return findings


def _map(title: str, error: measure.Error) -> Map:
    arrays = [np.asarray(array, np.float64) for array in error.maps]
    if error.cotangent == "kernel" and arrays[0].ndim == 4:  # [k l c o] -> [c k l o]
        arrays = [array.transpose(2, 0, 1, 3) for array in arrays]
    return Map(f"{title}: gradient of {error.cotangent}", *arrays)


def _compare_quotient(case: Case, formula: str) -> Findings:
    """The formula's and autodiff's float64 gradients against central differences."""
    what = (case.rule, formula, case.name, "float64")
    if case.kinked:
        reason = "its inputs lie on kinks, where difference quotients say nothing"
        return _skip(*what, f"difference quotient: {reason}")
    error = measure.difference_quotient(case, formula)
    autodiff_error = measure.difference_quotient(case, "autodiff")
    ratio = error / autodiff_error if autodiff_error else math.inf
    ratio = 1.0 if error == autodiff_error else ratio
    numbers = (_number(error), _number(autodiff_error), _number(ratio))
    passed = error <= QUOTIENT_TOLERANCE
    row = Row(*what, "difference quotient", *numbers, passed)
    findings = Findings(rows=[row])
    if not autodiff_error <= QUOTIENT_TOLERANCE:
        findings.notes.append(
            f"{_place(row)}: autodiff itself is off, by {autodiff_error:.1e}, and "
            "autodiff in float64 is the truth of the other rows"
        )
    return findings


def _raised(case: Case, formula: str, dtype: str, error: Exception) -> Findings:
    what, message = (case.rule, formula, case.name, dtype), _line(error)
    # So `Rule.choose` says that a formula is not for this geometry.
    if isinstance(error, ValueError) and message.startswith(
        f"{case.rule}: implementation (={formula!r}) must be one of"
    ):
        return _skip(*what, message)
    return _nothing(*what, f"{type(error).__name__}: {message}")


def _skip(rule: str, formula: str, case: str, dtype: str, reason: str) -> Findings:
    entry = {"rule": rule, "formula": formula, "case": case, "dtype": dtype}
    return Findings(skipped=[{**entry, "reason": reason}])


def _nothing(rule: str, formula: str, case: str, dtype: str, reason: str) -> Findings:
    """A failure without numbers."""
    row = Row(rule, formula, case, dtype, "none", None, None, None, False)
    return Findings(rows=[row], notes=[f"{_place(row)}: {reason}"])


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _number(value: float) -> float | None:
    """The number, if JSON knows it."""
    return float(value) if math.isfinite(value) else None


def _place(row: Row) -> str:
    parts = [row.rule, row.formula, row.case, row.dtype, row.cotangent]
    return ", ".join(part for part in parts if part not in ("", "none"))


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


def print_table(findings: Findings, console: Console) -> None:
    """Prints a line for each rule, formula and dtype, then what failed, in full."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in findings.rows:
        groups.setdefault((row.rule, row.formula, row.dtype), []).append(row)
    table = _table("rule", "formula", "dtype", "checks", title="Worst of each formula")
    for key, rows in groups.items():
        checks = f"{sum(row.passed for row in rows)}/{len(rows)}"
        table.add_row(*key, checks, *_cells(max(rows, key=_badness)))
    console.print(table)
    for note in findings.notes:
        console.print(f"note: {note}", highlight=False)
    for reason in sorted({entry["reason"] for entry in findings.skipped}):
        count = sum(entry["reason"] == reason for entry in findings.skipped)
        console.print(f"skipped: {count} × {reason}", highlight=False)
    if findings.failures:
        table = _table("rule", "formula", "dtype", title="Failed", style="red")
        for row in findings.failures:
            table.add_row(row.rule, row.formula, row.dtype, *_cells(row))
        console.print(table)


def _table(*columns: str, title: str, style: str = "") -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", style=style)
    for column in columns:
        table.add_column(column, justify="right" if column == "checks" else "left")
    for column in ("error", "autodiff's", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("cotangent", "case", ""):
        table.add_column(column)
    return table


def _cells(row: Row) -> tuple[str, ...]:
    verdict = "[green]passed" if row.passed else "[red]FAILED"
    error, autodiff_error = (
        "—" if value is None else f"{value:.1e}"
        for value in (row.error, row.autodiff_error)
    )
    ratio = "—" if row.ratio is None else f"{row.ratio:.2g}"
    return error, autodiff_error, ratio, row.cotangent, row.case, verdict


def _badness(row: Row) -> tuple[bool, float]:
    """Failures first, then the larger error."""
    return not row.passed, math.inf if row.error is None else row.error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the flags")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a command line."""
    parser = _Parser(
        prog="python -m experiments.compare_gradients",
        description=_ABOUT,
        allow_abbrev=False,
    )
    parser.add_argument("--rule", metavar="NAME", help="one rule only (all of them)")
    parser.add_argument(
        "--dtype",
        choices=(*_DTYPES, "all"),
        default="all",
        help="what the formulas compute in (all)",
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        default=Path("runs/compare-gradients"),
        help="where to write (runs/compare-gradients)",
    )
    flags = parser.parse_args(arguments)
    if flags.rule is not None and flags.rule not in RULES:
        raise UsageError(f"--rule {flags.rule}: choose from {', '.join(RULES)}")
    return flags


def open_workdir(path: Path) -> None:
    """Makes the work directory, and makes sure before the work that it takes files.

    Raises:
        UsageError: it is a file or cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"--workdir {path}: a file; name a directory") from error
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"--workdir {path}: cannot be made or written ({error.strerror}); name another "
        "directory"
    )


def run(flags: argparse.Namespace, console: Console) -> Findings:
    """Compares as the flags say, prints the table and writes the files."""
    open_workdir(flags.workdir)
    dtypes = _DTYPES if flags.dtype == "all" else (flags.dtype,)
    findings = compare(flags.rule, dtypes)
    print_table(findings, console)
    try:
        write_json(flags.workdir / "report.json", report(findings))
        figure = flags.workdir / "error_maps.png"
        figure.unlink(missing_ok=True)  # an earlier run's, if this one has no maps
        if findings.maps:
            error_maps(findings.maps, dtypes[0], figure)
    except OSError as error:
        raise _unwritable(flags.workdir, error) from error
    return findings


def report(findings: Findings) -> dict[str, Any]:
    """What `report.json` holds."""
    return {
        "passed": findings.passed,
        **describe_environment(),
        "notes": findings.notes,
        "skipped": findings.skipped,
        "rules": [row._asdict() for row in findings.rows],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    # A log file is as wide as the table.
    console = Console(width=None if sys.stdout.isatty() else 180)
    try:
        flags = parse(arguments)
        findings = run(flags, console)
    except UsageError as error:
        print(f"experiments.compare_gradients: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("experiments.compare_gradients: interrupted", file=sys.stderr)
        return 130
    failed, count = len(findings.failures), len(findings.rows)
    print(f"{count - failed} of {count} comparisons passed; see {flags.workdir}")
    return 0 if findings.passed else 1


if __name__ == "__main__":
    sys.exit(main())
