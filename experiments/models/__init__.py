"""The networks that `train.py` trains.

Parameters are a dictionary of layers, each with its `kernel`, `bias` and so on. A
network is a pure function of its parameters, the images and the ops it is made of; the
ops are handgrad's, so every gradient is derived by hand.

Where a network normalises batches, it does so by the statistics of the batch at hand,
in the test as in training: its function is pure, with no running averages beside it.
"""

from experiments.models import convnext, mobilenet, resnet, small
from experiments.models.base import ImageShape, Model, Params, bind, offers

MODELS: dict[str, Model] = {
    **small.MODELS,
    "resnet8": resnet.model((16, 32, 64), (1, 1, 1)),
    "resnet18": resnet.model((64, 128, 256, 512), (2, 2, 2, 2)),
    "mobilenetv2": mobilenet.model(),
    "convnext-tiny": convnext.model((96, 192, 384, 768), (3, 3, 9, 3)),
}

__all__ = ["MODELS", "ImageShape", "Model", "Params", "bind", "offers"]
