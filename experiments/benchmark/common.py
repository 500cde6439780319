"""What the parts of the benchmark share: work directory, progress, surroundings."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from experiments.benchmark import pytorch
from experiments.compare_gradients import open_workdir
from experiments.runs import UsageError, describe_environment


def add_flags(command: argparse.ArgumentParser, *, quick: str, torch: bool) -> None:
    """Adds the flags that parts have in common.

    Args:
        command: the part's parser.
        quick: what `--quick` does.
        torch: whether PyTorch is a side, which `--no-torch` leaves out.
    """
    command.add_argument("--quick", action="store_true", help=quick)
    if torch:
        command.add_argument(
            "--no-torch", action="store_true", help="leave PyTorch out"
        )
    command.add_argument(
        "--workdir",
        type=Path,
        default=Path("runs/benchmark"),
        help="where to write (runs/benchmark)",
    )


@contextlib.contextmanager
def writing_to(workdir: Path) -> Iterator[None]:
    """Opens the directory; whatever cannot be written there is the flag's fault."""
    open_workdir(workdir)
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--workdir {workdir}: cannot be written ({error.strerror}); name another "
            "directory"
        ) from error


def load_torch(flags: argparse.Namespace, console: Console) -> Any:
    """The module torch, or `None` with the reason printed."""
    if flags.no_torch:
        return None
    if jax.devices()[0].platform != "cpu":
        console.print("PyTorch is left out: it is measured on a CPU only")
        return None
    torch = pytorch.load()
    if torch is None:
        console.print("PyTorch is left out: the module torch is not installed")
    return torch


def about(flags: argparse.Namespace, torch: Any) -> dict[str, Any]:
    """Device, versions and flags, as a report begins."""
    found = describe_environment()
    found["versions"]["torch"] = torch.__version__ if torch else None
    return {
        **found,
        "threads": torch.get_num_threads() if torch else os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "quick": flags.quick,
        "dtype": "float32",
    }


def progress() -> Progress:
    """A bar for a person at a terminal, nothing for a log file."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def reason(error: Exception) -> str:
    """An error in one line."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line}"
