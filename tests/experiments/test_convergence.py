import json

import numpy as np

from experiments import convergence


def test_few_steps_and_going_on(tmp_path, capsys, monkeypatch):
    arguments = ["--model", "mlp", "--dataset", "synthetic", "--steps", "3"]
    arguments += ["--seeds", "2", "--workdir", str(tmp_path)]
    status = convergence.main(arguments)
    out = capsys.readouterr().out
    assert out.count("->") == 4
    assert "means differ by" in out
    runs = json.loads((tmp_path / "convergence.json").read_text())
    assert len(runs) == 4
    assert np.isfinite(list(runs.values())).all()
    # What is there is not trained again.
    monkeypatch.setattr(convergence, "final_loss", None)
    assert convergence.main(arguments) == status
    assert capsys.readouterr().out == out


def test_ending_apart_is_a_failure(tmp_path, monkeypatch):
    def final_loss(config, *args):
        return 2.0, config.seed + (10.0 if config.implementation else 0.0)

    monkeypatch.setattr(convergence, "final_loss", final_loss)
    arguments = ["--dataset", "synthetic", "--workdir", str(tmp_path)]
    assert convergence.main(arguments) == 1
