"""The explorer: one static page that steps through a layer's passes in the browser.

`explorer.html` is the whole page; it computes by itself and needs no network. What it
opens with is a JSON island, which `page` fills in.
"""

import importlib.resources
import json
from typing import Any

import numpy as np

from handgrad.explain import convolution, matrix_product, pooling
from handgrad.explain import geometry as geo
from handgrad.explain.convolution import counting

SIDE = 10  # MOST in the page: rows and columns of its grids
LARGEST = 9999
ISLAND = '<script type="application/json" id="configuration">null</script>'
IMAGES = {
    "conv": convolution.IMAGE,
    "im2col": matrix_product.IMAGE,
    "max_pool": pooling.MAX_IMAGE,
    "avg_pool": pooling.AVG_IMAGE,
}
KERNELS = {"conv": convolution.KERNEL, "im2col": matrix_product.KERNEL}


def configuration(
    op: str,
    image: Any = None,
    kernel: Any = None,
    error: Any = None,
    bias: Any = None,
    *,
    window: int | tuple[int, int] = 2,
    stride: int | tuple[int, int] | None = None,
    padding: Any = "VALID",
    dilation: int | tuple[int, int] = 1,
) -> dict[str, Any]:
    """What the page opens with: the arguments of the worked example `op`.

    Raises:
      ValueError: the page does not show that layer, or what does not fit its grids.
    """
    if op not in IMAGES:
        raise ValueError(f"--html shows {', '.join(IMAGES)}, not {op}")
    x = np.asarray(IMAGES[op] if image is None else image, np.float64)
    if op in KERNELS:
        kernel = np.asarray(KERNELS[op] if kernel is None else kernel, np.float64)
        shape, stride = kernel.shape, 1 if stride is None else stride
        if bias is None:
            bias = int(op == "conv" and image is None)
    else:
        shape = (window, window) if isinstance(window, int) else window
        stride = shape if stride is None else stride
    g = geo.describe(op, x.shape, shape, stride, padding, dilation)
    scale = np.prod(g.window) if op == "avg_pool" else 1
    error = np.asarray(scale * counting(g.output) if error is None else error)
    if error.shape != g.output:
        raise ValueError(
            f"{op}: error must be {geo.pair(g.output)} here, got {error.shape}"
        )
    values: dict[str, Any] = {"image": x, "error": error}
    if kernel is not None:
        values["kernel"] = kernel
    if bias is not None:
        values["bias"] = np.asarray(bias)
    numbers = {
        "window": g.window,
        "stride": g.stride,
        "dilation": g.dilation,
        "padding": g.padding,
    }
    for name, value in (values | {"padding": np.array(g.padding)}).items():
        most = SIDE - 1 if name == "padding" else LARGEST
        if np.abs(value).max() > most:
            raise ValueError(f"--html shows numbers up to {most}: {name} has larger")
    for name in ("image", "window", "stride", "dilation"):
        sizes = x.shape if name == "image" else numbers[name]
        if max(sizes) > SIDE:
            raise ValueError(
                f"--html shows up to {SIDE} rows and columns: {name} has {max(sizes)}"
            )
    if max(g.output) > 2 * SIDE:
        raise ValueError(f"--html shows up to {2 * SIDE} windows a dimension")
    shown = {name: _plain(value) for name, value in values.items()}
    return {"op": "conv" if op in KERNELS else op, **shown, **numbers}


def page(settings: dict[str, Any] | None = None) -> str:
    """The page, opening with these settings; with the article's by default."""
    file = importlib.resources.files("handgrad.explain") / "explorer.html"
    text = file.read_text(encoding="utf-8")
    if text.count(ISLAND) != 1:
        raise RuntimeError("explorer.html must hold its configuration's island once")
    data = json.dumps(settings).replace("<", r"\u003c")
    return text.replace(ISLAND, ISLAND.replace("null", data))


def _plain(values: np.ndarray) -> Any:
    """As JSON, whole numbers without a decimal point."""
    if values.ndim:
        return [_plain(value) for value in values]
    number = float(values)
    return int(number) if number.is_integer() else number
