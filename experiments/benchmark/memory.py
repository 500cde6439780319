"""What lives until the backward pass: residuals of each rule, memory of whole stacks.

`python -m experiments.benchmark memory` counts and measures no time. Its table of
residuals has a row for each layer: the bytes that the backward pass needs of arrays
which neither came in nor go out ("made"), and of arguments and results that it keeps
alive ("held"). Its table of stacks has the temporary memory of the compiled training
step of conv → relu → max_pool as LeNet-5 and VGG begin.
"""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich import box
from rich.console import Console
from rich.table import Table

import handgrad
from experiments.benchmark import common, ops
from experiments.runs import describe_environment, write_json
from handgrad import measure
from handgrad.cases import Case


class Kept(NamedTuple):
    """Bytes that one layer's gradient keeps: an entry of `residuals` in the report."""

    rule: str
    case: str
    made: int
    held: int
    autodiff_made: int
    autodiff_held: int

    @property
    def larger(self) -> bool:
        """Whether autodiff keeps less."""
        return self.made + self.held > self.autodiff_made + self.autodiff_held


def kept(case: Case) -> Kept:
    """Counts the residuals of a layer, handgrad's and autodiff's, from their traces."""
    floating, fixed = measure.split(case.arrays("float32"))
    sides = []
    for implementation in (None, "autodiff"):
        op = case.function(implementation)
        found = measure.residuals(lambda a, b, op=op: op(**a, **b), floating, fixed)
        sides += [found.made, found.results + found.arguments]
    return Kept(case.rule, case.name, *sides)


@dataclasses.dataclass(frozen=True)
class Stack:
    """Convolutions with a relu each, and max pools between them.

    Attributes:
        name: of the network that begins so.
        image: shape of the batch.
        layers: features of a convolution, or "pool".
        window: pixels of the kernels in each dimension.
        padding: of each convolution in turn.
    """

    name: str
    image: tuple[int, ...]
    layers: Sequence[int | str]
    window: int
    padding: Sequence[str]


STACKS = (
    Stack("lenet5", (64, 28, 28, 1), (6, "pool", 16, "pool"), 5, ("SAME", "VALID")),
    Stack(
        "vgg-small",
        (32, 32, 32, 3),
        (32, 32, "pool", 64, 64, "pool", 128, 128, "pool"),
        3,
        ("SAME",) * 6,
    ),
    Stack(
        "vgg16",
        (2, 224, 224, 3),
        (64, 64, "pool", 128, 128, "pool"),
        3,
        ("SAME",) * 4,
    ),
)


class StackMemory(NamedTuple):
    """Temporary bytes of a stack's training step: an entry of `stacks`."""

    stack: str
    bytes: int
    autodiff_bytes: int
    ratio: float


def stack_memory(stack: Stack) -> StackMemory:
    """Compiles the training step of a stack with our gradients and with autodiff's."""
    ours, theirs = (_temporary(stack, i) for i in (None, "autodiff"))
    return StackMemory(stack.name, ours, theirs, ours / theirs)


def _temporary(stack: Stack, implementation: str | None) -> int:
    conv, relu, pool = (
        functools.partial(getattr(handgrad, op), implementation=implementation)
        for op in ("conv", "relu", "max_pool")
    )
    channels = [stack.image[-1], *(n for n in stack.layers if isinstance(n, int))]
    kernels = [
        jax.ShapeDtypeStruct((stack.window, stack.window, c, o), jnp.float32)
        for c, o in itertools.pairwise(channels)
    ]

    def loss(kernels: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        rest = iter(zip(kernels, stack.padding, strict=True))
        for layer in stack.layers:
            if layer == "pool":
                x = pool(x, (2, 2), (2, 2))
            else:
                kernel, padding = next(rest)
                x = relu(conv(x, kernel, padding=padding))
        return jnp.mean(jnp.square(x))

    def step(kernels: Any, x: jax.Array) -> Any:
        value, slopes = jax.value_and_grad(loss)(kernels, x)
        return value, jax.tree.map(lambda k, d: k - 0.01 * d, kernels, slopes)

    image = jax.ShapeDtypeStruct(stack.image, jnp.float32)
    compiled = jax.jit(step, donate_argnums=0).lower(kernels, image).compile()
    memory = compiled.memory_analysis()
    assert memory is not None  # JAX's compilers for cpu, cuda and tpu all know it
    return memory.temp_size_in_bytes


def print_residuals(rows: Sequence[Kept], console: Console) -> None:
    """Prints a line for each layer, those in red for which autodiff keeps less."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="Bytes kept for the backward pass: made for it, and arguments and "
        "results held",
        title_justify="left",
    )
    table.add_column("layer", no_wrap=True)
    for column in ("made", "held", "autodiff made", "held", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        theirs = row.autodiff_made + row.autodiff_held
        share = (row.made + row.held) / theirs if theirs else None
        table.add_row(
            f"{row.case} ({row.rule})",
            *(f"{number:,}" for number in row[2:]),
            "–" if share is None else f"{share:.2f}",
            style="red" if row.larger else "",
        )
    console.print(table)
    larger = [row for row in rows if row.larger]
    console.print(f"more than autodiff keeps: {len(larger)} rows", highlight=False)


def print_stacks(rows: Sequence[StackMemory], console: Console) -> None:
    """Prints a line for each stack."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="Temporary memory of a training step of conv → relu → max_pool",
        title_justify="left",
    )
    table.add_column("stack")
    for column in ("MB", "autodiff MB", "share"):
        table.add_column(column, justify="right")
    for row in rows:
        megabytes = (f"{n / 1e6:.2f}" for n in (row.bytes, row.autodiff_bytes))
        table.add_row(row.stack, *megabytes, f"{row.ratio:.2f}")
    console.print(table)


def add_command(commands: Any) -> None:
    """Adds `memory` to the benchmark's command line."""
    command = commands.add_parser(
        "memory",
        help="what lives until the backward pass; measures no time",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    ops.add_layers(command)
    quick = "one layer of each network unless layers are named"
    common.add_flags(command, quick=quick, torch=False)


def run(flags: argparse.Namespace, console: Console) -> int:
    """Counts as the flags say, prints the tables and writes `memory.json`."""
    layers = ops.select([*flags.names, *flags.filter], flags.quick)
    residuals = [kept(case) for case in layers]
    print_residuals(residuals, console)
    stacks = [stack_memory(stack) for stack in STACKS]
    print_stacks(stacks, console)
    found = {
        **describe_environment(),
        "residuals": [row._asdict() for row in residuals],
        "stacks": [row._asdict() for row in stacks],
    }
    with common.writing_to(flags.workdir):
        write_json(flags.workdir / "memory.json", found)
    return 0
