"""`python docs/figures FOLDER` draws every figure; the build does so, too."""

import importlib
import sys
from pathlib import Path

import jax

sys.path[:0] = [str(Path(__file__).parent.parent)]
from figures.style import save  # noqa: E402

# Each is a file here; `curves` is drawn by the tutorial whose run it shows.
FIGURES = (
    "turned",
    "phases",
    "columns",
    "upsampling",
    "residuals",
    "errors",
    "speed",
)


def draw_all(folder: Path) -> None:
    """Writes each figure in both colourings."""
    # They show numbers, not times: programs compile in half of it.
    jax.config.update("jax_disable_most_optimizations", True)
    folder.mkdir(exist_ok=True)
    for name in FIGURES:
        save(importlib.import_module(f"figures.{name}").draw, name, folder)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/_figures"))
