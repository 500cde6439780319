"""The figures of a training run, each drawn into a PNG file of its own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.data import Dataset
from experiments.runs import Record

# Blue, orange, green and vermilion that colour-blind readers tell apart too
# (Okabe & Ito 2008).
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"


def curves(records: Sequence[Record], path: Path) -> None:
    """Loss and accuracy against the step, of training and of test images."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _curve(loss, records, "loss", _BLUE)
    loss.plot(*_series(records, "test_loss"), ".-", color=_RED, label="test")
    loss.set(title="Cross-entropy loss", xlabel="step", ylabel="loss", yscale="log")
    _curve(accuracy, records, "accuracy", _BLUE)
    accuracy.plot(*_series(records, "test_accuracy"), ".-", color=_RED, label="test")
    accuracy.set(title="Accuracy", xlabel="step", ylabel="correct images")
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def comparison(
    hand: Sequence[Record], autodiff: Sequence[Record], compared: int, path: Path
) -> None:
    """Loss curves of hand-derived and automatic gradients, and their difference."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, difference = figure.subplots(1, 2)
    steps, hand_loss = _series(hand, "loss")
    _, autodiff_loss = _series(autodiff, "loss")
    loss.plot(*_smooth(steps, hand_loss), color=_BLUE, linewidth=5, alpha=0.4)
    loss.plot(*_smooth(steps, autodiff_loss), color=_RED, linewidth=1)
    loss.set(title="Training loss", xlabel="step", ylabel="loss", yscale="log")
    loss.legend(["hand-derived", "autodiff"])
    gap = np.abs(hand_loss - autodiff_loss)
    largest = gap[:compared].max()
    # A logarithmic axis has no place for equal losses: show them as a quarter of the
    # smallest difference that float32 knows near 1.
    rounding = float(np.finfo(np.float32).eps)
    difference.loglog(steps, np.maximum(gap, rounding / 4), color=_GREEN, linewidth=0.8)
    difference.axvspan(1, compared, color=_ORANGE, alpha=0.2)
    difference.axhline(rounding, color="0.4", linestyle=":")
    difference.set(title="Hand-derived against autodiff", xlabel="step")
    difference.set(ylabel="|difference of the losses|", ylim=(rounding / 8, 10))
    difference.legend(
        [
            "difference",
            f"first {compared} steps: at most {largest:.1e}",
            "float32 rounding of 1",
        ]
    )
    for axes in (loss, difference):
        axes.grid(alpha=0.3)
    _save(figure, path)


def predictions(dataset: Dataset, predicted: np.ndarray, path: Path) -> None:
    """A grid of test images with what the network takes them for, mistakes first."""
    rows, columns = 5, 10
    wrong = np.flatnonzero(predicted != dataset.test_labels)
    right = np.flatnonzero(predicted == dataset.test_labels)
    # Half of the grid at most, so that a poor network shows what it can do too.
    wrong_shown = wrong[: rows * columns // 2]
    shown = np.concatenate([wrong_shown, right])[: rows * columns]

    _, height, width, channels = dataset.test_images.shape
    gap = height // 2  # room for a title's two lines
    white = 255 if channels == 3 else 0
    picture = _mosaic(dataset.test_images[shown], columns, gap, white)
    figure = Figure(figsize=(1.1 * columns, 1.1 * rows + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.imshow(picture.squeeze().astype(np.uint8), cmap="gray_r", vmin=0, vmax=255)
    for place, index in enumerate(shown):
        row, column = divmod(place, columns)
        guess = dataset.class_names[predicted[index]]
        label = dataset.class_names[dataset.test_labels[index]]
        axes.text(
            (column + 0.5) * (width + gap),
            row * (height + gap) + gap - 2,
            guess if guess == label else f"{guess}\n(is {label})",
            color=_BLUE if guess == label else _RED,
            fontsize=9,
            horizontalalignment="center",
            verticalalignment="bottom",
        )
    figure.suptitle(
        f"Predictions for test images; in red, {len(wrong)} of {len(predicted)} wrong"
    )
    _save(figure, path)


def kernels(kernels: np.ndarray, path: Path, *, most: int = 32) -> None:
    """The first layer's kernels, `(filters, height, width, channels)`, as images."""
    shown = kernels[:most]
    columns = min(8, len(shown))
    rows = -(-len(shown) // columns)
    limit = float(np.abs(shown).max())
    figure = Figure(figsize=(1.2 * columns + 1, 1.2 * rows + 1), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    gap = -(-shown.shape[1] // 10)
    if shown.shape[-1] == 3:
        colors = 0.5 + 0.5 * shown / limit  # zero is grey
        axes.imshow(_mosaic(colors, columns, gap, 1.0))
    else:
        values = _mosaic(shown.mean(axis=-1, keepdims=True), columns, gap, np.nan)
        picture = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        figure.colorbar(picture, shrink=0.8, label="kernel value")
    of_all = f"{len(shown)} of {len(kernels)}" if len(shown) < len(kernels) else "all"
    figure.suptitle(f"First layer's kernels ({of_all})")
    _save(figure, path)


def _mosaic(images: np.ndarray, columns: int, gap: int, filling: float) -> np.ndarray:
    """Lays images of shape `(n, height, width, channels)` out as one, in rows."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    tile = (height + gap, width + gap, channels)
    tiles = np.full((rows * columns, *tile), filling, dtype=np.float32)
    left = gap // 2
    tiles[:n, gap:, left : left + width] = images
    grid = tiles.reshape(rows, columns, *tile).swapaxes(1, 2)
    return grid.reshape(rows * tile[0], columns * tile[1], channels)


def _series(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of those records that hold `name`."""
    pairs = [(record["step"], record[name]) for record in records if name in record]
    steps, values = np.array(pairs).T
    return steps, values


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the last fiftieth of the steps at each of them."""
    window = max(1, len(values) // 50)
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    return steps[window - 1 :], means


def _curve(axes: Axes, records: Sequence[Record], name: str, color: str) -> None:
    """A training curve: every step's value faintly, their running mean boldly."""
    steps, values = _series(records, name)
    axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.5)
    axes.plot(*_smooth(steps, values), color=color, label="training")


def _save(figure: Figure, path: Path) -> None:
    """Writes the PNG whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)
