"""Training curves on each other: the tutorial draws its own run."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from figures.style import Ink


def draw(ink: Ink, hand: Sequence[float], autodiff: Sequence[float]) -> Figure:
    """Both losses, and below them how far apart they are."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    loss, gap = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = range(1, len(hand) + 1)
    loss.plot(steps, autodiff, color=ink.k, lw=5, alpha=0.45, label="JAX's own")
    loss.plot(steps, hand, color=ink.x, lw=1.5, label="by hand")
    loss.set_ylabel("loss")
    loss.legend(frameon=False)
    apart = [abs(a - b) for a, b in zip(hand, autodiff, strict=True)]
    gap.semilogy(steps, [max(a, 1e-9) for a in apart], color=ink.d, lw=1.5)
    gap.set(xlabel="step", ylabel="apart", ylim=(1e-9, 1))
    for axes in (loss, gap):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.4)
    return figure
