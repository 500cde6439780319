"""The command line of the benchmark."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from experiments.benchmark import networks, pytorch
from experiments.benchmark.figure import bars, network_bars
from experiments.benchmark.layers import (
    DIRECTIONS,
    FULL,
    MEASURED,
    QUICK,
    Effort,
    machine_limits,
    measure_layer,
    warm_up,
)
from experiments.benchmark.report import Findings, print_summary, print_table
from experiments.compare_gradients import open_workdir
from experiments.runs import UsageError, describe_environment, write_json
from handgrad import cases
from handgrad.cases import Case

_ABOUT = "Measures every rule next to JAX's own gradient and to PyTorch."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the flags")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a command line; `layers` are the cases that it names."""
    parser = _Parser(
        prog="python -m experiments.benchmark", description=_ABOUT, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="ops|networks", required=True)
    ops = commands.add_parser(
        "ops",
        help="layers of real networks, one at a time",
        description=_ABOUT,
        allow_abbrev=False,
    )
    ops.add_argument(
        "names",
        nargs="*",
        metavar="TEXT",
        help="only layers with this text in the name of rule, layer or network",
    )
    ops.add_argument(
        "--filter", action="append", default=[], metavar="TEXT", help="the same"
    )
    ops.add_argument(
        "--directions",
        type=_directions,
        default=DIRECTIONS,
        metavar="NAMES",
        help="some of forward,input,kernel,all (all four)",
    )
    ops.add_argument(
        "--quick",
        action="store_true",
        help="one layer of each network unless layers are named, and fewer calls",
    )
    about = "Measures whole steps of training next to Flax and to PyTorch."
    whole = commands.add_parser(
        "networks", help="whole networks", description=about, allow_abbrev=False
    )
    whole.add_argument(
        "names",
        nargs="*",
        metavar="TEXT",
        help=f"only networks whose name begins so: {', '.join(networks.NETWORKS)}",
    )
    whole.add_argument("--quick", action="store_true", help="fewer calls")
    for command in (ops, whole):
        command.add_argument(
            "--no-torch", action="store_true", help="leave PyTorch out"
        )
        command.add_argument(
            "--workdir",
            type=Path,
            default=Path("runs/benchmark"),
            help="where to write (runs/benchmark)",
        )
    flags = parser.parse_args(arguments)
    if flags.command == "ops":
        flags.layers = select([*flags.names, *flags.filter], flags.quick)
        return flags
    try:
        flags.networks = networks.select(flags.names)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return flags


def _directions(text: str) -> tuple[str, ...]:
    known = {direction.split()[0]: direction for direction in DIRECTIONS}
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"{name!r}: choose from {', '.join(known)}, with commas between them"
            )
    return tuple(direction for name, direction in known.items() if name in names)


def select(texts: Sequence[str], quick: bool) -> list[Case]:
    """The layers that any of the texts names, all of them without a text.

    Args:
        texts: parts of the names of rules, layers or networks, in any case.
        quick: whether to take the first layer of each network where no text chooses.

    Raises:
        UsageError: a text names nothing.
    """
    layers = [case for case in cases.LAYERS if case.rule in MEASURED]
    if not texts and quick:
        firsts: dict[str | None, Case] = {}
        for case in layers:
            firsts.setdefault(case.network, case)
        return list(firsts.values())
    for text in texts:
        if not any(_named(case, text) for case in layers):
            networks = dict.fromkeys(case.network for case in layers if case.network)
            raise UsageError(
                f"{text!r} names no layer; the networks are {', '.join(networks)}"
            )
    if not texts:
        return layers
    return [case for case in layers if any(_named(case, text) for text in texts)]


def _named(case: Case, text: str) -> bool:
    names = (case.rule, case.name, case.network or "")
    return any(text.lower() in name.lower() for name in names)


def run_networks(flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measures networks as the flags say, prints the table and writes the files."""
    open_workdir(flags.workdir)
    effort = networks.QUICK if flags.quick else networks.FULL
    torch = None if flags.no_torch else _load_torch(console)
    path, figure = (flags.workdir / f"networks.{end}" for end in ("json", "png"))
    failures: list[dict[str, str]] = []
    rows: list[dict[str, Any]] = []
    report = {"finished": False, **_about(flags, torch)}
    report |= {"failures": failures, "rows": rows}
    try:
        figure.unlink(missing_ok=True)  # an earlier run's
        write_json(path, report)
        warm_up()
        with _progress() as progress:
            bar = progress.add_task("", total=len(flags.networks))
            for name, network in flags.networks.items():
                progress.update(bar, description=name)
                try:
                    rows.append(
                        networks.measure_network(name, network, effort, torch)
                    )
                # Whatever one network raises, the others are measured.
                except Exception as error:
                    failures.append({"network": name, "reason": _reason(error)})
                write_json(path, report)
                progress.advance(bar)
        report["finished"] = True
        write_json(path, report)
        if rows:
            network_bars(rows, figure)
    except OSError as error:
        raise _unwritable(flags.workdir, error) from error
    networks.print_table(rows, console)
    for failure in failures:
        reason = f"failed: {failure['network']}: {failure['reason']}"
        console.print(reason, markup=False)
    return report


def run(flags: argparse.Namespace, console: Console) -> Findings:
    """Measures layers as the flags say, prints the tables and writes the files."""
    open_workdir(flags.workdir)
    effort = QUICK if flags.quick else FULL
    torch = None if flags.no_torch else _load_torch(console)
    path, figure = (flags.workdir / f"benchmark.{end}" for end in ("json", "png"))
    try:
        figure.unlink(missing_ok=True)  # an earlier run's
        findings = Findings(_about(flags, torch), machine_limits(effort))
        write_json(path, findings.report())
        warm_up()
        with _progress() as progress:
            bar = progress.add_task("", total=len(flags.layers))
            for case in flags.layers:
                progress.update(bar, description=case.name)
                _add(findings, case, flags.directions, effort, torch)
                write_json(path, findings.report())
                progress.advance(bar)
        findings.finished = True
        write_json(path, findings.report())
        if findings.rows:
            bars([row._asdict() for row in findings.rows], figure)
    except OSError as error:
        raise _unwritable(flags.workdir, error) from error
    print_table(findings, console)
    print_summary(findings, console)
    return findings


def _add(
    findings: Findings,
    case: Case,
    wanted: Sequence[str],
    effort: Effort,
    torch: Any,
) -> None:
    try:
        findings.rows += measure_layer(case, wanted, effort, torch)
    # Whatever one layer raises, the others are measured.
    except Exception as error:
        findings.failures.append({"case": str(case), "reason": _reason(error)})


def _reason(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line}"


def _unwritable(workdir: Path, error: OSError) -> UsageError:
    return UsageError(
        f"--workdir {workdir}: cannot be written ({error.strerror}); name another "
        "directory"
    )


def _load_torch(console: Console) -> Any:
    if jax.devices()[0].platform != "cpu":
        console.print("PyTorch is left out: it is measured on a CPU only")
        return None
    torch = pytorch.load()
    if torch is None:
        console.print("PyTorch is left out: the module torch is not installed")
    return torch


def _about(flags: argparse.Namespace, torch: Any) -> dict[str, Any]:
    about = describe_environment()
    about["versions"]["torch"] = torch.__version__ if torch else None
    return {
        **about,
        "threads": torch.get_num_threads() if torch else os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "quick": flags.quick,
        "dtype": "float32",
    }


def _progress() -> Progress:
    """A bar for a person at a terminal, nothing for a log file."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    # A log file is as wide as the table.
    console = Console(width=None if sys.stdout.isatty() else 180)
    try:
        flags = parse(arguments)
        if flags.command == "networks":
            report = run_networks(flags, console)
            print(f"{len(report['rows'])} networks measured; see {flags.workdir}")
            same = all(row["same_loss"] for row in report["rows"])
            return 0 if same and not report["failures"] else 1
        findings = run(flags, console)
    except UsageError as error:
        print(f"experiments.benchmark: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("experiments.benchmark: interrupted", file=sys.stderr)
        return 130
    print(f"{len(findings.rows)} rows measured; see {flags.workdir}")
    return 1 if findings.failures else 0


if __name__ == "__main__":
    sys.exit(main())
