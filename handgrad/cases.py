"""The named cases: one list that tests, benchmarks, documents and tables share.

A case is an op, the arrays it gets and its options. Cases of real networks carry the
network's name and are the ones whose time is measured; the others are the geometries in
which a rule is most easily wrong.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Sample = Callable[[np.random.Generator, Any], np.ndarray]


def normal(*shape: int, scale: float = 1.0) -> Sample:
    """Normally distributed numbers."""
    return lambda random, dtype: (scale * random.standard_normal(shape)).astype(dtype)


def tied(*shape: int) -> Sample:
    """Small whole numbers: most windows hold their maximum more than once."""
    return lambda random, dtype: random.integers(-1, 2, shape).astype(dtype)


def constant(*shape: int, value: float = 0.0) -> Sample:
    """One number everywhere."""
    return lambda random, dtype: np.full(shape, value, dtype)


def classes(count: int, *shape: int) -> Sample:
    """Integer labels below `count`, whatever the dtype of the other arrays."""
    return lambda random, dtype: random.integers(0, count, shape).astype(np.int32)


def one_hot(*shape: int) -> Sample:
    """One-hot labels along the last axis."""
    return lambda random, dtype: np.eye(shape[-1], dtype=dtype)[
        random.integers(0, shape[-1], shape[:-1])
    ]


def uniform(*shape: int) -> Sample:
    """Numbers between 0 and 1."""
    return lambda random, dtype: random.uniform(size=shape).astype(dtype)


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


CASES: tuple[Case, ...] = (
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


def of(rule: str) -> list[Case]:
    """The cases of one rule."""
    return [case for case in CASES if case.rule == rule]
