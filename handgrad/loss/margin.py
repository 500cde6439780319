"""Losses of a margin: no error, and no gradient, beyond it."""

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, reductions, sharding
from handgrad.rules import RULES, register


def hinge_loss(
    predictor_outputs: jax.Array,
    targets: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Hinge loss of a binary classifier, elementwise.

    L = max(0, 1 − predictor_outputs · targets)
    dpredictor_outputs = −targets · dy where L > 0, else 0; dtargets likewise

    Args:
      predictor_outputs: floating-point array of any shape.
      targets: array of that shape, −1 or 1, converted to its dtype.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The loss of each element. The gradient on the margin itself is 0 (JAX: a half).

    Raises:
      TypeError: `predictor_outputs` is not floating point, or `targets` not real.
      ValueError: the shapes differ.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.hinge_loss)(0.5, 1.0)
      Array(-1., dtype=float32, weak_type=True)

    Source: Cortes & Vapnik 1995, doi:10.1007/BF00994018.
    """
    op = "hinge_loss"
    outputs = arguments.array(
        op, "predictor_outputs", predictor_outputs, kind="floating"
    )
    targets = arguments.array(op, "targets", targets)
    arguments.same_shape(op, predictor_outputs=outputs, targets=targets)
    if targets.dtype != outputs.dtype:
        targets = targets.astype(outputs.dtype)
    outputs, targets = sharding.align(outputs, targets)
    return RULES[op].choose(implementation)(outputs, targets)


def _hinge_value(outputs, targets):
    return jnp.maximum(0, 1 - outputs * targets)


@register("hinge_loss", source="Cortes & Vapnik 1995", autodiff=_hinge_value)
@jax.custom_vjp
def _hinge_loss(outputs, targets):
    return _hinge_value(outputs, targets)


def _hinge_loss_fwd(outputs, targets):
    residuals = (outputs, targets)  # they were there before
    return _hinge_loss(outputs, targets), residuals


def _hinge_loss_bwd(residuals, dy):
    """Within the margin doutputs = −targets dy and dtargets = −outputs dy."""
    outputs, targets = residuals
    dy = jnp.where(outputs * targets < 1, -dy, 0)
    return targets * dy, outputs * dy


_hinge_loss.defvjp(_hinge_loss_fwd, _hinge_loss_bwd)


def multiclass_hinge_loss(
    scores: jax.Array, labels: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """Hinge loss of a classifier of several classes.

    L = max_i (scores_i + [i ≠ label]) − scores_label
    dscores_i = ([i is the maximum's] − [i = label]) · dy

    Args:
      scores: floating-point array [..., classes].
      labels: integer array [...]: the index of the right class. One out of range,
        also a negative one, is no class at all, as in optax.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The loss of each example [...]. Several equal maxima share the gradient, as in
      JAX.

    Raises:
      TypeError: `scores` is not floating point, or `labels` not integer.
      ValueError: the shapes do not fit, or there is no class.

    Example:
      >>> import jax, jax.numpy as jnp, handgrad
      >>> jax.grad(handgrad.multiclass_hinge_loss)(jnp.array([1.0, 3.0, 0.0]), 0)
      Array([-1.,  1.,  0.], dtype=float32)

    Source: Crammer & Singer 2001, JMLR 2:265. Kept are the scores, which were there
    before, and their maximum.
    """
    op = "multiclass_hinge_loss"
    scores = arguments.array(op, "scores", scores, kind="floating")
    labels = arguments.array(op, "labels", labels, kind="integer")
    arguments.require(
        scores.ndim >= 1 and scores.shape[-1] > 0,
        op,
        f"scores must have shape [..., classes], got {scores.shape}",
    )
    arguments.require(
        labels.shape == scores.shape[:-1],
        op,
        f"labels must have shape {scores.shape[:-1]}, that of scores {scores.shape} "
        f"without its last axis, got {labels.shape}",
    )
    scores, labels = sharding.align(scores, labels.astype(jnp.int32))
    return RULES[op].choose(implementation)(scores, labels)


def _is(index, classes):
    """[i = index] for every class i: a comparison that fuses into its user."""
    shape = (*index.shape, classes)
    i = lax.broadcasted_iota(jnp.int32, shape, index.ndim)
    return i == lax.expand_dims(index, [index.ndim])


def _autodiff_multiclass_hinge(scores, labels):
    one_hot = _is(labels, scores.shape[-1]).astype(scores.dtype)
    return jnp.max(scores + 1 - one_hot, -1) - jnp.sum(scores * one_hot, -1)


def _margins(scores, labels):
    """scores_i + [i ≠ label]."""
    is_label = _is(labels, scores.shape[-1])
    return scores + jnp.where(is_label, 0, 1).astype(scores.dtype), is_label


def _multiclass_value(scores, labels):
    margins, is_label = _margins(scores, labels)
    axes = (scores.ndim - 1,)
    highest = reductions.or_nan(reductions.maximum(margins, axes), margins, axes)
    label_scores = jnp.sum(jnp.where(is_label, scores, 0), -1)
    return lax.squeeze(highest, [scores.ndim - 1]) - label_scores, highest


@register(
    "multiclass_hinge_loss",
    source="Crammer & Singer 2001",
    autodiff=_autodiff_multiclass_hinge,
)
@jax.custom_vjp
def _multiclass_hinge_loss(scores, labels):
    loss, _ = _multiclass_value(scores, labels)
    return loss


def _multiclass_hinge_loss_fwd(scores, labels):
    loss, highest = _multiclass_value(scores, labels)
    residuals = (scores, labels, lax.stop_gradient(highest))
    return loss, residuals


def _multiclass_hinge_loss_bwd(residuals, dy):
    """dscores_i = ([i is the maximum's] − [i = label]) dy."""
    scores, labels, highest = residuals
    margins, is_label = _margins(scores, labels)
    wins = (margins == highest) | (margins != margins)  # a NaN is the highest
    shares = reductions.total(wins.astype(dy.dtype), (scores.ndim - 1,))
    dy = lax.expand_dims(dy, [dy.ndim])
    share = dy / jnp.maximum(shares, 1)
    return jnp.where(wins, share, 0) - jnp.where(is_label, dy, 0), None


_multiclass_hinge_loss.defvjp(_multiclass_hinge_loss_fwd, _multiclass_hinge_loss_bwd)
