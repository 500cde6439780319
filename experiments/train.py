"""Trains a network whose every gradient is derived by hand.

`python -m experiments.train` learns real handwritten digits with LeNet-5 in well under
two minutes on two CPU cores; `--help` lists the flags. The work directory holds what
came of it: see `experiments/runs.py` for the files, and `experiments/README.md` for
runs on several devices and hosts.
"""

import dataclasses
import functools
import json
import math
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from experiments import data, distributed, figures, pipeline
from experiments.config import Config, bad_flag, parse
from experiments.data import Dataset
from experiments.distributed import Layout
from experiments.models import MODELS, Params, bind
from experiments.pipeline import Batches
from experiments.runs import Record, Records, Run, UsageError, write_json

# Two implementations differ by rounding, which training amplifies later on, and sooner
# where rounding tips a relu or the winner of a max pool to the other side.
COMPARED_STEPS = 50
_STEPS_BETWEEN_LOGS = 20
_TEST_BATCH = 512
# Flags that a resumed run may have otherwise than the run began with.
_MAY_DIFFER = ("data_dir", "compare_autodiff", "mesh")

TrainStep = Callable[..., tuple["State", dict[str, jax.Array]]]


class TerminatedError(Exception):
    """A SIGTERM has ended the run, after a checkpoint."""


class State(NamedTuple):
    """All that a step changes, and so all that a checkpoint holds."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState


def make_optimizer(
    config: Config, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Nesterov's momentum, at a rate that warms up for a twentieth and then decays."""
    warmup_cosine = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=steps // 20,
        decay_steps=steps,
    )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        # As a float: strict dtype promotion multiplies no integer with one.
        return jnp.asarray(warmup_cosine(jnp.asarray(step, jnp.float32)))

    optimizer = optax.chain(
        optax.add_decayed_weights(5e-4),
        optax.sgd(schedule, momentum=0.9, nesterov=True),
    )
    return optimizer, schedule


def init_state(
    config: Config, dataset: Dataset, optimizer: optax.GradientTransformation
) -> State:
    """The state before the first step, a function of the seed."""
    key, _ = jax.random.split(jax.random.key(config.seed))
    model = MODELS[config.model]
    params = model.init(key, dataset.image_shape, len(dataset.class_names))
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_forward(config: Config, dataset: Dataset) -> Callable[..., Any]:
    """`(params, images, labels) -> (loss of each image, predicted classes)`."""
    mean, std = dataset.train_images.mean().item(), dataset.train_images.std().item()
    dtype = jnp.dtype(config.compute_dtype)
    cross_entropy = bind(
        "softmax_cross_entropy_with_integer_labels", config.implementation
    )

    def network(params: Params, x: jax.Array) -> jax.Array:
        return MODELS[config.model].apply(params, x, config.implementation)

    if config.remat:
        policy = getattr(jax.checkpoint_policies, config.remat)
        network = jax.checkpoint(network, policy=policy)

    def forward(
        params: Params, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x = (images.astype(jnp.float32) - mean) / std
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        logits = network(params, x.astype(dtype)).astype(jnp.float32)
        return cross_entropy(logits, labels), logits.argmax(axis=-1)

    return forward


def accumulated(
    gradients: Callable[..., Any], parts: int
) -> Callable[[Params, jax.Array, jax.Array], Any]:
    """The mean of `gradients(params, images, labels)` over parts of the batch.

    One part after another, so that the activations of only one are kept at a time.
    """
    if parts == 1:
        return gradients

    def split(array: jax.Array) -> jax.Array:
        # Part p has the examples p, p + parts, ...: each device keeps its own ones.
        return jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0)

    def mean(params: Params, images: jax.Array, labels: jax.Array) -> Any:
        def add(total: Any, part: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients(params, *part)), None

        divided = split(images), split(labels)
        shapes = jax.eval_shape(gradients, params, divided[0][0], divided[1][0])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, divided)
        return jax.tree.map(lambda sum_: sum_ / parts, total)

    return mean


def make_train_step(
    config: Config,
    forward: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> TrainStep:
    """`(state, images, labels) -> (next state, metrics)`, a pure function."""
    _, augment_key = jax.random.split(jax.random.key(config.seed))

    def loss_and_accuracy(
        params: Params, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        losses, predictions = forward(params, images, labels)
        return losses.mean(), (predictions == labels).mean()

    gradients = accumulated(
        jax.value_and_grad(loss_and_accuracy, has_aux=True), config.accumulate
    )

    def train_step(
        state: State, images: jax.Array, labels: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        images = pipeline.augment(
            jax.random.fold_in(augment_key, state.step),
            images,
            shift=config.shift,
            flip=config.flip,
            cutout=config.cutout,
        )
        (loss, accuracy), grads = gradients(state.params, images, labels)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": schedule(state.step),
        }
        return State(state.step + 1, params, opt_state), metrics

    return train_step


def compile_train_step(
    train_step: TrainStep,
    state: State,
    dataset: Dataset,
    batch_size: int,
    layout: Layout,
) -> tuple[TrainStep, float]:
    """Compiles a step ahead of time; returns it and the seconds that this took."""
    images = jax.ShapeDtypeStruct((batch_size, *dataset.image_shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    # A GPU's fastest kernels add in an order that changes from run to run; without
    # them a resumed run ends with the very bits of an uninterrupted one.
    on_gpu = jax.default_backend() == "gpu"
    options: Any = {"xla_gpu_deterministic_ops": True} if on_gpu else None
    began = time.perf_counter()
    step = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(layout.everywhere, layout.images, layout.labels),
        out_shardings=layout.everywhere,
    )
    compiled = step.lower(state, images, labels).compile(options)
    return compiled, time.perf_counter() - began


def make_evaluate(
    forward: Callable[..., Any], dataset: Dataset, layout: Layout
) -> Callable[[Params], tuple[dict[str, float], np.ndarray]]:
    """`params -> (loss and accuracy on the test images, predicted classes)`."""
    jitted = jax.jit(forward, out_shardings=layout.everywhere)

    def evaluate(params: Params) -> tuple[dict[str, float], np.ndarray]:
        count, among = len(dataset.test_labels), layout.mesh.shape["data"]
        losses, predictions = [], []
        for start in range(0, count, _TEST_BATCH):
            size = min(_TEST_BATCH, count - start)
            # Each device has as many; images that make up for it count once only.
            chosen = np.arange(start, start - size // -among * among) % count
            batch = dataset.test_images[chosen], dataset.test_labels[chosen]
            batch = layout.put(*batch, start=0, batch_size=len(chosen))
            loss, predicted = jitted(params, *batch)
            losses.append(loss[:size])
            predictions.append(predicted[:size])
        predicted = np.concatenate(predictions)
        metrics = {
            "test_loss": np.concatenate(losses).mean().item(),
            "test_accuracy": (predicted == dataset.test_labels).mean().item(),
        }
        return metrics, predicted

    return evaluate


def open_run(
    config: Config, state: State, batches: Batches
) -> tuple[Records, int, State]:
    """The run in the work directory, new or where it was left: its step and its state.

    The first process opens it, and all of them go on from what it has found.
    """
    path, flags = Path(str(config.workdir)), config.run_flags()

    def open_first() -> tuple[Run, Any]:
        if config.resume:
            return Run.resume(path, flags, state, may_differ=_MAY_DIFFER)
        return Run.start(path, flags), None

    opened = distributed.together(open_first, first_only=True)
    run, restored = opened or (Records([]), None)
    found = {"step": restored.step, "position": restored.position} if restored else None
    found = json.loads(distributed.exchange(json.dumps(found))[0])
    if found is None:
        return run, 0, state
    batches.position = found["position"]
    state = distributed.share(restored.state if restored else state)
    return run, found["step"], state


def count_steps(config: Config, dataset: Dataset) -> tuple[int, int]:
    """The steps of an epoch and of the whole run."""
    examples = len(dataset.train_labels)
    if config.batch_size > examples:
        why = f"--dataset {config.dataset} has only {examples} training images"
        raise bad_flag("batch_size", config.batch_size, why)
    steps_per_epoch = examples // config.batch_size
    return steps_per_epoch, config.steps or config.epochs * steps_per_epoch


class Chunk(NamedTuple):
    """Some steps in a row: what came of them.

    Attributes:
        step: the last of them.
        state: the state after it.
        records: a record for each.
        ends_epoch: whether the last step is that of an epoch or of the run.
        stops: whether a SIGTERM asks to stop here.
    """

    step: int
    state: State
    records: list[Record]
    ends_epoch: bool
    stops: bool


def take_steps(
    train_step: TrainStep,
    state: State,
    batches: Batches,
    steps: range,
    steps_per_epoch: int,
    asked_to_stop: Callable[[int], bool],
) -> Iterator[Chunk]:
    """Takes the steps of these numbers, a chunk at a time.

    Looking at a metric waits for its step: a chunk is some steps, so that the device is
    seldom without work.
    """
    pending: list[dict[str, jax.Array]] = []
    began, waited = time.perf_counter(), 0.0
    for step in steps:
        asked = time.perf_counter()
        batch = next(batches)
        # Else the device is still busy with an earlier step.
        if state.step.is_ready():  # type: ignore[attr-defined]
            waited += time.perf_counter() - asked
        state, metrics = train_step(state, *batch)
        pending.append(metrics)
        stops = asked_to_stop(step)
        ends_epoch = step % steps_per_epoch == 0 or step == steps[-1]
        if not (ends_epoch or stops) and len(pending) < _STEPS_BETWEEN_LOGS:
            continue
        records = _fetch(pending, step)
        for record in records:
            record["data_wait"] = waited / (time.perf_counter() - began)
        yield Chunk(step, state, records, ends_epoch, stops)
        pending = []
        began, waited = time.perf_counter(), 0.0


def fit(config: Config, dataset: Dataset) -> tuple[dict[str, float], list[Record]]:
    """Trains one network; returns its final figures and a record of every step.

    The figures are the first process's; the others return none.
    """
    steps_per_epoch, steps = count_steps(config, dataset)
    layout = distributed.make_layout(config, dataset.image_shape)
    optimizer, schedule = make_optimizer(config, steps)
    forward = make_forward(config, dataset)
    evaluate = make_evaluate(forward, dataset, layout)
    batches = Batches(dataset, layout, batch_size=config.batch_size, seed=config.seed)
    state = init_state(config, dataset, optimizer)

    run, start, state = open_run(config, state, batches)
    with run, distributed.termination() as asked_to_stop, _progress() as progress:
        name = config.implementation or "hand-derived"
        task = progress.add_task(name, total=steps, completed=start, status="compiling")
        state = jax.device_put(state, layout.everywhere)
        train_step, compile_seconds = compile_train_step(
            make_train_step(config, forward, optimizer, schedule),
            state,
            dataset,
            config.batch_size,
            layout,
        )
        seconds_before = run.records[-1]["seconds"] if run.records else 0.0
        began = time.perf_counter()
        numbers = range(start + 1, steps + 1)
        for chunk in take_steps(
            train_step, state, batches, numbers, steps_per_epoch, asked_to_stop
        ):
            state, last = chunk.state, chunk.records[-1]
            if chunk.ends_epoch:
                last |= evaluate(state.params)[0]
            seconds = seconds_before + time.perf_counter() - began
            write = functools.partial(
                _write, run, chunk, seconds, batches, config, dataset
            )
            distributed.together(write)
            if chunk.stops:
                raise TerminatedError(f"stopped by SIGTERM after step {chunk.step}")
            status = f"loss {last['loss']:.4f}  accuracy {last['accuracy']:.3f}"
            progress.update(task, completed=chunk.step, status=status)
        test_metrics, predictions = evaluate(state.params)
        if not isinstance(run, Run):
            return {}, run.records
        seconds = run.records[-1]["seconds"]
        final = {
            "test_accuracy": test_metrics["test_accuracy"],
            "train_loss": _mean("loss", run.records[-steps_per_epoch:]),
            "steps": steps,
            "seconds": seconds + compile_seconds,
            "compile_seconds": compile_seconds,
            "steps_per_second": steps / seconds,
            "data_wait": _mean("data_wait", run.records),
            "checkpoint_share": run.seconds_saving / (time.perf_counter() - began),
        }
        figures.curves(run.records, run.path / "curves.png")
        figures.predictions(dataset, predictions, run.path / "predictions.png")
        kernels = MODELS[config.model].first_kernels(state.params, dataset.image_shape)
        figures.kernels(np.asarray(kernels), run.path / "kernels.png")
        run.finish(final)
    return final, run.records


def _write(
    run: Records,
    chunk: Chunk,
    seconds: float,
    batches: Batches,
    config: Config,
    dataset: Dataset,
) -> None:
    """Logs a chunk and, where an epoch or the run ends, saves a checkpoint."""
    for record in chunk.records:
        _check_finite(record, config, dataset, run)
        run.log(record | {"seconds": seconds})
    if chunk.ends_epoch or chunk.stops:
        run.save(chunk.step, chunk.state, batches.position)


def train(config: Config) -> dict[str, float]:
    """Trains as `config` says and writes all that comes of it to the work directory.

    Returns:
        What `metrics.json` holds: `test_accuracy`, `train_loss` (mean over the last
        epoch), `steps`, `seconds` (of training, compilation and evaluation, summed over
        the parts of a resumed run), `compile_seconds` (of the last part),
        `steps_per_second`, `data_wait` (the share of the steps' time in which the
        device waited for a batch, at most) and `checkpoint_share` (of the last part's
        time). With `compare_autodiff` also `autodiff_test_accuracy` and
        `largest_loss_difference`, over the first `COMPARED_STEPS` steps. Empty in a
        process that is not the first.

    Raises:
        UsageError: a file, a directory or a flag needs the user's attention.
        TerminatedError: a SIGTERM came, and a checkpoint has been saved.
    """
    dataset = distributed.together(lambda: data.load(config.dataset, config.data_dir))
    # Rounding as float32 promises also where an accelerator would take fewer bits.
    with jax.default_matmul_precision("highest"):
        metrics, records = fit(config, dataset)
        if config.compare_autodiff:
            metrics |= compare_with_autodiff(config, dataset, records)
            if distributed.is_first():
                write_json(Path(str(config.workdir)) / "metrics.json", metrics)
    return metrics


def compare_with_autodiff(
    config: Config, dataset: Dataset, records: Sequence[Record]
) -> dict[str, float]:
    """Trains the same with JAX's own gradients, in a directory inside the first one."""
    path = Path(str(config.workdir))
    autodiff = dataclasses.replace(
        config,
        implementation="autodiff",
        compare_autodiff=False,
        workdir=str(path / "autodiff"),
        resume=config.resume and (path / "autodiff" / "config.json").exists(),
    )
    metrics, autodiff_records = fit(autodiff, dataset)
    if not metrics:  # not the first process
        return {}
    figures.comparison(
        records, autodiff_records, COMPARED_STEPS, path / "comparison.png"
    )
    early = zip(records[:COMPARED_STEPS], autodiff_records, strict=False)
    return {
        "autodiff_test_accuracy": metrics["test_accuracy"],
        "largest_loss_difference": max(abs(a["loss"] - b["loss"]) for a, b in early),
    }


def _fetch(pending: Sequence[dict[str, jax.Array]], last_step: int) -> list[Record]:
    """The metrics of the steps up to the last one, as numbers."""
    first_step = last_step - len(pending) + 1
    return [
        {"step": step, **{name: value.item() for name, value in metrics.items()}}
        for step, metrics in enumerate(jax.device_get(pending), start=first_step)
    ]


def _check_finite(
    record: Record, config: Config, dataset: Dataset, run: Records
) -> None:
    """Stops a run whose loss is lost, before its state becomes a checkpoint."""
    for name in ("loss", "test_loss"):
        value, step = record.get(name, 0.0), int(record["step"])
        if not math.isfinite(value):
            drawn = pipeline.batches(
                dataset, batch_size=config.batch_size, seed=config.seed
            )
            batch: Any = drawn[step - 1]
            run.keep_batch(step, *batch)
            kept = run.newest_checkpoint or "none"
            raise UsageError(
                f"{config.workdir}: {name} became {value} at step {step}; start "
                f"again with a --learning-rate below {config.learning_rate:g} in "
                f"another --workdir (newest checkpoint kept: {kept}; the step's images "
                f"and labels: batch-{step}.npz)"
            )


def _mean(name: str, records: Sequence[Record]) -> float:
    return statistics.fmean(record[name] for record in records)


def _progress() -> Progress:
    """A bar for a person at a terminal, nothing for a log file."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    try:
        config = parse(arguments, description=str(__doc__).splitlines()[0])
        distributed.initialize(config)
        with distributed.ending_with_the_others(config):
            metrics = train(config)
    except UsageError as error:
        print(f"experiments.train: {error}", file=sys.stderr)
        return 2
    except TerminatedError as stopped:
        print(f"experiments.train: {stopped}; --resume goes on", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print("experiments.train: interrupted; --resume goes on", file=sys.stderr)
        return 130
    if metrics:
        print(f"{config.model} on {config.dataset}, written to {config.workdir}")
    for name, value in metrics.items():
        print(f"  {name:<24}{value:.6g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
