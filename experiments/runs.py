"""A training run's work directory: what is written into it and how a run goes on.

    config.json       flags, versions and device; written first, never changed
    metrics.jsonl     one line a step
    tensorboard/      the same numbers as TensorBoard scalars
    checkpoints/      the newest two states
    metrics.json      the final figures; written last
    .lock             held while the run is open: a second one is refused

A run may be killed at any moment. What makes that harmless: JSON files and checkpoints
appear under their names only when complete; `metrics.jsonl` is on disk before the
checkpoint that follows it; and a resumed run drops the lines after its checkpoint. The
lock is the operating system's, which lets go of it when the process is gone.
"""

import contextlib
import fcntl
import importlib.metadata
import itertools
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore

from experiments.checkpoints import Checkpoints, Restored
from experiments.errors import UsageError as UsageError

Record = dict[str, float]

_LONGEST_CONFIG = 2**20  # bytes


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
        with config_path.open() as file:
            config = json.loads(file.read(_LONGEST_CONFIG))
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
    packages = (
        "handgrad", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "grain",
    )  # fmt: skip
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
            "processes": jax.process_count(),
        },
    }


class Records:
    """What every process knows of a run: the records of its steps; a context manager.

    All that writes does nothing here: it is what a process has that is not the first.

    Attributes:
        records: a dictionary for each step so far, all that `metrics.jsonl` holds.
    """

    newest_checkpoint: Path | None = None

    def __init__(self, records: list[Record]):
        """Begins with these records."""
        self.records = records

    def log(self, record: Record) -> None:
        """Adds a line for one step, whose number is the record's `step`."""
        self.records.append(record)

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Saves a checkpoint, the lines of the steps before it being on disk."""

    def keep_batch(self, step: int, images: np.ndarray, labels: np.ndarray) -> None:
        """Writes the images and labels of a step, to look at."""

    def close(self) -> None:
        """Closes the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Run(Records):
    """An open work directory.

    Attributes:
        path: the work directory.
        records: a dictionary for each step so far, all that `metrics.jsonl` holds.
        seconds_saving: how long the checkpoints have taken since it was opened.
    """

    def __init__(
        self,
        path: Path,
        lock: IO[str],
        checkpoints: Checkpoints,
        records: list[Record],
    ):
        """Opens the files of a directory that `start` or `resume` has checked."""
        super().__init__(records)
        self.path = path
        self.seconds_saving = 0.0
        self._lock = lock
        self._checkpoints = checkpoints
        lines = [json.dumps(record) + "\n" for record in records]
        _write_atomically(path / "metrics.jsonl", "".join(lines))
        # Line-buffered: what is logged is the kernel's before a kill can lose it.
        self._metrics = (path / "metrics.jsonl").open("a", buffering=1)
        (path / "tensorboard").mkdir(exist_ok=True)
        # Not SummaryWriter: a full disk would end its thread, and ours wait for that.
        self._tensorboard = EventsWriter(str(path / "tensorboard" / "events"))
        if records:  # TensorBoard forgets what an earlier part wrote of later steps
            begins = SessionLog(status=SessionLog.START)
            self._add_event(len(records) + 1, session_log=begins)

    @classmethod
    def start(cls, path: Path, flags: Mapping[str, Any]) -> Self:
        """Starts a run in an empty or new directory.

        Raises:
            UsageError: the directory cannot be made or written, or is not empty, or
                another run is in it.
        """
        if path.exists() and not path.is_dir():
            raise UsageError(f"--workdir {path}: a file; name a directory")
        with contextlib.ExitStack() as undo:
            try:
                path.mkdir(parents=True, exist_ok=True)
                _require_empty(path)
                lock = undo.enter_context(_lock(path))
                _require_empty(path)  # of a run that has begun and ended just now
                write_json(
                    path / "config.json", {"flags": flags, **describe_environment()}
                )
                run = cls(path, lock, Checkpoints(path / "checkpoints"), [])
            except OSError as error:
                raise UsageError(
                    f"--workdir {path}: cannot be made or written ({error.strerror}); "
                    "name another directory"
                ) from error
            undo.pop_all()
        return run

    @classmethod
    def resume(
        cls,
        path: Path,
        flags: Mapping[str, Any],
        state: Any,
        *,
        may_differ: Iterable[str] = (),
    ) -> tuple[Self, Restored | None]:
        """Opens the run in `path` to go on with it.

        Args:
            path: the work directory.
            flags: those of the program that resumes it.
            state: what the run began from, of the checkpoint's structure and shapes.
            may_differ: names of flags that need not be those the run began with.

        Returns:
            The run and its newest checkpoint; `None` if it was killed before its first.

        Raises:
            UsageError: there is no run, it is still going, it began with other flags,
                its checkpoints are of another model or damaged, or the directory cannot
                be written.
        """
        _compare_flags(path, flags, may_differ)
        with contextlib.ExitStack() as undo:
            try:
                lock = undo.enter_context(_lock(path))
                checkpoints = Checkpoints(path / "checkpoints")
                undo.callback(checkpoints.close)
                restored = checkpoints.restore(state)
                steps = restored.step if restored else 0
                records = _read_records(path / "metrics.jsonl", steps)
                run = cls(path, lock, checkpoints, records)
            except OSError as error:
                raise UsageError(
                    f"--workdir {path}: cannot be written ({error.strerror})"
                ) from error
            undo.pop_all()
        return run, restored

    def log(self, record: Record) -> None:
        """Adds a line for one step, whose number is the record's `step`.

        Raises:
            UsageError: it cannot be written.
        """
        super().log(record)
        with self._writing():
            self._metrics.write(json.dumps(record, allow_nan=False) + "\n")
            for name, value in record.items():
                if name != "step":
                    scalar = summary.scalar(name, value)
                    self._add_event(int(record["step"]), summary=scalar)

    @property
    def newest_checkpoint(self) -> Path | None:  # type: ignore[override]
        """Where the newest checkpoint lies, if there is one."""
        return self._checkpoints.newest

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Saves a checkpoint, the lines of the steps before it being on disk.

        Raises:
            UsageError: it cannot be written.
        """
        began = time.perf_counter()
        with self._writing():
            os.fsync(self._metrics.fileno())
            self._tensorboard.flush()
        self._checkpoints.save(step, state, position)
        self.seconds_saving += time.perf_counter() - began

    def keep_batch(self, step: int, images: np.ndarray, labels: np.ndarray) -> None:
        """Writes the images and labels of a step, to look at."""
        with self._writing():
            np.savez_compressed(
                self.path / f"batch-{step}.npz", images=images, labels=labels
            )

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Writes the run's final figures."""
        with self._writing():
            write_json(self.path / "metrics.json", metrics)

    def close(self) -> None:
        """Closes the files."""
        for close in (self._metrics.close, self._tensorboard.close):
            # On a full disk they fail again, of which the user knows.
            with contextlib.suppress(OSError):
                close()
        self._checkpoints.close()
        self._lock.close()

    def _add_event(self, step: int, **what: Any) -> None:
        event = Event(wall_time=time.time(), step=step, **what)
        self._tensorboard.write_event(event)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"--workdir {self.path}: cannot be written ({error.strerror}); the "
                f"newest checkpoint that is whole: {self.newest_checkpoint or 'none'}; "
                "make room, then --resume"
            ) from error


def _require_empty(path: Path) -> None:
    # A run killed at its very start leaves no more than these files.
    unfinished = {path / ".lock", _temporary(path / "config.json")}
    if set(path.iterdir()) - unfinished:
        raise UsageError(
            f"--workdir {path}: not empty, and nothing in it is overwritten; go on "
            "with its run by --resume, or name another directory"
        )


def _lock(path: Path) -> IO[str]:
    """Takes the directory's lock, which ends with the process at the latest."""
    file = (path / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(20).strip() or "unknown"
        file.close()
        raise UsageError(
            f"--workdir {path}: another run is writing there (process {holder}); wait "
            "for its end, or name another directory"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _compare_flags(
    path: Path, flags: Mapping[str, Any], may_differ: Iterable[str]
) -> None:
    began_with = read_config(path)["flags"]
    different = [
        name
        for name in flags
        if name not in may_differ and flags[name] != began_with.get(name)
    ]
    if different:
        names = ["--" + name.replace("_", "-") for name in different]
        told = (
            f"{flag} {began_with.get(name)}, not {flags[name]}"
            for flag, name in zip(names, different, strict=True)
        )
        raise UsageError(
            f"{path / 'config.json'}: this run began with {'; '.join(told)}; resume it "
            f"without {', '.join(names)}, or start a new run in another --workdir"
        )


def _read_records(path: Path, steps: int) -> list[Record]:
    """The records of the first `steps` steps.

    Later lines are of steps that will be taken again; the last may be cut off.
    """
    if not steps:
        return []
    try:
        with path.open() as file:
            records = [json.loads(line) for line in itertools.islice(file, steps)]
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
