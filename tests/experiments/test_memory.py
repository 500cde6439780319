import json

import jax
import jax.numpy as jnp

from experiments.benchmark import memory
from experiments.benchmark.__main__ import main
from handgrad import cases, measure

X = jax.ShapeDtypeStruct((4, 6), jnp.float32)
BYTES = 4 * 6 * 4


def kept_by(function):
    return measure.residuals(lambda x, fixed: function(x), X, None)


def test_residuals_are_counted_by_where_they_come_from():
    assert kept_by(lambda x: x + 1) == (0, 0, 0)
    assert kept_by(lambda x: x * x) == (0, 0, BYTES)
    assert kept_by(jnp.exp) == (0, BYTES, 0)
    assert kept_by(lambda x: jnp.exp(jnp.exp(x))) == (BYTES, BYTES, 0)


def layer(rule, name):
    (case,) = (c for c in cases.LAYERS if (c.rule, c.name) == (rule, name))
    return case


def test_a_max_pool_keeps_one_byte_a_window_and_not_the_image():
    case = layer("max_pool", "lenet5 pool 1")
    y = jax.eval_shape(case.function(), **case.arrays("float32"))
    row = memory.kept(case)
    assert (row.made, row.held) == (y.size, 0)
    assert row.autodiff_held == 4 * case.samples["inputs"].shape[0] * 28 * 28 * 6
    assert not row.larger
    assert row._replace(held=row.autodiff_held).larger


def test_the_command_writes_its_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        memory,
        "STACKS",
        [memory.Stack("tiny", (4, 16, 16, 2), (3, "pool", 4, "pool"), 3, ["SAME"] * 2)],
    )
    assert main(["memory", "lenet5 pool", "--workdir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "memory.json").read_text())
    names = [(row["rule"], row["case"]) for row in found["residuals"]]
    assert len(names) == 4
    assert names[0] == ("max_pool", "lenet5 pool 1")
    (stack,) = found["stacks"]
    assert 0 < stack["bytes"] < stack["autodiff_bytes"]
    assert stack["ratio"] == stack["bytes"] / stack["autodiff_bytes"]
    assert "75,264" in capsys.readouterr().out
    assert main(["memory", "no such layer", "--workdir", str(tmp_path)]) == 2
