"""The arguments that all pools share."""

from collections.abc import Sequence
from typing import Any

import jax

from handgrad import arguments, windows


def image_and_windows(
    op: str,
    inputs: Any,
    window_shape: Sequence[int],
    strides: Sequence[int] | None,
    padding: arguments.Padding,
    window_dilation: Sequence[int] | None,
    *,
    kind: str,
) -> tuple[jax.Array, windows.Windows]:
    """Checks a pool's arguments; returns its image and the static windows over it."""
    x = arguments.array(op, "inputs", inputs, kind=kind)
    arguments.require(
        isinstance(window_shape, Sequence),
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
    image = x.shape[x.ndim - 1 - n : -1]
    described = windows.describe(
        op, image, window_shape, strides, padding, window_dilation
    )
    windows.require_fit(op, described, name="window_shape")
    return x, described
