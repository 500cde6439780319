"""The named cases: one list that tests, benchmarks, documents and tables share.

A case is an op, the arrays it gets and its options. `CASES` are checked: the geometries
in which a rule is most easily wrong. `LAYERS` are measured: layers of real networks,
which carry the network's name. Those that are small enough are in both.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Arguments that every example shares: they have no batch dimension.
PARAMETERS = frozenset({"kernel", "rhs", "bias"})


@dataclasses.dataclass(frozen=True)
class Sample:
    """An array argument: its shape, and how numbers of that shape are made."""

    shape: tuple[int, ...]
    make: Callable[[np.random.Generator, tuple[int, ...], Any], np.ndarray]

    def __call__(self, random: np.random.Generator, dtype: Any) -> np.ndarray:
        """Returns the array, in this dtype where it holds real numbers."""
        return self.make(random, self.shape, dtype)


def normal(*shape: int, scale: float = 1.0) -> Sample:
    """Normally distributed numbers."""
    return Sample(
        shape,
        lambda random, shape, dtype: (scale * random.standard_normal(shape)).astype(
            dtype
        ),
    )


def tied(*shape: int) -> Sample:
    """Small whole numbers: most windows hold their maximum more than once."""
    return Sample(
        shape, lambda random, shape, dtype: random.integers(-1, 2, shape).astype(dtype)
    )


def constant(*shape: int, value: float = 0.0) -> Sample:
    """One number everywhere."""
    return Sample(shape, lambda random, shape, dtype: np.full(shape, value, dtype))


def classes(count: int, *shape: int) -> Sample:
    """Integer labels below `count`, whatever the dtype of the other arrays."""
    return Sample(
        shape,
        lambda random, shape, dtype: random.integers(0, count, shape).astype(np.int32),
    )


def one_hot(*shape: int) -> Sample:
    """One-hot labels along the last axis."""
    return Sample(
        shape,
        lambda random, shape, dtype: np.eye(shape[-1], dtype=dtype)[
            random.integers(0, shape[-1], shape[:-1])
        ],
    )


def uniform(*shape: int) -> Sample:
    """Numbers between 0 and 1."""
    return Sample(
        shape, lambda random, shape, dtype: random.uniform(size=shape).astype(dtype)
    )


@dataclasses.dataclass(frozen=True, eq=False)  # itself is its identity
class Case:
    """One named call of an op.

    Attributes:
      rule: the op's public name.
      name: what the case is, unique within the rule.
      samples: makes each array argument, in the op's order.
      options: the op's other arguments.
      network: the network that the case is a layer of; its time is worth measuring.
      kinked: whether the inputs lie on kinks, where difference quotients say nothing.
    """

    rule: str
    name: str
    samples: Mapping[str, Sample]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: str | None = None
    kinked: bool = False

    def __str__(self) -> str:
        """`rule: name`, as tables and test names show it."""
        return f"{self.rule}: {self.name}"

    def arrays(self, dtype: Any, seed: int = 0) -> dict[str, np.ndarray]:
        """Returns the array arguments by name, the same ones for the same seed."""
        random = np.random.default_rng((seed, zlib.crc32(str(self).encode())))
        dtype = jnp.dtype(dtype)
        return {name: make(random, dtype) for name, make in self.samples.items()}

    def function(self, implementation: Any = None) -> Callable[..., jax.Array]:
        """Returns the op as a function of its array arguments, by name."""
        import handgrad

        op = getattr(handgrad, self.rule)
        return functools.partial(op, **self.options, implementation=implementation)

    def with_examples(self, count: int) -> "Case":
        """Returns the case with another batch: every leading dimension is `count`.

        Parameters (kernel, rhs, bias) have no batch and stay as they are. It is for a
        case whose batch leads: the whole of a network's layer may be much to check.
        """
        samples = {
            name: sample
            if name in PARAMETERS
            else dataclasses.replace(sample, shape=(count, *sample.shape[1:]))
            for name, sample in self.samples.items()
        }
        return dataclasses.replace(self, samples=samples)


def _conv(name, x, kernel, *, bias=False, network=None, **options) -> Case:
    samples = {"x": normal(*x), "kernel": normal(*kernel)}
    if bias:
        samples["bias"] = normal(kernel[-1])
    return Case("conv", name, samples, options, network)


def _elementwise(rule, network_shape=(64, 28, 28, 6)) -> list[Case]:
    return [
        Case(rule, "lenet5 layer 1", {"x": normal(*network_shape)}, network="lenet5"),
        Case(rule, "vector", {"x": normal(7)}),
        Case(rule, "wide range", {"x": normal(3, 40, scale=8.0)}),
        Case(rule, "empty", {"x": normal(0, 3)}),
    ]


def _normalised(rule) -> list[Case]:
    return [
        Case(rule, "lenet5 logits", {"x": normal(64, 10)}, network="lenet5"),
        Case(rule, "wide range", {"x": normal(3, 40, scale=4.0)}),
        Case(rule, "middle axis", {"x": normal(2, 5, 3)}, {"axis": 1}),
        Case(rule, "two axes", {"x": normal(2, 5, 3)}, {"axis": (0, -1)}),
        Case(rule, "all axes", {"x": normal(2, 5)}, {"axis": None}),
        Case(
            rule,
            "masked",
            {"x": normal(2, 4)},
            {"where": np.array([[True, True, False, True]])},
        ),
        Case(rule, "empty batch", {"x": normal(0, 3)}),
    ]


def _pools(rule, image) -> list[Case]:
    def case(name, shape, window_shape, *, network=None, sample=image, **options):
        return Case(
            rule,
            name,
            {"inputs": sample(*shape)},
            {"window_shape": window_shape, **options},
            network,
        )

    two = {"strides": (2, 2)}
    return [
        case("article 4x4, 2x2 blocks", (4, 4, 1), (2, 2), **two),
        case("lenet5 pool 1", (64, 28, 28, 6), (2, 2), network="lenet5", **two),
        case("lenet5 pool 2", (64, 10, 10, 16), (2, 2), network="lenet5", **two),
        case(
            "resnet 3x3/2",
            (2, 28, 28, 16),
            (3, 3),
            network="resnet18",
            padding="SAME",
            **two,
        ),
        case("overlapping 3x3/1", (2, 7, 6, 3), (3, 3), padding="SAME"),
        case("stride above window", (2, 9, 9, 2), (2, 2), strides=(3, 4)),
        case("leftover pixels", (1, 7, 8, 2), (2, 3), strides=(2, 3)),
        case(
            "asymmetric and negative padding",
            (2, 6, 7, 3),
            (3, 2),
            strides=(2, 1),
            padding=((2, 0), (-1, 1)),
        ),
        case("window above image", (2, 3, 3, 2), (5, 5), padding="SAME"),
        case("one pixel", (3, 1, 1, 2), (1, 1)),
        case("1-D", (2, 11, 3), (4,), strides=(3,)),
        case("3-D", (1, 4, 5, 6, 2), (2, 3, 2), strides=(2, 1, 2), padding="SAME"),
        case("unbatched", (6, 6, 2), (2, 2)),
        case("two batch axes", (2, 3, 6, 6, 2), (2, 2), **two),
        case("empty batch", (0, 4, 4, 1), (2, 2)),
    ]


def _general(name, lhs, rhs, window_strides, padding, **options) -> Case:
    samples = {"lhs": normal(*lhs), "rhs": normal(*rhs)}
    options |= {"window_strides": window_strides, "padding": padding}
    return Case("conv_general_dilated", name, samples, options)


def _conv_transpose(name, lhs, rhs, strides, padding, **options) -> Case:
    samples = {"lhs": normal(*lhs), "rhs": normal(*rhs)}
    options |= {"strides": strides, "padding": padding}
    return Case("conv_transpose", name, samples, options)


CASES: tuple[Case, ...] = (
    _conv_transpose("SAME", (2, 4, 5, 3), (4, 3, 3, 2), (2, 3), "SAME"),
    _conv_transpose(
        "dilated kernel",
        (2, 4, 3, 2),
        (3, 2, 2, 3),
        (2, 1),
        "VALID",
        rhs_dilation=(1, 2),
    ),
    _conv_transpose(
        "PyTorch's padding, turned kernel",
        (2, 3, 4, 5),
        (3, 3, 3, 2),
        (2, 2),
        ((1, 0), (1, 1)),
        transpose_kernel=True,
        use_consistent_padding=True,
        dimension_numbers=("NCHW", "HWOI", "NHWC"),
    ),
    _general("channels first", (2, 3, 7, 6), (4, 3, 3, 2), (2, 1), "SAME"),
    _general(
        "batch groups",
        (6, 5, 5, 2),
        (3, 3, 2, 9),
        (1, 2),
        "VALID",
        batch_group_count=3,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    _general(
        "mixed layouts",
        (5, 2, 6, 4),
        (6, 3, 2, 2),
        (2, 1),
        ((2, 1), (-1, 2)),
        lhs_dilation=(1, 2),
        rhs_dilation=(2, 1),
        feature_group_count=2,
        dimension_numbers=("HNWC", "OHIW", "CWNH"),
    ),
    _general("no spatial dimension", (3, 4), (5, 4), (), "VALID"),
    _general("4-D", (1, 2, 3, 3, 2, 3), (3, 2, 2, 2, 1, 2), (1, 2, 1, 1), "SAME"),
    _general("kernel above image", (2, 3, 2, 2), (4, 3, 3, 3), (1, 1), "VALID"),
    _conv("article 4x4 with 3x3", (1, 4, 4, 1), (3, 3, 1, 1), padding="VALID"),
    _conv("lenet5 conv 1", (64, 28, 28, 1), (5, 5, 1, 6), bias=True, network="lenet5"),
    _conv(
        "lenet5 conv 2",
        (64, 14, 14, 6),
        (5, 5, 6, 16),
        bias=True,
        padding="VALID",
        network="lenet5",
    ),
    _conv("strided", (2, 9, 8, 3), (3, 3, 3, 4), strides=(2, 3)),
    _conv("stride above kernel", (2, 9, 9, 2), (2, 2, 2, 3), strides=3),
    _conv("dilated kernel", (2, 9, 8, 3), (3, 2, 3, 4), kernel_dilation=(2, 3)),
    _conv("dilated input", (2, 5, 4, 3), (3, 3, 3, 2), input_dilation=(2, 3)),
    _conv("asymmetric padding", (2, 5, 6, 2), (3, 3, 2, 3), padding=((2, 0), (0, 3))),
    _conv("negative padding", (2, 8, 9, 2), (3, 3, 2, 3), padding=((-1, 1), (-2, -1))),
    _conv(
        "all at once",
        (2, 7, 6, 4),
        (3, 2, 2, 6),
        strides=(3, 2),
        padding=((2, 1), (-1, 3)),
        input_dilation=(2, 1),
        kernel_dilation=(1, 2),
        feature_group_count=2,
    ),
    _conv("grouped", (2, 6, 6, 6), (3, 3, 2, 9), feature_group_count=3),
    _conv("depthwise", (2, 6, 6, 4), (3, 3, 1, 8), feature_group_count=4, strides=2),
    _conv("kernel above image", (2, 2, 3, 2), (5, 5, 2, 3)),
    _conv("one pixel", (3, 1, 1, 4), (1, 1, 4, 5)),
    _conv("1-D", (2, 11, 3), (4, 3, 5), strides=2, bias=True),
    _conv("3-D", (1, 4, 5, 4, 2), (2, 3, 2, 2, 3), strides=(1, 2, 1), bias=True),
    _conv("unbatched", (6, 6, 2), (3, 3, 2, 3), bias=True),
    _conv("empty batch", (0, 4, 4, 1), (3, 3, 1, 2)),
    Case(
        "im2col",
        "article 3x3, 2x2",
        {"x": normal(3, 3, 1)},
        {"window_shape": (2, 2)},
    ),
    Case(
        "im2col",
        "lenet5 conv 2",
        {"x": normal(64, 14, 14, 6)},
        {"window_shape": (5, 5)},
        network="lenet5",
    ),
    Case(
        "im2col",
        "strided, dilated, padded",
        {"x": normal(2, 7, 6, 3)},
        {
            "window_shape": (3, 2),
            "strides": (2, 1),
            "padding": ((1, 2), (-1, 1)),
            "kernel_dilation": (1, 2),
        },
    ),
    Case("im2col", "1-D", {"x": normal(2, 9, 3)}, {"window_shape": (4,), "strides": 3}),
    Case("im2col", "3-D", {"x": normal(3, 4, 5, 2)}, {"window_shape": (2, 2, 3)}),
    Case(
        "col2im",
        "article 3x3, 2x2",
        {"columns": normal(4, 4)},
        {"image_shape": (3, 3), "window_shape": (2, 2)},
    ),
    Case(
        "col2im",
        "lenet5 conv 2",
        {"columns": normal(64, 150, 100)},
        {"image_shape": (14, 14), "window_shape": (5, 5)},
        network="lenet5",
    ),
    Case(
        "col2im",
        "strided, dilated, padded",
        {"columns": normal(2, 18, 16)},
        {
            "image_shape": (7, 6),
            "window_shape": (3, 2),
            "strides": (2, 1),
            "padding": ((1, 2), (-1, 1)),
            "kernel_dilation": (1, 2),
        },
    ),
    Case(
        "add_bias",
        "lenet5 conv 1",
        {"x": normal(64, 28, 28, 6), "bias": normal(6)},
        network="lenet5",
    ),
    Case("add_bias", "vector", {"x": normal(5), "bias": normal(5)}),
    Case("add_bias", "empty batch", {"x": normal(0, 5), "bias": normal(5)}),
    Case(
        "dense",
        "lenet5 dense 1",
        {"x": normal(64, 400), "kernel": normal(400, 120), "bias": normal(120)},
        network="lenet5",
    ),
    Case("dense", "vector", {"x": normal(5), "kernel": normal(5, 3)}),
    Case("dense", "leading axes", {"x": normal(2, 3, 5), "kernel": normal(5, 4)}),
    Case("dense", "empty batch", {"x": normal(0, 5), "kernel": normal(5, 4)}),
    *_pools("max_pool", normal),
    *(
        dataclasses.replace(case, name=f"{case.name}, tied", kinked=True)
        for case in _pools("max_pool", tied)
        if case.name.startswith(("article", "overlapping", "asymmetric", "window"))
    ),
    Case(
        "max_pool",
        "all equal",
        {"inputs": constant(2, 6, 6, 2)},
        {"window_shape": (3, 3), "padding": "SAME"},
        kinked=True,
    ),
    *_pools("avg_pool", normal),
    Case(
        "avg_pool",
        "padding not counted",
        {"inputs": normal(2, 7, 6, 3)},
        {
            "window_shape": (3, 3),
            "strides": (2, 1),
            "padding": "SAME",
            "count_include_pad": False,
        },
    ),
    Case(
        "avg_pool",
        "dilated window",
        {"inputs": normal(2, 9, 8, 3)},
        {"window_shape": (3, 2), "window_dilation": (2, 3), "strides": (1, 2)},
    ),
    *_elementwise("sigmoid"),
    *_elementwise("tanh"),
    *_elementwise("relu"),
    Case("relu", "at the kink", {"x": tied(5, 4)}, kinked=True),
    *_normalised("softmax"),
    *_normalised("log_softmax"),
    Case(
        "softmax_cross_entropy",
        "lenet5 loss",
        {"logits": normal(64, 10), "labels": one_hot(64, 10)},
        network="lenet5",
        kinked=True,  # 0 · log p: the labels' own difference quotient crosses 0
    ),
    Case(
        "softmax_cross_entropy",
        "labels that do not sum to 1",
        {"logits": normal(5, 7, scale=3.0), "labels": uniform(5, 7)},
    ),
    Case(
        "softmax_cross_entropy",
        "two axes, masked",
        {"logits": normal(3, 2, 4), "labels": uniform(3, 2, 4)},
        {"axis": (0, 2), "where": np.array([[[True, False, True, True]]])},
    ),
    Case(
        "softmax_cross_entropy_with_integer_labels",
        "lenet5 loss",
        {"logits": normal(64, 10), "labels": classes(10, 64)},
        network="lenet5",
    ),
    Case(
        "softmax_cross_entropy_with_integer_labels",
        "first axis",
        {"logits": normal(7, 5, scale=3.0), "labels": classes(7, 5)},
        {"axis": 0},
    ),
    Case(
        "softmax_cross_entropy_with_integer_labels",
        "two axes",
        {"logits": normal(3, 2, 4), "labels": classes(12, 2)},
        {"axis": (0, 2)},
    ),
    Case(
        "softmax_cross_entropy_with_integer_labels",
        "masked",
        {"logits": normal(6, 5), "labels": classes(3, 6)},
        {"where": np.array([[True, True, True, False, True]])},
    ),
    Case(
        "sigmoid_binary_cross_entropy",
        "lenet5 logits",
        {"logits": normal(64, 10, scale=4.0), "labels": one_hot(64, 10)},
        network="lenet5",
    ),
    Case(
        "sigmoid_binary_cross_entropy",
        "soft labels",
        {"logits": normal(5, 7, scale=8.0), "labels": uniform(5, 7)},
    ),
    Case(
        "squared_error",
        "lenet5 logits",
        {"predictions": normal(64, 10), "targets": normal(64, 10)},
        network="lenet5",
    ),
    Case("squared_error", "no targets", {"predictions": normal(4, 3)}),
)


def _layer(network, name, x, kernel, **options) -> Case:
    return _conv(f"{network} {name}", x, kernel, network=network, **options)


def _transposed(network, name, lhs, rhs) -> Case:
    samples = {"lhs": normal(*lhs), "rhs": normal(*rhs)}
    options = {"strides": (2, 2), "padding": "SAME"}
    return Case("conv_transpose", f"{network} {name}", samples, options, network)


def _depthwise(network, name, image, size, **options) -> Case:
    channels = image[-1]
    name = f"depthwise {size}x{size}{name}"
    kernel = (size, size, 1, channels)
    options |= {"feature_group_count": channels}
    return _layer(network, name, image, kernel, **options)


# Batches such that JAX's own forward pass takes about 2 to 60 ms on two cores. "/2" is
# a stride, "G=4" four groups, "64-128" as many channels in and out.
LAYERS: tuple[Case, ...] = (
    *(case for case in CASES if case.network or case.name == "article 4x4 with 3x3"),
    _layer("mnist cnn", "3x3 1-32 28px", (64, 28, 28, 1), (3, 3, 1, 32)),
    _layer(
        "alexnet",
        "11x11/4 3-96 227px",
        (4, 227, 227, 3),
        (11, 11, 3, 96),
        strides=4,
        padding="VALID",
    ),
    _layer(
        "alexnet",
        "5x5 G=2 96-256 27px",
        (8, 27, 27, 96),
        (5, 5, 48, 256),
        feature_group_count=2,
    ),
    _layer("alexnet", "3x3 256-384 13px", (8, 13, 13, 256), (3, 3, 256, 384)),
    _layer("vgg16", "3x3 3-64 224px", (2, 224, 224, 3), (3, 3, 3, 64)),
    _layer("vgg16", "3x3 64 112px", (2, 112, 112, 64), (3, 3, 64, 64)),
    _layer("vgg16", "3x3 128 56px", (4, 56, 56, 128), (3, 3, 128, 128)),
    _layer("vgg16", "3x3 256 28px", (4, 28, 28, 256), (3, 3, 256, 256)),
    _layer("vgg16", "3x3 512 14px", (4, 14, 14, 512), (3, 3, 512, 512)),
    _layer("inception", "1x7 128 17px", (8, 17, 17, 128), (1, 7, 128, 128)),
    _layer("inception", "7x1 128 17px", (8, 17, 17, 128), (7, 1, 128, 128)),
    _layer(
        "resnet18",
        "7x7/2 3-64 224px",
        (8, 224, 224, 3),
        (7, 7, 3, 64),
        strides=2,
        padding=((3, 3), (3, 3)),
    ),
    _layer("resnet18", "3x3 64 56px", (8, 56, 56, 64), (3, 3, 64, 64)),
    _layer("resnet18", "3x3 128 28px", (8, 28, 28, 128), (3, 3, 128, 128)),
    _layer("resnet18", "3x3 256 14px", (8, 14, 14, 256), (3, 3, 256, 256)),
    _layer("resnet18", "3x3 512 7px", (8, 7, 7, 512), (3, 3, 512, 512)),
    _layer(
        "resnet18", "3x3/2 64-128 56px", (8, 56, 56, 64), (3, 3, 64, 128), strides=2
    ),
    _layer(
        "resnet18", "1x1/2 64-128 56px", (8, 56, 56, 64), (1, 1, 64, 128), strides=2
    ),
    _layer("resnet50", "1x1 64-256 56px", (8, 56, 56, 64), (1, 1, 64, 256)),
    _layer("resnet50", "1x1 256-64 56px", (8, 56, 56, 256), (1, 1, 256, 64)),
    _layer("resnet50", "3x3/2 128 56px", (8, 56, 56, 128), (3, 3, 128, 128), strides=2),
    _layer(
        "resnet50", "1x1/2 256-512 56px", (8, 56, 56, 256), (1, 1, 256, 512), strides=2
    ),
    _layer(
        "resnext50",
        "3x3 G=32 128 28px",
        (8, 28, 28, 128),
        (3, 3, 4, 128),
        feature_group_count=32,
    ),
    _layer(
        "resnext50",
        "3x3 G=4 192 28px",
        (8, 28, 28, 192),
        (3, 3, 48, 192),
        feature_group_count=4,
    ),
    _layer(
        "shufflenet",
        "1x1 G=4 272-68 28px",
        (8, 28, 28, 272),
        (1, 1, 68, 68),
        feature_group_count=4,
    ),
    _depthwise("mobilenet", " 64 56px", (8, 56, 56, 64), 3),
    _depthwise("mobilenet", "/2 64 112px", (4, 112, 112, 64), 3, strides=2),
    _layer(
        "mobilenet_v2", "3x3/2 3-32 224px", (8, 224, 224, 3), (3, 3, 3, 32), strides=2
    ),
    _depthwise("mobilenet_v2", "/2 144 56px", (4, 56, 56, 144), 3, strides=2),
    _depthwise("mobilenet_v2", " 384 14px", (8, 14, 14, 384), 3),
    _layer("mobilenet_v2", "1x1 144-24 56px", (8, 56, 56, 144), (1, 1, 144, 24)),
    _depthwise("efficientnet", " 72 40px", (4, 40, 40, 72), 5),
    _depthwise("efficientnet", "/2 72 40px", (4, 40, 40, 72), 5, strides=2),
    _depthwise("proxylessnas", "/2 144 56px", (4, 56, 56, 144), 7, strides=2),
    _depthwise("convnext", " 96 28px", (8, 28, 28, 96), 7),
    _layer(
        "convnext", "2x2/2 96-192 56px", (8, 56, 56, 96), (2, 2, 96, 192), strides=2
    ),
    _layer("convnext", "4x4/4 3-96 224px", (8, 224, 224, 3), (4, 4, 3, 96), strides=4),
    _layer(
        "vit", "16x16/16 3-768 224px", (2, 224, 224, 3), (16, 16, 3, 768), strides=16
    ),
    _layer(
        "deeplab",
        "3x3 rate 2 256 28px",
        (2, 28, 28, 256),
        (3, 3, 256, 256),
        kernel_dilation=2,
    ),
    _layer(
        "deeplab",
        "3x3 rate 4 256 28px",
        (2, 28, 28, 256),
        (3, 3, 256, 256),
        kernel_dilation=4,
    ),
    _layer("srcnn", "9x9 1-64 96px", (2, 96, 96, 1), (9, 9, 1, 64)),
    _layer("srcnn", "5x5 32-1 96px", (4, 96, 96, 32), (5, 5, 32, 1)),
    _transposed("unet", "2x2/2 128-64 28px", (8, 28, 28, 128), (2, 2, 128, 64)),
    _layer("dcgan", "4x4/2 3-64 64px", (32, 64, 64, 3), (4, 4, 3, 64), strides=2),
    _transposed("dcgan", "4x4/2 512-256 4px", (32, 4, 4, 512), (4, 4, 512, 256)),
    _transposed("dcgan", "4x4/2 128-64 14px", (32, 14, 14, 128), (4, 4, 128, 64)),
    _transposed("dcgan", "4x4/2 128-64 28px", (8, 28, 28, 128), (4, 4, 128, 64)),
    _transposed("dcgan", "4x4/2 64-3 32px", (16, 32, 32, 64), (4, 4, 64, 3)),
    _layer(
        "wavenet",
        "2 taps rate 8 64-128",
        (4, 8000, 64),
        (2, 64, 128),
        padding=((8, 0),),
        kernel_dilation=8,
    ),
    _layer(
        "wav2vec2",
        "10/5 1-512",
        (4, 16000, 1),
        (10, 1, 512),
        strides=5,
        padding="VALID",
    ),
    _layer("whisper", "3 80-384", (4, 3000, 80), (3, 80, 384)),
    _layer("unet3d", "3x3x3 16-32 24px", (1, 24, 24, 24, 16), (3, 3, 3, 16, 32)),
    _layer(
        "r3d",
        "3x7x7/1x2x2 3-64 28px",
        (1, 8, 28, 28, 3),
        (3, 7, 7, 3, 64),
        strides=(1, 2, 2),
    ),
)


def of(rule: str) -> list[Case]:
    """The cases of one rule."""
    return [case for case in CASES if case.rule == rule]
