import json
import math

import jax
import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from experiments.benchmark import __main__ as command
from experiments.benchmark import scale

SMALL = {"batch": 2, "image": 8, "channels": 4, "depth": 1}


@pytest.fixture
def small(monkeypatch):
    """A benchmark of seconds: tiny networks, a run of few steps."""
    run = scale.measure_run
    quick = {"model": "mlp", "dataset": "synthetic"}
    monkeypatch.setattr(scale, "USUAL", SMALL)
    monkeypatch.setattr(scale, "SWEEPS", {"batch": (2, 4, 8, 16), "depth": (1, 2)})
    monkeypatch.setattr(scale, "_PARAMETERS", (10, 1000))
    monkeypatch.setattr(scale, "measure_run", lambda **flags: run(**flags, **quick))


def test_scale(small, tmp_path, capsys):
    arguments = ["scale", "--quick", "--sweeps", "batch", "--workdir", str(tmp_path)]
    assert command.main(arguments) == 0
    report = json.loads((tmp_path / "scale.json").read_text())
    assert report["finished"] is True
    assert report["versions"]["jax"] == jax.__version__
    points = report["points"]
    assert [(p["size"], p["side"]) for p in points] == [
        (size, side) for size in (2, 16) for side in ("handgrad", "flax")
    ]
    for point in points:
        for cost in scale.COSTS:
            assert point[cost] > 0
    for cost in scale.COSTS:
        for side in scale.SIDES:
            small, large = (p[cost] for p in points if p["side"] == side)
            expected = math.log(large / small) / math.log(16 / 2)
            found = report["slopes"]["batch"][cost][side]
            assert found == pytest.approx(expected)
    (saved,) = report["checkpoints"]
    assert saved["bytes"] == 40
    assert saved["save_s"] > 0 < saved["restore_s"]
    assert [p["batch"] for p in report["pipeline"]] == [2, 16]
    assert all(p["images_per_second"] > 0 for p in report["pipeline"])
    assert report["run"]["steps"] == 8
    assert 0 < report["run"]["checkpoint_share"] < 1
    output = capsys.readouterr()
    assert output.err == ""
    assert "growing batch: handgrad / flax" in output.out
    assert "waits for data" in output.out
    assert matplotlib.image.imread(tmp_path / "scale.png").shape[0] > 800


def test_both_sides_take_the_same_step():
    arguments = scale.operands(SMALL | {"depth": 2})
    steps = [scale.make_step(ours, SMALL | {"depth": 2}) for ours in (True, False)]
    ours, theirs = (jax.jit(step)(*arguments) for step in steps)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    before, after = (jax.tree.leaves(p) for p in (arguments[0], ours[1]))
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_slope():
    assert scale.slope([1, 2, 4, 8], [7, 7, 32, 128]) == pytest.approx(2)
    assert scale.slope([1, 2], [None, 3]) is None
    assert scale.slope([1], [3]) is None
    points = [scale.Point("depth", n, "flax", 2.0 * n, 1, 1, None) for n in (1, 2, 4)]
    fitted = scale.slopes(points)["depth"]
    assert fitted["step_ms"]["flax"] == pytest.approx(1)
    assert fitted["temp_bytes"]["flax"] is None
    assert fitted["step_ms"]["handgrad"] is None


def test_a_size_without_memory_figures(tmp_path):
    points = [scale.Point("depth", 1, side, 1, 1, 1, None) for side in scale.SIDES]
    with (tmp_path / "out").open("w") as file:
        scale.print_sweep("depth", points, Console(file=file))
    assert "–" in (tmp_path / "out").read_text()
    scale.plots(points, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_bad_flags(capsys, tmp_path):
    assert command.main(["scale", "--sweeps", "width"]) == 2
    assert "'width': choose from batch, image" in capsys.readouterr().err
    (tmp_path / "file").touch()
    arguments = ["scale", "--sweeps", "none", "--workdir", str(tmp_path / "file")]
    assert command.main(arguments) == 2
    assert "name another directory" in capsys.readouterr().err
