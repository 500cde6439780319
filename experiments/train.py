"""Trains a network whose every gradient is derived by hand.

`python -m experiments.train` learns real handwritten digits with LeNet-5 in well under
two minutes on two CPU cores; `--help` lists the flags. The work directory holds what
came of it: see `experiments/runs.py` for the files.
"""

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
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

from experiments import data, figures
from experiments.config import Config, bad_flag, parse
from experiments.data import Dataset
from experiments.models import MODELS, Params, bind
from experiments.runs import Record, Run, UsageError, write_json

# Two implementations differ by rounding, which training amplifies later on, and sooner
# where rounding tips a relu or the winner of a max pool to the other side.
COMPARED_STEPS = 50
_STEPS_BETWEEN_LOGS = 20
_TEST_BATCH = 500


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
    model = MODELS[config.model]
    mean, std = dataset.train_images.mean().item(), dataset.train_images.std().item()
    cross_entropy = bind(
        "softmax_cross_entropy_with_integer_labels", config.implementation
    )

    def forward(
        params: Params, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x = (images.astype(jnp.float32) - mean) / std
        logits = model.apply(params, x, config.implementation)
        return cross_entropy(logits, labels), logits.argmax(axis=-1)

    return forward


def make_train_step(
    config: Config,
    forward: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """`(state, images, labels) -> (next state, metrics)`, a pure function."""
    _, shift_key = jax.random.split(jax.random.key(config.seed))

    def loss_and_accuracy(
        params: Params, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        losses, predictions = forward(params, images, labels)
        return losses.mean(), (predictions == labels).mean()

    def train_step(
        state: State, images: jax.Array, labels: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(shift_key, state.step)
        images = data.random_shift(key, images, config.shift)
        value_and_grad = jax.value_and_grad(loss_and_accuracy, has_aux=True)
        (loss, accuracy), grads = value_and_grad(state.params, images, labels)
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
    train_step: Callable[..., Any], state: State, dataset: Dataset, batch_size: int
) -> tuple[Callable[..., tuple[State, dict[str, jax.Array]]], float]:
    """Compiles a step ahead of time; returns it and the seconds that this took."""
    images = jax.ShapeDtypeStruct((batch_size, *dataset.image_shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    # A GPU's fastest kernels add in an order that changes from run to run; without
    # them a resumed run ends with the very bits of an uninterrupted one.
    on_gpu = jax.default_backend() == "gpu"
    options: Any = {"xla_gpu_deterministic_ops": True} if on_gpu else None
    began = time.perf_counter()
    lowered = jax.jit(train_step, donate_argnums=0).lower(state, images, labels)
    return lowered.compile(options), time.perf_counter() - began


def evaluate(
    forward: Callable[..., Any], params: Params, dataset: Dataset
) -> tuple[dict[str, float], np.ndarray]:
    """Loss and accuracy on the test images, and the predicted classes."""
    losses, predictions = [], []
    for start in range(0, len(dataset.test_labels), _TEST_BATCH):
        part = slice(start, start + _TEST_BATCH)
        batch = forward(params, dataset.test_images[part], dataset.test_labels[part])
        losses.append(batch[0])
        predictions.append(batch[1])
    predicted = np.concatenate(predictions)
    metrics = {
        "test_loss": np.concatenate(losses).mean().item(),
        "test_accuracy": (predicted == dataset.test_labels).mean().item(),
    }
    return metrics, predicted


def open_run(config: Config, state: State) -> tuple[Run, int, State]:
    """The run in the configuration's work directory: new, or where it was left."""
    flags = dataclasses.asdict(config)
    path = Path(flags.pop("workdir"))
    if flags.pop("resume"):
        may_differ = ("data_dir", "compare_autodiff")
        return Run.resume(path, flags, state, may_differ=may_differ)
    return Run.start(path, flags), 0, state


def fit(config: Config, dataset: Dataset) -> tuple[dict[str, float], list[Record]]:
    """Trains one network; returns its final figures and a record of every step."""
    examples = len(dataset.train_labels)
    if config.batch_size > examples:
        why = f"--dataset {config.dataset} has only {examples} training images"
        raise bad_flag("batch_size", config.batch_size, why)
    steps_per_epoch = examples // config.batch_size
    steps = config.steps or config.epochs * steps_per_epoch
    optimizer, schedule = make_optimizer(config, steps)
    forward = make_forward(config, dataset)
    test_forward = jax.jit(forward)
    state = init_state(config, dataset, optimizer)

    run, start, state = open_run(config, state)
    with run, _progress() as progress:
        task = progress.add_task(
            config.implementation or "hand-derived",
            total=steps,
            completed=start,
            status="compiling",
        )
        train_step, compile_seconds = compile_train_step(
            make_train_step(config, forward, optimizer, schedule),
            state,
            dataset,
            config.batch_size,
        )
        batches = data.batches(
            dataset.train_images,
            dataset.train_labels,
            batch_size=config.batch_size,
            seed=config.seed,
            start=start,
        )
        seconds_before = run.records[-1]["seconds"] if start else 0.0
        began = time.perf_counter()
        pending: list[dict[str, jax.Array]] = []
        for step in range(start + 1, steps + 1):
            state, metrics = train_step(state, *next(batches))
            pending.append(metrics)
            epoch_ends = step % steps_per_epoch == 0 or step == steps
            # Looking at a metric waits for its step: look at a few at a time, so that
            # the device is seldom without work.
            if not epoch_ends and len(pending) < _STEPS_BETWEEN_LOGS:
                continue
            records = _fetch(pending, step)
            pending = []
            if epoch_ends:
                records[-1] |= evaluate(test_forward, state.params, dataset)[0]
            seconds = seconds_before + time.perf_counter() - began
            for record in records:
                _check_finite(record, config, run)
                run.log(record | {"seconds": seconds})
            if epoch_ends:
                run.save(step, state)
            last = records[-1]
            status = f"loss {last['loss']:.4f}  accuracy {last['accuracy']:.3f}"
            progress.update(task, completed=step, status=status)

        test_metrics, predictions = evaluate(test_forward, state.params, dataset)
        last_epoch = run.records[-steps_per_epoch:]
        seconds = run.records[-1]["seconds"]
        final = {
            "test_accuracy": test_metrics["test_accuracy"],
            "train_loss": statistics.fmean(record["loss"] for record in last_epoch),
            "steps": steps,
            "seconds": seconds + compile_seconds,
            "compile_seconds": compile_seconds,
            "steps_per_second": steps / seconds,
        }
        figures.curves(run.records, run.path / "curves.png")
        figures.predictions(dataset, predictions, run.path / "predictions.png")
        kernels = MODELS[config.model].first_kernels(state.params, dataset.image_shape)
        figures.kernels(np.asarray(kernels), run.path / "kernels.png")
        run.finish(final)
    return final, run.records


def train(config: Config) -> dict[str, float]:
    """Trains as `config` says and writes all that comes of it to the work directory.

    Returns:
        What `metrics.json` holds: `test_accuracy`, `train_loss` (mean over the last
        epoch), `steps`, `seconds` (of training, compilation and evaluation, summed over
        the parts of a resumed run), `compile_seconds` (of the last part) and
        `steps_per_second`. With `compare_autodiff` also `autodiff_test_accuracy` and
        `largest_loss_difference`, over the first `COMPARED_STEPS` steps.

    Raises:
        UsageError: a file, a directory or a flag needs the user's attention.
    """
    dataset = data.load(config.dataset, config.data_dir)
    # Rounding as float32 promises also where an accelerator would take fewer bits.
    with jax.default_matmul_precision("highest"):
        metrics, records = fit(config, dataset)
        if config.compare_autodiff:
            metrics |= compare_with_autodiff(config, dataset, records)
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


def _check_finite(record: Record, config: Config, run: Run) -> None:
    """Stops a run whose loss is lost, before its state becomes a checkpoint."""
    for name in ("loss", "test_loss"):
        value = record.get(name, 0.0)
        if not math.isfinite(value):
            kept = run.newest_checkpoint or "none"
            raise UsageError(
                f"{run.path}: {name} became {value} at step {record['step']}; start "
                f"again with a --learning-rate below {config.learning_rate:g} in "
                f"another --workdir (newest checkpoint kept: {kept})"
            )


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
        metrics = train(config)
    except UsageError as error:
        print(f"experiments.train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("experiments.train: interrupted; --resume goes on", file=sys.stderr)
        return 130
    print(f"{config.model} on {config.dataset}, written to {config.workdir}")
    for name, value in metrics.items():
        print(f"  {name:<24}{value:.6g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
