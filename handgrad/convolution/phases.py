"""A strided convolution by phases: the input gradient without inserted zeros.

Write h + b = s·i + a with 0 ≤ a < s, and call x_a[i] = x[s·i + a − b] the image's phase
a. Kernel place k = s·m + a meets phase a only, m pixels further:

    y[p] = Σ_a Σ_m x_a[p + m] · kernel[s·m + a]

so a convolution of stride s is one of stride 1 over ⌈K/s⌉ places, from all phases laid
side by side as s·C channels (in two dimensions s·t·C). Its derivatives are stride-1
convolutions too,

    dx_a[i] = Σ_m dy[i − m] · kernel[s·m + a]
    dkernel[s·m + a] = Σ_p x_a[p + m] · dy[p]

and the phases are interleaved to the image again. No product with an inserted zero is
left: for K = s every multiplication counts.

Source: FORMULAS B2; Shi et al. 2016, arXiv:1609.07009, appendix (sub-pixel layers).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, sharding
from handgrad.convolution import rot180
from handgrad.convolution.spec import ConvSpec
from handgrad.windows import Window, Windows, from_tiles, to_tiles


def unsuitable(spec: ConvSpec) -> str | None:
    """Phases of a dilated kernel would not share their places."""
    if any(w.input_dilation > 1 for w in spec.windows):
        return "'phases' does no input_dilation"
    if any(w.stride > 1 and w.dilation > 1 and w.size > 1 for w in spec.windows):
        return "'phases' does no kernel_dilation along a dimension with a stride"
    for name in ("x_sharding", "kernel_sharding"):
        where = getattr(spec, name)
        channels = -1 if name == "x_sharding" else -2
        if where is not None and where.spec[channels] is not None:
            return "'phases' does no input channels that an explicit mesh splits"
    return None


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y: one stride-1 convolution of all phases."""
    phases = _split(x, _image(spec.windows), spec.feature_group_count)
    return rot180.forward(phases, _split_kernel(kernel, spec), _unit_stride(spec))


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx: one stride-1 convolution of dy, its phases interleaved."""
    other = _unit_stride(spec)
    phases = rot180.input_gradient(dy, _split_kernel(kernel, spec), other)
    return _join(phases, _image(spec.windows), spec.feature_group_count)


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel: one stride-1 correlation of all phases with dy, places interleaved."""
    phases = _split(x, _image(spec.windows), spec.feature_group_count)
    places = rot180.kernel_gradient(phases, dy, _unit_stride(spec))
    places = _join(jnp.moveaxis(places, -1, 0), _kernel(spec.windows))
    return jnp.moveaxis(places, 0, -1)


def _split_kernel(kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """[k l c o] -> [m m' a·a'·c o]: place s·m + a becomes phase a of place m."""
    places = _split(jnp.moveaxis(kernel, -1, 0), _kernel(spec.windows))
    return jnp.moveaxis(places, 0, -1)


def _unit_stride(spec: ConvSpec) -> ConvSpec:
    """The convolution of the phases."""
    windows = tuple(
        Window(i.length, k.length, dilation=w.dilation if w.stride == 1 else 1)
        for w, i, k in zip(
            spec.windows, _image(spec.windows), _kernel(spec.windows), strict=True
        )
    )
    return dataclasses.replace(spec, windows=windows)


@dataclasses.dataclass(frozen=True)
class _Phases:
    """How one dimension falls into phases: `stride` of them, each `length` long."""

    stride: int
    length: int
    low: int  # zeros before the first pixel; negative crops
    high: int


def _image(windows: Windows) -> list[_Phases]:
    """The image's phases: as long as the windows reach."""

    def phases(w: Window) -> _Phases:
        reach = w.extent if w.stride == 1 else -(-w.size // w.stride)
        length = w.output + reach - 1 if w.output else 0
        return _Phases(w.stride, length, w.low, w.stride * length - w.input - w.low)

    return [phases(w) for w in windows]


def _kernel(windows: Windows) -> list[_Phases]:
    """The kernel's phases: ⌈K/s⌉ places each."""

    def phases(w: Window) -> _Phases:
        length = -(-w.size // w.stride)
        return _Phases(w.stride, length, 0, w.stride * length - w.size)

    return [phases(w) for w in windows]


def _split(x: jax.Array, phases: list[_Phases], groups: int = 1) -> jax.Array:
    """[n h w g·c] -> [n i j g·a·b·c]: pixel s·i + a − low is phase a of pixel i."""
    n = len(phases)
    config = [(p.low, p.high, 0) for p in phases]
    x = lax.pad(x, arguments.zero(x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    x = to_tiles(x, [p.stride for p in phases])
    x = sharding.split(x, x.ndim - 1, (groups, x.shape[-1] // groups))
    return sharding.merge(jnp.moveaxis(x, -2, 1 + n), 1 + n, x.ndim)


def _join(x: jax.Array, phases: list[_Phases], groups: int = 1) -> jax.Array:
    """`_split` transposed: [n i j g·a·b·c] -> [n h w g·c]."""
    n = len(phases)
    strides = [p.stride for p in phases]
    channels = x.shape[-1] // (groups * math.prod(strides))
    x = sharding.split(x, 1 + n, (groups, *strides, channels))
    x = jnp.moveaxis(x, 1 + n, -2)
    x = from_tiles(sharding.merge(x, x.ndim - 2, x.ndim), n)
    config = [(-p.low, -p.high, 0) for p in phases]
    return lax.pad(x, arguments.zero(x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
