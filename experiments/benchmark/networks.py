"""Measures a whole step of training: Flax, handgrad, `rewrite` and PyTorch in turn."""

import argparse
import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen
import jax
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table

import handgrad
import handgrad.linen
from experiments.benchmark import common, networks_flax, networks_torch
from experiments.benchmark.figure import network_bars
from experiments.benchmark.layers import Effort, compile_in_turns, warm_up
from experiments.benchmark.networks_flax import NETWORKS, Network
from experiments.runs import UsageError, write_json
from handgrad import measure

FULL, QUICK = Effort(3.0, 1), Effort(0.3, 1)
FLAX, HANDGRAD, REWRITE, TORCH = "flax", "handgrad", "rewrite", "torch"
LEARNING_RATE = 1e-3
# The first loss is the same number on all sides, up to this share of it.
SAME = 1e-3


def training_step(
    model: Any, change: Callable[[Any], Any] = lambda loss: loss
) -> Callable[..., Any]:
    """A step of SGD with momentum: (state, images, labels) -> (state, loss).

    Args:
        model: a module of Flax.
        change: what is done to the loss function before its gradient is taken.
    """

    def loss(params, statistics, images, labels):
        variables = {"params": params, "batch_stats": statistics}
        logits, new = model.apply(variables, images, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new.get("batch_stats", {})

    def step(state, images, labels):
        params, statistics, momentum = state
        gradient = jax.value_and_grad(change(loss), has_aux=True)
        (value, statistics), grads = gradient(params, statistics, images, labels)
        updates, momentum = OPTIMIZER.update(grads, momentum)
        params = optax.apply_updates(params, updates)
        return (params, statistics, momentum), value

    return step


OPTIMIZER = optax.sgd(LEARNING_RATE, momentum=0.9)


def steps(network: Network) -> dict[str, Callable[..., Any]]:
    """JAX's sides of a network."""
    stock = networks_flax.build(flax.linen, network)
    return {
        FLAX: training_step(stock),
        HANDGRAD: training_step(networks_flax.build(handgrad.linen, network)),
        REWRITE: training_step(stock, handgrad.rewrite),
    }


class _Training:
    """A compiled step with its own state, which each call moves on."""

    def __init__(self, executable: Any, state: Any, batch: tuple[Any, Any]):
        self._executable = executable
        # The step overwrites its state: that of another side must not be the same.
        self._state = jax.tree.map(lambda a: a.copy(), state)
        self._batch = batch

    def __call__(self) -> Any:
        self._state, loss = self._executable(self._state, *self._batch)
        return loss


def measure_network(
    name: str, network: Network, effort: Effort, torch: Any
) -> dict[str, Any]:
    """A row of the report.

    Args:
        name: the network's name.
        network: what it is.
        effort: how long to measure.
        torch: the module, or `None` to leave PyTorch out.
    """
    batch = networks_flax.batch(network)
    model = networks_flax.build(flax.linen, network)
    variables = jax.jit(model.init)(jax.random.key(1), batch[0])
    params = variables["params"]
    state = params, variables.get("batch_stats", {}), OPTIMIZER.init(params)
    sides = steps(network)
    compiled = compile_in_turns(
        sides, (state, *batch), effort.compiles, donate_argnums=0
    )
    traced = _tracing_seconds(sides, (state, *batch), effort)
    calls: dict[str, Callable[[], Any]] = {
        side: _Training(each.executable, state, batch)
        for side, each in compiled.items()
    }
    if torch:
        calls[TORCH] = networks_torch.Step(
            torch, network, variables, batch, LEARNING_RATE
        )
    losses = {side: float(call()) for side, call in calls.items()}
    seconds = measure.interleaved(calls, seconds=effort.seconds)
    measured = {
        side: {
            "ms": 1e3 * seconds[side],
            "loss": losses[side],
            "temp_bytes": compiled[side].temp_bytes if side in compiled else None,
            "trace_s": traced.get(side),
            "compile_s": compiled[side].seconds if side in compiled else None,
        }
        for side in calls
    }
    return {
        "network": name,
        "batch": network.batch,
        "image": list(network.image),
        "parameters": sum(a.size for a in jax.tree.leaves(params)),
        "same_loss": bool(
            np.allclose(list(losses.values()), losses[FLAX], rtol=SAME, atol=0)
        ),
        **_ratios(measured),
        "sides": measured,
    }


def _tracing_seconds(
    sides: Mapping[str, Callable[..., Any]], arguments: Any, effort: Effort
) -> dict[str, float]:
    """Seconds to trace each step once more: what a shape costs once is paid for."""

    def tracing(step):
        def trace():
            fresh = functools.partial(step)  # a known function is not traced again
            return jax.jit(fresh).trace(*arguments)

        return trace

    traces = {side: tracing(step) for side, step in sides.items()}
    gc.disable()  # as `timeit` does: it looks through all that was ever imported
    try:
        return measure.interleaved(traces, seconds=effort.seconds)
    finally:
        gc.enable()


def _ratios(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    def ratio(key, above, below):
        a, b = (sides.get(side, {}).get(key) for side in (above, below))
        return a / b if a and b else None

    return {
        "speedup": ratio("ms", FLAX, HANDGRAD),
        "rewrite_speedup": ratio("ms", FLAX, REWRITE),
        "torch_ratio": ratio("ms", TORCH, HANDGRAD),
        "rewrite_time": ratio("ms", REWRITE, HANDGRAD),
        "memory_ratio": ratio("temp_bytes", HANDGRAD, FLAX),
        "rewrite_memory_ratio": ratio("temp_bytes", REWRITE, FLAX),
        "compile_ratio": ratio("compile_s", HANDGRAD, FLAX),
        "trace_ratio": ratio("trace_s", HANDGRAD, FLAX),
        "rewrite_trace_ratio": ratio("trace_s", REWRITE, FLAX),
    }


def select(texts: Sequence[str]) -> dict[str, Network]:
    """The networks whose names begin with any of the texts, all without a text.

    Raises:
        UsageError: a text names nothing.
    """
    for text in texts:
        if not any(name.startswith(text.lower()) for name in NETWORKS):
            raise UsageError(
                f"{text!r} names no network; there are {', '.join(NETWORKS)}"
            )
    return {
        name: network
        for name, network in NETWORKS.items()
        if not texts or any(name.startswith(text.lower()) for text in texts)
    }


def add_command(commands: Any) -> None:
    """Adds `networks` to the benchmark's command line."""
    about = "Measures whole steps of training next to Flax and to PyTorch."
    command = commands.add_parser(
        "networks", help="whole networks", description=about, allow_abbrev=False
    )
    command.add_argument(
        "names",
        nargs="*",
        metavar="TEXT",
        help=f"only networks whose name begins so: {', '.join(NETWORKS)}",
    )
    common.add_flags(command, quick="fewer calls", torch=True)


def run(flags: argparse.Namespace, console: Console) -> int:
    """Measures networks as the flags say, prints the table and writes the files."""
    chosen = select(flags.names)
    effort = QUICK if flags.quick else FULL
    path, figure = (flags.workdir / f"networks.{end}" for end in ("json", "png"))
    failures: list[dict[str, str]] = []
    rows: list[dict[str, Any]] = []
    with common.writing_to(flags.workdir):
        torch = common.load_torch(flags, console)
        report = {"finished": False, **common.about(flags, torch)}
        report |= {"failures": failures, "rows": rows}
        figure.unlink(missing_ok=True)  # an earlier run's
        write_json(path, report)
        warm_up()
        with common.progress() as progress:
            bar = progress.add_task("", total=len(chosen))
            for name, network in chosen.items():
                progress.update(bar, description=name)
                try:
                    rows.append(measure_network(name, network, effort, torch))
                # Whatever one network raises, the others are measured.
                except Exception as error:
                    failure = {"network": name, "reason": common.reason(error)}
                    failures.append(failure)
                write_json(path, report)
                progress.advance(bar)
        report["finished"] = True
        write_json(path, report)
        if rows:
            network_bars(rows, figure)
    print_table(rows, console)
    for failure in failures:
        reason = f"failed: {failure['network']}: {failure['reason']}"
        console.print(reason, markup=False)
    print(f"{len(rows)} networks measured; see {flags.workdir}")
    same = all(row["same_loss"] for row in rows)
    return 0 if same and not failures else 1


def print_table(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints a line for each network and side."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="A training step: median milliseconds, temporary memory, tracing it once "
        "more and compilation",
        title_justify="left",
    )
    table.add_column("network", no_wrap=True)
    table.add_column("side", no_wrap=True)
    titles = "ms", "× Flax", "MB", "of Flax's", "trace s", "compile s", "first loss"
    for column in titles:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_section()
        stock = row["sides"][FLAX]
        for side, each in row["sides"].items():
            memory = each["temp_bytes"]
            table.add_row(
                row["network"] if side == FLAX else "",
                side,
                f"{each['ms']:.1f}",
                f"{stock['ms'] / each['ms']:.2f}",
                "–" if memory is None else f"{memory / 1e6:.1f}",
                f"{memory / stock['temp_bytes']:.2f}"
                if memory is not None and stock["temp_bytes"]
                else "–",
                "–" if each["trace_s"] is None else f"{each['trace_s']:.3f}",
                "–" if each["compile_s"] is None else f"{each['compile_s']:.1f}",
                f"{each['loss']:.4f}",
                style=None if row["same_loss"] else "red",
            )
    console.print(table)
