import matplotlib.image
import numpy as np
import pytest

from experiments import error_maps


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (1, 4, 4, 1)], ids=str)
def test_error_maps_of_any_rank(tmp_path, shape):
    truth = np.zeros(shape)
    path = tmp_path / "maps.png"
    error_maps.error_maps(
        [error_maps.Map("exact", truth, truth, truth + 1e-8)], "float32", path
    )
    assert matplotlib.image.imread(path).shape[1] > 800
    assert list(tmp_path.iterdir()) == [path]


def test_tiles_keep_images_apart():
    images = np.arange(2 * 3 * 4 * 5, dtype=float).reshape(2, 3, 4, 5)
    picture = error_maps.tiled(images)
    assert picture.shape == (2 * 4 - 1, 5 * 5 - 1)
    np.testing.assert_array_equal(picture[4:7, 5:9], images[1, ..., 1])
    assert np.isnan(picture[3]).all()
