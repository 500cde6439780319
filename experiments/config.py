"""The flags of `train.py`: one dataclass gives their defaults, help and checks."""

import argparse
import dataclasses
import datetime
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import handgrad
from experiments.data import DATASETS
from experiments.models import MODELS, offers
from experiments.runs import UsageError, read_config


def _flag(default: Any, description: str, **options: Any) -> Any:
    """A field of `Config`, with what `argparse` needs to know of its flag."""
    return dataclasses.field(default=default, metadata={"help": description, **options})


# What `jax.checkpoint` may keep for the backward pass instead of computing it again.
POLICIES = (
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
)
# How a run is started, not what it is: absent from `config.json`.
_LAUNCH = (
    "workdir",
    "resume",
    "coordinator",
    "num_processes",
    "process_id",
    "timeout",
)


def _formulas() -> tuple[str, ...]:
    """Every name that `--implementation` takes, those of all the models' ops."""
    ops = dict.fromkeys(op for model in MODELS.values() for op in model.ops)
    names = (name for op in ops for name in handgrad.RULES[op].formulas)
    return tuple(dict.fromkeys(("autodiff", *names)))


@dataclasses.dataclass
class Config:
    """What to train, how, and where to write: the command line's flags."""

    model: str = _flag("lenet5", "the network", choices=tuple(MODELS))
    dataset: str = _flag("mnist5k", "what it learns", choices=tuple(DATASETS))
    data_dir: str | None = _flag(
        None, "directory with the files of mnist (IDX) or cifar10 (binary version)"
    )
    implementation: str | None = _flag(
        None,
        "gradient formula, for the ops that offer it; the others, and all of them if "
        "it is not given, take their best one",
        choices=_formulas(),
    )
    epochs: int = _flag(60, "passes over the training images", type=int)
    steps: int | None = _flag(None, "steps to train, instead of --epochs", type=int)
    batch_size: int = _flag(64, "images a step", type=int)
    learning_rate: float = _flag(0.05, "its peak, after the warm-up", type=float)
    shift: int = _flag(2, "move training images by up to ± this many pixels", type=int)
    flip: bool = _flag(False, "mirror half of the training images", action="store_true")
    cutout: int = _flag(
        0, "blank a square of this many pixels in each training image", type=int
    )
    accumulate: int = _flag(
        1, "divide a step's images into this many parts, one after another", type=int
    )
    remat: str | None = _flag(
        None,
        "compute activations again in the backward pass, but for what this policy of "
        "jax.checkpoint_policies keeps",
        choices=POLICIES,
    )
    compute_dtype: str = _flag(
        "float32",
        "of activations and their gradients; parameters and loss are float32",
        choices=("float32", "bfloat16"),
    )
    seed: int = _flag(0, "of initial kernels, batches and augmentation", type=int)
    mesh: str | None = _flag(
        None,
        "devices along the batch and along the rows of an image, as in data=4,space=2; "
        "if it is not given, one device, or with several processes all along the batch",
    )
    coordinator: str | None = _flag(
        None,
        "HOST:PORT of process 0, the same for all processes; `auto` asks the cluster "
        "that launched them",
    )
    num_processes: int | None = _flag(None, "how many processes", type=int)
    process_id: int | None = _flag(
        None, "number of this process, from 0; the first one writes", type=int
    )
    timeout: int = _flag(
        45,
        "seconds to wait for the other processes, at the start and for one that has "
        "gone silent",
        type=int,
    )
    workdir: str | None = _flag(
        None, "where to write; runs/DATASET-MODEL-TIME if it is not given"
    )
    resume: bool = _flag(
        False, "go on with the run in --workdir, by its own flags", action="store_true"
    )
    compare_autodiff: bool = _flag(
        False,
        "then train the same with JAX's own gradients, and compare the two",
        action="store_true",
    )

    def __post_init__(self) -> None:
        """Checks each value by itself and fills the work directory in."""
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata.get("choices")
            if choices and value is not None and value not in choices:
                raise bad_flag(field.name, value, f"choose from {', '.join(choices)}")
        for name in ("epochs", "steps", "batch_size", "accumulate", "timeout"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise bad_flag(name, value, "it must be at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise bad_flag(
                "learning_rate", self.learning_rate, "it must be positive and finite"
            )
        for name in ("shift", "cutout"):
            if getattr(self, name) < 0:
                raise bad_flag(name, getattr(self, name), "it must be 0 or more")
        if not 0 <= self.seed < 2**32:
            raise bad_flag("seed", self.seed, "it must be from 0 to 4294967295")
        ops = MODELS[self.model].ops
        if not any(offers(op, self.implementation) for op in ops):
            raise bad_flag(
                "implementation",
                self.implementation,
                f"no op of --model {self.model} ({', '.join(ops)}) offers it",
            )
        if self.compare_autodiff and self.implementation == "autodiff":
            raise UsageError(
                "--compare-autodiff: --implementation autodiff leaves nothing to "
                "compare; give another one or none"
            )
        self.mesh_shape()
        self._check_processes()
        if self.workdir is None:
            if self.resume:
                raise UsageError("--resume: name the run's directory with --workdir")
            now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            self.workdir = f"runs/{self.dataset}-{self.model}-{now}"

    def _check_processes(self) -> None:
        count, number = self.num_processes, self.process_id
        if self.coordinator in (None, "auto"):
            if count is not None or number is not None:
                raise UsageError(
                    "--num-processes, --process-id: they need --coordinator HOST:PORT"
                )
            return
        if not re.fullmatch(r"[^\s:]+:\d{1,5}", self.coordinator):
            raise bad_flag("coordinator", self.coordinator, "it must be HOST:PORT")
        if count is None or number is None:
            raise bad_flag(
                "coordinator",
                self.coordinator,
                "it needs --num-processes and --process-id",
            )
        if count < 1:
            raise bad_flag("num_processes", count, "it must be at least 1")
        if not 0 <= number < count:
            raise bad_flag(
                "process_id",
                number,
                f"it must be from 0 to {count - 1} with --num-processes {count}",
            )

    def mesh_shape(self) -> dict[str, int] | None:
        """How many devices `--mesh` has along "data" and along "space"."""
        if self.mesh is None:
            return None
        shape = {"data": 1, "space": 1}
        seen = set()
        for part in self.mesh.split(","):
            name, _, size = part.partition("=")
            if name not in shape or name in seen or not re.fullmatch("[1-9]\\d*", size):
                raise bad_flag("mesh", self.mesh, "write it like data=4,space=2")
            seen.add(name)
            shape[name] = int(size)
        return shape

    def run_flags(self) -> dict[str, Any]:
        """The flags that say what the run is: what `config.json` keeps."""
        flags = dataclasses.asdict(self)
        return {name: flags[name] for name in flags if name not in _LAUNCH}


def bad_flag(name: str, value: Any, why: str) -> UsageError:
    """The error that names a flag as the command line spells it."""
    return UsageError(f"--{name.replace('_', '-')} {value}: {why}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the flags")


def parse(arguments: Sequence[str] | None, description: str) -> Config:
    """The configuration that a command line asks for.

    A resumed run takes the flags that are not given from its `config.json`.
    """
    parser = _Parser(
        prog="python -m experiments.train", description=description, allow_abbrev=False
    )
    for field in dataclasses.fields(Config):
        options = dict(field.metadata)
        shown = field.default is not None and field.default is not False
        default = f" ({field.default})" if shown else ""
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=options.pop("help") + default,
            **options,
        )
    given = vars(parser.parse_args(arguments))
    saved = {}
    if given.get("resume") and "workdir" in given:
        saved = read_config(Path(given["workdir"]))["flags"]
    try:
        return Config(**{**saved, **given})
    except TypeError as error:
        raise UsageError(
            f"{given['workdir']}/config.json: written by another version of this "
            "program; start again in another --workdir"
        ) from error
