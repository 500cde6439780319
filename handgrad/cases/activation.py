"""Cases and layers of activations."""

import numpy as np

from handgrad.cases.case import Case, normal, tied, uniform

# Those that follow one elementwise rule. The kinks of some are where ours and JAX's
# gradients differ, as their docstrings say: tests/test_activation.py looks at them.
ELEMENTWISE = (
    "sigmoid",
    "tanh",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "softplus",
    "log_sigmoid",
    "soft_sign",
    "hard_tanh",
    "hard_sigmoid",
    "squareplus",
    "silu",
    "mish",
    "hard_silu",
    "gelu",
)
# A parameter that is an array is learnt, and has a gradient.
_LEARNT = {"leaky_relu": "negative_slope", "elu": "alpha", "celu": "alpha"}
_LEARNT |= {"squareplus": "b"}


def _elementwise(rule) -> list[Case]:
    cases = [Case(rule, "wide range", {"x": normal(3, 40, scale=4.0)})]
    if rule in _LEARNT:
        samples = {"x": normal(3, 4, scale=2.0), _LEARNT[rule]: uniform(4)}
        cases.append(Case(rule, "learnt", samples))
    return cases


def _normalised(rule) -> list[Case]:
    return [
        Case(rule, "lenet5 logits", {"x": normal(64, 10)}, network="lenet5"),
        Case(rule, "wide range", {"x": normal(3, 300, scale=4.0)}),
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
    *(case for rule in ELEMENTWISE for case in _elementwise(rule)),
    Case("relu", "at the kink", {"x": tied(5, 4)}, kinked=True),
    Case("relu", "empty", {"x": normal(0, 3)}),
    Case("gelu", "exact", {"x": normal(3, 5, scale=2.0)}, {"approximate": False}),
    Case("elu", "negative", {"x": normal(3, 5)}, {"alpha": -0.5}),
    Case("glu", "last axis", {"x": normal(3, 8)}),
    Case("glu", "first axis", {"x": normal(4, 3, 2)}, {"axis": 0}),
    *_normalised("softmax"),
    *_normalised("log_softmax"),
    Case("logsumexp", "all axes", {"a": normal(3, 5, scale=4.0)}),
    Case(
        "logsumexp",
        "factors, masked",
        {"a": normal(3, 5), "b": uniform(3, 5)},
        {"axis": 1, "where": np.array([[True, True, False, True, True]])},
    ),
    Case(
        "logsumexp",
        "two axes",
        {"a": normal(2, 5, 3)},
        {"axis": (0, -1), "keepdims": True},
    ),
)

_IMAGE = (8, 56, 56, 64)
LAYERS = (
    *(
        Case(rule, f"resnet18 {rule}", {"x": normal(*_IMAGE)}, network="resnet18")
        for rule in ELEMENTWISE
    ),
    Case(
        "gelu",
        "convnext exact gelu",
        {"x": normal(*_IMAGE)},
        {"approximate": False},
        "convnext",
    ),
    Case("glu", "convnext glu", {"x": normal(*_IMAGE)}, network="convnext"),
    *(
        Case(
            rule,
            f"classifier {rule}",
            {name: normal(256, 10000)},
            {"axis": -1},
            "classifier",
        )
        for rule, name in (("softmax", "x"), ("log_softmax", "x"), ("logsumexp", "a"))
    ),
)
