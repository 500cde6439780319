"""Cases of dense layers and biases."""

from handgrad.cases.case import Case, normal

CASES = (
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
    Case(
        "dot_general",
        "two contracted, one batch",
        {"lhs": normal(2, 3, 4, 5), "rhs": normal(5, 2, 3, 6)},
        {"dimension_numbers": (((3, 1), (0, 2)), ((0,), (1,)))},
    ),
    Case(
        "dot_general",
        "matrices",
        {"lhs": normal(3, 4), "rhs": normal(2, 4)},
        {"dimension_numbers": (((1,), (1,)), ((), ()))},
    ),
    Case("dense", "empty batch", {"x": normal(0, 5), "kernel": normal(5, 4)}),
)

LAYERS = (
    Case(
        "dense",
        "vgg16 dense 2",
        {"x": normal(64, 4096), "kernel": normal(4096, 1000), "bias": normal(1000)},
        network="vgg16",
    ),
    Case(
        "dot_general",
        "transformer projection",
        {"lhs": normal(8, 256, 512), "rhs": normal(512, 512)},
        {"dimension_numbers": (((2,), (0,)), ((), ()))},
        network="transformer",
    ),
)
