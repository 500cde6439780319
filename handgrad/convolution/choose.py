"""Which formula computes which direction when the caller names none.

Where the platform is not a CPU, its library's convolution is the right engine: `rot180`
in all directions. On a CPU `TABLE` holds: for each direction the first line that knows
the geometry decides. `because` is what was measured: how many times faster than
autodiff the line's formula was (2 cores, float32; `python -m experiments.benchmark ops`
measures it anew). What `handgrad.tune` measured on this machine goes before the table.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator

from handgrad.convolution import taps, transposed, tuned
from handgrad.convolution.spec import ConvFormulas, ConvSpec
from handgrad.rules import RULES

DIRECTIONS = ("forward", "input_gradient", "kernel_gradient")
ANYWHERE = ConvFormulas("rot180", "rot180", "rot180")
_ELSEWHERE = "the platform's own convolution is the right engine"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What the table looks at: x[N, H, W, C] * kernel[K, L, C/G, O].

    Attributes:
      x_shape: [N, H, W, C].
      kernel_shape: [K, L, C/G, O].
      spec: the static description.
    """

    x_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    spec: ConvSpec

    @property
    def groups(self) -> int:
        """G."""
        return self.spec.feature_group_count

    @property
    def inputs(self) -> int:
        """Input channels of one group, C/G."""
        return self.kernel_shape[-2]

    @property
    def outputs(self) -> int:
        """Output channels of all groups, O."""
        return self.kernel_shape[-1]

    @property
    def places(self) -> int:
        """Places of the kernel, K·L."""
        return math.prod(w.size for w in self.spec.windows)

    @property
    def depthwise(self) -> bool:
        """Whether every channel is a group of its own."""
        return self.groups == self.outputs > 1 and self.inputs == 1

    @property
    def dilated_image(self) -> bool:
        """Whether it is the transpose of a strided convolution."""
        return transposed.unsuitable(self.spec) is None

    @property
    def few_places(self) -> bool:
        """Whether `taps` writes the kernel out place by place."""
        return taps.unsuitable(self.spec) is None


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
        "a transposed convolution: no product with an inserted zero is left",
        input_gradient="transposed",
        kernel_gradient="transposed",
    ),
    Line(
        lambda g: g.depthwise and g.few_places,
        "depthwise: forward 8 to 25, input gradient 4 to 200, kernel gradient 3 to 27",
        forward="taps",
        input_gradient="taps",
        kernel_gradient="taps",
    ),
    Line(
        lambda g: g.groups > 32,
        "one convolution a group is compiled as often; one product over all is not",
        kernel_gradient="gemm",
    ),
    Line(
        lambda g: g.groups == 1 and g.inputs == 1 and g.outputs <= 16 and g.few_places,
        "5×5 on 1 channel to 6: forward 7, input gradient 4",
        forward="taps",
        input_gradient="taps",
    ),
    Line(
        lambda g: g.groups == 1 and g.inputs == 1 and g.outputs <= 32 and g.few_places,
        "3×3 and 5×5 on 1 channel to 32: 1.9 and 2.6",
        input_gradient="gemm",
    ),
    Line(
        lambda g: (
            g.groups == 1
            and g.inputs <= 8
            and g.outputs <= 16
            and g.places > 1
            and g.few_places
        ),
        "5×5 on 6 channels to 16: 2; with 64 outputs half as fast as XLA's own",
        input_gradient="taps",
    ),
    Line(
        lambda g: g.groups == 1 and g.places == 1,
        "1×1, stride 1 and 2: 2 to 3, one matrix product in place of a convolution",
        kernel_gradient="taps",
    ),
    Line(
        lambda g: True,
        "XLA's own convolution is near a matrix product's speed",
        forward="rot180",
        input_gradient="rot180",
        kernel_gradient="rot180",
    ),
)


def by_table(geometry: Geometry, platform: str) -> dict[str, tuple[str, str]]:
    """What handgrad itself chooses for each direction, with the reason."""
    if platform != "cpu":
        return dict.fromkeys(DIRECTIONS, ("rot180", _ELSEWHERE))
    return {
        direction: next(
            (name, line.because)
            for line in TABLE
            if (name := getattr(line, direction)) and line.knows(geometry)
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
        # It was measured on one device: an explicit mesh may be beyond it.
        if not RULES["conv"].formulas[name].unsuitable(spec):
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
