"""The figure of a benchmark: how many times as fast as JAX's own gradient."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

# The colours of the other figures, which colour-blind readers tell apart too.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#E69F00", "#009E73"
_SIDES = (("autodiff_ratio", "handgrad", _BLUE), ("torch", "PyTorch", _ORANGE))
_HEIGHT = 0.4  # of a bar, where a case has 1


def bars(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the rows of `benchmark.json`: a panel a direction, two bars a case.

    A bar begins at autodiff, so it points right where its side is the faster one.
    """
    cases = list(dict.fromkeys((row["rule"], row["case"]) for row in rows))
    directions = list(dict.fromkeys(row["direction"] for row in rows))
    figure = Figure(
        figsize=(3.3 * len(directions) + 3, 0.27 * len(cases) + 1.8),
        layout="constrained",
    )
    figure.suptitle(
        "Speed relative to JAX's own gradient (1 is equal, 2 twice as fast)"
    )
    # One scale for all panels, so that they can be compared, too.
    panels = figure.subplots(
        1, len(directions), squeeze=False, sharex=True, sharey=True
    )[0]
    for axes, direction in zip(panels, directions, strict=True):
        chosen = {
            (r["rule"], r["case"]): r for r in rows if r["direction"] == direction
        }
        _panel(axes, direction, [chosen.get(case) for case in cases])
    names = [case if rule == "conv" else f"{case} ({rule})" for rule, case in cases]
    panels[0].set_yticks(range(len(cases)), names)
    panels[0].set_ylim(len(cases) - 0.4, -0.6)  # the first case at the top
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    _save(figure, path)


def network_bars(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the rows of `networks.json`: how many times as fast as stock Flax."""
    sides = {
        "handgrad": ("handgrad.linen", _BLUE),
        "rewrite": ("handgrad.rewrite of the Flax model", _GREEN),
        "torch": ("PyTorch", _ORANGE),
    }
    figure = Figure(figsize=(8, 0.8 * len(rows) + 1.8), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(sides)
    for index, (side, (label, color)) in enumerate(sides.items()):
        found = [
            (place, row["sides"]["flax"]["ms"] / row["sides"][side]["ms"])
            for place, row in enumerate(rows)
            if side in row["sides"]
        ]
        if not found:
            continue
        places, ratios = zip(*found, strict=True)
        bars = axes.barh(
            [place + (index - 1) * height for place in places],
            [ratio - 1 for ratio in ratios],
            height=height,
            left=1,
            color=color,
            label=label,
        )
        axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3)
    axes.axvline(1, color="0.2", linewidth=1)
    axes.set(xscale="log", xlabel="times as fast as stock Flax, a training step")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(rows)), [row["network"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first network at the top
    figure.legend(loc="outside lower center", ncols=len(sides))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=100)
    temporary.replace(path)


def _panel(
    axes: Axes, direction: str, rows: Sequence[Mapping[str, Any] | None]
) -> None:
    for index, (key, label, color) in enumerate(_SIDES):
        ratios = [(place, _ratio(row, key)) for place, row in enumerate(rows)]
        measured = [(place, ratio) for place, ratio in ratios if ratio]
        if not measured:
            continue
        places, lengths = zip(*measured, strict=True)
        axes.barh(
            [place + (index - 0.5) * _HEIGHT for place in places],
            [length - 1 for length in lengths],
            height=_HEIGHT,
            left=1,
            color=color,
            label=label,
        )
    axes.axvline(1, color="0.2", linewidth=1)
    axes.set(title=direction, xscale="log", xlabel="times as fast")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(top=True, labeltop=True)  # a long figure is read from both ends
    for place in range(1, len(rows), 2):  # stripes lead the eye from name to bar
        axes.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)


def _ratio(row: Mapping[str, Any] | None, key: str) -> float | None:
    """How many times as fast as autodiff a side is."""
    if row is None:
        return None
    if key == "torch":
        return row["autodiff_ms"] / row["torch_ms"] if row["torch_ms"] else None
    return row[key]
