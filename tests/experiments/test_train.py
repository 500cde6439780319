import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from experiments import data, distributed, pipeline, runs, train
from experiments.config import Config


def config_of(workdir, **flags):
    defaults = {"model": "mlp", "dataset": "synthetic", "steps": 12}
    return Config(workdir=str(workdir), **(defaults | flags))


def records_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def final_state(workdir):
    with ocp.CheckpointManager((workdir / "checkpoints").resolve()) as checkpoints:
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        return checkpoints.restore(checkpoints.latest_step(), args=args)["state"]


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
        ".lock",
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
        "data_wait",
        "checkpoint_share",
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
    assert all(0 <= record["data_wait"] < 1 for record in records)
    assert 0 < metrics["checkpoint_share"] < 1


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
        batches = pipeline.batches(dataset, batch_size=64, seed=0)
        history = []
        for index in range(train.COMPARED_STEPS):
            state, metrics = step(state, *batches[index])
            history.append(metrics["loss"])
        losses.append(np.array(history))
    assert losses[0][-1] < 0.9 * losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-6)


ON_ONE_DEVICE = {"model": "lenet5", "batch_size": 32, "steps": 6, "flip": True}


@pytest.fixture(scope="module")
def losses_on_one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train.train(config_of(workdir, **ON_ONE_DEVICE))
    return losses(workdir)


def losses(workdir):
    return np.array([record["loss"] for record in records_of(workdir)])


@pytest.mark.several_devices
@pytest.mark.parametrize(
    ("flags", "rtol"),
    [
        ({"mesh": "data=8"}, 2e-6),
        ({"mesh": "data=2,space=4"}, 2e-6),
        ({"mesh": "data=4,space=2", "accumulate": 2}, 2e-6),
        ({"remat": "nothing_saveable"}, 2e-6),
        ({"remat": "dots_saveable", "accumulate": 4}, 2e-6),
        ({"compute_dtype": "bfloat16"}, 2e-2),
    ],
    ids=str,
)
def test_the_curve_is_that_of_one_device(tmp_path, losses_on_one_device, flags, rtol):
    train.train(config_of(tmp_path, **ON_ONE_DEVICE, **flags))
    np.testing.assert_allclose(losses(tmp_path), losses_on_one_device, rtol=rtol)


def compiled_step(tmp_path, **flags):
    config = config_of(tmp_path, model="lenet5", batch_size=256, **flags)
    dataset = data.load(config.dataset)
    layout = distributed.make_layout(config, dataset.image_shape)
    optimizer, schedule = train.make_optimizer(config, 12)
    forward = train.make_forward(config, dataset)
    state = train.init_state(config, dataset, optimizer)
    step = train.make_train_step(config, forward, optimizer, schedule)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    compiled, _ = train.compile_train_step(step, state, dataset, 256, layout)
    return compiled, size


@pytest.mark.several_devices
def test_memory_of_a_step(tmp_path):
    """The state is updated in place; parts and devices divide the activations."""
    whole, size = compiled_step(tmp_path)
    memory = whole.memory_analysis()
    assert memory.alias_size_in_bytes >= size
    for flags, share in (({"accumulate": 8}, 0.5), ({"mesh": "data=4,space=2"}, 0.4)):
        less = compiled_step(tmp_path, **flags)[0].memory_analysis()
        assert less.temp_size_in_bytes < share * memory.temp_size_in_bytes
    # Of images only the sums of losses and gradients leave a device.
    split, _ = compiled_step(tmp_path, mesh="data=8")
    text = split.as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text


@pytest.mark.several_devices
def test_a_run_goes_on_on_other_devices(finished_run, run_copy):
    shutil.rmtree(run_copy / "checkpoints" / "12")
    flags = ["--resume", "--mesh", "data=8", "--workdir", str(run_copy)]
    assert train.main(flags) == 0
    before = losses(finished_run[0])
    np.testing.assert_allclose(losses(run_copy), before, rtol=2e-6)
    np.testing.assert_array_equal(losses(run_copy)[:8], before[:8])


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
        ("--cutout -1", "--cutout -1: it must be 0 or more"),
        ("--accumulate 0", "--accumulate 0: it must be at least 1"),
        (
            "--accumulate 3",
            "--batch-size 64: it must be a multiple of --mesh data=1 ti",
        ),
        ("--remat most", "--remat: invalid choice: 'most'"),
        ("--compute-dtype int8", "--compute-dtype: invalid choice: 'int8'"),
        ("--mesh data=2", "--mesh data=2: it has 2 devices, but there are 8"),
        ("--mesh data=16", "--mesh data=16: it has 16 devices, but there are 8"),
        ("--mesh data=8 --batch-size 60", "--batch-size 60: it must be a multiple of"),
        ("--mesh batch=8", "--mesh batch=8: write it like data=4,space=2"),
        ("--mesh data=0", "--mesh data=0: write it like data=4,space=2"),
        ("--mesh data=4,data=2", "--mesh data=4,data=2: write it like"),
        ("--coordinator here", "--coordinator here: it must be HOST:PORT"),
        ("--coordinator here:1", "--coordinator here:1: it needs --num-processes and"),
        ("--num-processes 2", "they need --coordinator HOST:PORT"),
        ("--coordinator a:1 --num-processes 0 --process-id 0", "--num-processes 0: it"),
        (
            "--coordinator a:1 --num-processes 2 --process-id 2",
            "--process-id 2: it mus",
        ),
        ("--coordinator auto", "--coordinator auto: it cannot be joined"),
        ("--timeout 0", "--timeout 0: it must be at least 1"),
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


def test_rows_that_the_mesh_does_not_divide(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(data.DATASETS, "synthetic", lambda _: odd)
    whole = data.load("digits")
    odd = dataclasses.replace(whole, train_images=whole.train_images[:, :30])
    flags = ["--dataset=synthetic", "--mesh=data=2,space=4", f"--workdir={tmp_path}"]
    assert "space=4 must divide the images' 30 rows" in fails(flags, capsys)


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
    drawn = pipeline.batches(data.load("synthetic"), batch_size=64, seed=0)[10]
    with np.load(tmp_path / "batch-11.npz") as kept:
        np.testing.assert_array_equal(kept["images"], drawn[0])
        np.testing.assert_array_equal(kept["labels"], drawn[1])
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
