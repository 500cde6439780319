"""Losses of yes-or-no predictions: sigmoid cross-entropy, and the focal loss of it."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, sharding
from handgrad.rules import RULES, register


def sigmoid_binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """Cross-entropy between sigmoid(logits) and labels in [0, 1], elementwise.

    L = −labels · log σ(logits) − (1 − labels) · log σ(−logits)
    dlogits = ((1 − labels) σ(logits) − labels σ(−logits)) · dy,  dlabels = −logits · dy

    Args:
      logits: floating-point array of any shape.
      labels: array of the shape of `logits`, converted to its dtype.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The loss of each element.

    Raises:
      TypeError: `logits` is not floating point, or `labels` not real.
      ValueError: the shapes differ.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.sigmoid_binary_cross_entropy)(0.0, 1.0)
      Array(-0.5, dtype=float32)

    Source: FORMULAS A6. dlogits is σ(logits) − labels, written so that nothing cancels
    when the prediction is right.
    """
    op = "sigmoid_binary_cross_entropy"
    logits = arguments.array(op, "logits", logits, kind="floating")
    labels = arguments.array(op, "labels", labels).astype(logits.dtype)
    arguments.same_shape(op, logits=logits, labels=labels)
    logits, labels = sharding.align(logits, labels)
    return RULES[op].choose(implementation)(logits, labels)


def _autodiff_sigmoid_cross_entropy(logits, labels):
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -labels * log_p - (1 - labels) * log_not_p


@register(
    "sigmoid_binary_cross_entropy",
    source="the article, A6: σ(logits) − labels",
    autodiff=_autodiff_sigmoid_cross_entropy,
)
@jax.custom_vjp
def _sigmoid_binary_cross_entropy(logits, labels):
    softplus = jnp.maximum(logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return softplus - logits * labels  # −log σ(−x) = softplus(x) = −log σ(x) + x


def _sigmoid_binary_cross_entropy_fwd(logits, labels):
    residuals = (logits, labels)
    return _sigmoid_binary_cross_entropy(logits, labels), residuals


def _sigmoid_binary_cross_entropy_bwd(residuals, dy):
    """dlogits = (σ(logits) − labels) dy, dlabels = −logits dy."""
    logits, labels = residuals
    p, not_p = lax.logistic(logits), lax.logistic(-logits)
    return ((1 - labels) * p - labels * not_p) * dy, -logits * dy


_sigmoid_binary_cross_entropy.defvjp(
    _sigmoid_binary_cross_entropy_fwd, _sigmoid_binary_cross_entropy_bwd
)


def sigmoid_focal_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    alpha: float | jax.Array | None = None,
    gamma: float = 2.0,
    implementation: str | None = None,
) -> jax.Array:
    """Binary cross-entropy that counts well-classified examples less, elementwise.

    L = w q^γ c,  p = σ(logits),  q = labels (1 − p) + (1 − labels) p
    c = −labels log p − (1 − labels) log(1 − p),  w = α labels + (1 − α) (1 − labels)
    dlogits = w q^γ (p − labels + γ c (1 − 2 labels) p (1 − p) / q) · dy

    Args:
      logits: floating-point array of any shape.
      labels: array of the shape of `logits`, converted to its dtype.
      alpha: weight of the label 1, a number or a constant array that broadcasts to
        `logits` (it has no gradient); `None` means w = 1.
      gamma: how much less, a number ≥ 0.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The loss of each element; its gradient is finite for every finite logit.

    Raises:
      TypeError: `logits` is not floating point, or `labels` not real.
      ValueError: the shapes differ.

    Example:
      >>> import handgrad
      >>> handgrad.sigmoid_focal_loss(0.0, 1.0)
      Array(0.1732868, dtype=float32)

    Source: Lin et al. 2017, arXiv:1708.02002; p (1 − p) / q is a sum of exponentials
    turned over, so it neither cancels nor divides 0 by 0.
    """
    op = "sigmoid_focal_loss"
    logits = arguments.array(op, "logits", logits, kind="floating")
    labels = arguments.array(op, "labels", labels).astype(logits.dtype)
    arguments.same_shape(op, logits=logits, labels=labels)
    if alpha is not None:
        alpha = arguments.array(op, "alpha", alpha).astype(logits.dtype)
        alpha = arguments.broadcast(op, "alpha", alpha, logits.shape)
        alpha = lax.stop_gradient(alpha)
    logits, labels, alpha = sharding.align(logits, labels, alpha)
    return RULES[op].choose(implementation)(logits, labels, alpha, float(gamma))


def _weight(labels, alpha):
    return 1 if alpha is None else alpha * labels + (1 - alpha) * (1 - labels)


def _autodiff_focal_loss(logits, labels, alpha, gamma):
    cross_entropy = _autodiff_sigmoid_cross_entropy(logits, labels)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    log_q = jax.nn.logsumexp(
        jnp.stack([log_p, log_not_p], axis=-1),
        axis=-1,
        b=jnp.stack([1 - labels, labels], axis=-1),
    )
    return _weight(labels, alpha) * cross_entropy * jnp.exp(gamma * log_q)


def _focal_terms(logits, labels, alpha):
    """c, p, 1 − p, q and w in at least float32."""
    wide = arguments.accumulator(logits.dtype)
    x, labels = logits.astype(wide), labels.astype(wide)
    p, not_p = lax.logistic(x), lax.logistic(-x)
    c = jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))) - x * labels
    q = labels * not_p + (1 - labels) * p
    weight = _weight(labels, None if alpha is None else alpha.astype(wide))
    return x, labels, c, p, not_p, q, weight


@register(
    "sigmoid_focal_loss",
    source="Lin et al. 2017, arXiv:1708.02002",
    autodiff=_autodiff_focal_loss,
)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sigmoid_focal_loss(logits, labels, alpha, gamma):
    *_, c, _, _, q, weight = _focal_terms(logits, labels, alpha)
    return (weight * q**gamma * c).astype(logits.dtype)


def _sigmoid_focal_loss_fwd(logits, labels, alpha, gamma):
    residuals = (logits, labels, alpha)  # autodiff keeps a dozen arrays between
    return _sigmoid_focal_loss(logits, labels, alpha, gamma), residuals


def _sigmoid_focal_loss_bwd(gamma, residuals, dy):
    """Product rule on w q^γ c; ∂q/∂x = (1 − 2 labels) p (1 − p), ∂c/∂x = p − labels."""
    logits, _, alpha = residuals
    x, labels, c, p, not_p, q, weight = _focal_terms(*residuals)
    dy = dy.astype(x.dtype)
    bounded = jnp.clip(x, -80, 80)  # exp does not overflow; beyond, nothing changes
    up, down = 1 + jnp.exp(bounded), 1 + jnp.exp(-bounded)
    share = 1 / ((1 - labels) * up + labels * down)  # p (1 − p) / q
    dc = (1 - labels) * p - labels * not_p
    focus = q**gamma
    dlogits = weight * focus * (dc + gamma * c * (1 - 2 * labels) * share) * dy
    slope = gamma * q ** (gamma - 1) if gamma else 0.0  # ∂q^γ/∂q
    dlabels = weight * (slope * (not_p - p) * c - focus * x)
    if alpha is not None:
        dlabels += (2 * alpha.astype(x.dtype) - 1) * focus * c
    dtype = logits.dtype
    return dlogits.astype(dtype), (dlabels * dy).astype(dtype), None


_sigmoid_focal_loss.defvjp(_sigmoid_focal_loss_fwd, _sigmoid_focal_loss_bwd)
