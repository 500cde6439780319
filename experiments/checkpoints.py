"""The newest states of a run on disk, each written whole or not at all.

A checkpoint has two items: `state`, the arrays of a step, and `data`, the position of
the input pipeline after it. Only one process writes and reads them, whose arrays are
NumPy's: a run may go on with another number of devices or processes.
"""

import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.errors import UsageError

State = TypeVar("State")
_KEPT = 2


class Restored(NamedTuple):
    """What a checkpoint holds, and the step that it was made after."""

    step: int
    state: Any
    position: dict[str, Any]


class Checkpoints:
    """The checkpoints in a directory."""

    def __init__(self, path: Path):
        """Opens the directory, made if it is not there.

        Raises:
            OSError: it cannot be made.
        """
        # Orbax warns of an old checkpoint that a kill left half removed, and then
        # removes it; of what it cannot write or read it logs what it also raises.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        _hide_closed_loops()
        self._path = path
        path.mkdir(exist_ok=True)
        # Orbax waits for no other process.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix="alone",
        )
        self._manager = ocp.CheckpointManager(
            path.resolve(),
            # The handlers are named so that `item_metadata` works before a `restore`.
            item_handlers={
                "state": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                "data": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT,
                cleanup_tmp_directories=True,
                create=False,
                enable_async_checkpointing=False,
                multiprocessing_options=alone,
            ),
        )

    @property
    def newest(self) -> Path | None:
        """Where the newest checkpoint lies, if there is one."""
        step = self._manager.latest_step()
        return None if step is None else self._path / str(step)

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Saves a checkpoint, then removes the oldest.

        Raises:
            UsageError: it cannot be written.
        """
        arrays = jax.tree.map(np.asarray, jax.device_get(state))
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), data=ocp.args.JsonSave(position)
        )
        kept = self.newest
        try:
            self._manager.save(step, args=items)
        # Orbax tells a full disk by exceptions of many types, its own and others'.
        except Exception as error:
            raise UsageError(
                f"{self._path / str(step)}: cannot be written ({_reason(error)}); the "
                f"newest checkpoint that is whole: {kept or 'none'}; make room, then "
                "--resume"
            ) from error

    def restore(self, state: Any) -> Restored | None:
        """The newest checkpoint that can be read, `None` if there has been none.

        Those that are damaged are reported, and set aside beside the directory.

        Args:
            state: a state of the structure and the shapes to expect.

        Raises:
            UsageError: the checkpoint is of another model, or all of them are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        arrays = jax.tree.map(np.asarray, jax.device_get(state))
        for step in steps:
            try:
                found = _shapes(self._manager.item_metadata(step)["state"])
                if not found:
                    raise ValueError("it holds no arrays")
                if found == _shapes(arrays):
                    return self._read(step, arrays)
            # Orbax tells damaged files by exceptions of many types, too.
            except Exception as error:
                self._set_aside(step, _reason(error))
                continue
            raise _of_another_model(self._path / str(step), found, _shapes(arrays))
        if steps:
            raise UsageError(
                f"{self._path}: all checkpoints are damaged; start a new run in "
                "another --workdir"
            )
        return None

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _read(self, step: int, arrays: Any) -> Restored:
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(arrays), data=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        position = restored["data"]
        if not isinstance(position, dict):
            raise ValueError("no position of the input pipeline")
        return Restored(step, restored["state"], position)

    def _set_aside(self, step: int, reason: str) -> None:
        path = self._path / str(step)
        aside = self._path.with_name(f"damaged-checkpoint-{step}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        print(
            f"{path}: this checkpoint is damaged ({reason}); it is kept as "
            f"{aside.name}, and the one before it is used",
            file=sys.stderr,
        )
        path.replace(aside)
        self._manager.reload()


def _hide_closed_loops() -> None:
    """What TensorStore's threads say after a failure that has been raised is noise.

    They come to an event loop that Orbax has closed.
    """
    before = sys.unraisablehook
    if getattr(before, "hides_closed_loops", False):
        return

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    hook.hides_closed_loops = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def _reason(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) < 200 else f"{line[:60]} … {line[-120:]}"


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Each leaf's path and shape: what a checkpoint and a state are compared by."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _of_another_model(
    path: Path, saved: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> UsageError:
    name, _ = min(saved.items() ^ wanted.items())
    return UsageError(
        f"{path}: this checkpoint is of another model: its {name} is "
        f"{saved.get(name, 'missing')}, not {wanted.get(name, 'expected')}; give the "
        "--model and --dataset that it was made with, or start in another --workdir"
    )
