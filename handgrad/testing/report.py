"""What `check_rule` found, as a table, as JSON, as a picture."""

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from handgrad.testing.checks.verdict import Result
from handgrad.testing.compare import Failure

WIDTH = 100
_MARKS = {"passed": "passed", "failed": "FAILED", "skipped": "–"}
_STYLES = {"passed": "green", "failed": "bold red", "skipped": "dim"}


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of all checks of a rule.

    Attributes:
      name: the rule's name.
      results: one for each check, in the order of `handgrad.testing.ALL`.
      seconds: how long all of it took.
      maps: title, reference and ours, for `plot`.
    """

    name: str
    results: tuple[Result, ...]
    seconds: float
    maps: tuple[tuple[str, np.ndarray, np.ndarray], ...] = dataclasses.field(
        default=(), repr=False
    )

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [r.check for r in self.results if r.status == "failed"]

    @property
    def worst(self) -> Failure | None:
        """The element that is furthest off, of the first check that shows one."""
        return next((r.worst for r in self.results if r.worst), None)

    def __str__(self) -> str:
        """A readable table; the worst elements and hints of failed checks in full."""
        ran = [r for r in self.results if r.status != "skipped"]
        good = sum(r.status == "passed" for r in ran)
        title = f"{self.name}: {good} of {len(ran)} checks passed, {self.seconds:.1f} s"
        try:  # the core does without rich
            from rich import box
            from rich.console import Console
            from rich.table import Table
        except ModuleNotFoundError:
            lines = (
                f"{_MARKS[r.status]:7}{r.check:17}{r.message}" for r in self.results
            )
            return "\n".join([title, *lines])
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title)
        table.title_justify = "left"
        table.add_column("check", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("what was found", overflow="fold")
        for r in self.results:
            table.add_row(r.check, _MARKS[r.status], r.message, style=_STYLES[r.status])
        out = io.StringIO()
        console = Console(  # text, also where a notebook would get HTML
            file=out, width=WIDTH, markup=False, highlight=False, force_jupyter=False
        )
        console.print(table)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def to_json(self) -> str:
        """The report as JSON; numbers that JSON does not know are strings."""
        return json.dumps(
            {
                "name": self.name,
                "passed": self.passed,
                "seconds": round(self.seconds, 3),
                "jax": jax.__version__,
                "platform": jax.default_backend(),
                "worst": _plain(self.worst),
                "checks": [_plain(result) for result in self.results],
            },
            indent=2,
            ensure_ascii=False,
            allow_nan=False,
        )

    def plot(self, path: str | Path) -> None:
        """Draws reference, ours and their difference, a row for each array.

        The arrays are those that failed or, if none did, every cotangent.

        Args:
          path: the picture's file; its ending is the format.

        Raises:
          ValueError: no check that compares arrays was run.
        """
        if not self.maps:
            raise ValueError(
                "Report.plot: there are no arrays; run the check cotangents"
            )
        from handgrad.testing.plot import draw  # matplotlib is not the core's

        draw(self.name, self.maps, Path(path))


def _plain(value: Any) -> Any:
    """What JSON can hold of a result or a failure."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {n: _plain(getattr(value, n)) for n in names if n != "maps"}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, complex):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value
