"""PyTorch's side of the benchmark: each layer as its users would write it for a CPU.

The layer computes with the numbers of a `Case`, in PyTorch's own layouts: channels last
in memory in two and three dimensions, which is its fast one. Padding that PyTorch's
convolution cannot take, one that is not the same at both ends, is a `pad` in front.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from handgrad import windows
from handgrad.cases import Case


def load() -> Any:
    """The module `torch`, set to use every core as JAX does; `None` without it."""
    try:
        # By name, so that types can be checked where it is not installed.
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    torch.set_num_threads(os.cpu_count() or 1)
    return torch


class Layer:
    """A case's layer in PyTorch, with its arguments and a cotangent."""

    def __init__(
        self, torch: Any, case: Case, arrays: Mapping[str, np.ndarray], dy: np.ndarray
    ):
        """Takes the arrays, in JAX's layouts, that JAX's side gets.

        Raises:
            NotImplementedError: PyTorch has no such layer, or it is not written here.
        """
        if case.rule not in _RULES:
            raise NotImplementedError(
                f"{case.rule}: no layer of PyTorch is known for it here"
            )
        self._torch = torch
        self._turned = case.rule == "conv_transpose"
        self._compute = _RULES[case.rule](torch, case)
        self.arguments = {
            name: self._tensor(array, _kind(name)).requires_grad_()
            for name, array in arrays.items()
        }
        self._dy = self._tensor(dy, "image")

    def forward(self) -> Callable[[], Any]:
        """A function that computes the value."""

        def run():
            with self._torch.no_grad():
                return self._compute(**self.arguments)

        return run

    def gradient(self, names: Sequence[str]) -> Callable[[], Any]:
        """A function that computes the cotangents of some arguments, and no more."""
        y = self._compute(**self.arguments)
        wanted = [self.arguments[name] for name in names]

        def run():
            return self._torch.autograd.grad(y, wanted, self._dy, retain_graph=True)

        return run

    def value_and_gradients(self) -> Callable[[], Any]:
        """A function that computes the value and the cotangent of every argument."""
        wanted = list(self.arguments.values())

        def run():
            y = self._compute(**self.arguments)
            return y, *self._torch.autograd.grad(y, wanted, self._dy)

        return run

    def array(self, name: str, tensor: Any) -> np.ndarray:
        """The tensor of an argument's shape, or of the value's, in JAX's layout."""
        array = tensor.detach().numpy()
        kind = _kind(name)
        if kind == "image":  # [n c h w] -> [n h w c]
            return np.moveaxis(array, 1, -1)
        if kind == "kernel" and self._turned:  # [c o k l] -> [k l c o], by 180°
            array = np.flip(array, tuple(range(2, array.ndim)))
            return np.moveaxis(array, (0, 1), (-2, -1))
        if kind == "kernel":  # [o c k l] -> [k l c o]
            return np.moveaxis(array, (0, 1), (-1, -2))
        return array

    def _tensor(self, array: np.ndarray, kind: str) -> Any:
        torch = self._torch
        if kind == "image":
            array = np.moveaxis(array, -1, 1)
        elif kind == "kernel" and self._turned:
            array = np.moveaxis(array, (-2, -1), (0, 1))
            array = np.flip(array, tuple(range(2, array.ndim)))
        elif kind == "kernel":
            array = np.moveaxis(array, (-1, -2), (0, 1))
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}
        return torch.from_numpy(np.ascontiguousarray(array)).contiguous(
            memory_format=layout.get(array.ndim, torch.contiguous_format)
        )


def _kind(name: str) -> str:
    if name in ("kernel", "rhs"):
        return "kernel"
    return "bias" if name == "bias" else "image"


def _conv(torch: Any, case: Case) -> Callable[..., Any]:
    functional = torch.nn.functional
    options = dict(case.options)
    image, kernel = (case.samples[name].shape for name in ("x", "kernel"))
    described = windows.describe(
        case.rule,
        image[1:-1],
        kernel[:-2],
        options.get("strides", 1),
        options.get("padding", "SAME"),
        options.get("kernel_dilation", 1),
        options.get("input_dilation", 1),
    )
    if any(w.input_dilation != 1 for w in described):
        raise NotImplementedError("PyTorch's convolution has no input_dilation")
    convolve = getattr(functional, f"conv{len(described)}d")
    same = all(w.low == w.high >= 0 for w in described)
    arguments = {
        "stride": tuple(w.stride for w in described),
        "padding": tuple(w.low if same else 0 for w in described),
        "dilation": tuple(w.dilation for w in described),
        "groups": options.get("feature_group_count", 1),
    }
    # `pad` counts the dimensions from the last.
    pads = [end for w in reversed(described) for end in (w.low, w.high)]

    def compute(x, kernel, bias=None):
        if not same:
            x = functional.pad(x, pads)
        return convolve(x, kernel, bias, **arguments)

    return compute


def _conv_transpose(torch: Any, case: Case) -> Callable[..., Any]:
    image, kernel = (case.samples[name].shape for name in ("lhs", "rhs"))
    strides = tuple(case.options["strides"])
    if case.options["padding"] != "SAME" or set(case.options) > {"strides", "padding"}:
        raise NotImplementedError(
            "only the padding SAME is known here, and no other option"
        )
    if any((k - s) % 2 or k < s for k, s in zip(kernel, strides, strict=False)):
        raise NotImplementedError("PyTorch pads both ends alike")
    # SAME makes s·H pixels: (k − s) / 2 of the s·(H−1) + k are cut off at either end.
    padding = tuple((k - s) // 2 for k, s in zip(kernel, strides, strict=False))
    convolve = getattr(torch.nn.functional, f"conv_transpose{len(image) - 2}d")

    def compute(lhs, rhs):
        return convolve(lhs, rhs, stride=strides, padding=padding)

    return compute


def _pool(torch: Any, case: Case) -> Callable[..., Any]:
    functional = torch.nn.functional
    options = dict(case.options)
    image = case.samples["inputs"].shape[1:-1]
    size, n = options["window_shape"], len(image)
    kind = case.rule.removesuffix("_pool")
    if size is None:
        pool = getattr(functional, f"adaptive_{kind}_pool{n}d")
        return lambda inputs: pool(inputs, (1,) * n)
    strides = options.get("strides") or (1,) * n
    described = windows.describe(
        case.rule, image, size, strides, options.get("padding", "VALID")
    )
    pads = [(w.low, w.high) for w in described]
    if any(low != high for low, high in pads) or "window_dilation" in options:
        raise NotImplementedError("PyTorch's pools pad both ends alike")
    pool = getattr(functional, f"{kind}_pool{n}d")
    arguments = {"padding": tuple(low for low, _ in pads)}
    if "ceil_mode" in options:
        arguments["ceil_mode"] = options["ceil_mode"]
    return lambda inputs: pool(inputs, size, strides, **arguments)


_RULES = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _pool,
    "avg_pool": _pool,
}
