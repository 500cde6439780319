"""Pictures of where gradients err: float64 truth, ours − truth, autodiff − truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure


class Map(NamedTuple):
    """The arrays of one picture: truth, the formula's and autodiff's."""

    title: str
    truth: np.ndarray
    hand: np.ndarray
    autodiff: np.ndarray


def error_maps(maps: Sequence[Map], dtype: str, path: Path) -> None:
    """Draws truth, ours − truth and autodiff − truth, a row for each map.

    The two errors of a row share their colours, so that the paler one is the better.
    """
    # A panel is 3.4 inches wide at most, and 2.6 high; 0.8 are for the titles.
    shapes = [tiled(truth).shape for _, truth, _, _ in maps]
    heights = [min(2.6, 3.4 * rows / columns) + 0.8 for rows, columns in shapes]
    figure = Figure(figsize=(13, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(f"Where {dtype} gradients err, against float64 truth\n")
    figure.text(
        0.5,
        1 - 0.45 / (sum(heights) + 0.6),
        "Both errors of a row have one scale. Grey lines part examples and channels.",
        fontsize=9,
        horizontalalignment="center",
    )
    parts = figure.subfigures(
        len(maps), 1, squeeze=False, height_ratios=heights, hspace=0.04
    )[:, 0]
    for part, (title, truth, hand, autodiff) in zip(parts, maps, strict=True):
        part.suptitle(title, fontsize=11, x=0.01, horizontalalignment="left")
        errors = [hand - truth, autodiff - truth]
        largest = [float(np.abs(error).max()) for error in errors]
        limits = [_limit(truth), _limit(*errors), _limit(*errors)]
        heads = [
            "float64 truth",
            f"handgrad − truth: at most {largest[0]:.1e}",
            f"autodiff − truth: at most {largest[1]:.1e}",
        ]
        panels = zip(part.subplots(1, 3), heads, [truth, *errors], limits, strict=True)
        for axes, head, array, limit in panels:
            axes.set_title(head, fontsize=9)
            axes.set(xticks=[], yticks=[], facecolor="0.6")
            picture = axes.imshow(
                tiled(array),
                cmap="RdBu_r" if array is truth else "PuOr_r",
                vmin=-limit,
                vmax=limit,
                interpolation="nearest",
            )
            bar = part.colorbar(picture, ax=axes, pad=0.02)
            bar.formatter.set_powerlimits((-2, 3))
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def _limit(*arrays: np.ndarray) -> float:
    """The end of a colour scale: the largest finite value, or 1 if all are zero."""
    finite = (array[np.isfinite(array)] for array in arrays)
    return max(float(np.abs(values).max(initial=0.0)) for values in finite) or 1.0


def tiled(array: np.ndarray) -> np.ndarray:
    """Lays an array of any rank out as one picture.

    [n h w c] becomes a table of images h × w with gaps (NaN) between them, a row for
    each n and a column for each c. Other arrays become rows of their last axis.
    """
    if array.ndim != 4:
        return array.reshape(-1, array.shape[-1]) if array.ndim else array[None, None]
    if array.shape[0] == array.shape[-1] == 1:
        return array[0, ..., 0]
    gaps = np.pad(array, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=np.nan)
    n, height, width, c = gaps.shape
    table = gaps.transpose(0, 1, 3, 2).reshape(n * height, c * width)
    return table[:-1, :-1]
