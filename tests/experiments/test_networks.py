import json

import flax.linen
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments.benchmark import networks, networks_flax, pytorch
from experiments.benchmark.__main__ import main
from experiments.benchmark.networks_flax import Network

# Each network, with few and narrow layers.
TINY = {
    "lenet5": Network("LeNet5", {}, 2, (16, 16, 1)),
    "vgg-small": Network("VGG", {"widths": (2, 3)}, 2, (8, 8, 3)),
    "resnet18": Network("ResNet", {"widths": (4, 8), "blocks": 1}, 2, (16, 16, 3)),
    "resnext18": Network(
        "ResNet", {"widths": (4, 8), "blocks": 1, "groups": 2}, 2, (16, 16, 3)
    ),
    "mobilenetv2": Network(
        "MobileNetV2",
        {"stages": ((1, 4, 1, 1), (2, 6, 2, 2)), "stem": 4, "last": 8},
        2,
        (16, 16, 3),
    ),
}


@pytest.fixture(autouse=True)
def promotion():
    """Flax and optax promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# What is left out has no other layers; the command's test runs one of them.
@pytest.mark.parametrize("name", ["lenet5", "resnext18", "mobilenetv2"])
def test_two_steps_are_the_same_on_all_sides(name):
    assert list(TINY) == list(networks.NETWORKS)
    network = TINY[name]
    assert networks.NETWORKS[name].module == network.module
    batch = networks_flax.batch(network)
    model = networks_flax.build(flax.linen, network)
    variables = jax.jit(model.init)(jax.random.key(1, impl="unsafe_rbg"), batch[0])
    params, statistics = variables["params"], variables.get("batch_stats", {})
    start = params, statistics, networks.OPTIMIZER.init(params)
    losses = {}
    for side, step in networks.steps(network).items():
        step, state = jax.jit(step), start
        for _ in range(2):
            state, loss = step(state, *batch)
            losses.setdefault(side, []).append(float(loss))
        assert ("custom_vjp" in str(jax.make_jaxpr(step)(start, *batch))) == (
            side != networks.FLAX
        )
    torch = pytorch.load()
    if torch:  # the first step's gradients are in the second loss
        step = networks.networks_torch.Step(
            torch, network, variables, batch, networks.LEARNING_RATE
        )
        losses[networks.TORCH] = [float(step()) for _ in range(2)]
    for side, each in losses.items():
        np.testing.assert_allclose(each, losses["flax"], rtol=2e-5, err_msg=side)
    assert losses["flax"][0] != losses["flax"][1]


def report_in(workdir):
    return json.loads((workdir / "networks.json").read_text())


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(networks, "NETWORKS", {"tiny": TINY["vgg-small"]})
    assert main(["networks", "TIN", "--quick", "--workdir", str(tmp_path)]) == 0
    report = report_in(tmp_path)
    assert report["finished"] is True
    assert report["failures"] == []
    (row,) = report["rows"]
    assert row["network"] == "tiny"
    assert row["same_loss"] is True
    sides = row["sides"]
    assert [*sides][:3] == ["flax", "handgrad", "rewrite"]
    assert row["speedup"] == sides["flax"]["ms"] / sides["handgrad"]["ms"]
    assert row["rewrite_time"] == sides["rewrite"]["ms"] / sides["handgrad"]["ms"]
    assert all(side["ms"] > 0 for side in sides.values())
    assert all(sides[side]["compile_s"] > 0 for side in ("flax", "handgrad"))
    assert sides["flax"]["temp_bytes"] > 0
    if "torch" in sides:
        assert row["torch_ratio"] == sides["torch"]["ms"] / sides["handgrad"]["ms"]
    output = capsys.readouterr().out
    assert "1 networks measured" in output
    assert "rewrite" in output
    assert matplotlib.image.imread(tmp_path / "networks.png").shape[1] > 500


def test_a_network_that_raises_or_computes_something_else(
    tmp_path, capsys, monkeypatch
):
    def other(torch, network, *arguments):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(networks, "NETWORKS", {"tiny": TINY["lenet5"]})
    monkeypatch.setattr(networks, "steps", other)
    arguments = ["networks", "--quick", "--no-torch", "--workdir", str(tmp_path)]
    assert main(arguments) == 1
    (failure,) = report_in(tmp_path)["failures"]
    assert failure["network"] == "tiny"
    assert "failed: tiny" in capsys.readouterr().out

    def wrong(network):
        step = networks.training_step(networks_flax.build(flax.linen, network))

        def off(state, images, labels):
            state, loss = step(state, images, labels)
            return state, loss + jnp.float32(1)

        return {"flax": step, "handgrad": off, "rewrite": step}

    monkeypatch.setattr(networks, "steps", wrong)
    assert main(arguments) == 1
    report = report_in(tmp_path)
    assert report["failures"] == []
    assert report["rows"][0]["same_loss"] is False


def test_names(capsys):
    assert list(networks.select([])) == list(networks.NETWORKS)
    assert list(networks.select(["ResNe", "lenet"])) == [
        "lenet5",
        "resnet18",
        "resnext18",
    ]
    assert main(["networks", "alexnet"]) == 2
    assert "'alexnet' names no network; there are lenet5" in capsys.readouterr().err
