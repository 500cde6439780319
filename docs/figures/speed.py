"""Speed bars, from docs/data/benchmark.json."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from figures.style import Ink

DATA = Path(__file__).parent.parent / "data" / "benchmark.json"
MOST = 24  # layers: as many as one looks through
DIRECTION = "all"


def rows() -> list[dict]:
    """One row a layer, of all directions together; those with most to say."""
    report = json.loads(DATA.read_text())
    found = [r for r in report["rows"] if r["direction"] == DIRECTION]
    found = [r for r in found if r["autodiff_ratio"]]
    found.sort(key=lambda r: -abs(np.log(r["autodiff_ratio"])))
    return sorted(found[:MOST], key=lambda r: -r["autodiff_ratio"])


def draw(ink: Ink) -> Figure:
    """Times as fast as JAX's own gradient, a layer a bar."""
    found = rows()
    figure = Figure(figsize=(9, 0.34 * len(found) + 1.3), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(found))
    torch = [
        r["autodiff_ms"] / r["torch_ms"] if r.get("torch_ms") else None for r in found
    ]
    sides = [("handgrad", [r["autodiff_ratio"] for r in found], ink.x, "")]
    if any(torch):
        sides.append(("PyTorch", torch, ink.k, "///"))
    for i, (label, ratios, colour, hatch) in enumerate(sides):
        known = [(p, r) for p, r in zip(places, ratios, strict=True) if r]
        axes.barh(
            [p + (i - (len(sides) - 1) / 2) * 0.4 for p, _ in known],
            [r - 1 for _, r in known],
            0.38,
            left=1,
            color=colour,
            hatch=hatch,
            edgecolor=ink.page,
            label=label,
        )
    axes.axvline(1, color=ink.text, lw=1)
    axes.set_yticks(places, [f"{r['case']} ({r['rule']})" for r in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set(xscale="log", xlabel="times as fast as JAX's own gradient (log scale)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", alpha=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure
