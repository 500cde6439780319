"""Cases and layers of norms and of dropout."""

import numpy as np

from handgrad.cases.case import Case, constant, key, normal


def _norm(rule, name, shape, *, parameters=None, network=None, scale=1.0, **options):
    """Parameters of the shape of the last axis, unless another is given."""
    samples = {"x": normal(*shape, scale=scale)}
    for each in ("scale", "bias") if rule != "rms_norm" else ("scale",):
        if parameters != ():
            samples[each] = normal(*(parameters or shape[-1:]))
    return Case(rule, name, samples, options, network)


_MASK = np.array([[[True], [False], [True]], [[True], [True], [True]]])

CASES = (
    _norm("batch_norm", "image", (4, 3, 5, 3)),
    _norm("batch_norm", "vector, relu", (6, 3), activation="relu"),
    _norm(
        "batch_norm",
        "first axis, masked",
        (2, 3, 4),
        parameters=(2,),
        axis=0,
        where=_MASK,
    ),
    _norm("batch_norm", "no parameters", (3, 4, 2), parameters=()),
    Case(
        "batch_norm",
        "inference",
        {
            "x": normal(4, 3, 3),
            "scale": normal(3),
            "bias": normal(3),
            "mean": normal(3),
            "variance": normal(3, scale=0.1),
        },
        {"epsilon": 1.0, "activation": "relu"},
    ),
    # Its gradient is one sum, and of these numbers none that cancels.
    *(
        Case(
            rule, "learnt epsilon", {"x": normal(3, 4), "epsilon": constant(value=0.3)}
        )
        for rule in ("batch_norm", "layer_norm", "rms_norm", "standardize")
    ),
    _norm("layer_norm", "last axis", (4, 3, 5)),
    _norm("layer_norm", "long rows", (4, 150)),
    _norm("layer_norm", "two axes", (4, 3, 5), parameters=(4, 5), axis=(0, -1)),
    _norm("layer_norm", "masked", (2, 3, 4), where=np.array([True, False, True, True])),
    _norm("rms_norm", "last axis", (4, 3, 5)),
    _norm(
        "rms_norm",
        "first axis, masked",
        (2, 3, 4),
        parameters=(2,),
        axis=0,
        where=_MASK,
    ),
    _norm("group_norm", "image", (3, 4, 3, 6), num_groups=3),
    _norm(
        "group_norm", "masked", (2, 3, 4), num_groups=None, group_size=2, where=_MASK
    ),
    _norm("instance_norm", "image", (3, 4, 3, 2)),
    _norm("instance_norm", "one dimension", (3, 5, 2), parameters=()),
    _norm("standardize", "last axis", (4, 5), parameters=()),
    _norm(
        "standardize",
        "all axes, masked",
        (2, 3, 4),
        parameters=(),
        axis=None,
        where=_MASK,
    ),
    Case("local_response_norm", "wide", {"x": normal(3, 2, 7)}, {"alpha": 0.3}),
    Case(
        "local_response_norm",
        "even",
        {"x": normal(3, 4)},
        {"size": 4, "alpha": 0.5, "k": 1.0},
    ),
    Case("dropout", "half", {"key": key(), "x": normal(4, 6)}, {"rate": 0.5}),
    Case(
        "dropout",
        "whole channels",
        {"key": key(), "x": normal(3, 2, 2, 5)},
        {"rate": 0.3, "broadcast_axes": (1, 2)},
    ),
)

_RESNET = ((112, 64), (56, 64), (28, 128), (14, 256), (7, 512))
_CONVNEXT = ((56, 96), (28, 192), (14, 384), (7, 768))


def _layer(network, rule, name, shape, **options) -> Case:
    return _norm(rule, f"{network} {name}", shape, network=network, **options)


LAYERS = (
    *(
        _layer("resnet18", "batch_norm", f"{c} {h}px", (8, h, h, c), activation="relu")
        for h, c in _RESNET
    ),
    *(
        _layer("convnext", "layer_norm", f"{c} {h}px", (8, h, h, c))
        for h, c in _CONVNEXT
    ),
    _layer("transformer", "rms_norm", "768", (8, 512, 768)),
    _layer("transformer", "standardize", "768", (8, 512, 768), parameters=()),
    _layer("resnet18", "group_norm", "groups 64 56px", (8, 56, 56, 64)),
    _layer("resnet18", "instance_norm", "instance 64 56px", (8, 56, 56, 64)),
    Case(
        "local_response_norm",
        "alexnet 96 27px",
        {"x": normal(8, 27, 27, 96)},
        network="alexnet",
    ),
    Case(
        "dropout",
        "alexnet dense 1",
        {"key": key(), "x": normal(256, 4096)},
        {"rate": 0.5},
        network="alexnet",
    ),
)
