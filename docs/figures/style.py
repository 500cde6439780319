"""What the figures share: two colourings, a grid of numbers, and how they are saved.

The colours are Okabe and Ito's, which colour-blind readers tell apart; what matters is
also said by an outline, a hatch or a label.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle


@dataclasses.dataclass(frozen=True)
class Ink:
    """The colours of one scheme: text, what stands back, and who is who."""

    name: str
    text: str
    soft: str
    line: str
    page: str
    x: str
    k: str
    d: str
    g: str
    shades: tuple[str, ...]


LIGHT = Ink(
    name="light",
    text="#1c1f24",
    soft="#5a626e",
    line="#c3c8cf",
    page="#ffffff",
    x="#0072B2",
    k="#B35900",
    d="#8a3a7a",
    g="#00735a",
    shades=("#cfe6f5", "#fbe0c4", "#c9eddf", "#f4d9ec"),
)
DARK = Ink(
    name="dark",
    text="#e9ebee",
    soft="#a6afba",
    line="#4a525d",
    page="#14171b",
    x="#7cc4f0",
    k="#f2ac66",
    d="#e6a3d6",
    g="#6fd8b8",
    shades=("#123f5c", "#5a3108", "#07483a", "#56234b"),
)


def save(draw: Callable[[Ink], Figure], name: str, folder: Path) -> None:
    """Writes `name-light.svg` and `name-dark.svg`, transparent, with real text."""
    settings = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        # Verdana has DejaVu's widths, where a reader has no DejaVu.
        "font.sans-serif": ["DejaVu Sans", "Verdana"],
        "font.size": 10,
    }
    for ink in (LIGHT, DARK):
        colours = dict.fromkeys(
            (
                "text.color",
                "axes.labelcolor",
                "xtick.color",
                "ytick.color",
                "axes.edgecolor",
            ),
            ink.text,
        )
        colours |= {"axes.facecolor": "none", "figure.facecolor": "none"}
        colours |= {"grid.color": ink.line}
        # Both may stand in one page, where a name can be defined once.
        colours |= {"svg.hashsalt": f"{name}-{ink.name}"}
        with mpl.rc_context(settings | colours):
            figure = draw(ink)
            path = folder / f"{name}-{ink.name}.svg"
            temporary = path.with_suffix(".tmp")
            figure.savefig(
                temporary, format="svg", transparent=True, metadata={"Date": None}
            )
            temporary.replace(path)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure whose unit is a cell of a matrix, y downwards."""
    figure = Figure(figsize=(width * 0.36, height * 0.36))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    return figure, axes


def text_of(value: float) -> str:
    """As the worked examples write it."""
    rounded = round(float(value), 2) + 0.0
    return f"{rounded:g}".replace("-", "−")


def grid(
    axes: Axes,
    ink: Ink,
    values: np.ndarray,
    at: tuple[float, float],
    colour: str,
    *,
    title: str = "",
    fills: np.ndarray | None = None,
    faint: np.ndarray | None = None,
    boxes: Sequence[tuple[int, int, int, int]] = (),
    bold: Collection[tuple[int, int]] = (),
    box_colour: str | None = None,
) -> tuple[float, float]:
    """Draws a matrix; returns the middle of its right side.

    Args:
      axes: a `canvas`.
      ink: the scheme.
      values: matrix of numbers, or of strings.
      at: (x, y) of its upper left corner.
      colour: of its outline and title.
      title: above it.
      fills: a colour, or "", for each cell.
      faint: whether a cell stands back.
      boxes: (row, column, rows, columns) outlined.
      bold: cells with heavy numbers.
      box_colour: the outlines' colour.
    """
    x, y = at
    rows, columns = values.shape
    for r, c in np.ndindex(rows, columns):
        fill = "none" if fills is None or not fills[r, c] else fills[r, c]
        axes.add_patch(
            Rectangle((x + c, y + r), 1, 1, facecolor=fill, edgecolor=ink.line, lw=0.7)
        )
        value = values[r, c]
        back = faint is not None and faint[r, c]
        axes.text(
            x + c + 0.5,
            y + r + 0.52,
            value if isinstance(value, str) else text_of(value),
            ha="center",
            va="center",
            fontsize=9,
            color=ink.soft if back else ink.text,
            alpha=0.7 if back else 1,
            fontweight="bold" if (r, c) in bold else "normal",
        )
    outline = {"facecolor": "none", "edgecolor": colour}
    axes.add_patch(Rectangle((x, y), columns, rows, lw=1.6, **outline))
    for r, c, h, w in boxes:
        axes.add_patch(
            Rectangle(
                (x + c, y + r),
                w,
                h,
                facecolor="none",
                edgecolor=box_colour or ink.k,
                lw=2.6,
            )
        )
    axes.text(
        x, y - 0.35, title, color=colour, ha="left", va="bottom", fontweight="bold"
    )
    return x + columns, y + rows / 2


def arrow(axes: Axes, ink: Ink, start, end, label: str = "", bend: float = 0) -> None:
    """An arrow with a word on it."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            color=ink.soft,
            lw=1.3,
            connectionstyle=f"arc3,rad={bend}",
        )
    )
    if label:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - 0.3)
        axes.text(*middle, label, ha="center", va="bottom", color=ink.soft, fontsize=9)
