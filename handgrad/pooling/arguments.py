"""The arguments that all pools share."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from handgrad import arguments, windows


def image_and_windows(
    op: str,
    inputs: Any,
    window_shape: Sequence[int] | None,
    strides: Sequence[int] | None,
    padding: arguments.Padding,
    window_dilation: Sequence[int] | None,
    ceil_mode: bool = False,
    *,
    kind: str,
) -> tuple[jax.Array, windows.Windows]:
    """Checks a pool's arguments; returns its image and the static windows over it."""
    x = arguments.array(op, "inputs", inputs, kind=kind)
    if window_shape is None:
        arguments.require(
            x.ndim >= 3,
            op,
            "inputs must have a batch axis, spatial dimensions and channels for "
            f"window_shape (=None), got shape {x.shape}",
        )
        window_shape = x.shape[1:-1]
    described = windows.describe(
        op,
        image_shape(op, x, window_shape),
        window_shape,
        strides,
        padding,
        window_dilation,
    )
    if ceil_mode:
        described = tuple(_ceil(w) for w in described)
    windows.require_fit(op, described, name="window_shape")
    return x, tuple(_alone(w) for w in described)


def image_shape(op: str, x: jax.Array, window_shape: Any) -> tuple[int, ...]:
    """The spatial dimensions of `x`, one for each of the window's."""
    arguments.require(
        isinstance(window_shape, Sequence) and not isinstance(window_shape, str),
        op,
        f"window_shape (={window_shape!r}) must have one entry for each spatial "
        "dimension",
    )
    n = len(window_shape)
    arguments.require(
        x.ndim >= n + 1,
        op,
        f"inputs must have {n} spatial dimensions and channels for window_shape "
        f"(={tuple(window_shape)}), got shape {x.shape}",
    )
    return x.shape[x.ndim - 1 - n : -1]


def _ceil(w: windows.Window) -> windows.Window:
    """As many windows as begin in the image or before it, though the last sticks out.

    PyTorch's and ONNX's `ceil_mode`: ⌈(H + low + high − extent) / s⌉ + 1 windows, less
    one if that would begin in the padding at the end.
    """
    room = w.dilated + w.low + w.high - w.extent
    if room < 0:
        return w
    last = -(-room // w.stride)
    last -= last * w.stride >= w.dilated + w.low
    high = w.stride * last + w.extent - w.dilated - w.low
    return dataclasses.replace(w, high=high)


def _alone(w: windows.Window) -> windows.Window:
    """The stride of one window says nothing: one that keeps pixels apart is fastest."""
    stride = max(w.stride, w.extent) if w.output == 1 else w.stride
    return dataclasses.replace(w, stride=stride)
