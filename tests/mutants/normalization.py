"""Norms, of which a term of the derivative is easily forgotten."""

import functools

import jax
import jax.numpy as jnp

from tests.mutants.mutant import Mutant, normal, rule

EPSILON = 1e-3


def norm(x, gamma, beta, axis=0, epsilon=EPSILON):
    centred = x - x.mean(axis, keepdims=True)
    r = jax.lax.rsqrt((centred**2).mean(axis, keepdims=True) + epsilon)
    return gamma * centred * r + beta


def norm_rule(
    axis=0,
    first=1.0,
    second=1.0,
    epsilon=EPSILON,
    mean_axis=None,
    power=1,
    late_gamma=False,
    dgamma=lambda dy, x, x_hat: dy * x_hat,
    total=jnp.sum,
):
    """Batch or layer norm, dx = γ r [dy − mean dy − x̂ mean(dy x̂)]."""
    mean_axis = axis if mean_axis is None else mean_axis
    parameters = 1 - axis

    def backward(dy, y, x, gamma, beta):
        centred = x - x.mean(axis, keepdims=True)
        r = jax.lax.rsqrt((centred**2).mean(axis, keepdims=True) + epsilon)
        x_hat = centred * r
        g = dy if late_gamma else dy * gamma
        mean = functools.partial(jnp.mean, axis=mean_axis, keepdims=True)
        dx = r**power * (g - first * mean(g) - second * x_hat * mean(g * x_hat))
        dx = dx * gamma if late_gamma else dx
        by = 0 if gamma.ndim == 1 else parameters
        return dx, total(dgamma(dy, x, x_hat), by), total(dy, by)

    def primal(x, gamma, beta):
        return norm(x, gamma, beta, axis)

    return rule(primal, backward)


def rms(x):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + EPSILON)


def rms_rule(term):
    def backward(dy, y, x):
        r = jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + EPSILON)
        return (r * (dy - term(y, dy)),)

    return rule(rms, backward)


BATCH = (normal(6, 3, scale=2.0), 1 + normal(3) / 4, normal(3, seed=1))
LAYER = (normal(3, 5, scale=2.0), 1 + normal(5) / 4, normal(5, seed=1))
_batch = functools.partial(Mutant, "batch norm")
_layer = functools.partial(Mutant, "layer norm")

RIGHT = {
    "batch norm": (norm_rule(), BATCH),
    "layer norm": (norm_rule(1), LAYER),
    "rms norm": (
        rms_rule(lambda y, dy: y * (dy * y).mean(-1, keepdims=True)),
        (normal(3, 5),),
    ),
}
MUTANTS = (
    _batch(
        "without its second mean",
        norm_rule(second=0),
        BATCH,
        hint="a mean or a variance",
    ),
    _batch(
        "without its first mean", norm_rule(first=0), BATCH, hint="a mean or a variance"
    ),
    _batch("detached statistics", norm_rule(first=0, second=0), BATCH),
    _batch("second mean over n − 1", norm_rule(second=6 / 5), BATCH),
    _batch("no ε in the derivative", norm_rule(epsilon=0.0), BATCH),
    _batch("ε ten times as large", norm_rule(epsilon=1e-2), BATCH),
    _batch("1/σ²", norm_rule(power=2), BATCH),
    _batch(
        "dγ from x, not from x̂", norm_rule(dgamma=lambda dy, x, x_hat: dy * x), BATCH
    ),
    _batch(
        "means of parameters' gradients", norm_rule(total=jnp.mean), BATCH, hint="1/6"
    ),
    _batch("mean over the wrong axis", norm_rule(mean_axis=1), BATCH),
    _layer("γ outside of the means", norm_rule(1, late_gamma=True), LAYER),
    _layer(
        "without its second mean",
        norm_rule(1, second=0),
        LAYER,
        hint="a mean or a variance",
    ),
    Mutant(
        "rms norm",
        "detached scale",
        rms_rule(lambda y, dy: 0 * y),
        (normal(3, 5),),
        hint="constant along axis 1",
    ),
    Mutant(
        "rms norm",
        "sum instead of mean",
        rms_rule(lambda y, dy: y * (dy * y).sum(-1, keepdims=True)),
        (normal(3, 5),),
    ),
)
