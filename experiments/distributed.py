"""Several devices and several processes: who there is, what they hold, what they agree.

Every process runs the same program on its own devices, and JAX makes one computation of
them. A batch is split over the mesh's axis "data", the rows of its images over the axis
"space"; all else is on every device. Only the first process writes files. Where one of
them learns something that the others must know (an error, where a run goes on), they
exchange it in a fixed order, so that none waits for one that has given up.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.config import Config, bad_flag
from experiments.errors import UsageError

Value = TypeVar("Value")

# The longest text that processes tell each other, in bytes.
_TEXT = 4096
# JAX aborts a process that waits longer, without a word of the address.
_JAX_WAITS_LONGER = 60


def initialize(config: Config) -> None:
    """Joins the other processes, if the flags speak of any.

    Ends the process with status 2 if they do not answer within `--timeout` seconds.

    Raises:
        UsageError: there is no such cluster, or it refuses this process.
    """
    if config.coordinator is None:
        return
    at = {}
    if config.coordinator != "auto":
        at = {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
        }
    timer = threading.Timer(config.timeout, _give_up, [config])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **at,
            initialization_timeout=config.timeout + _JAX_WAITS_LONGER,
            heartbeat_timeout_seconds=config.timeout,
            shutdown_timeout_seconds=config.timeout,
        )
    except (RuntimeError, ValueError) as error:
        why = f"it cannot be joined ({str(error).splitlines()[0]})"
        raise bad_flag("coordinator", config.coordinator, why) from error
    finally:
        timer.cancel()
    print(f"{whoami()}; process 0, at {config.coordinator}, leads", file=sys.stderr)


def _give_up(config: Config) -> None:
    who = "the other processes" if config.process_id == 0 else "process 0"
    print(
        f"experiments.train: --coordinator {config.coordinator}: {who} did not answer "
        f"within --timeout {config.timeout} s",
        file=sys.stderr,
        flush=True,
    )
    # The main thread waits inside of JAX, which no exception reaches.
    os._exit(2)


def whoami() -> str:
    """This process and how many there are, for messages."""
    return f"process {jax.process_index()} of {jax.process_count()}"


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return jax.process_index() == 0


def exchange(text: str) -> list[str]:
    """The text that each process has given, in the processes' order."""
    if jax.process_count() == 1:
        return [text]
    padded = text.encode()[:_TEXT].ljust(_TEXT, b"\0")
    rows = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]


def together(function: Callable[[], Value], *, first_only: bool = False) -> Any:
    """Calls the function in each process; where one raises `UsageError`, all do.

    Args:
        function: what to call.
        first_only: whether only the first process calls it; the others get `None`.
    """
    value: Any = None
    problem = ""
    try:
        if is_first() or not first_only:
            value = function()
    except UsageError as error:
        problem = str(error)
    for text in exchange(problem):
        if text:
            raise UsageError(text)
    return value


def share(tree: Value) -> Value:
    """The first process's arrays, to the bit, in every process."""
    if jax.process_count() == 1:
        return tree
    arrays = jax.tree.map(np.asarray, tree)
    # As bytes: a sum over the processes, most of them zero, would lose the sign of −0.
    flat = jax.tree.map(lambda a: a.reshape(-1).view(np.uint8), arrays)
    shared = multihost_utils.broadcast_one_to_all(flat)
    return jax.tree.map(
        lambda a, b: np.asarray(b).view(a.dtype).reshape(a.shape), arrays, shared
    )


@contextlib.contextmanager
def termination() -> Iterator[Callable[[int], bool]]:
    """Yields `asked(step)`: did a SIGTERM ask to stop after this step?

    With several processes JAX itself watches for the signal, and lets all of them stop
    after the same step, whichever received it.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # only the main thread may handle signals
        return
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield lambda step: received.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ending_with_the_others(config: Config) -> Iterator[None]:
    """Says so and ends this process where another one is gone.

    JAX then ends all that are left and names the lost one, but only when that one has
    been silent for `--timeout` seconds, and not if it is the leader. The collective
    that it is missing in fails at once on a CPU.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if jax.process_count() == 1 or "Gloo" not in str(error):
            raise
        other = 1 - jax.process_index()
        lost = f"process {other}" if jax.process_count() == 2 else "another process"
        reason = str(error).splitlines()[0]
        print(
            f"experiments.train: {whoami()} has lost {lost} ({reason}); JAX names it "
            f"within --timeout {config.timeout} s; --resume all of them",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(config.timeout + _JAX_WAITS_LONGER)
        os._exit(1)  # a regular exit would wait for the lost one


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the arrays of a run are.

    Attributes:
        mesh: the devices, along "data" and along "space".
    """

    mesh: Mesh

    @property
    def everywhere(self) -> NamedSharding:
        """Of what each device holds in whole."""
        return NamedSharding(self.mesh, P())

    @property
    def images(self) -> NamedSharding:
        """Of images `(batch, height, width, channels)`."""
        return NamedSharding(self.mesh, P("data", "space"))

    @property
    def labels(self) -> NamedSharding:
        """Of labels `(batch,)`."""
        return NamedSharding(self.mesh, P("data"))

    def rows(self, batch_size: int) -> range:
        """The examples of a batch that the devices of this process hold a part of."""
        places = self.labels.addressable_devices_indices_map((batch_size,))
        parts = [index[0].indices(batch_size) for index in places.values() if index]
        start, stop = min(p[0] for p in parts), max(p[1] for p in parts)
        # A grid of devices unlike the order of processes: read the whole batch.
        if batch_size % (stop - start) or start % (stop - start):
            return range(batch_size)
        return range(start, stop)

    def put(
        self, images: np.ndarray, labels: np.ndarray, *, start: int, batch_size: int
    ) -> tuple[jax.Array, jax.Array]:
        """A batch on the devices, of the examples from `start` on, which are here."""

        def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                begin, end, _ = index[0].indices(batch_size)
                return array[(slice(begin - start, end - start), *index[1:])]

            shape = (batch_size, *array.shape[1:])
            return jax.make_array_from_callback(shape, sharding, part)

        return place(images, self.images), place(labels, self.labels)


def make_layout(config: Config, image_shape: tuple[int, int, int]) -> Layout:
    """The mesh that the flags ask for.

    Raises:
        UsageError: it does not match the devices, the batch or the images.
    """
    shape, count = config.mesh_shape(), jax.device_count()
    devices = jax.devices()
    if shape is None:
        devices = devices if jax.process_count() > 1 else devices[:1]
        shape = {"data": len(devices), "space": 1}
    data, space = shape["data"], shape["space"]
    given = config.mesh or f"data={data}"
    if data * space != len(devices):
        why = f"it has {data * space} devices, but there are {count}"
        raise bad_flag("mesh", given, why)
    if config.batch_size % (data * config.accumulate):
        raise bad_flag(
            "batch_size",
            config.batch_size,
            f"it must be a multiple of --mesh data={data} times --accumulate "
            f"{config.accumulate}",
        )
    if image_shape[0] % space:
        why = f"space={space} must divide the images' {image_shape[0]} rows"
        raise bad_flag("mesh", given, why)
    return Layout(
        jax.make_mesh(
            (data, space),
            ("data", "space"),
            axis_types=(AxisType.Auto, AxisType.Auto),
            devices=devices,
        )
    )
