import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from experiments import data
from experiments.runs import UsageError


@pytest.mark.parametrize(
    ("name", "train", "test", "image_shape"),
    [
        ("mnist5k", 4000, 1000, (28, 28, 1)),
        ("digits", 1437, 360, (32, 32, 1)),
        ("synthetic", 512, 128, (16, 16, 1)),
    ],
)
def test_data_sets_that_need_no_files(name, train, test, image_shape):
    dataset = data.load(name)
    assert dataset.image_shape == image_shape
    assert dataset.train_images.shape == (train, *image_shape)
    assert dataset.test_images.shape == (test, *image_shape)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == np.int32
    assert dataset.train_images.min() == 0
    assert dataset.train_images.max() == 255
    # Split by class: each has its share in both parts.
    shares = np.bincount(np.concatenate([dataset.train_labels, dataset.test_labels]))
    expected = shares * test / (train + test)
    np.testing.assert_allclose(np.bincount(dataset.test_labels), expected, atol=1)


def idx(array):
    magic = 0x800 + array.ndim
    header = struct.pack(f">{1 + array.ndim}I", magic, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(directory, *, suffix=""):
    rng = np.random.default_rng(0)
    for part, examples in (("train", 20), ("t10k", 10)):
        contents = {
            "images-idx3": idx(rng.integers(0, 256, (examples, 28, 28))),
            "labels-idx1": idx(np.arange(examples) % 10),
        }
        for kind, content in contents.items():
            content = gzip.compress(content) if suffix else content
            (directory / f"{part}-{kind}-ubyte{suffix}").write_bytes(content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_files(tmp_path, suffix):
    write_mnist(tmp_path, suffix=suffix)
    dataset = data.load("mnist", tmp_path)
    assert dataset.train_images.shape == (20, 28, 28, 1)
    expected = np.random.default_rng(0).integers(0, 256, (20, 28, 28))
    np.testing.assert_array_equal(dataset.train_images[..., 0], expected)
    assert dataset.test_labels.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("train-images-idx3-ubyte", None, "no such file"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08", "too few"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x03\0\0\0\1\1", "magic number"),
        ("train-images-idx3-ubyte", idx(np.ones((20, 28, 28)))[:-1], "header promises"),
        (
            "train-images-idx3-ubyte",
            idx(np.ones((20, 28, 28))) + b"1",
            "more bytes, bu",
        ),
        (
            "train-images-idx3-ubyte",
            idx(np.ones((1, 1, 1)))[:4] + b"\x7f" * 13,
            "more t",
        ),
        ("train-images-idx3-ubyte", idx(np.ones((20, 8, 8))), "8×8"),
        ("train-labels-idx1-ubyte", idx(np.ones(19)), "19 labels for 20 images"),
        ("train-labels-idx1-ubyte", idx(np.full(20, 10)), "label 10"),
    ],
)
def test_mnist_files_that_are_wrong(tmp_path, name, content, what):
    write_mnist(tmp_path)
    path = tmp_path / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UsageError, match=what) as error:
        data.load("mnist", tmp_path)
    assert str(path) in str(error.value)
    assert "download" in str(error.value)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"1" * 9999)[:-20], b"not gzip"],
    ids=["truncated", "not gzip"],  # the bytes of a gzip file hold the time
)
def test_a_gzip_file_that_is_wrong(tmp_path, content):
    write_mnist(tmp_path, suffix=".gz")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="truncated or not gzip") as error:
        data.load("mnist", tmp_path)
    assert str(path) in str(error.value)


def write_cifar10(directory, records):
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name in names:
        content = np.zeros((records, 3073), np.uint8)
        content[:, 0] = np.arange(records) % 10
        content[:, 1 : 1 + 1024] = 200  # red
        content[:, 1 + 1] = 7  # of the second pixel in the first row
        (directory / name).write_bytes(content.tobytes())


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin"])
def test_cifar10_files(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(data, "_CIFAR10_RECORDS", 10)
    directory = tmp_path / folder
    directory.mkdir(exist_ok=True)
    write_cifar10(directory, records=10)
    dataset = data.load("cifar10", tmp_path)
    assert dataset.train_images.shape == (50, 32, 32, 3)
    assert dataset.test_images.shape == (10, 32, 32, 3)
    assert dataset.test_images[0, 0, :3].tolist() == [
        [200, 0, 0],
        [7, 0, 0],
        [200, 0, 0],
    ]
    assert dataset.class_names[dataset.test_labels[3]] == "cat"


def test_a_file_is_unpacked_no_further_than_its_header_promises(tmp_path):
    """28 bytes of gzip can unpack to gigabytes."""
    write_mnist(tmp_path, suffix=".gz")
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.ones(10)) + bytes(10**8)))
    tracemalloc.start()
    with pytest.raises(UsageError, match="more bytes, but its header promises 18"):
        data.load("mnist", tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_a_cifar10_file_that_lacks_records(tmp_path):
    write_cifar10(tmp_path, records=10)
    with pytest.raises(UsageError, match="30730 bytes, not 30730000") as error:
        data.load("cifar10", tmp_path)
    assert str(tmp_path / "data_batch_1.bin") in str(error.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_data_set_of_files_needs_its_directory(name, tmp_path):
    with pytest.raises(UsageError, match="--data-dir"):
        data.load(name)
    with pytest.raises(UsageError, match="no such directory"):
        data.load(name, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no such file"):
        data.load(name, tmp_path)
