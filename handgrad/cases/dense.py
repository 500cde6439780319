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
    Case("dense", "empty batch", {"x": normal(0, 5), "kernel": normal(5, 4)}),
)
