"""Cases of activations."""

import numpy as np

from handgrad.cases.case import Case, normal, tied


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


CASES = (
    *_elementwise("sigmoid"),
    *_elementwise("tanh"),
    *_elementwise("relu"),
    Case("relu", "at the kink", {"x": tied(5, 4)}, kinked=True),
    *_normalised("softmax"),
    *_normalised("log_softmax"),
)
