"""What a benchmark found: its report, its table and what falls short."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.benchmark.layers import LONG, SLOW, Row


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
