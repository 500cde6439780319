"""The networks of `experiments.benchmark networks`, as a user of Flax writes them.

One definition serves both sides: `nn` is `flax.linen` or `handgrad.linen`. Paddings are
written out where Flax's "SAME" would pad the two ends unlike, which PyTorch cannot.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.models.mobilenet import LAST, STAGES, STEM

CLASSES = 10


class Network(NamedTuple):
    """A network of the benchmark.

    Attributes:
        module: the name of its class.
        options: the arguments of the class.
        batch: examples a step.
        image: height, width and channels.
    """

    module: str
    options: dict[str, Any]
    batch: int
    image: tuple[int, int, int]


NETWORKS = {
    "lenet5": Network("LeNet5", {}, 64, (28, 28, 1)),
    "vgg-small": Network("VGG", {"widths": (32, 64, 128)}, 32, (32, 32, 3)),
    "resnet18": Network("ResNet", {}, 8, (112, 112, 3)),
    "resnext18": Network("ResNet", {"groups": 32}, 8, (56, 56, 3)),
    "mobilenetv2": Network("MobileNetV2", {}, 8, (64, 64, 3)),
}


def build(nn: Any, network: Network) -> Any:
    """The network as a module made of the modules of `nn`."""

    class LeNet5(nn.Module):
        """LeCun et al. 1998, as it is mostly built today: relu and max pooling."""

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(6, (5, 5))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.relu(nn.Conv(16, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
            x = x.reshape(x.shape[0], -1)
            x = nn.relu(nn.Dense(120)(x))
            x = nn.relu(nn.Dense(84)(x))
            return nn.Dense(CLASSES)(x)

    class VGG(nn.Module):
        """Simonyan & Zisserman 2015, arXiv:1409.1556, in blocks of two layers."""

        widths: Sequence[int]

        @nn.compact
        def __call__(self, x):
            for width in self.widths:
                x = nn.relu(nn.Conv(width, (3, 3))(x))
                x = nn.relu(nn.Conv(width, (3, 3))(x))
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = x.reshape(x.shape[0], -1)
            x = nn.relu(nn.Dense(128)(x))
            return nn.Dense(CLASSES)(x)

    def layer(x, width, size=3, strides=1, groups=1):
        """A convolution without a bias, and a batch norm."""
        x = nn.Conv(
            width,
            (size, size),
            strides,
            padding=size // 2,
            feature_group_count=groups,
            use_bias=False,
        )(x)
        return nn.BatchNorm(use_running_average=False, momentum=0.9)(x)

    class ResNet(nn.Module):
        """He et al. 2016, arXiv:1512.03385; with groups, after Xie et al. 2017."""

        widths: Sequence[int] = (64, 128, 256, 512)
        blocks: int = 2
        groups: int = 1

        @nn.compact
        def __call__(self, x):
            x = nn.relu(layer(x, self.widths[0], 7, 2))
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
            for stage, width in enumerate(self.widths):
                for block in range(self.blocks):
                    strides = 2 if stage and not block else 1
                    y = nn.relu(layer(x, width, 3, strides, self.groups))
                    y = layer(y, width, groups=self.groups)
                    if x.shape != y.shape:
                        x = layer(x, width, 1, strides)
                    x = nn.relu(x + y)
            return nn.Dense(CLASSES)(jnp.mean(x, (1, 2)))

    class MobileNetV2(nn.Module):
        """Sandler et al. 2018, arXiv:1801.04381."""

        stages: Sequence[tuple[int, int, int, int]] = STAGES
        stem: int = STEM
        last: int = LAST

        @nn.compact
        def __call__(self, x):
            x = nn.relu6(layer(x, self.stem, 3, 2))
            for expansion, width, blocks, first in self.stages:
                for block in range(blocks):
                    strides = 1 if block else first
                    hidden = expansion * x.shape[-1]
                    y = nn.relu6(layer(x, hidden, 1)) if expansion != 1 else x
                    y = nn.relu6(layer(y, hidden, 3, strides, hidden))
                    y = layer(y, width, 1)
                    x = x + y if x.shape == y.shape else y
            x = nn.relu6(layer(x, self.last, 1))
            return nn.Dense(CLASSES)(jnp.mean(x, (1, 2)))

    modules = {each.__name__: each for each in (LeNet5, VGG, ResNet, MobileNetV2)}
    return modules[network.module](**network.options)


def batch(network: Network) -> tuple[jax.Array, jax.Array]:
    """Random images, and labels."""
    shape = (network.batch, *network.image)
    images = jax.random.normal(jax.random.key(0), shape)
    return images, jnp.arange(network.batch) % CLASSES
