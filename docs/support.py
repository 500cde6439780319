"""What the pages' code cells share: worked examples, and tables made in the build."""

import functools
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax
from figures import style
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from handgrad import explain, measure
from handgrad.cases import CASES

# Pages with these tables are about numbers, not about time: programs compile in half of
# it, and err as much.
jax.config.update("jax_disable_most_optimizations", True)

DATA = Path(__file__).parent / "data"
DIRECTIONS = {
    "forward": "forward",
    "input gradient": "∂L/∂x",
    "kernel gradient": "∂L/∂k",
    "all": "all",
}


def worked(op: str, **arguments: Any) -> None:
    """Prints the worked example of `python -m handgrad explain`."""
    print(explain.render(explain.EXAMPLES[op](**arguments)))


def errors(*cases: str, formulas: Sequence[str | None] = (None,)) -> Markdown:
    """Errors against float64, measured now: ours and autodiff's, in float32.

    Args:
      *cases: as "rule: case".
      formulas: the implementations to compare.
    """
    named = {str(case): case for case in CASES}
    rows = []
    for name in cases:
        case = named[name]
        for formula in formulas:
            found = measure.errors(case, formula)
            worst = max(found, key=lambda e: e.error)
            rows.append(
                (
                    f"`{case.rule}`",
                    case.name,
                    formula or "the default",
                    f"{worst.error:.1e}",
                    f"{worst.autodiff_error:.1e}",
                )
            )
    head = ("rule", "case", "formula", "largest error", "autodiff's")
    return Markdown(
        _table(head, rows)
        + "\n\nLargest elementwise error of the value and all gradients in float32 "
        "against float64, with a random cotangent; measured while this page was built."
    )


def speed(*rules: str, case: str = "") -> Markdown:
    """Time and memory from docs/data/benchmark.json, with the machine named.

    Args:
      *rules: the rules whose layers are shown.
      case: only layers with this text in their name.
    """
    report = benchmark()
    chosen = [
        row for row in report["rows"] if row["rule"] in rules and case in row["case"]
    ]
    rows = [
        (
            f"{row['case']} (`{row['rule']}`)",
            DIRECTIONS.get(row["direction"], row["direction"]),
            row["formula"] or "–",
            f"{row['ms']:.3g}",
            _times(row["autodiff_ratio"]),
            _times(row["torch_ratio"]),
            _mebibytes(row["temp_bytes"]),
            _mebibytes(row["autodiff_temp_bytes"]),
        )
        for row in chosen
    ]
    if not rows:
        return Markdown(
            "The committed `benchmark.json` has no layer of this family: `python -m "
            f"experiments.benchmark ops {rules[0]}` measures them."
        )
    head = ("layer", "direction", "formula", "ms", "autodiff's time / ours")
    head += ("PyTorch's time / ours", "temporaries, MiB", "autodiff's, MiB")
    return Markdown(_table(head, rows) + f"\n\n{machine()}")


def picture(draw: Callable[[style.Ink], Figure], alt: str) -> HTML:
    """A figure that the page itself draws, in the colouring of the reader's scheme."""
    with tempfile.TemporaryDirectory() as folder:
        name = re.sub(r"\W+", "-", alt)  # its own in the page
        style.save(draw, name, Path(folder))
        parts = [
            f'<div class="only-{scheme}" role="img" aria-label="{escape(alt)}">'
            + _svg(Path(folder) / f"{name}-{scheme}.svg")
            + "</div>"
            for scheme in ("light", "dark")
        ]
    return HTML("".join(parts))


def _svg(path: Path) -> str:
    """The element alone, as a page holds it."""
    text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]


def machine() -> str:
    """What the benchmark ran on."""
    report = benchmark()
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items() if v)
    effort = "a quick run" if report["quick"] else "a full run"
    return (
        f"Medians of {effort} of `python -m experiments.benchmark ops` in "
        f"{report['dtype']} on {kind(report['device'])}, {report['threads']} threads; "
        f"{versions}. Above 1 handgrad is faster."
    )


def kind(device: dict[str, Any]) -> str:
    """`1 × cpu`."""
    names = " ".join(dict.fromkeys((device["platform"], device["kind"])))
    return f"{device['count']} × {names}"


@functools.cache
def benchmark() -> dict[str, Any]:
    """The committed report."""
    return json.loads((DATA / "benchmark.json").read_text())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.0f}×"


def _mebibytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**20:.1f}"
