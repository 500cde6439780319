"""Error maps: the reference, ours, and their difference, side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

MOST = 6  # rows of a picture


def draw(
    name: str, maps: Sequence[tuple[str, np.ndarray, np.ndarray]], path: Path
) -> None:
    """Draws a row of three pictures for each (title, reference, ours)."""
    maps = [row for row in maps if np.asarray(row[1]).size][:MOST]
    figure = Figure(figsize=(12, 3 * len(maps) + 0.5), layout="constrained")
    figure.suptitle(f"{name}: where the gradient errs")
    panels = figure.subplots(max(len(maps), 1), 3, squeeze=False)
    for axes_row, (title, reference, ours) in zip(panels, maps, strict=False):
        reference, ours = (real(array) for array in (reference, ours))
        difference = ours - reference
        size = limit(reference)
        for axes, head, array, end in (
            (axes_row[0], f"{title}: reference", reference, size),
            (axes_row[1], "ours", ours, size),
            (axes_row[2], "ours − reference", difference, limit(difference)),
        ):
            axes.set_title(head, fontsize=9)
            axes.set(xticks=[], yticks=[], facecolor="0.6")
            picture = axes.imshow(
                tiled(array),
                cmap="PuOr_r" if array is difference else "RdBu_r",
                vmin=-end,
                vmax=end,
                interpolation="nearest",
                aspect="auto",
            )
            figure.colorbar(picture, ax=axes, pad=0.02)
    figure.savefig(path, dpi=120)


def real(array: np.ndarray) -> np.ndarray:
    """The array in float64; of complex numbers real and imaginary parts in turn."""
    array = np.asarray(array)
    if np.iscomplexobj(array):
        array = np.stack([np.real(array), np.imag(array)], axis=-1)
    return array.astype(np.float64)


def limit(*arrays: np.ndarray) -> float:
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
