import dataclasses

import pytest

from experiments import runs
from experiments.config import Config, parse
from experiments.runs import UsageError


def test_the_defaults_are_the_main_job():
    config = parse([], "")
    assert (config.model, config.dataset) == ("lenet5", "mnist5k")
    assert str(config.workdir).startswith("runs/mnist5k-lenet5-")


def test_flags_set_the_fields_of_their_names():
    flags = ["--batch-size", "8", "--learning-rate", "0.1", "--compare-autodiff"]
    config = parse(flags, "")
    assert (config.batch_size, config.learning_rate) == (8, 0.1)
    assert config.compare_autodiff


def test_resume_takes_the_flags_of_the_run(tmp_path):
    began_with = Config(seed=3, model="mlp", workdir=str(tmp_path))
    flags = dataclasses.asdict(began_with)
    del flags["workdir"], flags["resume"]
    runs.write_json(tmp_path / "config.json", {"flags": flags})
    config = parse(["--resume", "--workdir", str(tmp_path)], "")
    assert config == dataclasses.replace(began_with, resume=True)
    config = parse(["--resume", "--workdir", str(tmp_path), "--seed", "4"], "")
    assert (config.model, config.seed) == ("mlp", 4)


def test_resume_refuses_the_config_of_another_version(tmp_path):
    runs.write_json(tmp_path / "config.json", {"flags": {"optimizer": "adam"}})
    with pytest.raises(UsageError, match=r"config.json: written by another version"):
        parse(["--resume", "--workdir", str(tmp_path)], "")


def test_values_are_checked_without_a_command_line_too():
    with pytest.raises(UsageError, match="--model resnet: choose from lenet5,"):
        Config(model="resnet")
