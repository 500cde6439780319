"""Cases and layers of pooling."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from handgrad.cases.case import Case, Sample, constant, normal, tied

TWO: dict[str, Any] = {"strides": (2, 2)}


def _case(
    rule: str,
    name: str,
    shape: tuple[int, ...],
    window_shape: tuple[int, ...] | None,
    *,
    network: str | None = None,
    sample: Any = normal,
    **options: Any,
) -> Case:
    options = {"window_shape": window_shape, **options}
    return Case(rule, name, {"inputs": sample(*shape)}, options, network)


def _pools(rule: str) -> list[Case]:
    """Geometries in which a pool is easily wrong."""

    def case(name, shape, window_shape, **options) -> Case:
        return _case(rule, name, shape, window_shape, **options)

    return [
        case("article 4x4, 2x2 blocks", (4, 4, 1), (2, 2), **TWO),
        case("lenet5 pool 1", (64, 28, 28, 6), (2, 2), network="lenet5", **TWO),
        case("lenet5 pool 2", (64, 10, 10, 16), (2, 2), network="lenet5", **TWO),
        case(
            "resnet18 pool 3x3/2",
            (2, 28, 28, 16),
            (3, 3),
            network="resnet18",
            padding="SAME",
            **TWO,
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
        case("many places", (1, 8, 9, 2), (5, 4), strides=(1, 2), padding="SAME"),
        case("many channels", (1, 5, 5, 17), (3, 3), strides=(2, 1), padding="SAME"),
        case("whole image", (2, 6, 5, 3), None),
        case("blocks of many places", (1, 2, 36, 2), (1, 18), strides=(1, 18)),
        case("ceil mode", (2, 6, 7, 2), (3, 3), ceil_mode=True, **TWO),
        case("one pixel", (3, 1, 1, 2), (1, 1)),
        case("1-D", (2, 11, 3), (4,), strides=(3,)),
        case("3-D", (1, 4, 5, 6, 2), (2, 3, 2), strides=(2, 1, 2), padding="SAME"),
        case("unbatched", (6, 6, 2), (2, 2)),
        case("two batch axes", (2, 3, 6, 6, 2), (2, 2), **TWO),
        case("empty batch", (0, 4, 4, 1), (2, 2)),
    ]


def _some(rule: str, **options: Any) -> list[Case]:
    """Of a rule that shares another's code: two geometries."""
    cases = [
        _case(rule, "overlapping 3x3/2", (2, 6, 7, 3), (3, 3), padding="SAME", **TWO),
        _case(rule, "2x2 blocks", (2, 4, 4, 2), (2, 2), **TWO),
    ]
    return [
        dataclasses.replace(case, options={**case.options, **options}) for case in cases
    ]


def _tied(case: Case) -> Case:
    samples = {name: tied(*sample.shape) for name, sample in case.samples.items()}
    name = f"{case.name}, tied"
    return dataclasses.replace(case, name=name, samples=samples, kinked=True)


def _pixels(shape: tuple[int, ...], block: tuple[int, int]) -> Sample:
    """For each 2-D block of an image a pixel of it, counted in row-major order."""

    def make(random: np.random.Generator, shape: tuple[int, ...], dtype: Any):
        _, rows, columns, _ = shape
        place = [random.integers(0, size, shape) for size in block]
        row = block[0] * np.arange(rows)[:, None, None] + place[0]
        column = block[1] * np.arange(columns)[:, None] + place[1]
        return (row * columns * block[1] + column).astype(np.int32)

    return Sample(shape, make)


def _places(count: int, *shape: int) -> Sample:
    """For each window a place of it, −1 or one too many."""
    return Sample(
        shape,
        lambda random, shape, dtype: random.integers(-1, count + 1, shape).astype(
            np.int32
        ),
    )


def _adaptive(rule: str) -> list[Case]:
    def case(name: str, shape: tuple[int, ...], *output_shape: int | None) -> Case:
        options: Mapping[str, Any] = {"output_shape": output_shape}
        return Case(rule, name, {"inputs": normal(*shape)}, options)

    return [
        case("unlike bins", (2, 7, 5, 2), 3, 2),
        case("more outputs than pixels", (2, 3, 3), 5),
        case("like bins", (2, 6, 4, 2), 3, None),
    ]


def _reduce_window(rule: str) -> list[Case]:
    def case(name: str, shape: tuple[int, ...], *window: int, **options: Any) -> Case:
        options = {"window_dimensions": window, **options}
        return Case(rule, name, {"operand": normal(*shape)}, options)

    return [
        case(
            "channels first",
            (2, 3, 6, 5),
            *(1, 1, 3, 2),
            window_strides=(1, 1, 2, 1),
            padding="SAME",
        ),
        case(
            "dilated, batch and channels too",
            (3, 4, 2),
            *(2, 3, 2),
            base_dilation=(2, 2, 1),
            padding=((0, 1), (-1, 2), (1, 0)),
        ),
        case(
            "strides and a dilated base",
            (6, 7, 3),
            *(3, 2, 1),
            window_strides=(2, 1, 1),
            base_dilation=(1, 2, 1),
            padding=((1, 1), (0, 1), (0, 0)),
        ),
    ]


_MAX = _pools("max_pool")
_UNPOOL = {"inputs": normal(2, 3, 2, 2), "indices": _pixels((2, 3, 2, 2), (2, 3))}

CASES = (
    *_MAX,
    *(
        _tied(case)
        for case in _MAX
        if case.name.startswith(
            ("article", "overlapping", "asymmetric", "window", "many", "blocks")
        )
    ),
    Case(
        "max_pool",
        "all equal",
        {"inputs": constant(2, 6, 6, 2)},
        {"window_shape": (3, 3), "padding": "SAME"},
        kinked=True,
    ),
    *_some("min_pool"),
    *map(_tied, _some("min_pool")),
    *_some("max_pool_with_argmax"),
    *map(_tied, _some("max_pool_with_argmax")),
    *_pools("avg_pool"),
    _case(
        "avg_pool",
        "padding not counted",
        (2, 7, 6, 3),
        (3, 3),
        strides=(2, 1),
        padding="SAME",
        count_include_pad=False,
    ),
    _case(
        "avg_pool",
        "dilated window",
        (2, 9, 8, 3),
        (3, 2),
        window_dilation=(2, 3),
        strides=(1, 2),
    ),
    *_some("sum_pool"),
    *_some("lp_pool"),
    *(
        dataclasses.replace(case, name=f"{case.name}, norm {norm}")
        for norm in (1, 3, 2.5)
        for case in _some("lp_pool", norm=norm)[:1]
    ),
    Case(
        "max_unpool",
        "blocks",
        _UNPOOL,
        {"window_shape": (2, 3), "strides": (2, 3)},
    ),
    Case(
        "max_unpool",
        "places, one in three of them none",
        {"inputs": normal(2, 3, 2, 2), "indices": _places(4, 2, 3, 2, 2)},
        {
            "window_shape": (2, 2),
            "strides": (2, 3),
            "padding": ((1, 0), (0, 1)),
            "image_shape": (6, 5),
            "index": "window",
        },
    ),
    *_adaptive("adaptive_avg_pool"),
    *_adaptive("adaptive_max_pool"),
    *(map(_tied, _adaptive("adaptive_max_pool")[:1])),
    *_reduce_window("reduce_window_max"),
    *_reduce_window("reduce_window_min"),
    *_reduce_window("reduce_window_sum"),
)


def _layer(
    rule: str,
    name: str,
    shape: tuple[int, ...],
    window: int | tuple[int, ...] | None,
    stride: int | tuple[int, ...] = 1,
    pad: int = 0,
    **options: Any,
) -> Case:
    """A layer of the network that its name begins with; a number is for each axis."""

    def each(value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * (len(shape) - 2) if isinstance(value, int) else value

    if window is not None:
        options |= {
            "strides": each(stride),
            "padding": ((pad, pad),) * (len(shape) - 2),
        }
    return _case(
        rule,
        name,
        shape,
        None if window is None else each(window),
        network=name.split(maxsplit=1)[0],
        **options,
    )


CEIL = {"ceil_mode": True}

LAYERS = (
    # The stride is the window: each pixel is in one of them.
    _layer("max_pool", "vgg16 pool 64 112px", (4, 112, 112, 64), 2, 2),
    _layer("max_pool", "vgg16 pool 256 56px", (8, 56, 56, 256), 2, 2),
    _layer("max_pool", "vgg16 pool 512 14px", (8, 14, 14, 512), 2, 2),
    _layer("max_pool", "cnn pool 32 28px", (64, 28, 28, 32), 2, 2),
    _layer("max_pool", "cnn pool 64 32px", (32, 32, 32, 64), 2, 2),
    _layer("max_pool", "unet3d pool 2x2x2 32 24px", (2, 24, 24, 24, 32), 2, 2),
    _layer(
        "max_pool", "c3d pool 1x2x2 64 56px", (1, 16, 56, 56, 64), (1, 2, 2), (1, 2, 2)
    ),
    _layer("max_pool", "m5 pool 4/4 128 2000", (8, 2000, 128), 4, 4),
    _layer("max_pool", "keywords pool 8 64px", (16, 64, 64, 8), 2, 2),
    _layer("max_pool", "keywords pool 1 128px", (16, 128, 128, 1), 2, 2),
    # Neighbours share a row of pixels.
    _layer("max_pool", "alexnet pool 3x3/2 64 55px", (16, 55, 55, 64), 3, 2),
    _layer("max_pool", "alexnet pool 3x3/2 192 27px", (16, 27, 27, 192), 3, 2),
    _layer("max_pool", "resnet18 pool 3x3/2 64 112px", (8, 112, 112, 64), 3, 2, 1),
    _layer("max_pool", "googlenet pool 3x3/2 192 56px", (8, 56, 56, 192), 3, 2, **CEIL),
    _layer("max_pool", "googlenet pool 3x3/2 480 28px", (8, 28, 28, 480), 3, 2, **CEIL),
    _layer(
        "max_pool", "squeezenet pool 3x3/2 96 109px", (4, 109, 109, 96), 3, 2, **CEIL
    ),
    _layer(
        "max_pool", "squeezenet pool 3x3/2 256 54px", (8, 54, 54, 256), 3, 2, **CEIL
    ),
    _layer("max_pool", "wav pool 3/2 32 4000", (16, 4000, 32), 3, 2, 1),
    _layer("max_pool", "keywords pool 3x3/2 16 64px", (16, 64, 64, 16), 3, 2, 1),
    _layer("max_pool", "keywords pool 3x3/2 8 64px", (16, 64, 64, 8), 3, 2, 1),
    # Stride 1.
    _layer("max_pool", "inception pool 3x3/1 192 28px", (8, 28, 28, 192), 3, 1, 1),
    _layer("max_pool", "inception pool 3x3/1 480 14px", (8, 14, 14, 480), 3, 1, 1),
    _layer("max_pool", "ssd pool 3x3/1 512 19px", (8, 19, 19, 512), 3, 1, 1),
    _layer("max_pool", "i3d pool 3x3x3/1 64 28px", (1, 8, 28, 28, 64), 3, 1, 1),
    _layer("max_pool", "yolo pool 5x5/1 256 13px", (8, 13, 13, 256), 5, 1, 2),
    _layer("max_pool", "keywords pool 3x3/1 4 64px", (16, 64, 64, 4), 3, 1, 1),
    _layer("max_pool", "pointnet pool global 1024", (8, 1024, 1024), None),
    # Means.
    _layer("avg_pool", "inception avg 3x3/1 768 17px", (8, 17, 17, 768), 3, 1, 1),
    _layer("avg_pool", "inception avg 3x3/1 192 35px", (8, 35, 35, 192), 3, 1, 1),
    _layer("avg_pool", "resnet18 avg 3x3/2 64 112px", (8, 112, 112, 64), 3, 2, 1),
    _layer("avg_pool", "inception avg 5x5/3 768 17px", (8, 17, 17, 768), 5, 3),
    _layer("avg_pool", "densenet avg 2x2 128 56px", (8, 56, 56, 128), 2, 2),
    _layer("avg_pool", "resnet50 avg global 2048 7px", (16, 7, 7, 2048), None),
)
