"""Worked examples as text: plain, or with colours for a terminal."""

import textwrap
from collections.abc import Sequence

import numpy as np

from handgrad.explain.step import Step, numbers

WIDTH = 78  # columns of a sentence
# Who is who in the equations keeps its colour from step to step: ANSI's codes for blue,
# yellow, magenta and green, which terminals show readably on light and on dark.
COLOURS = {"x": "34", "X": "34", "k": "33", "K": "33", "W": "33", "δ": "35", "d": "35"}
GRADIENT, HEADING = "1;32", "1"


def render(
    steps: Sequence[Step], *, colour: bool = False, width: int | None = None
) -> str:
    """Writes the steps as text: numbered sentences, and matrices with aligned names.

    Args:
      steps: a worked example.
      colour: whether to write ANSI's colours.
      width: columns that a line may have; any number by default.

    Returns:
      Its lines.

    Raises:
      ValueError: a matrix is wider.
    """
    margin = max(len(step.name) for step in steps) + 4
    paragraphs, number = [], 0
    for sentence, matrix, name, block in steps:
        if sentence:
            number += matrix is not None
            bullet = "" if matrix is None else f"{number}. "
            text = _paragraph(sentence, bullet)
            paragraphs.append(_painted(text, HEADING, colour and not paragraphs))
        if matrix is not None:
            lines = _brackets(np.asarray(matrix), block)
            columns = margin + 3 + len(lines[0])
            if width is not None and columns > width:
                raise ValueError(
                    f"{name} is {'×'.join(map(str, matrix.shape))} and would take "
                    f"{columns} columns of the {width} there are: choose smaller "
                    "matrices"
                )
            paragraphs.append(_equation(name, lines, margin, colour))
    return "\n\n".join(paragraphs)


def _paragraph(sentence: str, bullet: str) -> str:
    """Wraps each line of a sentence, all indented as deep as the bullet."""
    indent = " " * len(bullet)
    lines = (
        textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent)
        for line in sentence.split("\n")
    )
    return bullet + "\n".join(lines)[len(bullet) :]


def _equation(name: str, lines: Sequence[str], margin: int, colour: bool) -> str:
    """`name = matrix`, with the name beside the matrix's middle row."""
    middle = (len(lines) - 1) // 2
    names = [f"{name} = " if i == middle else "" for i in range(len(lines))]
    paint = _colour(name)
    return "\n".join(
        left.rjust(margin + 3) + _painted(line, paint, colour)
        for left, line in zip(names, lines, strict=True)
    )


def _colour(name: str) -> str:
    """The colour of a matrix: that of the first letter in it that has one."""
    if name.startswith("∂L") or name in ("dK", "dX"):
        return GRADIENT
    inner = name[name.rfind("(") + 1 :]
    return COLOURS.get(inner[:1], HEADING)


def _painted(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def _brackets(matrix: np.ndarray, block: tuple[int, int]) -> list[str]:
    """The rows of a matrix between brackets, columns aligned; a scalar has none."""
    texts = numbers(matrix)
    if matrix.ndim == 0:
        return texts
    columns = matrix.shape[-1]
    tall, wide = block
    width = max(map(len, texts))
    rows = []
    for start in range(0, len(texts), columns):
        cells = [text.rjust(width) for text in texts[start : start + columns]]
        for place in range(wide, columns, wide) if wide else ():
            cells[place] = "  " + cells[place]
        rows.append("  ".join(cells))
        below = start // columns + 1
        if tall and below % tall == 0 and below * columns < len(texts):
            rows.append(" " * len(rows[-1]))
    if len(rows) == 1:
        return [f"[ {rows[0]} ]"]
    left, right = (
        top + middle * (len(rows) - 2) + bottom
        for top, middle, bottom in ("⎡⎢⎣", "⎤⎥⎦")
    )
    return [f"{a} {row} {b}" for a, row, b in zip(left, rows, right, strict=True)]
