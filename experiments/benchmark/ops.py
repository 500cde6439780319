"""Layers of real networks, one at a time, in each direction: `benchmark ops`."""

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from experiments.benchmark import common
from experiments.benchmark.figure import bars
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
from experiments.runs import UsageError, write_json
from handgrad import cases
from handgrad.cases import Case


def add_command(commands: Any) -> None:
    """Adds `ops` to the benchmark's command line."""
    about = "Measures every rule next to JAX's own gradient and to PyTorch."
    ops = commands.add_parser(
        "ops",
        help="layers of real networks, one at a time",
        description=about,
        allow_abbrev=False,
    )
    add_layers(ops)
    ops.add_argument(
        "--directions",
        type=_directions,
        default=DIRECTIONS,
        metavar="NAMES",
        help="some of forward,input,kernel,all (all four)",
    )
    quick = "one layer of each network unless layers are named, and fewer calls"
    common.add_flags(ops, quick=quick, torch=True)


def add_layers(command: argparse.ArgumentParser) -> None:
    """Adds the arguments that choose layers; `select` reads them."""
    command.add_argument(
        "names",
        nargs="*",
        metavar="TEXT",
        help="only layers with this text in the name of rule, layer or network",
    )
    command.add_argument(
        "--filter", action="append", default=[], metavar="TEXT", help="the same"
    )


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


def run(flags: argparse.Namespace, console: Console) -> int:
    """Measures layers as the flags say, prints the tables and writes the files."""
    layers = select([*flags.names, *flags.filter], flags.quick)
    effort = QUICK if flags.quick else FULL
    path, figure = (flags.workdir / f"benchmark.{end}" for end in ("json", "png"))
    with common.writing_to(flags.workdir):
        torch = common.load_torch(flags, console)
        figure.unlink(missing_ok=True)  # an earlier run's
        findings = Findings(common.about(flags, torch), machine_limits(effort))
        write_json(path, findings.report())
        warm_up()
        with common.progress() as progress:
            bar = progress.add_task("", total=len(layers))
            for case in layers:
                progress.update(bar, description=case.name)
                _add(findings, case, flags.directions, effort, torch)
                write_json(path, findings.report())
                progress.advance(bar)
        findings.finished = True
        write_json(path, findings.report())
        if findings.rows:
            bars([row._asdict() for row in findings.rows], figure)
    print_table(findings, console)
    print_summary(findings, console)
    print(f"{len(findings.rows)} rows measured; see {flags.workdir}")
    return 1 if findings.failures else 0


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
        failure = {"case": str(case), "reason": common.reason(error)}
        findings.failures.append(failure)
