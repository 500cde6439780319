import dataclasses
import json
import math
import time

import jax
import matplotlib.image
import numpy as np
import pytest

from experiments.benchmark import figure, layers, ops, pytorch, report
from experiments.benchmark.__main__ import main
from handgrad import cases, measure
from handgrad.rules import RULES

MEASURED = [case for case in cases.LAYERS if case.rule in layers.MEASURED]
DIRECTIONS = ["forward", "input gradient", "kernel gradient", "all"]
MAY_BE_NONE = {"network", "formula", "torch_ms", "torch_ratio", "memory_ratio"}


def refuse(token):
    raise AssertionError(f"{token} is not JSON")


def report_in(workdir):
    text = (workdir / "benchmark.json").read_text()
    return json.loads(text, parse_constant=refuse)


def layer(name):
    (case,) = (case for case in MEASURED if case.name == name)
    return case


def dtype(sample):
    """float32, or that of labels and keys, by a sample of one number."""
    one = dataclasses.replace(sample, shape=(1,) * len(sample.shape))
    return one(np.random.default_rng(0), np.float32).dtype


def test_layers():
    names = [str(case) for case in cases.LAYERS]
    assert len(set(names)) == len(names)
    assert {case.rule for case in cases.LAYERS} <= set(RULES)
    assert len(MEASURED) >= 40
    assert all(case in cases.LAYERS for case in cases.CASES if case.network)
    for case in MEASURED:
        assert not case.network or case.name.startswith(case.network)
        arrays = {
            name: jax.ShapeDtypeStruct(sample.shape, dtype(sample))
            for name, sample in case.samples.items()
        }
        assert 0 not in jax.eval_shape(case.function("autodiff"), **arrays).shape


def test_with_examples():
    case = layer("lenet5 conv 1")
    few = case.with_examples(2)
    assert str(few) == str(case)
    assert few.options == case.options
    shapes = {name: array.shape for name, array in few.arrays("float32").items()}
    assert shapes == {"x": (2, 28, 28, 1), "kernel": (5, 5, 1, 6), "bias": (6,)}
    assert case.samples["x"].shape == (64, 28, 28, 1)
    (loss,) = (
        case
        for case in cases.of("softmax_cross_entropy_with_integer_labels")
        if case.network
    )
    shapes = [array.shape for array in loss.with_examples(3).arrays("float32").values()]
    assert shapes == [(3, 10), (3,)]


def test_directions():
    image, number = np.zeros((1, 2), np.float32), np.zeros(1, np.int32)
    assert layers.directions({"x": image, "kernel": image, "bias": image}) == {
        "forward": (),
        "input gradient": ("x",),
        "kernel gradient": ("kernel",),
        "all": ("x", "kernel", "bias"),
    }
    assert layers.directions({"inputs": image}) == {
        "forward": (),
        "input gradient": ("inputs",),
        "all": ("inputs",),
    }
    assert list(layers.directions({"x": number})) == ["forward", "all"]


def test_one_layer(tmp_path, capsys):
    workdir = tmp_path / "new" / "directory"
    assert main(["ops", "ARTICLE", "--quick", "--workdir", str(workdir)]) == 0
    report = report_in(workdir)
    assert report["finished"] is True
    assert report["quick"] is True
    assert report["versions"]["jax"] == jax.__version__
    assert "torch" in report["versions"]
    assert report["threads"] >= 1
    assert report["failures"] == []
    assert all(value > 0 for value in report["limits"].values())
    rows = report["rows"]
    assert [row["direction"] for row in rows] == DIRECTIONS
    for row in rows:
        assert set(row) == set(layers.Row._fields)
        assert (row["rule"], row["case"]) == ("conv", "article 4x4 with 3x3")
        for name, value in row.items():
            if value is None:
                assert name in MAY_BE_NONE, name
            elif not isinstance(value, str):
                assert math.isfinite(value), name
                assert value >= 0, name
        assert row["error"] < 1e-5
        assert row["formula"]
    speed = report["summary"]["speed"]
    assert list(speed) == ["overall", *DIRECTIONS]
    assert speed["overall"]["rows"] == 4
    output = capsys.readouterr()
    assert output.err == ""
    assert "article 4x4 with 3x3" in output.out
    assert "against autodiff" in output.out
    assert "4 rows measured" in output.out
    assert matplotlib.image.imread(workdir / "benchmark.png").shape[1] > 800
    names = {file.name for file in workdir.iterdir()}
    assert names == {"benchmark.json", "benchmark.png"}


def test_without_torch_and_in_some_directions(tmp_path):
    arguments = ["ops", "--filter", "article", "--quick", "--no-torch"]
    arguments += ["--directions", "all,kernel", "--workdir", str(tmp_path)]
    assert main(arguments) == 0
    report = report_in(tmp_path)
    assert [r["direction"] for r in report["rows"]] == ["kernel gradient", "all"]
    assert all(row["torch_ms"] is None for row in report["rows"])
    assert report["versions"]["torch"] is None
    assert report["summary"]["speed"]["overall"]["torch_ratio"] is None
    assert (tmp_path / "benchmark.png").exists()


def test_a_layer_that_raises_is_no_end(tmp_path, capsys, monkeypatch):
    def raises(*arguments):
        raise RuntimeError("no such luck\nnor more")

    monkeypatch.setattr(layers, "errors", raises)
    (tmp_path / "benchmark.png").write_text("of an earlier run")
    arguments = ["ops", "article", "--quick", "--no-torch", "--workdir", str(tmp_path)]
    assert main(arguments) == 1
    report = report_in(tmp_path)
    assert report["finished"] is True
    assert report["rows"] == []
    (failure,) = report["failures"]
    assert failure["reason"] == "RuntimeError: no such luck"
    assert "no such luck" in capsys.readouterr().out
    assert not (tmp_path / "benchmark.png").exists()


def test_what_was_measured_outlives_a_kill(tmp_path, monkeypatch):
    def interrupt(case, *arguments):
        if case.network == "alexnet":
            raise KeyboardInterrupt
        yield from ()

    monkeypatch.setattr(ops, "measure_layer", interrupt)
    assert main(["ops", "--quick", "--no-torch", "--workdir", str(tmp_path)]) == 130
    assert report_in(tmp_path)["finished"] is False


def test_filters():
    everything = ops.select([], quick=False)
    assert everything == MEASURED
    transposed = ops.select(["Transpose"], quick=False)
    assert {case.rule for case in transposed} == {"conv_transpose"}
    two = ops.select(["vgg16", "LENET5"], quick=True)
    assert {case.network for case in two} == {"vgg16", "lenet5"}
    assert len(two) > 2
    (one,) = ops.select(["3x3 512 14px"], quick=False)
    assert one.network == "vgg16"
    quick = ops.select([], quick=True)
    assert len(quick) == len({case.network for case in quick})
    assert {case.network for case in quick} == {case.network for case in everything}


def fails_with(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("experiments.benchmark: ")
    assert output.err.count("\n") == 1
    return output.err


def test_bad_flags(capsys, tmp_path):
    assert "required" in fails_with(capsys)
    assert "'opps'" in fails_with(capsys, "opps")
    error = fails_with(capsys, "ops", "lenet5", "--filter", "resnot")
    assert "'resnot'" in error
    assert "resnet18" in error
    error = fails_with(capsys, "ops", "--directions", "forward,backward")
    assert "'backward'" in error
    assert "kernel" in error
    assert "--quickly" in fails_with(capsys, "ops", "--quickly")
    file = tmp_path / "file"
    file.write_text("mine")
    error = fails_with(capsys, "ops", "article", "--workdir", file)
    assert "name a directory" in error
    assert file.read_text() == "mine"


def test_a_report_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "benchmark.json").mkdir()
    arguments = ["ops", "article", "--quick", "--no-torch", "--workdir", str(tmp_path)]
    assert main(arguments) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_summary_names_what_falls_short():
    row = layers.Row(
        *("conv", "a layer", None, "forward", "taps"),
        *(2.0, 1.0, 4.0, 0.5, 2.0),
        *(1e-7, 1e-7, 1.0),
        *(10, 0, None),
        *(0.2, 0.1, 2.0),
        *(1.0, 1.0),
    )
    fast = row._replace(case="a fast one", autodiff_ratio=8.0, torch_ratio=None)
    fast = fast._replace(temp_bytes=0, compile_ratio=1.0)
    found = report.summary([row, fast])
    assert found["speed"]["overall"]["autodiff_ratio"] == pytest.approx(2.0)
    assert found["speed"]["forward"]["torch_ratio"] == pytest.approx(2.0)
    short = ["conv: a layer, forward"]
    assert found["slower_than_autodiff"] == short
    assert found["longer_to_compile"] == short
    assert found["more_memory"] == short
    assert report.summary([])["speed"]["overall"]["rows"] == 0


def test_operations_of_a_layer():
    # One y of the article's four has nine products; so has each gradient.
    case = layer("article 4x4 with 3x3")
    arrays, dy = case.arrays("float32"), measure.cotangent(case, "float32", 0)
    assert layers._work(case, arrays, dy, "forward") == (2 * 4 * 9, 4 * (16 + 9 + 4))
    assert layers._work(case, arrays, dy, "all") == (6 * 4 * 9, 8 * (16 + 9 + 4))
    # Every pixel meets every place of the kernel once, whatever the stride.
    case = layer("unet 2x2/2 128-64 28px").with_examples(1)
    arrays, dy = case.arrays("float32"), measure.cotangent(case, "float32", 0)
    work = layers._work(case, arrays, dy, "kernel gradient")
    assert work.operations == 2 * 28 * 28 * 2 * 2 * 128 * 64


def test_a_figure_with_gaps(tmp_path):
    row = {"rule": "conv", "case": "a", "direction": "forward", "autodiff_ratio": 3.0}
    row |= {"autodiff_ms": 3.0, "torch_ms": None}
    other = {**row, "case": "b", "direction": "all", "torch_ms": 1.0}
    figure.bars([row, other], tmp_path / "bars.png")
    assert matplotlib.image.imread(tmp_path / "bars.png").shape[1] > 800


@pytest.mark.parametrize(
    "name",
    [
        "lenet5 conv 1",  # with a bias
        "resnet18 3x3/2 64-128 56px",  # SAME with a stride pads the ends unlike
        "resnext50 3x3 G=4 192 28px",
        "efficientnet depthwise 5x5/2 72 40px",
        "deeplab 3x3 rate 2 256 28px",
        "wavenet 2 taps rate 8 64-128",  # 1-D, causal
        "unet3d 3x3x3 16-32 24px",
        "unet 2x2/2 128-64 28px",  # transposed
        "dcgan 4x4/2 64-3 32px",
        "googlenet pool 3x3/2 480 28px",  # ceil_mode
        "wav pool 3/2 32 4000",
        "inception avg 3x3/1 192 35px",
        "resnet50 avg global 2048 7px",
    ],
)
def test_torch_computes_the_same(name):
    torch = pytest.importorskip("torch", reason="PyTorch is what is compared with")
    case = layer(name).with_examples(1)
    arrays, dy = case.arrays("float32"), measure.cotangent(case, "float32", 0)
    y, cotangents = measure.forward_and_backward(case.function())(arrays, dy)
    theirs = pytorch.Layer(torch, case, arrays, dy)

    def equal(name, tensor, array):
        scale = float(np.abs(array).max())
        ours = np.asarray(array)
        np.testing.assert_allclose(theirs.array(name, tensor), ours, atol=2e-5 * scale)

    value, *gradients = theirs.value_and_gradients()()
    equal("y", value, y)
    equal("y", theirs.forward()(), y)
    for name, gradient in zip(arrays, gradients, strict=True):
        equal(name, gradient, cotangents[name])
        (alone,) = theirs.gradient([name])()
        equal(name, alone, cotangents[name])


def test_what_torch_lacks():
    torch = pytest.importorskip("torch", reason="PyTorch is what is compared with")
    (dilated,) = (c for c in cases.of("conv") if c.name == "dilated input")
    (pool,) = (c for c in cases.of("max_pool") if c.name == "overlapping 3x3/1")
    pool = dataclasses.replace(
        pool, options={**pool.options, "padding": ((1, 0), (0, 1))}
    )
    for case in (dilated, pool):
        dy = measure.cotangent(case, "float32", 0)
        with pytest.raises(NotImplementedError):
            pytorch.Layer(torch, case, case.arrays("float32"), dy)


def test_a_slow_function_is_called_a_few_times():
    calls = {"slow": 0, "quick": 0}

    def sleeping(name, seconds):
        def function():
            calls[name] += 1
            time.sleep(seconds)

        return function

    functions = {"slow": sleeping("slow", 0.12), "quick": sleeping("quick", 0.001)}
    seconds = measure.interleaved(functions, seconds=0.01)
    assert list(seconds) == ["slow", "quick"]
    assert calls["slow"] == 2 + measure.LEAST_TURNS
    assert calls["quick"] >= 2 + 2 * measure.LEAST_TURNS
    assert measure.interleaved({}) == {}
