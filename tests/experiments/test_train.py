import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from experiments import data, runs, train
from experiments.config import Config

ROOT = Path(__file__).parents[2]


def config_of(workdir, **flags):
    defaults = {"model": "mlp", "dataset": "synthetic", "steps": 12}
    return Config(workdir=str(workdir), **(defaults | flags))


def records_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def final_state(workdir):
    with ocp.CheckpointManager((workdir / "checkpoints").resolve()) as checkpoints:
        step = checkpoints.latest_step()
        return checkpoints.restore(step, args=ocp.args.StandardRestore())


def assert_same_bits(one, other):
    one, other = (jax.tree.leaves(final_state(path)) for path in (one, other))
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The directory and the metrics of a finished run, to look at only."""
    workdir = tmp_path_factory.mktemp("run") / "finished"
    return workdir, train.train(config_of(workdir, compare_autodiff=True))


@pytest.fixture
def run_copy(finished_run, tmp_path):
    """A copy of a finished run, to change."""
    return Path(shutil.copytree(finished_run[0], tmp_path / "copy"))


def test_a_run_writes_what_came_of_it(finished_run):
    workdir, metrics = finished_run
    assert {path.name for path in workdir.iterdir()} == {
        "autodiff",
        "checkpoints",
        "comparison.png",
        "config.json",
        "curves.png",
        "kernels.png",
        "metrics.json",
        "metrics.jsonl",
        "predictions.png",
        "tensorboard",
    }
    assert metrics == json.loads((workdir / "metrics.json").read_text())
    assert list(metrics) == [
        "test_accuracy",
        "train_loss",
        "steps",
        "seconds",
        "compile_seconds",
        "steps_per_second",
        "autodiff_test_accuracy",
        "largest_loss_difference",
    ]
    assert metrics["steps"] == 12
    assert 0 < metrics["compile_seconds"] < metrics["seconds"]
    records = records_of(workdir)
    assert [record["step"] for record in records] == list(range(1, 13))
    assert all({"loss", "accuracy", "learning_rate"} <= set(r) for r in records)
    # An epoch is 8 steps; the last step is tested too.
    assert [r["step"] for r in records if "test_accuracy" in r] == [8, 12]
    assert records[-1]["test_accuracy"] == metrics["test_accuracy"]
    assert list((workdir / "tensorboard").iterdir())


@pytest.mark.parametrize("model", ["lenet5-max", "mlp"])
def test_other_models_learn(tmp_path, model):
    metrics = train.train(config_of(tmp_path, model=model, steps=None, epochs=8))
    assert metrics["steps"] == 64
    assert metrics["test_accuracy"] > 0.95


def test_an_epoch_teaches_real_digits(tmp_path):
    metrics = train.train(config_of(tmp_path, dataset="mnist5k", steps=None, epochs=1))
    assert metrics["steps"] == 62
    assert metrics["test_accuracy"] > 0.85


def test_the_schedule_warms_up_and_decays():
    _, schedule = train.make_optimizer(Config(learning_rate=0.5), 100)
    rates = [float(schedule(step)) for step in range(101)]
    assert rates[0] == 0
    assert rates[5] == 0.5 == max(rates)
    assert rates[100] == pytest.approx(0, abs=1e-6)


def test_another_formula_follows_autodiff(tmp_path):
    flags = {"implementation": "gemm", "compare_autodiff": True}
    metrics = train.train(config_of(tmp_path, model="lenet5", **flags))
    assert metrics["largest_loss_difference"] < 1e-5
    assert metrics["autodiff_test_accuracy"] == metrics["test_accuracy"]
    hand, autodiff = records_of(tmp_path), records_of(tmp_path / "autodiff")
    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(hand, autodiff, strict=True)]
    assert max(gaps) == metrics["largest_loss_difference"]
    assert hand[-1]["loss"] < hand[0]["loss"]
    flags = runs.read_config(tmp_path / "autodiff")["flags"]
    assert flags["implementation"] == "autodiff"


def test_the_main_job_follows_autodiff_for_fifty_steps(tmp_path):
    """Its own schedule, only the first steps of it: they are what is compared."""
    dataset = data.load("mnist5k")
    losses = []
    for implementation in (None, "autodiff"):
        config = Config(implementation=implementation, workdir=str(tmp_path))
        optimizer, schedule = train.make_optimizer(config, 3720)
        forward = train.make_forward(config, dataset)
        state = train.init_state(config, dataset, optimizer)
        step = jax.jit(train.make_train_step(config, forward, optimizer, schedule))
        batches = data.batches(
            dataset.train_images, dataset.train_labels, batch_size=64, seed=0
        )
        history = []
        for _ in range(train.COMPARED_STEPS):
            state, metrics = step(state, *next(batches))
            history.append(metrics["loss"])
        losses.append(np.array(history))
    assert losses[0][-1] < 0.9 * losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-6)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    """Killed twice, wherever it is, after a checkpoint and after another."""
    flags = ["--dataset", "synthetic", "--model", "lenet5", "--epochs", "40"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-W", "error", "-m", "experiments.train"]
    for arguments in (flags, ["--resume"]):
        before = lines_logged(killed)
        with (tmp_path / "output").open("w") as output:
            process = subprocess.Popen(
                [*command, *arguments, "--workdir", str(killed)],
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )
        try:
            wait_for_lines(killed, before + random.randint(10, 50), process)
            time.sleep(random.uniform(0, 0.05))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL
        # The progress bar is for terminals.
        assert (tmp_path / "output").read_text() == ""
    assert not (killed / "metrics.json").exists()

    assert train.main(["--resume", "--workdir", str(killed)]) == 0
    assert train.main([*flags, "--workdir", str(whole)]) == 0
    assert_same_bits(killed, whole)
    assert [r["step"] for r in records_of(killed)] == list(range(1, 321))
    for one, other in zip(records_of(killed), records_of(whole), strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    one, other = (json.loads((p / "metrics.json").read_text()) for p in (killed, whole))
    assert one["test_accuracy"] == other["test_accuracy"] > 0.95
    assert one["train_loss"] == other["train_loss"]


def lines_logged(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(workdir, lines, process):
    """Waits until this many steps are logged: a checkpoint is made every eighth."""
    deadline = time.monotonic() + 120
    while lines_logged(workdir) < lines:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_comparison_killed_in_its_second_half_resumes(finished_run, run_copy):
    metrics = finished_run[1]
    (run_copy / "metrics.json").unlink()
    shutil.rmtree(run_copy / "autodiff" / "checkpoints" / "12")
    assert train.main(["--resume", "--workdir", str(run_copy)]) == 0
    again = json.loads((run_copy / "metrics.json").read_text())
    for name in ("test_accuracy", "train_loss", "largest_loss_difference"):
        assert again[name] == metrics[name]
    assert len(records_of(run_copy)) == 12
    assert len(records_of(run_copy / "autodiff")) == 12
    assert_same_bits(run_copy / "autodiff", finished_run[0] / "autodiff")


def test_the_default_work_directory_names_the_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--model", "mlp", "--dataset", "synthetic", "--steps", "1"]) == 0
    (workdir,) = (tmp_path / "runs").iterdir()
    assert workdir.name.startswith("synthetic-mlp-")


def test_help_gives_each_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--model", "--data-dir", "--implementation", "--steps", "--resume"):
        assert flag in text
    for default in ("(lenet5)", "(mnist5k)", "(64)", "(0.05)", "(0)"):
        assert default in text


def fails(arguments, capsys):
    """Runs the command line, which has to fail; returns its one line on stderr."""
    assert train.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model resnet", "--model: invalid choice: 'resnet'"),
        ("--dataset imagenet", "--dataset: invalid choice: 'imagenet'"),
        ("--implementation fft", "--implementation: invalid choice: 'fft'"),
        ("--implementation gemm --model mlp", "--implementation gemm: no op of --mod"),
        ("--epochs 0", "--epochs 0: it must be at least 1"),
        ("--epochs many", "--epochs: invalid int value: 'many'"),
        ("--steps -3", "--steps -3: it must be at least 1"),
        ("--batch-size -1", "--batch-size -1: it must be at least 1"),
        ("--batch-size 513", "--batch-size 513: --dataset synthetic has only 512"),
        ("--learning-rate 0", "--learning-rate 0.0: it must be positive"),
        ("--learning-rate nan", "--learning-rate nan: it must be positive"),
        ("--shift -1", "--shift -1: it must be 0 or more"),
        ("--seed -1", "--seed -1: it must be from 0"),
        ("--compare-autodiff --implementation autodiff", "leaves nothing to compare"),
        ("--dataset mnist", "--dataset mnist reads files"),
        ("--dataset mnist --data-dir nowhere", "--data-dir nowhere: no such dir"),
        ("--resume", "nothing to resume in run"),
        ("--learn 1", "unrecognized arguments: --learn"),
    ],
)
def test_bad_flags(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    base = "--workdir run --dataset synthetic --steps 1"
    assert message in fails([*base.split(), *arguments.split()], capsys)
    assert not list(tmp_path.iterdir())


def test_resume_needs_to_know_the_run(capsys):
    assert "--workdir" in fails(["--resume"], capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        [],  # not empty
        ["--resume", "--model", "lenet5"],
        ["--resume", "--dataset", "digits"],
        ["--resume", "--steps", "13"],
    ],
    ids=str,
)
def test_a_run_is_not_overwritten(finished_run, capsys, arguments):
    workdir, _ = finished_run
    before = contents(workdir)
    message = fails(["--workdir", str(workdir), *arguments], capsys)
    assert str(workdir) in message
    assert all(flag in message for flag in arguments[1:2])
    assert contents(workdir) == before


def test_a_loss_that_is_lost_stops_the_run(tmp_path, capsys, monkeypatch):
    def explode(config, steps):
        def schedule(step):
            return jnp.where(step < 9, 0.01, 1e38)

        return optax.sgd(schedule), schedule

    monkeypatch.setattr(train, "make_optimizer", explode)
    flags = ["--model=mlp", "--dataset=synthetic", "--epochs=3"]
    message = fails([*flags, f"--workdir={tmp_path}"], capsys)
    assert "at step 11; start again with a --learning-rate below 0.05" in message
    assert str(tmp_path / "checkpoints" / "8") in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["8"]
    assert [record["step"] for record in records_of(tmp_path)] == list(range(1, 11))
    assert not (tmp_path / "metrics.json").exists()


def test_a_state_that_is_lost_is_not_saved(tmp_path, capsys, monkeypatch):
    """The last step's own loss is finite; only the test images show the loss of it."""

    def explode(config, steps):
        def schedule(step):
            return jnp.where(step < steps - 1, 0.01, jnp.inf)

        return optax.sgd(schedule), schedule

    monkeypatch.setattr(train, "make_optimizer", explode)
    flags = ["--model=mlp", "--dataset=synthetic", "--epochs=2"]
    message = fails([*flags, f"--workdir={tmp_path}"], capsys)
    assert "test_loss became nan at step 16" in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["8"]
