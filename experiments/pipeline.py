"""The way of the images from memory to the devices: grain's pipeline, augmentation.

A batch is a pure function of the seed and its number, whatever the number of processes,
so the pipeline's whole state is the number of the next one. Its augmentation happens on
the devices and is a pure function of a key and the images.
"""

from typing import Any, Self

import grain
import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset
from experiments.distributed import Layout

_BATCHES_AHEAD = 32  # more than a run takes before it waits for their metrics


def batches(
    dataset: Dataset, *, batch_size: int, seed: int, part: int = 0, parts: int = 1
) -> grain.MapDataset[Any]:
    """Shuffled batches without end, each a pair of images and labels.

    Each epoch is a permutation of its own; the examples that do not fill its last batch
    are left out.

    Args:
        dataset: whose training images to take.
        batch_size: examples in all parts of a batch together.
        seed: of the permutations.
        part: which part of each batch to take, from 0.
        parts: in how many parts, in their order, batches are divided.
    """

    def gather(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return dataset.train_images[examples], dataset.train_labels[examples]

    count = len(dataset.train_labels)
    # Indices are shuffled, not images: one gather makes a batch.
    return (
        grain.MapDataset.range(count)
        .seed(seed)
        .shuffle()
        .batch(batch_size // parts, drop_remainder=True)
        .slice(slice(part, count // batch_size * parts, parts))
        .map(gather)
        .repeat()
    )


class Batches:
    """The batches of a run, on its devices; made ahead of time in the background."""

    def __init__(
        self, dataset: Dataset, layout: Layout, *, batch_size: int, seed: int
    ) -> None:
        """Begins at the first batch; this process reads only the rows that it needs."""
        self._rows, self._batch_size = layout.rows(batch_size), batch_size
        self._layout, parts = layout, batch_size // len(self._rows)
        source = batches(
            dataset,
            batch_size=batch_size,
            seed=seed,
            part=self._rows.start // len(self._rows),
            parts=parts,
        )
        self._iterator: Any = iter(
            source.to_iter_dataset(
                grain.ReadOptions(num_threads=1, prefetch_buffer_size=_BATCHES_AHEAD)
            )
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[jax.Array, jax.Array]:
        images, labels = next(self._iterator)
        return self._layout.put(
            images, labels, start=self._rows.start, batch_size=self._batch_size
        )

    @property
    def position(self) -> dict[str, Any]:
        """Where the pipeline is: what a checkpoint keeps, the same in all processes."""
        return self._iterator.get_state()

    @position.setter
    def position(self, state: dict[str, Any]) -> None:
        self._iterator.set_state(state)


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    shift: int = 0,
    flip: bool = False,
    cutout: int = 0,
) -> jax.Array:
    """Images as they might have been taken too: moved, mirrored, partly hidden.

    Args:
        key: what the chances depend on.
        images: of shape `(batch, height, width, channels)`.
        shift: see `random_shift`.
        flip: whether to mirror half of the images.
        cutout: see `random_cutout`.
    """
    keys = jax.random.split(key, 3)
    images = random_shift(keys[0], images, shift)
    if flip:
        images = random_flip(keys[1], images)
    return random_cutout(keys[2], images, cutout)


def random_shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
    """Moves each image by up to ±`pixels` in both directions, repeating its edge."""
    if pixels == 0:
        return images
    margin = (pixels, pixels)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)), mode="edge")
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], jnp.zeros_like(corner[0]))
        return jax.lax.dynamic_slice(image, start, images.shape[1:])

    return jax.vmap(crop)(padded, corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image, left to right, with probability 1/2."""
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def random_cutout(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
    """Blanks a square of `pixels`×`pixels` around a random pixel of each image.

    Source: DeVries & Taylor 2017, arXiv:1708.04552: near the border a part of the
    square may lie outside.
    """
    if pixels == 0:
        return images

    def covered(key: jax.Array, size: int) -> jax.Array:
        """Of each image, which of its `size` rows or columns the square covers."""
        middle = jax.random.randint(key, (len(images), 1), 0, size)
        distance = jnp.arange(size)[None] - middle + pixels // 2
        return (distance >= 0) & (distance < pixels)

    _, height, width, _ = images.shape
    keys = jax.random.split(key)
    rows, columns = covered(keys[0], height), covered(keys[1], width)
    hidden = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(hidden, jnp.zeros_like(images), images)
