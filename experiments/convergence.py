"""Trains to the end with hand-derived and with JAX's own gradients, seed by seed.

A rule that is right at one point can still break a training run: its errors, if they
lean to one side, add up over thousands of steps. So

    python -m experiments.convergence --model resnet8 --dtype bfloat16

trains a network from several seeds with both, and compares the losses that they end
in: the difference of their means must be within the spread of the seeds. It prints a
line for each run and writes them to `convergence.json` in the work directory; a run
that is there already is not repeated, so what was interrupted goes on.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments import data, distributed, train
from experiments.config import Config
from experiments.data import DATASETS, Dataset
from experiments.models import MODELS
from experiments.pipeline import Batches
from experiments.runs import UsageError, write_json

IMPLEMENTATIONS = {"hand": None, "autodiff": "autodiff"}
LAST = 100  # the loss that a run ends in is the mean over so many steps


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.convergence",
        description=str(__doc__).splitlines()[0],
    )
    parser.add_argument("--model", choices=tuple(MODELS), default="lenet5")
    parser.add_argument("--dataset", choices=tuple(DATASETS), default="mnist5k")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workdir", type=Path, default=Path("runs/convergence"))
    return parser.parse_args(arguments)


def final_loss(config: Config, dataset: Dataset, steps: int) -> tuple[float, float]:
    """Trains one network; the mean losses of its first and of its last steps."""
    optimizer, schedule = train.make_optimizer(config, steps)
    layout = distributed.make_layout(config, dataset.image_shape)
    state = train.init_state(config, dataset, optimizer)
    state = jax.device_put(state, layout.everywhere)
    forward = train.make_forward(config, dataset)
    step, _ = train.compile_train_step(
        train.make_train_step(config, forward, optimizer, schedule),
        state,
        dataset,
        config.batch_size,
        layout,
    )
    batches = Batches(dataset, layout, batch_size=config.batch_size, seed=config.seed)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, *next(batches))
        losses.append(metrics["loss"])
    losses = np.asarray(jax.device_get(losses))
    return float(losses[:LAST].mean()), float(losses[-LAST:].mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if the two kinds of gradients end apart."""
    flags = parse(arguments)
    flags.workdir.mkdir(parents=True, exist_ok=True)
    path = flags.workdir / "convergence.json"
    runs = json.loads(path.read_text()) if path.exists() else {}
    what = (flags.model, flags.dataset, flags.dtype, flags.steps, flags.batch_size)
    ends: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
    try:
        dataset = data.load(flags.dataset)
        for seed in range(flags.seeds):
            for name, implementation in IMPLEMENTATIONS.items():
                key = " ".join(map(str, (*what, f"seed {seed}", name)))
                if key not in runs:
                    config = Config(
                        model=flags.model,
                        dataset=flags.dataset,
                        implementation=implementation,
                        steps=flags.steps,
                        batch_size=flags.batch_size,
                        compute_dtype=flags.dtype,
                        seed=seed,
                        workdir=str(flags.workdir),
                    )
                    runs[key] = final_loss(config, dataset, flags.steps)
                    write_json(path, runs)
                first, last = runs[key]
                print(f"{key:<60} {first:.5f} -> {last:.5f}", flush=True)
                ends[name].append(last)
    except UsageError as error:
        print(f"experiments.convergence: {error}", file=sys.stderr)
        return 2
    hand, autodiff = ends.values()
    apart = abs(statistics.fmean(hand) - statistics.fmean(autodiff))
    spread = max(max(losses) - min(losses) for losses in ends.values())
    print(f"means differ by {apart:.5f}; the seeds spread over {spread:.5f}")
    return 0 if apart <= spread else 1


if __name__ == "__main__":
    sys.exit(main())
