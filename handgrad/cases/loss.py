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
        "sigmoid_focal_loss",
        "soft labels",
        {"logits": normal(3, 7, scale=3.0), "labels": uniform(3, 7)},
    ),
    Case(
        "sigmoid_focal_loss",
        "weighted",
        {"logits": normal(3, 7, scale=4.0), "labels": uniform(3, 7)},
        {"alpha": 0.25, "gamma": 1.5},
    ),
    Case(
        "poly_loss_cross_entropy",
        "soft labels",
        {"logits": normal(5, 7), "labels": uniform(5, 7)},
    ),
    Case(
        "poly_loss_cross_entropy",
        "two axes, masked",
        {"logits": normal(3, 2, 4), "labels": uniform(3, 2, 4)},
        {
            "axis": (0, 2),
            "where": np.array([[[True, False, True, True]]]),
            "epsilon": -1.0,
        },
    ),
    Case(
        "squared_error",
        "lenet5 logits",
        {"predictions": normal(64, 10), "targets": normal(64, 10)},
        network="lenet5",
    ),
    Case("squared_error", "no targets", {"predictions": normal(4, 3)}),
    Case("l2_loss", "targets", {"predictions": normal(4, 3), "targets": normal(4, 3)}),
    Case(
        "huber_loss",
        "targets",
        {"predictions": normal(4, 9), "targets": normal(4, 9)},
        {"delta": 0.7},
    ),
    Case(
        "log_cosh",
        "targets",
        {"predictions": normal(4, 9, scale=2.0), "targets": normal(4, 9)},
    ),
    Case(
        "hinge_loss",
        "targets",
        {"predictor_outputs": normal(4, 9), "targets": normal(4, 9)},
    ),
    Case(
        "multiclass_hinge_loss",
        "labels",
        {"scores": normal(4, 3, 5), "labels": classes(5, 4, 3)},
    ),
    Case(
        "cosine_distance",
        "last axis",
        {"predictions": normal(4, 5), "targets": normal(4, 5)},
    ),
    Case(
        "cosine_distance",
        "two axes, masked, a norm held",
        {"predictions": normal(3, 2, 4), "targets": normal(3, 2, 4)},
        {
            "axis": (0, 2),
            "where": np.array([[[True, False, True, True]]]),
            "epsilon": 8.0,
        },
    ),
    Case(
        "kl_divergence",
        "last axis",
        {"log_predictions": normal(4, 5), "targets": uniform(4, 5)},
    ),
    Case(
        "kl_divergence",
        "two axes, masked",
        {"log_predictions": normal(3, 2, 4), "targets": uniform(3, 2, 4)},
        {"axis": (0, 2), "where": np.array([[[True, False, True, True]]])},
    ),
)

_CLASSES = ((256, 10000), (4096, 1000))
_PAIR = (4096, 1000)
LAYERS = (
    *(
        Case(
            "softmax_cross_entropy_with_integer_labels",
            f"classifier {n}x{c}",
            {"logits": normal(n, c), "labels": classes(c, n)},
            network="classifier",
        )
        for n, c in _CLASSES
    ),
    *(
        Case(
            rule,
            f"classifier {rule}",
            {"logits": normal(*_PAIR), "labels": labels(*_PAIR)},
            network="classifier",
        )
        for rule, labels in (
            ("softmax_cross_entropy", one_hot),
            ("poly_loss_cross_entropy", one_hot),
            ("sigmoid_binary_cross_entropy", one_hot),
            ("sigmoid_focal_loss", uniform),
        )
    ),
    Case(
        "multiclass_hinge_loss",
        "classifier multiclass_hinge_loss",
        {"scores": normal(*_PAIR), "labels": classes(1000, 4096)},
        network="classifier",
    ),
    *(
        Case(
            rule,
            f"classifier {rule}",
            {first: normal(*_PAIR), "targets": uniform(*_PAIR)},
            network="classifier",
        )
        for rule, first in (
            ("squared_error", "predictions"),
            ("l2_loss", "predictions"),
            ("huber_loss", "predictions"),
            ("log_cosh", "predictions"),
            ("hinge_loss", "predictor_outputs"),
            ("cosine_distance", "predictions"),
            ("kl_divergence", "log_predictions"),
        )
    ),
)
