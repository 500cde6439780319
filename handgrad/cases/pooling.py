"""Cases and layers of pooling."""

import dataclasses

from handgrad.cases.case import Case, constant, normal, tied


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


CASES = (
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
)
