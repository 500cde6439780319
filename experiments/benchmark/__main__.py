"""The command line of the benchmark: a command for each of its parts."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console

from experiments.benchmark import memory, networks, ops, scale
from experiments.runs import UsageError

PARTS = {"ops": ops, "networks": networks, "memory": memory, "scale": scale}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the flags")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a command line."""
    parser = _Parser(
        prog="python -m experiments.benchmark",
        description="Measures every rule next to JAX's own gradient and to PyTorch.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for part in PARTS.values():
        part.add_command(commands)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    # A log file is as wide as the table.
    console = Console(width=None if sys.stdout.isatty() else 180)
    try:
        flags = parse(arguments)
        return PARTS[flags.command].run(flags, console)
    except UsageError as error:
        print(f"experiments.benchmark: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("experiments.benchmark: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
