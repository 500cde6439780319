"""Which formula computes which direction when the caller names none.

Where the platform is not a CPU, its library's convolution is the right engine: `rot180`
in all directions. On a CPU `TABLE` holds: for each direction the first line that knows
the geometry decides. `because` is what was measured: how many times faster than
autodiff the line's formula was (2 cores with AVX-512, float32). To measure it anew: the
named layers by `python -m experiments.benchmark ops`, all formulas for any shape by the
report of `handgrad.tune(..., rounding=4)`. What was tuned on this machine goes before
the table.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Collection, Iterator

from handgrad import sharding
from handgrad.convolution import tuned
from handgrad.convolution.geometry import Geometry
from handgrad.convolution.spec import ConvFormulas

DIRECTIONS = ("forward", "input_gradient", "kernel_gradient")
ANYWHERE = ConvFormulas("rot180", "rot180", "rot180")
# Errors, 2 MiB in float32, that fill the cache of a core.
_MANY_ERRORS = 2**19
_ELSEWHERE = "the platform's own convolution is the right engine"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table: where it holds, what computes, and the measured reason."""

    knows: Callable[[Geometry], bool]
    because: str
    forward: str | None = None
    input_gradient: str | None = None
    kernel_gradient: str | None = None


TABLE = (
    Line(
        lambda g: g.dilated_image and g.groups == 1,
        "a transposed convolution: no product with an inserted zero is left; kernel "
        "gradient 13 to 180",
        input_gradient="transposed",
        kernel_gradient="transposed",
    ),
    Line(
        lambda g: g.dilated_image and g.groups == 1 and g.pixels >= 256,
        "a transposed convolution: 1.2 to 1.5, in 3 dimensions 38, for the memory of "
        "one more y; of 4 px 0.8",
        forward="transposed",
    ),
    Line(
        lambda g: g.depthwise and g.few_places,
        "depthwise: forward 7 to 36, input gradient 10 to 440, kernel gradient 5 to 32",
        forward="taps",
        input_gradient="taps",
        kernel_gradient="taps",
    ),
    Line(
        lambda g: g.groups > 1 and g.inputs == 1 and g.few_places and g.places > 1,
        "depthwise with a multiplier: forward 7.6",
        forward="taps",
    ),
    Line(
        lambda g: g.elementwise(32),
        "8 to 64 groups of up to 4 channels, number by number: 3×3 on 7 to 28 px 1.3 "
        "to 3.3, 1 to 3.5 times as fast as `grouped` and `block_diagonal`",
        forward="taps",
    ),
    Line(
        lambda g: g.elementwise(16) and g.dimensions > 1,
        "the same: input gradient 3 to 24, kernel gradient 170 to 700; in 1 dimension "
        "0.7 of `grouped`",
        input_gradient="taps",
        kernel_gradient="taps",
    ),
    Line(
        lambda g: (
            g.groups >= 8
            and g.few_places
            and g.dimensions > 1
            and g.spec.windows[0].stride > 1
            and g.examples * g.pixels <= 64
        ),
        "8 to 64 groups under a stride, images of 2 px: a product a group and place is "
        "0.9 to 4 times as fast as `grouped`; of 4 px 0.7 to 1.1",
        input_gradient="taps",
    ),
    Line(
        lambda g: (
            g.elementwise(64) and g.dimensions > 1 and g.spec.windows[0].stride > 1
        ),
        "under a stride, to 8 channels: 110; 0.7 to 1.9 times as fast as `grouped`",
        kernel_gradient="taps",
    ),
    Line(
        lambda g: g.groups > 1 and g.places == 1,
        "1×1 in 3 to 32 groups: 12 to 90, one matrix product a group",
        kernel_gradient="gemm",
    ),
    Line(
        lambda g: g.narrow_groups and any(w.stride > 1 for w in g.spec.windows),
        "images in groups of up to 16 channels under a stride, on 4 to 28 px: merged "
        "they are 0.55 to 1 of XLA's own convolution",
        forward="rot180",
    ),
    Line(
        lambda g: (
            g.narrow_groups and all(w.input_dilation == 1 for w in g.spec.windows)
        ),
        "images in groups of up to 16 channels, merged into groups of 16: 3×3 in 32 "
        "groups of 4 channels 1.6 to 2.3, of 8 and 16 1 to 1.1, all 1.3 to 2 times as "
        "fast as `grouped`; 31×31 0.5 of it",
        forward="block_diagonal",
    ),
    Line(
        lambda g: g.narrow_groups and all(w.stride == 1 for w in g.spec.windows),
        "the same: 1.5 to 2.5 and 1; of a strided kernel 0.4 of `grouped`",
        input_gradient="block_diagonal",
    ),
    Line(
        lambda g: g.narrow_groups and g.places > 1 and g.examples * g.pixels <= 1800,
        "the same to 14 px: 0.8 to 1 of `grouped`, in ResNeXt-18 1.05, compiled in a "
        "quarter of its time; of more pixels 0.5",
        kernel_gradient="block_diagonal",
    ),
    Line(
        lambda g: g.groups > 1 and (g.places > 1 or g.groups >= 8),
        "32 groups of 4 channels: forward 1.4, input gradient 1.5, kernel gradient "
        "400; 2 groups of 48: 1.8, 2.2, 14; 1×1 in 8 and 32 groups: 1.7 and 1.5",
        forward="grouped",
        input_gradient="grouped",
        kernel_gradient="grouped",
    ),
    Line(
        lambda g: g.groups == 1 and g.places == 1,
        "1×1, stride 1 and 2: 5 to 11, one product of the matrices as they lie there",
        kernel_gradient="taps",
    ),
    Line(
        lambda g: g.groups == 1 and g.places == 1 and not g.strided,
        "1×1: 1 to 1.6, the same",
        forward="taps",
        input_gradient="taps",
    ),
    Line(
        lambda g: g.dimensions > 2 and g.groups == 1,
        "XLA's engine does images only: forward 4 to 6, input gradient 9 to 290, "
        "kernel gradient 5 to 6",
        forward="slices",
        input_gradient="slices",
        kernel_gradient="slices",
    ),
    Line(
        lambda g: g.few_channels and g.inputs <= 4 and g.places <= 9,
        "3×3 on 3 channels to 16: 2.4; 3 to 3 2.2, 1 to 8 2",
        input_gradient="gemm",
    ),
    Line(
        lambda g: g.groups == 1 and g.inputs == 1 and g.outputs <= 16 and g.few_places,
        "5×5 on 1 channel to 6: forward 9, input gradient 4 to 9",
        forward="taps",
        input_gradient="taps",
    ),
    Line(
        lambda g: g.groups == 1 and g.inputs == 1 and g.outputs <= 128,
        "3×3 on 1 channel to 32: 1.4; 9×9 on 1 to 64: 1.9; 5×5 on 1 to 32: 2",
        input_gradient="mec",
    ),
    Line(
        lambda g: g.few_channels,
        "5×5 on 6 channels to 16: 2.3; with 64 outputs 0.9 to 1.2",
        input_gradient="mec",
    ),
    Line(
        lambda g: (
            g.strided
            and g.dimensions == 2
            and (g.inputs <= 4 or (g.inputs <= 8 and g.outputs <= 16 and g.places > 1))
        ),
        "few channels under a strided kernel, no product with an inserted zero: "
        "16×16/16 12, 11×11/4 2.4, 7×7/2 2.1, 4×4/4 1.9, 3×3/2 and 4×4/2 1.4 to 1.9; "
        "10/5 in 1 dimension 0.4",
        input_gradient="phases",
    ),
    Line(
        lambda g: g.strided and g.inputs <= 4 and g.outputs <= 32 and g.places <= 9,
        "3×3/2 on 3 channels to 32: 1.9 to 2.6 with AVX-512, 0.7 with AVX2",
        forward="phases",
    ),
    Line(
        lambda g: g.disjoint and g.places > 1 and g.inputs * g.places >= 32,
        "windows that share no pixel, and so have no more pixels than the image: 2×2/2 "
        "3.4, 4×4/4 2.1, 16×16/16 1.1; of shorter rows, 2×2/2 on 3 channels, 0.5",
        kernel_gradient="gemm",
    ),
    Line(
        lambda g: g.strided and g.least >= 64 and 1 < g.places <= 9,
        "3×3/2 on 64 to 512 channels, 7 to 56 px: 1 to 2.8",
        kernel_gradient="mec",
    ),
    Line(
        lambda g: (
            g.groups == 1
            and g.inputs <= 4
            and g.outputs >= (32 if g.inputs == 1 else 64)
            and g.places >= (36 if g.strided else 9)
            and g.errors >= _MANY_ERRORS
        ),
        "few channels to many: 11×11/4 2.8, 7×7/2 2, 3×3 and 9×9 1.2 to 1.5; 3 to 32 "
        "0.8 of slices",
        kernel_gradient="mec",
    ),
    Line(
        lambda g: (
            g.groups == 1
            and g.inputs <= 4
            and g.outputs >= 32
            and g.places >= (16 if g.strided else 9)
        ),
        "few channels, a row of the kernel after the other: 5×5 1 to 1.8, 4×4/2 1.8, "
        "3×3 1.1 to 2; 3×3/2 0.8 to 1.2",
        kernel_gradient="slices",
    ),
    Line(
        lambda g: (
            g.groups == 1
            and g.least >= 64
            and g.places > 1
            and (g.row or g.dilated_kernel)
        ),
        "dilated 3×3 on 64 to 256 channels 1.1 to 1.5, 1×7 and 1×3 1.2 to 2.6; on 16 "
        "and 32 channels 0.8",
        kernel_gradient="slices",
    ),
    Line(
        lambda g: (
            g.groups == 1
            and g.least >= 32
            and g.few_places
            and g.smaller_than_kernel(lambda w: w.input)
        ),
        "an image smaller than the kernel, which XLA has no fast engine for: 3×3 on "
        "512 channels of 2 px 16; of few channels not faster; 128 places on one row of "
        "49 px 0.3",
        forward="gemm",
    ),
    Line(
        lambda g: (
            g.groups == 1
            and g.least >= 32
            and g.smaller_than_kernel(lambda w: w.output)
        ),
        "an error smaller than the kernel: 3×3 on 512 channels of 2 px 66, 3×3/2 from "
        "256 to 512 on 4 px 35",
        input_gradient="gemm",
    ),
    Line(
        lambda g: (
            g.groups == 1
            and g.places > 1
            and g.least >= 256
            and g.examples * g.pixels <= (400 if g.most >= 512 else 128)
        ),
        "more channels than pixels, whose kernel costs more to transpose than to use: "
        "3×3 on 512 channels, 8 images of 4 px 2.5, of 7 px 1.3",
        input_gradient="gemm",
    ),
    Line(
        lambda g: (
            g.three_by_three and g.least >= 128 and g.most <= 192 and g.pixels >= 200
        ),
        "3×3 on 128 channels, 16 to 56 px: 1.3 to 1.6; error 1 to 3 times autodiff's; "
        "64 channels of 16 and 28 px 1.2 to 1.5 alone, not faster in a network",
        forward="winograd",
        input_gradient="winograd",
    ),
    Line(
        lambda g: (
            g.three_by_three and g.least >= 64 and 128 <= g.most <= 192 and g.many_small
        ),
        "3×3 on 64 or 128 channels to 128, 32 examples of 8 px to 8 of 28 px: forward "
        "1.3 to 1.5, input gradient 1.05 to 1.4; 8 of 14 px 1.1 and 0.9",
        forward="winograd",
        input_gradient="winograd",
    ),
    Line(
        lambda g: (
            g.three_by_three
            and g.least >= 48
            and g.most <= 192
            and (g.pixels >= (150 if g.most >= 128 else 200) or g.many_small)
        ),
        "3×3 on 48 to 128 channels, 14 to 112 px: 1.2 to 7; 32 examples of 8 px "
        "1.3 to 1.8, of few not faster in a network; error 1 to 3 times autodiff's",
        kernel_gradient="winograd",
    ),
    Line(
        lambda g: (
            g.three_by_three
            and g.least >= 32
            and g.most <= 192
            and g.pixels >= 200
            and g.examples * g.pixels * g.most >= 2**19
        ),
        "3×3 on 32 channels, 32 images of 32 px, or to 64 of 16 px: 1.3 to 2.2 "
        "(`python -m experiments.benchmark ops '3x3 32 32px'`); with fewer pixels not "
        "faster in a chain of layers",
        kernel_gradient="winograd",
    ),
    Line(
        lambda g: (
            g.three_by_three
            and g.least >= 192
            and g.most <= 384
            and (g.pixels >= 100 or g.many_small)
        ),
        "3×3 on 256 to 384 channels, 13 to 28 px: 1.4 to 2.4, 32 examples of 8 "
        "px 1.4 to 2.5; error 1 to 3 times autodiff's",
        kernel_gradient="winograd",
    ),
    Line(
        lambda g: g.three_by_three and g.least >= 192 and g.pixels >= 100,
        "3×3 on 512 channels, 14 px: 1.4; 7 px not faster",
        kernel_gradient="winograd_2x2",
    ),
    Line(
        lambda g: (
            g.three_by_three
            and g.least >= 192
            and (g.pixels >= 100 or (g.most <= 384 and g.many_small))
        ),
        "3×3 on 256 to 512 channels, 13 to 28 px: 1.2 to 2, no less exact; 64 examples "
        "of 7 px and 32 of 8 px 1.3 to 1.6; 8 of 7 px 1.3 alone, but 0.95 in a chain "
        "of layers, whose kernels at the points fill memory",
        forward="winograd_2x2",
        input_gradient="winograd_2x2",
    ),
    Line(
        lambda g: g.groups == 1 and g.places > 1 and g.column and g.least >= 32,
        "7×1 and 3×1 on 32 to 192 channels: 1.3 to 2.3",
        kernel_gradient="mec",
    ),
    Line(
        lambda g: g.groups == 1 and g.inputs >= 16 >= g.outputs and g.places >= 25,
        "many channels to few: 5×5 to 1 1.3, of one image 6, 7×7 and 9×9 to 3 2 to 3; "
        "3×3 0.8 to 1.5",
        kernel_gradient="mec",
    ),
    Line(
        lambda g: g.groups == 1 and g.least >= 192 and g.places > 1 and g.pixels < 100,
        "3×3 on 192 to 512 channels, 2 to 8 px: 1 to 1.7",
        kernel_gradient="mec",
    ),
    Line(
        lambda g: (
            g.groups == 1
            and g.least >= 32
            and g.places > 1
            and g.errors >= _MANY_ERRORS
        ),
        "errors that no cache holds, which conv(x, dy) reads anew for each place: 5×5 "
        "on 48 to 256 channels 2 to 2.8, 4×4/2 and 3×3/2 1.6 to 1.8",
        kernel_gradient="mec",
    ),
    Line(
        lambda g: True,
        "XLA's own convolution is near a matrix product's speed",
        forward="rot180",
        input_gradient="rot180",
        kernel_gradient="rot180",
    ),
)


def may_take(formula: str, geometry: Geometry) -> bool:
    """Whether a formula can do it, and moves no more between devices than XLA's own.

    Of images that devices split XLA gathers what is convolved in groups
    (openxla/xla#47945); of rows that they split, what goes through in blocks of rows or
    has its rows among the examples; and phases it moves. XLA's own convolution
    exchanges the rows on the border, and is faster then; of volumes slices still are.
    """
    where = geometry.spec.x_sharding
    match formula:
        case "block_diagonal":
            gathered = sharding.may_be_split() or (where and any(where.spec))
        case "winograd" | "winograd_2x2" | "mec" | "phases":
            gathered = sharding.may_be_split()
        case "slices":
            gathered = sharding.may_be_split() and geometry.dimensions == 2
        case _:
            gathered = False
    return geometry.suits(formula) and not gathered


def by_table(
    geometry: Geometry, platform: str, among: Collection[str] | None = None
) -> dict[str, tuple[str, str]]:
    """What handgrad itself chooses for each direction, with the reason.

    Args:
      geometry: what is to be computed.
      platform: where.
      among: the formulas that may be chosen; all by default.
    """
    if platform != "cpu":
        return dict.fromkeys(DIRECTIONS, ("rot180", _ELSEWHERE))
    return {
        direction: next(
            (name, line.because)
            for line in TABLE
            if (name := getattr(line, direction))
            and (among is None or name in among)
            and line.knows(geometry)
            and may_take(name, geometry)
        )
        for direction in DIRECTIONS
    }


def explain(geometry: Geometry, platform: str) -> dict[str, tuple[str, str]]:
    """The formula of each direction, with the reason."""
    chosen, spec = by_table(geometry, platform), geometry.spec
    measured = tuned.find(geometry.x_shape, geometry.kernel_shape, spec, platform)
    if measured is None:
        return chosen
    for direction, (default, _) in chosen.items():
        name = getattr(measured.formulas, direction)
        # It was measured on one device.
        if may_take(name, geometry):
            chosen[direction] = name, measured.because(direction, default)
    return chosen


def formulas(geometry: Geometry) -> tuple[tuple[str, ConvFormulas], ...]:
    """The three formulas on each platform, ("default", ...) last."""
    if (asked := _asked.get()) is not None:
        asked.append(geometry)
    on = {p: on_platform(geometry, p) for p in ("cpu", *tuned.platforms())}
    others = ((p, f) for p, f in on.items() if p != "cpu" and f != ANYWHERE)
    return ("cpu", on["cpu"]), *others, ("default", ANYWHERE)


def on_platform(geometry: Geometry, platform: str) -> ConvFormulas:
    """The three formulas on one platform."""
    chosen = explain(geometry, platform)
    return ConvFormulas(**{direction: name for direction, (name, _) in chosen.items()})


_asked: contextvars.ContextVar[list[Geometry] | None]
_asked = contextvars.ContextVar("asked", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Geometry]]:
    """The geometries of the convolutions that are traced in its block, as they come."""
    token = _asked.set(asked := [])
    try:
        yield asked
    finally:
        _asked.reset(token)
