"""`python -m handgrad check package.module:function --shape 2,8,8,3 ...`."""

import argparse
import ast
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "float64", "bfloat16", "float16", "complex64", "int32")


def add_parser(commands: Any) -> None:
    """Adds the command `check` to those of `python -m handgrad`."""
    parser = commands.add_parser(
        "check",
        help="check the derivative of any function",
        description="Checks a function's hand-written derivative on random arguments "
        "and prints the report. Exit status: 0 passed, 1 failed, 2 bad call.",
    )
    parser.add_argument("function", help="as package.module:function")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="N,N,...[:DTYPE]",
        help=f"an argument, once for each; DTYPE is one of {', '.join(DTYPES)}; a "
        "number is the shape ''",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a keyword argument, a Python literal or a word",
    )
    parser.add_argument("--reference", help="as package.module:function")
    parser.add_argument("--checks", default="", help="only these, with commas")
    parser.add_argument("--without", default="", help="all but these, with commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the report")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw error maps")


def run(options: argparse.Namespace) -> int:
    """Checks as the command line says; returns 0, 1 or 2."""
    from handgrad.testing import ALL, check_rule

    try:
        keywords = dict(map(_option, options.option))
        f = _function(options.function, keywords)
        reference = options.reference and _function(options.reference, keywords)
        random = np.random.default_rng(options.seed)
        args = tuple(_argument(text, random) for text in options.shape)
        left_out = _names(options.without)
        unknown = [name for name in left_out if name not in ALL]
        if unknown:
            raise ValueError(f"--without: {unknown[0]!r} is none of {', '.join(ALL)}")
        chosen = _names(options.checks) or list(ALL)
        report = check_rule(
            f,
            args,
            reference=reference or None,
            checks=[name for name in chosen if name not in left_out],
            seed=options.seed,
            raise_on_failure=False,
        )
        if options.json:
            options.json.write_text(report.to_json() + "\n")
        if options.plot:
            report.plot(options.plot)
    except Exception as error:  # whatever the function raises: nothing was checked
        lines = str(error).splitlines() or [""]
        print(f"check: {type(error).__name__}: {lines[0]}", file=sys.stderr)
        return 2
    print(report)
    return 0 if report.passed else 1


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _function(text: str, keywords: dict[str, Any]) -> Callable[..., Any]:
    """The function that `package.module:function` names."""
    module, colon, path = text.partition(":")
    if not colon or not path:
        raise ValueError(f"{text!r} must be package.module:function")
    value: Any = importlib.import_module(module)
    for name in path.split("."):
        value = getattr(value, name)
    return functools.partial(value, **keywords) if keywords else value


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--option {text!r} must be NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _argument(text: str, random: np.random.Generator) -> np.ndarray:
    """Random numbers in the shape and dtype that the text names."""
    sizes, _, dtype = text.partition(":")
    dtype = dtype or "float32"
    if dtype not in DTYPES:
        raise ValueError(f"--shape {text}: {dtype!r} is none of {', '.join(DTYPES)}")
    try:
        shape = tuple(int(size) for size in sizes.split(",") if size.strip())
    except ValueError:
        raise ValueError(f"--shape {text}: must be numbers with commas") from None
    if any(size < 0 for size in shape):
        raise ValueError(f"--shape {text}: must not be negative")
    if dtype == "int32":
        return random.integers(0, 2, shape).astype(np.int32)
    numbers = random.standard_normal(shape)
    if dtype == "complex64":
        numbers = numbers + 1j * random.standard_normal(shape)
    return np.asarray(numbers).astype(jnp.dtype(dtype))
