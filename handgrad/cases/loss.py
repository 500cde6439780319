"""Cases of losses."""

import numpy as np

from handgrad.cases.case import Case, classes, normal, one_hot, uniform

CASES = (
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
