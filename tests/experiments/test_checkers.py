import json

import pytest

from experiments import checkers
from experiments.checkers import main

OURS = "handgrad.testing.check_rule"


def test_caught_missed_and_false_alarms(tmp_path, capsys):
    """One wrong element of 10⁴ and one right rule."""
    names = ["one element", "jnp.tanh"]
    status = main([*names, "--workdir", str(tmp_path), "--checker", OURS])
    report = json.loads((tmp_path / "checkers.json").read_text())
    assert [(row["name"], row["objects"]) for row in report["rows"]] == [
        ("dense: one element of 10⁴", True),
        ("jnp.tanh", False),
    ]
    (line,) = report["summary"]
    assert (line["caught"], line["missed"], line["false_alarms"]) == (1, 0, 0)
    assert status == 0
    assert OURS in capsys.readouterr().out


def test_a_missed_rule_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(checkers.CHECKERS, OURS, lambda call: [])
    words = ["one element", "--workdir", str(tmp_path), "--checker", OURS]
    assert main(words) == 1
    assert f"{OURS} missed: dense: one element" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--group", "none"])
    assert main(["no such name", "--workdir", str(tmp_path)]) == 2


def test_enough_functions_of_jax():
    groups = [call.group for call in checkers.calls()]
    assert groups.count("jax") >= 30
    assert groups.count("wrong") >= 60
    assert groups.count("handgrad") >= len(checkers.RULES)
