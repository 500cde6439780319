"""What happens to real runs, done to real processes: nothing is lost.

`HANDGRAD_TEST_KILLS=20` kills the first test's run so many times instead of twice, and
tells when.
"""

import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import data, train
from experiments.pipeline import batches

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("HANDGRAD_TEST_KILLS", "2"))
FLAGS = ["--dataset", "synthetic", "--model", "mlp"]
PATIENCE = 120  # seconds


@pytest.fixture
def launch(tmp_path):
    """Starts a training process; ends those that a failed test leaves behind."""
    environment = os.environ | {
        "XLA_FLAGS": "",  # one device
        "JAX_PLATFORMS": "cpu",
        # Each process runs the same program: the first compiles it for all.
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",  # of XLA's log only what ends a process
    }
    processes = []

    def start(workdir, *flags):
        output = tmp_path / f"output-{len(processes)}"
        with output.open("w") as file:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "experiments.train",
                    "--workdir",
                    workdir,
                    *flags,
                ],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
        process.errors = output.read_text
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def records(workdir):
    """Those that are whole: the last line may be half written."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(workdir):
    return np.array([record["loss"] for record in records(workdir)])


def steps_saved(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*[0-9]"))


def wait_for(happened, *processes):
    deadline = time.monotonic() + PATIENCE
    while not happened():
        for process in processes:
            assert process.poll() is None, process.errors()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def wait_for_steps(count, workdir, *processes):
    """Waits until so many more steps are logged."""
    before = len(records(workdir))
    wait_for(lambda: len(records(workdir)) not in range(before + count), *processes)


def final_state(workdir):
    with ocp.CheckpointManager((workdir / "checkpoints").resolve()) as checkpoints:
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        return checkpoints.restore(checkpoints.latest_step(), args=args)["state"]


def assert_same_run(one, other):
    """The same to the bit, but for the time that it has taken."""
    states = (jax.tree.leaves(final_state(path)) for path in (one, other))
    for a, b in zip(*states, strict=True):
        np.testing.assert_array_equal(a, b)
    times = {"seconds": 0, "data_wait": 0}
    for a, b in zip(records(one), records(other), strict=True):
        assert a | times == b | times


def test_one_process(launch, tmp_path, capsys):
    """SIGKILL, SIGTERM, a second run, a full disk, a damaged checkpoint.

    All of it happens to one run, which then ends with the very bits of another to which
    nothing has happened.
    """
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    flags = [*FLAGS, "--epochs", str(4 * KILLS + 14)]
    undisturbed = launch(whole, *flags)
    assert undisturbed.wait(PATIENCE) == 0, undisturbed.errors()
    assert undisturbed.errors() == ""  # the progress bar is for terminals

    resumed, kills = flags, []
    for index in range(KILLS):
        process = launch(hurt, *resumed)
        resumed = ["--resume"]
        wait_for_steps(random.randint(1, 16), hurt, process)
        if index % 2 == 0:  # in the middle of writing a checkpoint
            unfinished = lambda: any(hurt.glob("checkpoints/*tmp*"))
            wait_for(unfinished, process)
        time.sleep(random.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        found = sorted(path.name for path in (hurt / "checkpoints").iterdir())
        kills.append(f"killed after {len(records(hurt)):3} steps, leaving {found}")
        assert process.errors() == ""

    process = launch(hurt, "--resume")
    wait_for_steps(2, hurt, process)
    assert train.main(["--resume", "--workdir", str(hurt)]) == 2
    told = f"{hurt}: another run is writing there (process {process.pid})"
    assert told in capsys.readouterr().err
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    done = len(records(hurt))
    told = f"experiments.train: stopped by SIGTERM after step {done}; --resume goes on"
    assert process.errors() == told + "\n"
    assert steps_saved(hurt)[-1] == done

    process = launch(hurt, "--resume")
    wait_for_steps(9, hurt, process)  # a checkpoint or two
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    assert process.wait(PATIENCE) == 2
    good = steps_saved(hurt)
    (line,) = process.errors().splitlines()
    assert "cannot be written" in line
    assert "File too large" in line
    assert f"is whole: {hurt / 'checkpoints' / str(good[-1])}; make room" in line

    for file in (hurt / "checkpoints" / str(good[-1])).rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    process = launch(hurt, "--resume")
    assert process.wait(PATIENCE) == 0, process.errors()
    (line,) = process.errors().splitlines()
    assert f"checkpoints/{good[-1]}: this checkpoint is damaged" in line
    assert_same_run(hurt, whole)
    metrics = [json.loads((p / "metrics.json").read_text()) for p in (hurt, whole)]
    assert metrics[0]["test_accuracy"] == metrics[1]["test_accuracy"] > 0.95
    assert metrics[0]["train_loss"] == metrics[1]["train_loss"]
    if "HANDGRAD_TEST_KILLS" in os.environ:
        with capsys.disabled():
            print("", *kills, sep="\n")


def test_a_lost_loss(launch, tmp_path):
    """It stops at that step; the last checkpoint and the step's batch are there."""
    flags = ["--steps", "4000", "--learning-rate", "100"]
    process = launch(tmp_path / "run", *FLAGS, *flags)
    assert process.wait(PATIENCE) == 2
    (line,) = process.errors().splitlines()
    step = int(re.search(r"loss became (?:nan|inf) at step (\d+)", line)[1])
    assert len(records(tmp_path / "run")) == step - 1 >= 8
    assert np.isfinite(losses(tmp_path / "run")).all()
    saved = steps_saved(tmp_path / "run")
    assert saved[-1] < step
    assert (
        f"checkpoint kept: {tmp_path / 'run' / 'checkpoints' / str(saved[-1])}" in line
    )
    for leaf in jax.tree.leaves(final_state(tmp_path / "run")):
        assert np.isfinite(leaf).all()
    images, labels = batches(data.load("synthetic"), batch_size=64, seed=0)[step - 1]
    with np.load(tmp_path / "run" / f"batch-{step}.npz") as kept:
        np.testing.assert_array_equal(kept["images"], images)
        np.testing.assert_array_equal(kept["labels"], labels)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_two_processes(launch, tmp_path):
    """Either is killed, one gets a SIGTERM; one process on eight devices ends it."""
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"

    def launch_both(*flags):
        at = f"--coordinator=127.0.0.1:{free_port()}"
        processes = [
            launch(
                *(hurt, *flags, at, "--num-processes=2", "--timeout=8"),
                f"--process-id={number}",
            )
            for number in range(2)
        ]
        wait_for_steps(9, hurt, *processes)
        return processes

    flags = [*FLAGS, "--epochs", "16"]
    first, second = launch_both(*flags)
    second.kill()
    first.wait(60)
    assert "process 0 of 2 has lost process 1" in first.errors()
    assert re.search(r"stopped sending heartbeats\):\n1\n", first.errors())

    first, second = launch_both("--resume")
    first.kill()
    second.wait(60)
    assert "process 1 of 2; process 0, at 127.0.0.1" in second.errors()
    assert "the leader" in second.errors()

    first, second = launch_both("--resume")
    second.send_signal(signal.SIGTERM)
    for process in (first, second):
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM, process.errors()
        assert "stopped by SIGTERM after step" in process.errors()
    assert steps_saved(hurt)[-1] == len(records(hurt)) < 128

    on_eight = ["--resume", "--mesh", "data=4,space=2", "--workdir", str(hurt)]
    assert train.main(on_eight) == 0
    assert train.main([*flags, "--workdir", str(whole)]) == 0
    np.testing.assert_allclose(losses(hurt), losses(whole), rtol=1e-4)
    ends = [records(path)[-1]["test_accuracy"] for path in (hurt, whole)]
    assert ends[0] == ends[1] > 0.95


def test_a_coordinator_that_does_not_answer(launch, tmp_path):
    at = f"127.0.0.1:{free_port()}"
    flags = ["--coordinator", at, "--num-processes=2", "--process-id=1", "--timeout=1"]
    process = launch(tmp_path / "run", *flags)
    assert process.wait(PATIENCE) == 2
    told = f"--coordinator {at}: process 0 did not answer within --timeout 1 s\n"
    assert process.errors() == f"experiments.train: {told}"
    assert not (tmp_path / "run").exists()
