"""How the cost of a training step grows: ours against stock Flax, in one run.

`python -m experiments.benchmark scale` takes one network, a stack of 3×3 convolutions
written with Flax, and makes it larger along one axis at a time: batch, image, channels,
depth. Two sides train it from the same parameters in turn: Flax as it is, and the same
with the layers of `handgrad.linen`. It prints tables and writes `scale.json` and, in
log-log plots, `scale.png`.

In `scale.json`, `points` has an entry for each size and side:

    step_ms       median milliseconds of a step: loss, gradients, update
    trace_s       seconds to trace it: Python's share
    compile_s     seconds to lower and compile it
    temp_bytes    memory of the compiled step beside arguments and results

`slopes` holds the exponent p of each, from a fit of log cost = p · log size + c over
the larger half of the sizes: 1 is proportional. `checkpoints` has the time to save and
to restore states by their size, `pipeline` the images a second of the input pipeline by
the batch size, and `run` the shares of a short training run that went to checkpoints
and to waiting for data.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

import handgrad
import handgrad.linen
from experiments import data, distributed, pipeline, train
from experiments.checkpoints import Checkpoints
from experiments.config import Config
from experiments.runs import UsageError, describe_environment, write_json
from handgrad import measure

SIDES = ("handgrad", "flax")
COSTS = ("step_ms", "trace_s", "compile_s", "temp_bytes")
CLASSES = 10
# The size of the network where its axis is not the one that grows.
USUAL = {"batch": 32, "image": 32, "channels": 32, "depth": 4}
SWEEPS = {
    "batch": (8, 16, 32, 64, 128, 256, 512),
    "image": (32, 48, 64, 96, 128, 160, 224),
    "channels": (8, 16, 32, 64, 128, 256),
    "depth": (1, 2, 4, 8, 16, 32),
}
# Large images in small batches, as one trains with them.
_BATCH_OF_IMAGES = 8
_PARAMETERS = (10**5, 10**6, 10**7)  # of the states that are saved
_BLUE, _ORANGE = "#0072B2", "#E69F00"


class Network(nn.Module):
    """A convolution, a pool, `depth` more convolutions, the mean, a dense layer."""

    channels: int
    depth: int
    ours: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `(batch, classes)` of images `(batch, height, width, channels)`."""
        layers = handgrad.linen if self.ours else nn
        x = nn.relu(layers.Conv(self.channels, (3, 3), name="stem")(x))
        x = layers.max_pool(x, (2, 2), strides=(2, 2))
        for index in range(self.depth):
            conv = layers.Conv(self.channels, (3, 3), name=f"conv{index + 1}")
            x = nn.relu(conv(x))
        return layers.Dense(CLASSES, name="head")(x.mean(axis=(1, 2)))


class Point(NamedTuple):
    """What a step of one size costs one side: an entry of `points`."""

    sweep: str
    size: int
    side: str
    step_ms: float
    trace_s: float
    compile_s: float
    temp_bytes: int | None


class Compiled(NamedTuple):
    """A step and what it took to make it."""

    step: Callable[..., Any]
    trace_s: float
    compile_s: float
    temp_bytes: int | None


def make_step(ours: bool, size: Mapping[str, int]) -> Callable[..., Any]:
    """`(params, images, labels) -> (loss, params after a step of gradient descent)`."""
    network = Network(size["channels"], size["depth"], ours)
    losses = handgrad if ours else optax
    cross_entropy = losses.softmax_cross_entropy_with_integer_labels

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits: Any = network.apply(params, images)
        return cross_entropy(logits, labels).mean()

    def step(params: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
        value, grads = jax.value_and_grad(loss)(params, images, labels)
        return value, jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)

    return step


def operands(size: Mapping[str, int]) -> tuple[Any, jax.Array, jax.Array]:
    """Parameters, images and labels for a network of this size."""
    random = np.random.default_rng(0)
    shape = (size["batch"], size["image"], size["image"], 3)
    images = jnp.asarray(random.standard_normal(shape, np.float32))
    network = Network(size["channels"], size["depth"], ours=False)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.1 * random.standard_normal(s.shape, np.float32)), shapes
    )
    return params, images, jnp.arange(size["batch"]) % CLASSES


def compile_step(step: Callable[..., Any], arguments: Sequence[Any]) -> Compiled:
    """Traces and compiles a step, and measures both."""
    began = time.perf_counter()
    traced = jax.jit(step).trace(*arguments)
    traced_at = time.perf_counter()
    compiled = traced.lower().compile()
    done = time.perf_counter()
    memory = compiled.memory_analysis()
    return Compiled(
        compiled,
        traced_at - began,
        done - traced_at,
        memory.temp_size_in_bytes if memory else None,
    )


def measure_size(sweep: str, at: int, seconds: float) -> Iterator[Point]:
    """Measures both sides at one size of a sweep."""
    size = USUAL | ({"batch": _BATCH_OF_IMAGES} if sweep == "image" else {})
    size = size | {sweep: at}
    arguments = operands(size)
    compiled = {
        side: compile_step(make_step(side == "handgrad", size), arguments)
        for side in SIDES
    }
    steps = {side: each.step for side, each in compiled.items()}
    times = measure.interleaved(steps, *arguments, seconds=seconds)
    for side, each in compiled.items():
        costs = each.trace_s, each.compile_s, each.temp_bytes
        yield Point(sweep, at, side, 1e3 * times[side], *costs)


def slope(sizes: Sequence[int], costs: Sequence[float | None]) -> float | None:
    """The exponent p of cost ≈ c · size^p, over the larger half of the sizes."""
    known = [(s, c) for s, c in zip(sizes, costs, strict=True) if c]
    known = known[-max(2, (len(known) + 1) // 2) :]
    if len(known) < 2:
        return None
    x, y = np.log(np.array(known)).T
    return float(np.polyfit(x, y, 1)[0])


def slopes(points: Sequence[Point]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The exponents by sweep, cost and side."""
    found: dict[str, Any] = {}
    for sweep in dict.fromkeys(point.sweep for point in points):
        found[sweep] = {}
        for cost in COSTS:
            found[sweep][cost] = {}
            for side in SIDES:
                chosen = [p for p in points if (p.sweep, p.side) == (sweep, side)]
                found[sweep][cost][side] = slope(
                    [p.size for p in chosen], [getattr(p, cost) for p in chosen]
                )
    return found


def measure_checkpoints(parameters: Sequence[int]) -> list[dict[str, float]]:
    """Seconds to save and to restore states of so many float32 parameters."""
    found = []
    for count in parameters:
        state = {"kernel": np.random.default_rng(0).standard_normal(count, np.float32)}
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder) / "checkpoints")
            saving = []
            for step in range(1, 4):
                began = time.perf_counter()
                checkpoints.save(step, state, {"next_index": step})
                saving.append(time.perf_counter() - began)
            began = time.perf_counter()
            checkpoints.restore(state)
            restoring = time.perf_counter() - began
            checkpoints.close()
        found.append(
            {
                "bytes": 4 * count,
                "save_s": statistics.median(saving),
                "restore_s": restoring,
            }
        )
    return found


def measure_pipeline(sizes: Sequence[int], seconds: float) -> list[dict[str, float]]:
    """Images a second that the input pipeline brings to the device, nothing else on."""
    dataset = data.load("mnist5k")
    found = []
    for batch_size in sizes:
        config = Config(batch_size=batch_size, workdir="")
        layout = distributed.make_layout(config, dataset.image_shape)
        batches = pipeline.Batches(dataset, layout, batch_size=batch_size, seed=0)
        for _ in range(40):  # those that were made ahead
            jax.block_until_ready(next(batches))
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            jax.block_until_ready(next(batches))
            count += batch_size
        rate = count / (time.perf_counter() - began)
        found.append({"batch": batch_size, "images_per_second": rate})
    return found


def measure_run(**flags: Any) -> dict[str, float]:
    """The shares of a short run of `experiments.train` with these flags."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = train.train(Config(**flags, workdir=f"{folder}/run"))
    chosen = ("steps", "seconds", "steps_per_second", "data_wait", "checkpoint_share")
    return {name: metrics[name] for name in chosen}


def add_command(commands: Any) -> None:
    """Adds `scale` to the benchmark's command line."""
    about = "How a step's cost grows with batch, image, channels and depth."
    scale = commands.add_parser(
        "scale", help=about, description=about, allow_abbrev=False
    )
    scale.add_argument(
        "--sweeps",
        type=_sweeps,
        default=tuple(SWEEPS),
        metavar="NAMES",
        help=f"some of {','.join(SWEEPS)} (all); `none` leaves only the rest",
    )
    scale.add_argument(
        "--quick", action="store_true", help="every third size, and fewer calls"
    )
    scale.add_argument(
        "--workdir",
        type=Path,
        default=Path("runs/scale"),
        help="where to write (runs/scale)",
    )


def _sweeps(text: str) -> tuple[str, ...]:
    if text == "none":
        return ()
    names = text.split(",")
    for name in names:
        if name not in SWEEPS:
            raise argparse.ArgumentTypeError(
                f"{name!r}: choose from {', '.join(SWEEPS)}, with commas between them"
            )
    return tuple(name for name in SWEEPS if name in names)


def run(flags: argparse.Namespace, console: Console) -> int:
    """Measures as the flags say, prints the tables and writes the files."""
    seconds, stride = (0.05, 3) if flags.quick else (1.0, 1)
    path = flags.workdir / "scale.json"
    try:
        flags.workdir.mkdir(parents=True, exist_ok=True)
        points: list[Point] = []
        for _ in measure_size("depth", 1, seconds):
            pass  # the first to be traced would pay for all
        report = {"finished": False, **describe_environment(), "usual": USUAL}
        for sweep in flags.sweeps:
            for at in SWEEPS[sweep][::stride]:
                points += measure_size(sweep, at, seconds)
                report |= {
                    "slopes": slopes(points),
                    "points": [point._asdict() for point in points],
                }
                write_json(path, report)
            print_sweep(sweep, points, console)
        report["checkpoints"] = measure_checkpoints(_PARAMETERS[::stride])
        report["pipeline"] = measure_pipeline(SWEEPS["batch"][::stride], seconds)
        report["run"] = measure_run(epochs=1 if flags.quick else 4)
        report["finished"] = True
        write_json(path, report)
        print_rest(report, console)
        if points:
            plots(points, flags.workdir / "scale.png")
    except OSError as error:
        raise UsageError(
            f"--workdir {flags.workdir}: cannot be written ({error.strerror}); name "
            "another directory"
        ) from error
    console.print(f"written to {flags.workdir}", highlight=False)
    return 0


def print_sweep(sweep: str, points: Sequence[Point], console: Console) -> None:
    """Prints a line for each size: handgrad's cost, then Flax's."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"growing {sweep}: handgrad / flax",
        title_justify="left",
    )
    table.add_column(sweep, justify="right")
    for column in ("step ms", "tracing s", "compiling s", "temporary MB"):
        table.add_column(column, justify="right")
    of = {(point.size, point.side): point for point in points if point.sweep == sweep}
    for size in dict.fromkeys(size for size, _ in of):
        pair = [of[size, side] for side in SIDES]
        table.add_row(
            str(size),
            " / ".join(f"{p.step_ms:.2f}" for p in pair),
            " / ".join(f"{p.trace_s:.3f}" for p in pair),
            " / ".join(f"{p.compile_s:.2f}" for p in pair),
            " / ".join(
                "–" if p.temp_bytes is None else f"{p.temp_bytes / 1e6:.1f}"
                for p in pair
            ),
        )
    fitted = slopes(points)[sweep]
    exponents = [[fitted[cost][side] for side in SIDES] for cost in COSTS]
    table.add_section()
    table.add_row(
        "exponent",
        *(" / ".join("–" if e is None else f"{e:.2f}" for e in p) for p in exponents),
    )
    console.print(table)


def print_rest(report: Mapping[str, Any], console: Console) -> None:
    """Prints checkpoints, input pipeline and the short run."""
    lines = [
        f"checkpoint of {c['bytes'] / 1e6:.1f} MB: saved in {c['save_s']:.3f} s, "
        f"restored in {c['restore_s']:.3f} s"
        for c in report["checkpoints"]
    ]
    lines += [
        f"input pipeline, batch {p['batch']}: {p['images_per_second']:.0f} images/s"
        for p in report["pipeline"]
    ]
    short = report["run"]
    lines.append(
        f"experiments.train, {short['steps']} steps: {100 * short['data_wait']:.2f} % "
        f"of a step waits for data, {100 * short['checkpoint_share']:.1f} % of the run "
        "goes into checkpoints"
    )
    for line in lines:
        console.print(line, highlight=False)


def plots(points: Sequence[Point], path: Path) -> None:
    """Draws each cost against each axis, both logarithmic, with the fitted slopes."""
    sweeps = list(dict.fromkeys(point.sweep for point in points))
    figure = Figure(figsize=(3.4 * len(sweeps), 11), layout="constrained")
    panels = figure.subplots(len(COSTS), len(sweeps), squeeze=False)
    fitted = slopes(points)
    for row, cost in zip(panels, COSTS, strict=True):
        for axes, sweep in zip(row, sweeps, strict=True):
            for side, color in zip(SIDES, (_BLUE, _ORANGE), strict=True):
                chosen = [p for p in points if (p.sweep, p.side) == (sweep, side)]
                known = [(p.size, getattr(p, cost)) for p in chosen if getattr(p, cost)]
                if not known:
                    continue
                exponent = fitted[sweep][cost][side]
                label = side if exponent is None else f"{side}: {exponent:.2f}"
                axes.loglog(*zip(*known, strict=True), ".-", color=color, label=label)
            axes.set(xlabel=sweep, ylabel=cost)
            axes.grid(alpha=0.3, which="both")
            if axes.lines:
                axes.legend(fontsize="small")
    figure.suptitle("Cost of a training step, and the exponent of its growth")
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=100)
    temporary.replace(path)
