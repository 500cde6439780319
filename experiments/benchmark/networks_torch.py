"""The networks of `networks_flax` in PyTorch, with the parameters of Flax's.

The layers take their parameters by the names that Flax gave them: the third convolution
is `Conv_2`. Images are channels last in memory, which is PyTorch's fast layout.
"""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.benchmark.networks_flax import Network
from experiments.models.mobilenet import STAGES


class Step:
    """A step of training: a call returns the loss, and changes the parameters."""

    def __init__(
        self,
        torch: Any,
        network: Network,
        variables: Mapping[str, Any],
        batch: tuple[Any, Any],
        learning_rate: float,
    ):
        """Takes Flax's variables and batch, and changes neither."""
        self._torch = torch
        self._forward = _NETWORKS[network.module]
        self._options = network.options
        self._layers = _Layers(torch, variables)
        images, labels = (np.array(array) for array in batch)
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._labels = torch.from_numpy(labels.astype(np.int64))
        self._optimizer = torch.optim.SGD(
            self._layers.parameters, lr=learning_rate, momentum=0.9
        )

    def __call__(self) -> Any:
        """One step."""
        self._layers.begin()
        logits = self._forward(self._layers, self._images, **self._options)
        loss = self._torch.nn.functional.cross_entropy(logits, self._labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class _Layers:
    """Flax's layers in the order of their calls."""

    def __init__(self, torch: Any, variables: Mapping[str, Any]):
        self._torch = torch
        self.f = torch.nn.functional
        self._values = {
            layer: {name: self._tensor(name, a) for name, a in arrays.items()}
            for layer, arrays in variables["params"].items()
        }
        self.parameters = [
            tensor.requires_grad_()
            for tensors in self._values.values()
            for tensor in tensors.values()
        ]
        for layer, arrays in variables.get("batch_stats", {}).items():
            for name, array in arrays.items():
                self._values[layer][name] = torch.from_numpy(np.array(array))
        self.begin()

    def begin(self) -> None:
        """Begins a forward pass."""
        self._counts = collections.Counter()

    def conv(self, x: Any, strides: int = 1, padding: int = 0, groups: int = 1) -> Any:
        """The next `Conv`."""
        p = self._next("Conv")
        kernel, bias = p["kernel"], p.get("bias")
        return self.f.conv2d(x, kernel, bias, strides, padding, 1, groups)

    def norm(self, x: Any) -> Any:
        """The next `BatchNorm`."""
        p = self._next("BatchNorm")
        statistics = p["mean"], p["var"]
        return self.f.batch_norm(x, *statistics, p["scale"], p["bias"], True, 0.1, 1e-5)

    def dense(self, x: Any) -> Any:
        """The next `Dense`."""
        p = self._next("Dense")
        return self.f.linear(x, p["kernel"], p["bias"])

    def flat(self, x: Any) -> Any:
        """[n c h w] -> [n hwc], Flax's order."""
        return x.permute(0, 2, 3, 1).flatten(1)

    def _next(self, layer: str) -> Mapping[str, Any]:
        name = f"{layer}_{self._counts[layer]}"
        self._counts[layer] += 1
        return self._values[name]

    def _tensor(self, name: str, array: Any) -> Any:
        torch, array = self._torch, np.array(array)
        if name == "kernel":  # [k l c o] -> [o c k l], [i o] -> [o i]
            array = np.moveaxis(array, (-1, -2), (0, 1))
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if tensor.ndim == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor


def _lenet5(net: _Layers, x: Any) -> Any:
    x = net.f.max_pool2d(net.f.relu(net.conv(x, padding=2)), 2)
    x = net.f.max_pool2d(net.f.relu(net.conv(x)), 2)
    x = net.f.relu(net.dense(net.flat(x)))
    x = net.f.relu(net.dense(x))
    return net.dense(x)


def _vgg(net: _Layers, x: Any, widths: tuple[int, ...]) -> Any:
    for _ in widths:
        x = net.f.relu(net.conv(x, padding=1))
        x = net.f.relu(net.conv(x, padding=1))
        x = net.f.max_pool2d(x, 2)
    x = net.f.relu(net.dense(net.flat(x)))
    return net.dense(x)


def _resnet(
    net: _Layers,
    x: Any,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    blocks: int = 2,
    groups: int = 1,
) -> Any:
    def layer(x, size=3, strides=1, groups=1):
        return net.norm(net.conv(x, strides, size // 2, groups))

    x = net.f.max_pool2d(net.f.relu(layer(x, 7, 2)), 3, 2, 1)
    for stage in range(len(widths)):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            y = net.f.relu(layer(x, 3, strides, groups))
            y = layer(y, groups=groups)
            if x.shape != y.shape:
                x = layer(x, 1, strides)
            x = net.f.relu(x + y)
    return net.dense(x.mean((2, 3)))


def _mobilenetv2(
    net: _Layers,
    x: Any,
    stages: tuple[tuple[int, int, int, int], ...] = STAGES,
    **widths: int,
) -> Any:
    del widths  # the parameters know them

    def layer(x, size=1, strides=1, groups=1):
        return net.norm(net.conv(x, strides, size // 2, groups))

    x = net.f.relu6(layer(x, 3, 2))
    for expansion, _, blocks, first in stages:
        for block in range(blocks):
            strides = 1 if block else first
            y = net.f.relu6(layer(x)) if expansion != 1 else x
            y = net.f.relu6(layer(y, 3, strides, y.shape[1]))
            y = layer(y)
            x = x + y if x.shape == y.shape else y
    return net.dense(net.f.relu6(layer(x)).mean((2, 3)))


_NETWORKS: dict[str, Callable[..., Any]] = {
    "LeNet5": _lenet5,
    "VGG": _vgg,
    "ResNet": _resnet,
    "MobileNetV2": _mobilenetv2,
}
