import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data, distributed, pipeline
from experiments.config import Config

TEN = data.Dataset(
    train_images=np.arange(10).reshape(10, 1, 1, 1),
    train_labels=np.arange(10),
    test_images=np.zeros((1, 1, 1, 1)),
    test_labels=np.zeros(1),
)


def take(count, start=0, **arguments):
    drawn = pipeline.batches(TEN, batch_size=3, **arguments)
    return [drawn[start + index][1].tolist() for index in range(count)]


def test_an_epoch_sees_each_image_once_at_most():
    epochs = [take(3, seed=0, start=3 * epoch) for epoch in range(4)]
    for epoch in epochs:
        assert len({label for labels in epoch for label in labels}) == 9
    assert len({str(epoch) for epoch in epochs}) == 4


def test_batches_are_a_function_of_the_seed():
    assert take(7, seed=1) == take(7, seed=1) != take(7, seed=2)


def test_batches_keep_images_with_their_labels():
    drawn = pipeline.batches(TEN, batch_size=4, seed=0)
    for index in range(5):
        images, labels = drawn[index]
        np.testing.assert_array_equal(images.ravel(), labels)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_are_in_its_order(parts):
    """Epochs of two batches, and examples left over."""
    whole = pipeline.batches(TEN, batch_size=4, seed=0)
    divided = [
        pipeline.batches(TEN, batch_size=4, seed=0, part=part, parts=parts)
        for part in range(parts)
    ]
    for index in range(5):
        together = np.concatenate([part[index][1] for part in divided])
        np.testing.assert_array_equal(together, whole[index][1])


@pytest.mark.parametrize(
    ("position", "mesh"), [(0, None), (1, None), (3, None), (9, "data=4,space=2")]
)
def test_batches_go_on_from_a_position(position, mesh):
    dataset = data.load("synthetic")
    config = Config(dataset="synthetic", mesh=mesh, workdir="none")
    layout = distributed.make_layout(config, dataset.image_shape)
    new = lambda: pipeline.Batches(dataset, layout, batch_size=64, seed=3)
    batches, again = new(), new()
    drawn = pipeline.batches(dataset, batch_size=64, seed=3)
    for _ in range(position):  # 9 is in the second epoch
        next(batches)
    assert batches.position == {"next_index": position}
    again.position = batches.position
    for index in range(position, position + 5):
        for a, b, e in zip(next(batches), next(again), drawn[index], strict=True):
            np.testing.assert_array_equal(a, e)
            np.testing.assert_array_equal(b, e)
            assert len(a.sharding.device_set) == (8 if mesh else 1)


def test_the_pipeline_is_grain_s():
    assert isinstance(pipeline.batches(TEN, batch_size=3, seed=0), grain.MapDataset)


def test_random_shift_moves_images_and_repeats_edges():
    images = jnp.arange(1, 65, dtype=jnp.uint8).reshape(4, 4, 4, 1)
    shifted = pipeline.random_shift(jax.random.key(0), images, 2)
    assert shifted.shape == images.shape
    assert shifted.dtype == images.dtype
    for image, moved in zip(images, shifted, strict=True):
        padded = np.pad(image[..., 0], 2, mode="edge")
        crops = [padded[i : i + 4, j : j + 4] for i in range(5) for j in range(5)]
        assert any(np.array_equal(moved[..., 0], crop) for crop in crops)
    assert not np.array_equal(images, shifted)


def test_nothing_to_augment_is_the_identity():
    images = jnp.ones((2, 4, 4, 1))
    assert pipeline.augment(jax.random.key(0), images) is images


def test_random_flip_mirrors_about_half_of_the_images():
    images = jax.random.normal(jax.random.key(0), (200, 2, 5, 3))
    flipped = pipeline.random_flip(jax.random.key(1), images)
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_random_cutout_blanks_a_square(pixels):
    images = jnp.ones((300, 5, 7, 2), jnp.uint8)
    cut = np.asarray(pipeline.random_cutout(jax.random.key(0), images, pixels))
    assert cut.dtype == np.uint8
    seen = set()
    for image in cut:
        blank = image[..., 0] == 0
        np.testing.assert_array_equal(image[..., 1] == 0, blank)
        rows, columns = (
            np.nonzero(blank.any(axis=1))[0],
            np.nonzero(blank.any(axis=0))[0],
        )
        # A rectangle; as large as asked for, unless the border cuts it.
        assert blank.sum() == len(rows) * len(columns)
        assert len(rows) == pixels or rows[0] == 0 or rows[-1] == 4
        assert len(columns) == pixels or columns[0] == 0 or columns[-1] == 6
        seen.add((rows[0], columns[0]))
    assert len(seen) > 20


def test_augmentation_is_a_function_of_the_key():
    images = jax.random.normal(jax.random.key(0), (4, 6, 6, 1))
    augment = lambda seed: pipeline.augment(
        jax.random.key(seed), images, shift=1, flip=True, cutout=2
    )
    np.testing.assert_array_equal(augment(1), augment(1))
    assert not np.array_equal(augment(1), augment(2))


def test_data_sets_are_not_changed():
    before = dataclasses.replace(TEN, train_images=TEN.train_images.copy())
    take(5, seed=0)
    np.testing.assert_array_equal(before.train_images, TEN.train_images)
