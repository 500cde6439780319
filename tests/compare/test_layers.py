"""Activations, norms and losses: ONNX's published cases and PyTorch's autograd."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad

onnx = pytest.importorskip("onnx", reason="onnx comes with the extra `compare`")
torch = pytest.importorskip("torch", reason="PyTorch comes with the extra `compare`")

# ONNX's operator -> (its module, ours, its attributes by our names, their defaults).
ACTIVATIONS = {
    "Relu": ("relu", "relu", {}),
    "Sigmoid": ("sigmoid", "sigmoid", {}),
    "Tanh": ("tanh", "tanh", {}),
    "Softplus": ("softplus", "softplus", {}),
    "Softsign": ("softsign", "soft_sign", {}),
    "Mish": ("mish", "mish", {}),
    "HardSwish": ("hardswish", "hard_silu", {}),
    "LeakyRelu": ("leakyrelu", "leaky_relu", {"negative_slope": ("alpha", 0.01)}),
    "Elu": ("elu", "elu", {"alpha": ("alpha", 1.0)}),
    "Celu": ("celu", "celu", {"alpha": ("alpha", 1.0)}),
    "Softmax": ("softmax", "softmax", {"axis": ("axis", -1)}),
    "LogSoftmax": ("logsoftmax", "log_softmax", {"axis": ("axis", -1)}),
    "PRelu": ("prelu", "leaky_relu", {}),
}
LOSSES = {
    "SoftmaxCrossEntropyLoss": "softmax_cross_entropy_loss",
    "NegativeLogLikelihoodLoss": "negativeloglikelihoodloss",
}
NORMS = {
    "InstanceNormalization": "instance_normalization",
    "GroupNormalization": "groupnormalization",
    "LayerNormalization": "layernormalization",
    "LRN": "lrn",
}


def published():
    """Each case of one node that float32 or float64 arrays go into."""
    from onnx.backend.test.case import node

    modules = [module for module, *_ in ACTIVATIONS.values()]
    for module in (*modules, *LOSSES.values(), *NORMS.values()):
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    known = {*ACTIVATIONS, *LOSSES, *NORMS}
    for case in node._NodeTestCases:
        nodes = case.model.graph.node
        if len(nodes) != 1 or nodes[0].op_type not in known:
            continue
        options = {
            a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute
        }
        for inputs, outputs in case.data_sets:
            values = [nodes[0].op_type, options, inputs, outputs[0]]
            yield pytest.param(*values, id=case.name)


CASES = list(published())


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def loss(op, options, x, labels, weights=None):
    """[N C ...] -> [N ...] or a number; a weight a class, classes left out."""
    losses = functools.partial(
        handgrad.softmax_cross_entropy_with_integer_labels, axis=1
    )
    if op == "SoftmaxCrossEntropyLoss":
        each = losses(x, labels)
    else:  # x are logarithms of probabilities already: their exponentials sum to 1
        each = -jnp.squeeze(
            jnp.take_along_axis(x, jnp.expand_dims(labels, 1), 1, mode="clip"), 1
        )
    ones = jnp.ones(labels.shape, x.dtype)
    share = ones if weights is None else jnp.take(weights, labels, mode="clip")
    share = jnp.where(labels == options.get("ignore_index", -(2**31)), 0, share)
    each = jnp.where(share == 0, 0, each * share)
    reduction = options.get("reduction", b"mean").decode()
    if reduction == "none":
        return each
    return each.sum() / (share.sum() if reduction == "mean" else 1)


def norm(op, options, x, scale=None, bias=None):
    last = channels_last(x)
    if op == "LRN":
        size = options["size"]
        y = handgrad.local_response_norm(
            last,
            size,
            alpha=options.get("alpha", 1e-4) / size,
            beta=options.get("beta", 0.75),
            k=options.get("bias", 1.0),
        )
    elif op == "LayerNormalization":
        axis = options.get("axis", -1) % x.ndim
        epsilon = options.get("epsilon", 1e-5)
        axes = tuple(range(axis, x.ndim))
        return handgrad.layer_norm(x, scale, bias, axis=axes, epsilon=epsilon)
    elif op == "InstanceNormalization":
        epsilon = options.get("epsilon", 1e-5)
        y = handgrad.instance_norm(last, scale, bias, epsilon=epsilon)
    else:
        groups, epsilon = options["num_groups"], options.get("epsilon", 1e-5)
        y = handgrad.group_norm(last, scale, bias, num_groups=groups, epsilon=epsilon)
    return jnp.moveaxis(y, -1, 1)


def test_all_cases_are_found():
    ops = [case.values[0] for case in CASES]
    assert set(ops) == {*ACTIVATIONS, *LOSSES, *NORMS}
    assert len(ops) >= 100


@pytest.mark.parametrize(("op", "options", "inputs", "y"), CASES)
def test_published_case(op, options, inputs, y):
    inputs = [jnp.asarray(a) for a in inputs if a is not None]
    if op in LOSSES:
        value = loss(op, options, *inputs)
    elif op in NORMS:
        value = norm(op, options, *inputs)
    else:
        _, ours, names = ACTIVATIONS[op]
        given = {n: options.get(*where) for n, where in names.items()}
        value = getattr(handgrad, ours)(*inputs, **given)
    np.testing.assert_allclose(value, y, rtol=1e-4, atol=2e-6)


F = torch.nn.functional
RANDOM = np.random.default_rng(0)
X, T = RANDOM.standard_normal((4, 6, 5)), RANDOM.uniform(size=(4, 6, 5))
SCALE, BIAS = RANDOM.standard_normal((2, 6))
LABELS = RANDOM.integers(0, 6, (4, 5))


def last(function, **options):
    """Ours of channels last as one of channels first."""
    return lambda x, *args: jnp.moveaxis(
        function(jnp.moveaxis(x, 1, -1), *args, **options), -1, 1
    )


# Ours, PyTorch's, and the arrays that both are differentiated by.
PAIRS = {
    "gelu": (lambda x: handgrad.gelu(x, approximate=False), F.gelu, X),
    "gelu tanh": (handgrad.gelu, functools.partial(F.gelu, approximate="tanh"), X),
    "silu": (handgrad.silu, F.silu, X),
    "mish": (handgrad.mish, F.mish, X),
    "selu": (handgrad.selu, F.selu, X),
    "elu": (lambda x: handgrad.elu(x, 0.7), lambda x: F.elu(x, 0.7), X),
    "celu": (lambda x: handgrad.celu(x, 0.5), lambda x: F.celu(x, 0.5), X),
    "softplus": (handgrad.softplus, F.softplus, X),
    "log_sigmoid": (handgrad.log_sigmoid, F.logsigmoid, X),
    "soft_sign": (handgrad.soft_sign, F.softsign, X),
    "hard_silu": (handgrad.hard_silu, F.hardswish, 3 * X),
    "hard_sigmoid": (handgrad.hard_sigmoid, F.hardsigmoid, 3 * X),
    "hard_tanh": (handgrad.hard_tanh, F.hardtanh, X),
    "relu6": (handgrad.relu6, F.relu6, 5 * X),
    "prelu": (
        lambda x, a: handgrad.leaky_relu(x, a[:, None]),
        F.prelu,
        X,
        np.abs(SCALE),
    ),
    "glu": (lambda x: handgrad.glu(x, 1), lambda x: F.glu(x, 1), X),
    "logsumexp": (
        lambda x: handgrad.logsumexp(x, 1),
        lambda x: torch.logsumexp(x, 1),
        X,
    ),
    "batch_norm": (
        last(handgrad.batch_norm),
        lambda x, g, b: F.batch_norm(x, None, None, g, b, training=True),
        X,
        SCALE,
        BIAS,
    ),
    "group_norm": (
        last(handgrad.group_norm, num_groups=3, epsilon=1e-5),
        lambda x, g, b: F.group_norm(x, 3, g, b),
        X,
        SCALE,
        BIAS,
    ),
    "instance_norm": (
        last(handgrad.instance_norm, epsilon=1e-5),
        lambda x, g, b: F.instance_norm(x, weight=g, bias=b),
        X,
        SCALE,
        BIAS,
    ),
    "layer_norm": (
        last(handgrad.layer_norm, epsilon=1e-5),
        lambda x, g, b: F.layer_norm(x.mT, (6,), g, b).mT,
        X,
        SCALE,
        BIAS,
    ),
    "local_response_norm": (
        last(handgrad.local_response_norm, size=3, alpha=0.1, k=1.5),
        lambda x: F.local_response_norm(x, 3, 0.3, 0.75, 1.5),
        X,
    ),
    "cross_entropy": (
        lambda x: handgrad.softmax_cross_entropy_with_integer_labels(x, LABELS, 1),
        lambda x: F.cross_entropy(x, torch.tensor(LABELS), reduction="none"),
        X,
    ),
    "binary_cross_entropy": (
        handgrad.sigmoid_binary_cross_entropy,
        functools.partial(F.binary_cross_entropy_with_logits, reduction="none"),
        X,
        T,
    ),
    "huber_loss": (
        lambda p, t: handgrad.huber_loss(p, t, delta=0.7),
        functools.partial(F.huber_loss, reduction="none", delta=0.7),
        X,
        T,
    ),
    "kl_divergence": (
        lambda x, t: handgrad.kl_divergence(x, t, axis=1),
        lambda x, t: F.kl_div(x, t, reduction="none").sum(1),
        X,
        T,
    ),
    "cosine_distance": (
        lambda a, b: handgrad.cosine_distance(a, b, axis=1),
        lambda a, b: 1 - F.cosine_similarity(a, b, dim=1, eps=0.0),
        X,
        T,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_value_and_gradients_are_pytorchs(name):
    ours, theirs, *arrays = PAIRS[name]
    with jax.enable_x64(True):
        arrays = [np.asarray(a, np.float64) for a in arrays]

        @jax.jit
        def outcome(dy, *arrays):
            y, vjp = jax.vjp(ours, *arrays)
            return y, *vjp(dy)

        leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
        y = theirs(*leaves)
        dy = np.random.default_rng(1).standard_normal(tuple(y.shape))
        y.backward(torch.tensor(dy))
        actual = outcome(dy, *arrays)
    expected = [y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]
    tolerance = 1e-7 if name == "hard_sigmoid" else 1e-9  # a float32 constant, 1/6
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=1e-10)
