import matplotlib.image
import numpy as np
import pytest

from experiments import data, figures


def records(steps):
    return [
        {"step": step, "loss": 1 / step, "accuracy": 0.5, "test_loss": 1.0}
        | {"test_accuracy": 0.5}
        for step in range(1, steps + 1)
    ]


def check(path):
    height, width, _ = matplotlib.image.imread(path).shape
    assert height >= 200
    assert width >= 600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("steps", [1, 2, 500])
def test_curves(tmp_path, steps):
    figures.curves(records(steps), tmp_path / "curves.png")
    check(tmp_path / "curves.png")


@pytest.mark.parametrize("steps", [1, 120])
def test_comparison_of_equal_curves(tmp_path, steps):
    path = tmp_path / "comparison.png"
    figures.comparison(records(steps), records(steps), 50, path)
    check(path)


@pytest.mark.parametrize("wrong", [0, 5, 20])
@pytest.mark.parametrize("channels", [1, 3])
def test_predictions(tmp_path, wrong, channels):
    images = np.zeros((20, 8, 8, channels), np.uint8)
    labels = np.zeros(20, np.int32)
    dataset = data.Dataset(images, labels, images, labels)
    predicted = (np.arange(20) < wrong).astype(np.int32)
    figures.predictions(dataset, predicted, tmp_path / "predictions.png")
    check(tmp_path / "predictions.png")


@pytest.mark.parametrize("shape", [(6, 5, 5, 1), (40, 8, 8, 3), (9, 5, 5, 2)], ids=str)
def test_kernels(tmp_path, shape):
    kernels = np.random.default_rng(0).normal(size=shape)
    figures.kernels(kernels, tmp_path / "kernels.png")
    check(tmp_path / "kernels.png")
