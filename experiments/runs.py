"""A training run's work directory: what is written into it and how a run goes on.

    config.json       flags, versions and device; written first, never changed
    metrics.jsonl     one line a step
    tensorboard/      the same numbers as TensorBoard scalars
    checkpoints/      the newest two states
    metrics.json      the final figures; written last

A run may be killed at any moment. What makes that harmless: JSON files and checkpoints
appear under their names only when complete; `metrics.jsonl` is on disk before the
checkpoint that follows it; and a resumed run drops the lines after its checkpoint.
"""

import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import orbax.checkpoint as ocp
import tensorboardX

State = TypeVar("State")
Record = dict[str, float]

_CHECKPOINTS_KEPT = 2


class UsageError(Exception):
    """Something that the user can mend; the message is one line that says how."""


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is, at every moment, the old one or the new one."""
    _write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_config(path: Path) -> dict[str, Any]:
    """The `config.json` of the run in `path`.

    Raises:
        UsageError: there is no run in `path`.
    """
    config_path = path / "config.json"
    try:
        config = json.loads(config_path.read_text())
        return {"flags": dict(config["flags"]), **config}
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"--resume: nothing to resume in {path} (it has no config.json); start a "
            "run without --resume, or name a run's directory with --workdir"
        ) from None
    except OSError as error:
        raise UsageError(f"{config_path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{config_path}: not a run's configuration; start again in another "
            "--workdir"
        ) from error


def describe_environment() -> dict[str, Any]:
    """Versions and device, which a result depends on beside the flags."""
    packages = ("handgrad", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")
    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in packages},
        },
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
    }


class Run:
    """An open work directory; a context manager.

    Attributes:
        path: the work directory.
        records: a dictionary for each step so far, all that `metrics.jsonl` holds.
    """

    def __init__(
        self, path: Path, checkpoints: ocp.CheckpointManager, records: list[Record]
    ):
        """Opens the files of a directory that `start` or `resume` has checked."""
        self.path = path
        self.records = records
        self._checkpoints = checkpoints
        lines = [json.dumps(record) + "\n" for record in records]
        _write_atomically(path / "metrics.jsonl", "".join(lines))
        # Line-buffered: what is logged is the kernel's before a kill can lose it.
        self._metrics = (path / "metrics.jsonl").open("a", buffering=1)
        self._tensorboard = tensorboardX.SummaryWriter(
            str(path / "tensorboard"), purge_step=len(records) + 1 if records else None
        )

    @classmethod
    def start(cls, path: Path, flags: Mapping[str, Any]) -> Self:
        """Starts a run in an empty or new directory.

        Raises:
            UsageError: the directory cannot be made or written, or is not empty.
        """
        if path.exists() and not path.is_dir():
            raise UsageError(f"--workdir {path}: a file; name a directory")
        try:
            path.mkdir(parents=True, exist_ok=True)
            # A run killed at its very start leaves no more than this file.
            unfinished = {_temporary(path / "config.json")}
            if set(path.iterdir()) - unfinished:
                raise UsageError(
                    f"--workdir {path}: not empty, and nothing in it is overwritten; "
                    "go on with its run by --resume, or name another directory"
                )
            write_json(path / "config.json", {"flags": flags, **describe_environment()})
            return cls(path, _open_checkpoints(path), [])
        except OSError as error:
            raise UsageError(
                f"--workdir {path}: cannot be made or written ({error.strerror}); "
                "name another directory"
            ) from error

    @classmethod
    def resume(
        cls,
        path: Path,
        flags: Mapping[str, Any],
        state: State,
        *,
        may_differ: Iterable[str] = (),
    ) -> tuple[Self, int, State]:
        """Opens the run in `path` to go on with it.

        Args:
            path: the work directory.
            flags: those of the program that resumes it.
            state: what the run began from, of the checkpoint's structure and shapes.
            may_differ: names of flags that need not be those the run began with.

        Returns:
            The run, the step of its newest checkpoint and the state after that step;
            step 0 and the given state if the run was killed before its first one.

        Raises:
            UsageError: there is no run, it began with other flags, its checkpoint is
                of another model or damaged, or the directory cannot be written.
        """
        began_with = read_config(path)["flags"]
        for name in flags:
            if name not in may_differ and flags[name] != began_with.get(name):
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{path / 'config.json'}: this run began with {flag} "
                    f"{began_with.get(name)}, not {flags[name]}; resume it without "
                    f"{flag}, or start a new run in another --workdir"
                )
        try:
            checkpoints = _open_checkpoints(path)
            step, state = _restore(checkpoints, path / "checkpoints", state)
            records = _read_records(path / "metrics.jsonl", step)
            return cls(path, checkpoints, records), step, state
        except OSError as error:
            raise UsageError(
                f"--workdir {path}: cannot be written ({error.strerror})"
            ) from error

    def log(self, record: Record) -> None:
        """Adds a line for one step, whose number is the record's `step`."""
        self.records.append(record)
        self._metrics.write(json.dumps(record, allow_nan=False) + "\n")
        for name, value in record.items():
            if name != "step":
                self._tensorboard.add_scalar(name, value, int(record["step"]))

    @property
    def newest_checkpoint(self) -> Path | None:
        """Where the newest checkpoint lies, if there is one."""
        step = self._checkpoints.latest_step()
        return None if step is None else self.path / "checkpoints" / str(step)

    def save(self, step: int, state: Any) -> None:
        """Saves a checkpoint, the lines of the steps before it being on disk."""
        os.fsync(self._metrics.fileno())
        self._tensorboard.flush()
        self._checkpoints.save(step, args=ocp.args.StandardSave(state))

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Writes the run's final figures."""
        write_json(self.path / "metrics.json", metrics)

    def close(self) -> None:
        """Closes the files."""
        self._metrics.close()
        self._tensorboard.close()
        self._checkpoints.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _open_checkpoints(path: Path) -> ocp.CheckpointManager:
    # Orbax warns of an old checkpoint that a kill left half removed, and then removes
    # it: nothing for a user to mend.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return ocp.CheckpointManager(
        (path / "checkpoints").resolve(),
        # The handler is named so that `item_metadata` works before a `restore`.
        item_handlers=ocp.StandardCheckpointHandler(),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=_CHECKPOINTS_KEPT,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
        ),
    )


def _restore(
    checkpoints: ocp.CheckpointManager, path: Path, state: State
) -> tuple[int, State]:
    step = checkpoints.latest_step()
    if step is None:
        return 0, state
    try:
        saved, wanted = _shapes(checkpoints.item_metadata(step)), _shapes(state)
        if saved == wanted:
            target = jax.tree.map(ocp.tree.to_shape_dtype_struct, state)
            args = ocp.args.StandardRestore(target)
            restored: Any = checkpoints.restore(step, args=args)
            return step, restored
    # Orbax tells damaged files by exceptions of many types, its own and others'.
    except Exception as error:
        raise UsageError(
            f"{path / str(step)}: this checkpoint is damaged; remove it, and --resume "
            "goes on from the one before it"
        ) from error
    name, _ = min(saved.items() ^ wanted.items())
    raise UsageError(
        f"{path / str(step)}: this checkpoint is of another model: its {name} is "
        f"{saved.get(name, 'missing')}, not {wanted.get(name, 'expected')}; give the "
        "--model and --dataset that it was made with, or start in another --workdir"
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Each leaf's path and shape: what a checkpoint and a state are compared by."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _read_records(path: Path, steps: int) -> list[Record]:
    """The records of the first `steps` steps.

    Later lines are of steps that will be taken again; the last may be cut off.
    """
    try:
        lines = path.read_text().splitlines() if steps else []
        records = [json.loads(line) for line in lines[:steps]]
        if [record["step"] for record in records] == list(range(1, steps + 1)):
            return records
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    raise UsageError(
        f"{path}: lines of steps before the newest checkpoint (step {steps}) are "
        "missing or damaged; put the file back, or start a new run in another --workdir"
    )


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _write_atomically(path: Path, text: str) -> None:
    temporary = _temporary(path)
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return None
