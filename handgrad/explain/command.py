"""`python -m handgrad explain OP`: the article's example, or one's own matrices."""

import argparse
import inspect
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from handgrad import explain
from handgrad.explain import explorer

SIDE = 16  # a matrix of more rows or columns is no example
LINE = 200  # columns where there is no terminal to ask
MATRICES = {
    "image": "the layer's input: image, inputs or logits",
    "kernel": "the kernel",
    "error": "∂L/∂output, what comes back from the next layer",
    "bias": "the bias, a number for conv and a row for dense",
    "labels": "the right classes of softmax_cross_entropy, counted from 0",
}
NUMBERS = {
    "stride": "pixels between neighbouring windows: 2, or 2,1 for rows, columns",
    "dilation": "pixels between a window's neighbouring places: 2, or 2,1",
    "window": "pixels of a pool's window: 3, or 3,2",
}


def add_parser(commands: Any) -> None:
    """Adds the command `explain` to those of `python -m handgrad`."""
    names = ", ".join(explain.EXAMPLES)
    parser = commands.add_parser(
        "explain",
        help="print a worked example step by step",
        description="Prints a worked example of a backward pass, step by step: the "
        "article's, or that of your own matrices. MATRIX is text, rows separated by "
        "semicolons and numbers by spaces or commas ('1 2; 3 4'), or the path of a "
        ".npy or .txt file. If it begins with a minus sign, write --image='-1 2; 3 4'.",
    )
    parser.add_argument("example", nargs="?", default="", help=f"one of {names}")
    for name, text in MATRICES.items():
        parser.add_argument(f"--{name}", metavar="MATRIX", help=text)
    for name, text in NUMBERS.items():
        parser.add_argument(f"--{name}", metavar="N[,N]", help=text)
    parser.add_argument(
        "--padding",
        metavar="P",
        help="VALID, SAME, SAME_LOWER; zeros on every side: 1; above and below, left "
        "and right: 1,2; or above,below;left,right: '1,0;2,2'. Negative numbers crop",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="PATH",
        help="instead write a page that steps through it in the browser; for conv, "
        "im2col, max_pool and avg_pool",
    )


def run(options: argparse.Namespace) -> int:
    """Prints the example that the command line names; returns 0, or 2."""
    try:
        text = _html(options) if options.html else _text(options)
        print(text)
    except (ValueError, TypeError) as error:
        message = " ".join(str(error).split())
        if not message.startswith("explain: "):
            message = f"explain: {message}"
        print(f"python -m handgrad: {message}", file=sys.stderr)
        return 2
    return 0


def _html(options: argparse.Namespace) -> str:
    """Writes the page; says where."""
    # The example itself checks the matrices.
    explain.EXAMPLES[named(options)](**arguments(options))
    settings = explorer.configuration(named(options), **arguments(options))
    try:
        options.html.write_text(explorer.page(settings), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--html: {options.html}: {error.strerror}") from error
    return f"wrote {options.html}"


def _text(options: argparse.Namespace) -> str:
    steps = explain.EXAMPLES[named(options)](**arguments(options))
    terminal = sys.stdout.isatty()
    colour = terminal and not os.environ.get("NO_COLOR")
    colour = colour and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns if terminal else LINE
    return explain.render(steps, colour=colour, width=max(width, explain.WIDTH))


def named(options: argparse.Namespace) -> str:
    """The example's name.

    Raises:
      ValueError: there is none of that name.
    """
    if options.example not in explain.EXAMPLES:
        names = ", ".join(explain.EXAMPLES)
        raise ValueError(f"example (={options.example!r}) must be one of {names}")
    return options.example


def arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The example's keywords: those options that were given, read.

    Raises:
      ValueError: one is malformed, or the example does not take it.
    """
    takes = inspect.signature(explain.EXAMPLES[named(options)]).parameters
    read: dict[str, Callable[[str, str], Any]] = {
        **dict.fromkeys(MATRICES, _matrix),
        **dict.fromkeys(NUMBERS, _numbers),
        "padding": _padding,
    }
    given = {name: getattr(options, name) for name in read}
    given = {name: text for name, text in given.items() if text is not None}
    for name in given:
        if name not in takes:
            fitting = ", ".join(f"--{taken}" for taken in takes)
            raise ValueError(f"{options.example} takes no --{name}; it takes {fitting}")
    values: dict[str, Any] = {
        name: read[name](f"--{name}", text) for name, text in given.items()
    }
    if "bias" in values:  # one number is no matrix, and a row no matrix of one row
        row = values["bias"].ravel()
        values["bias"] = row[0] if options.example == "conv" and row.size == 1 else row
    return values


def _matrix(option: str, text: str) -> np.ndarray:
    """The matrix that the text is, or that the file it names holds."""
    if re.search(r"\.(npy|txt|csv)$", text) or os.path.isfile(text):
        values = _file(option, Path(text))
    else:
        values = _parsed(option, text)
    if values.ndim > 2 or not values.size:
        raise ValueError(
            f"{option} must be a matrix with numbers, got shape {values.shape}"
        )
    values = np.atleast_2d(values)
    rows, columns = values.shape
    if max(rows, columns) > SIDE:
        raise ValueError(
            f"{option} (={rows}×{columns}) must have at most {SIDE} rows and {SIDE} "
            "columns to be printed"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{option} must hold finite numbers")
    return values


def _file(option: str, path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            return _parsed(option, path.read_text())
    except (OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, ValueError) and reason.startswith(option):
            raise
        raise ValueError(f"{option}: {path} cannot be read: {reason}") from error
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{option}: {path} holds {values.dtype}, no real numbers")
    return values.astype(np.float64)


def _parsed(option: str, text: str) -> np.ndarray:
    """`1 2; 3 4` or lines of numbers."""
    rows = [row.replace(",", " ").split() for row in re.split(r"[;\n]", text)]
    rows = [row for row in rows if row]
    for row in rows:
        for number in row:
            try:
                float(number)
            except ValueError:
                raise ValueError(f"{option}: {number!r} is no number") from None
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{option}: every row must have as many numbers; row {i + 1} has "
                f"{len(row)}, row 1 has {len(rows[0])}"
            )
    return np.array(rows, np.float64)


def _numbers(option: str, text: str) -> tuple[int, int]:
    """`2` for both dimensions, or `2,1`."""
    numbers = [_integer(option, n) for n in re.split(r"[,x×]", text)]
    if len(numbers) > 2:
        raise ValueError(f"{option} (={text!r}) must be N or ROWS,COLUMNS")
    return numbers[0], numbers[-1]


def _padding(option: str, text: str) -> Any:
    """A name, one number, one a dimension, or `low,high;low,high`."""
    if text.replace("_", "").isalpha():
        return text
    pairs = [[_integer(option, n) for n in part.split(",")] for part in text.split(";")]
    if len(pairs) == 1 and len(pairs[0]) <= 2:
        return tuple((n, n) for n in (pairs[0] * 2)[:2])
    if len(pairs) == 2 and all(len(pair) == 2 for pair in pairs):
        return tuple(map(tuple, pairs))
    raise ValueError(
        f"{option} (={text!r}) must be a name, 1, 1,2 or above,below;left,right"
    )


def _integer(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{option}: {text!r} is no whole number") from None
