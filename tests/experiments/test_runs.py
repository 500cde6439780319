import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import runs
from experiments.runs import Run, UsageError

FLAGS = {"model": "lenet5", "seed": 0}


def state_after(step):
    return {"step": jnp.int32(step), "params": {"kernel": jnp.full((2, 3), step / 3)}}


@pytest.fixture
def workdir(tmp_path):
    """The directory of a run killed at step 7, with checkpoints up to step 6."""
    path = tmp_path / "run"
    with Run.start(path, FLAGS) as run:
        for step in range(1, 8):
            run.log({"step": step, "loss": 1 / step})
            if step % 2 == 0:
                run.save(step, state_after(step), {"next_index": step})
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    return path


def steps_logged(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_run_goes_on_from_its_newest_checkpoint(workdir):
    run, restored = Run.resume(workdir, FLAGS, state_after(0))
    with run:
        assert restored.step == 6
        assert restored.position == {"next_index": 6}
        assert run.newest_checkpoint == workdir / "checkpoints" / "6"
        kernel = restored.state["params"]["kernel"]
        np.testing.assert_array_equal(kernel, np.full((2, 3), np.float32(6 / 3)))
        assert [record["step"] for record in run.records] == [1, 2, 3, 4, 5, 6]
        run.log({"step": 7, "loss": 0.5})
    assert steps_logged(workdir) == [1, 2, 3, 4, 5, 6, 7]


def test_the_two_newest_checkpoints_are_kept(workdir):
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {"4", "6"}


def test_a_run_without_checkpoints_goes_on_from_its_beginning(tmp_path):
    with Run.start(tmp_path, FLAGS) as run:
        run.log({"step": 1, "loss": 1.0})
    run, restored = Run.resume(tmp_path, FLAGS, state_after(0))
    with run:
        assert restored is None
        assert run.records == []
    assert steps_logged(tmp_path) == []


def test_a_run_killed_at_its_very_start_leaves_the_directory_free(tmp_path):
    (tmp_path / ".config.json.tmp").write_text('{"fla')
    Run.start(tmp_path, FLAGS).close()
    assert runs.read_config(tmp_path)["flags"] == FLAGS


def test_config_tells_versions_and_device(workdir):
    config = runs.read_config(workdir)
    assert config["versions"]["jax"]
    assert config["device"]["platform"] == "cpu"


def test_start_overwrites_nothing(workdir):
    before = contents(workdir)
    with pytest.raises(UsageError, match=r"run: not empty.*--resume"):
        Run.start(workdir, FLAGS)
    assert contents(workdir) == before


def test_resume_refuses_other_flags(workdir):
    before = contents(workdir)
    told = r"config.json: .* --model lenet5, not mlp; --seed 0, not 1; .* --model, --se"
    with pytest.raises(UsageError, match=told):
        Run.resume(workdir, {"model": "mlp", "seed": 1}, state_after(0))
    assert contents(workdir) == before
    other_seed = FLAGS | {"seed": 1}
    run, _ = Run.resume(workdir, other_seed, state_after(0), may_differ=["seed"])
    run.close()


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"kernel": jnp.zeros((2, 4))}, r"params/kernel is \(2, 3\), not \(2, 4\)"),
        ({"bias": jnp.zeros(3)}, r"params/bias is missing, not \(3,\)"),
    ],
)
def test_resume_refuses_a_checkpoint_of_another_model(workdir, params, what):
    before = contents(workdir)
    with pytest.raises(UsageError, match=f"checkpoints/6: .*another model: .*{what}"):
        Run.resume(workdir, FLAGS, {"step": jnp.int32(0), "params": params})
    assert contents(workdir) == before


def damage(path, how):
    for file in sorted(path.rglob("*"), reverse=True):
        if file.is_file():
            if how == "removed":
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[: 10 if how == "truncated" else 0])


@pytest.mark.parametrize("how", ["truncated", "emptied", "removed"])
@pytest.mark.parametrize("part", [".", "state/d", "data"])
def test_a_damaged_checkpoint_is_set_aside(workdir, capsys, how, part):
    damage(workdir / "checkpoints" / "6" / part, how)
    run, restored = Run.resume(workdir, FLAGS, state_after(0))
    with run:
        assert restored.step == 4
    assert steps_logged(workdir) == [1, 2, 3, 4]
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "checkpoints/6: this checkpoint is damaged" in error
    assert (workdir / "damaged-checkpoint-6").is_dir()
    assert not (workdir / "checkpoints" / "6").exists()


def test_damaged_checkpoints_are_not_the_run_s_beginning(workdir):
    for step in (4, 6):
        damage(workdir / "checkpoints" / str(step), "truncated")
    with pytest.raises(UsageError, match="checkpoints: all checkpoints are damaged"):
        Run.resume(workdir, FLAGS, state_after(0))


def test_a_second_run_is_refused(tmp_path):
    told = r"another run is writing there \(process \d+\)"
    with Run.start(tmp_path, FLAGS), pytest.raises(UsageError, match=told):
        Run.resume(tmp_path, FLAGS, state_after(0))
    Run.resume(tmp_path, FLAGS, state_after(0))[0].close()


@pytest.mark.parametrize(
    "text", [None, "", '{"step": 1}\n{"step": 3}\n', "{}\n", "1\n"]
)
def test_resume_refuses_damaged_metrics(workdir, text):
    path = workdir / "metrics.jsonl"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UsageError, match=r"metrics.jsonl: lines .* are missing"):
        Run.resume(workdir, FLAGS, state_after(0))


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"flags": 1}'])
def test_resume_refuses_a_damaged_config(workdir, text):
    (workdir / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config.json: not a run's configuration"):
        Run.resume(workdir, FLAGS, state_after(0))


def test_resume_needs_a_run(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(UsageError, match=f"nothing to resume in {path} "):
            Run.resume(path, FLAGS, state_after(0))


def test_start_needs_a_directory(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file: a file; name a directory"):
        Run.start(tmp_path / "file", FLAGS)
    with pytest.raises(UsageError, match=r"file/run: cannot be made.*Not a directory"):
        Run.start(tmp_path / "file" / "run", FLAGS)
    assert (tmp_path / "file").read_text() == "mine"


def test_start_needs_a_directory_that_can_be_written(tmp_path, monkeypatch):
    # Simulated: the permissions of a directory do not hold root back.
    def refuse(path, value):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(runs, "write_json", refuse)
    with pytest.raises(UsageError, match=r"cannot be made or written \(Permission"):
        Run.start(tmp_path, FLAGS)


def test_json_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "metrics.json"
    runs.write_json(path, {"steps": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.write_json(path, {"steps": float("nan")})
    assert json.loads(path.read_text()) == {"steps": 1}
    assert list(tmp_path.iterdir()) == [path]
