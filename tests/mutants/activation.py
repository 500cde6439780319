"""Activations and losses: a factor, a term or a label is wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.mutants.mutant import Mutant, normal, rule

VECTOR = (normal(4, 5),)
SQUARE = (normal(4, 4),)
KINKED = (np.array([-1.5, -1, 0, 0, 0.5, 2], np.float32),)
_activation = functools.partial(Mutant, "activation")
_loss = functools.partial(Mutant, "loss")


def of(primal, derivative):
    """An elementwise rule: dx = derivative(x, y) dy."""
    return rule(primal, lambda dy, y, x: (dy * derivative(x, y),))


def cross_entropy(logits, labels):
    return -jnp.sum(labels * jax.nn.log_softmax(logits), -1)


def loss(dlogits, dlabels=lambda p, t, logits: -jax.nn.log_softmax(logits)):
    def backward(dy, y, logits, labels):
        p, dy = jax.nn.softmax(logits), dy[:, None]
        return dy * dlogits(p, labels), dy * dlabels(p, labels, logits)

    return rule(cross_entropy, backward)


def by_integers(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1)[:, 0]


def integer_loss(offset=0, scale=1.0, ignore_dy=False):
    def backward(dy, y, logits, labels):
        hot = jax.nn.one_hot(labels + offset, logits.shape[1], dtype=logits.dtype)
        dlogits = scale * (jax.nn.softmax(logits) - hot)
        return (dlogits if ignore_dy else dlogits * dy[:, None]), None

    return rule(by_integers, backward)


SOFT = np.random.default_rng(0).uniform(0.1, 1, (4, 5)).astype(np.float32)
LABELS = np.array([0, 2, 4, 1], np.int32)
right_logits = lambda p, t: p * t.sum(-1, keepdims=True) - t

RIGHT = {
    "sigmoid": (of(jax.nn.sigmoid, lambda x, y: y * (1 - y)), VECTOR),
    "cross-entropy": (loss(right_logits), (*VECTOR, SOFT)),
    "cross-entropy of integers": (integer_loss(), (*VECTOR, LABELS)),
}
MUTANTS = (
    _activation(
        "sigmoid: y alone",
        of(jax.nn.sigmoid, lambda x, y: y),
        VECTOR,
        hint="factor 1 − y is missing",
    ),
    _activation(
        "sigmoid: y (1 + y)", of(jax.nn.sigmoid, lambda x, y: y * (1 + y)), VECTOR
    ),
    _activation(
        "tanh: 1 − y", of(jnp.tanh, lambda x, y: 1 - y), VECTOR, hint="factor 1 + y"
    ),
    _activation("tanh: of x, not of y", of(jnp.tanh, lambda x, y: 1 - x * x), VECTOR),
    _activation(
        "relu: 1 at the kink",
        of(lambda x: jax.nn.relu(x), lambda x, y: x >= 0),
        KINKED,
        reference=jax.nn.relu,
        hint="where x is 0",
    ),
    _activation(
        "relu: the mask of the error",
        rule(lambda x: jax.nn.relu(x), lambda dy, y, x: (jnp.maximum(dy, 0),)),
        VECTOR,
    ),
    _activation(
        "leaky relu: another slope",
        of(
            lambda x: jnp.where(x > 0, x, x / 100),
            lambda x, y: jnp.where(x > 0, 1, 0.1),
        ),
        VECTOR,
    ),
    _activation(
        "elu: y for y + 1",
        of(
            lambda x: jnp.where(x > 0, x, jnp.expm1(x)),
            lambda x, y: jnp.where(x > 0, 1, y),
        ),
        VECTOR,
    ),
    _activation(
        "gelu: the derivative of its approximation",
        of(
            lambda x: jax.nn.gelu(x, approximate=False),
            lambda x, y: jax.jvp(jax.nn.gelu, (x,), (jnp.ones_like(x),))[1],
        ),
        VECTOR,
    ),
    _activation(
        "silu: a term is missing",
        of(lambda x: x * jax.nn.sigmoid(x), lambda x, y: jax.nn.sigmoid(x)),
        VECTOR,
    ),
    _activation(
        "softmax: the diagonal alone",
        of(lambda x: jax.nn.softmax(x), lambda x, y: y * (1 - y)),
        VECTOR,
    ),
    _activation(
        "softmax: summed over the wrong axis",
        rule(
            lambda x: jax.nn.softmax(x),
            lambda dy, y, x: (y * (dy - (dy * y).sum(0, keepdims=True)),),
        ),
        SQUARE,
    ),
    _activation(
        "log-softmax: y for exp y",
        rule(
            lambda x: jax.nn.log_softmax(x),
            lambda dy, y, x: (dy - y * dy.sum(-1, keepdims=True),),
        ),
        VECTOR,
    ),
    _activation(
        "logsumexp: without its error",
        rule(lambda x: jax.nn.logsumexp(x, -1), lambda dy, y, x: (jax.nn.softmax(x),)),
        VECTOR,
    ),
    _activation(
        "NaN at zero",
        of(lambda x: x * jnp.abs(x), lambda x, y: 2 * y / x),
        VECTOR,
        "finite",
    ),
    _activation(
        "NaN for large numbers",
        of(jax.nn.sigmoid, lambda x, y: jnp.exp(x) / (1 + jnp.exp(x)) ** 2),
        VECTOR,
        "finite",
    ),
    _activation(
        "NaN in the value at zero",
        rule(
            lambda x: x * jnp.abs(x),
            lambda dy, y, x: (dy * 2 * jnp.abs(x),),
            lambda x: x**3 / jnp.abs(x),
        ),
        VECTOR,
        "finite",
    ),
    _loss(
        "Σ labels taken for 1",
        loss(lambda p, t: p - t),
        (*VECTOR, SOFT),
    ),
    _loss(
        "labels not subtracted",
        loss(lambda p, t: p * t.sum(-1, keepdims=True)),
        (*VECTOR, SOFT),
    ),
    _loss(
        "no gradient for the labels",
        loss(right_logits, lambda p, t, logits: 0 * t),
        (*VECTOR, SOFT),
        hint="zero everywhere",
    ),
    _loss(
        "the labels' gradient has p for log p",
        loss(right_logits, lambda p, t, logits: -p),
        (*VECTOR, SOFT),
    ),
    _loss("label off by one", integer_loss(offset=1), (*VECTOR, LABELS)),
    _loss(
        "mean over the examples",
        integer_loss(scale=0.25),
        (*VECTOR, LABELS),
        hint="1/4",
    ),
    _loss(
        "the error is taken for 1",
        integer_loss(ignore_dy=True),
        (*VECTOR, LABELS),
        "linear",
    ),
    _loss(
        "squared error without its 2",
        rule(
            lambda p, t: (p - t) ** 2, lambda dy, y, p, t: (dy * (p - t), -dy * (p - t))
        ),
        (*VECTOR, normal(4, 5, seed=3)),
        hint="1/2 times",
    ),
)
