"""Softmax and cross-entropy in one: `dlogits = softmax(logits) Σ labels − labels`.

Kept are the logits, which were there before, and two numbers an example that give the
softmax back: the maximum and Σ exp(logits − max). They stay apart: log Σ + max would
round away digits of every probability.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, reductions, sharding
from handgrad.activation.log_sum_exp import masked, maximum_and_sum
from handgrad.rules import RULES, register


def softmax_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    axis: int | tuple[int, ...] | None = -1,
    where: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Cross-entropy between softmax(logits) and a distribution over the classes.

    L = −Σ_i labels_i · log softmax(logits)_i
    dlogits = (softmax(logits) Σ_j labels_j − labels) · dy,  dlabels = −log_softmax · dy

    Args:
      logits: floating-point array [..., classes].
      labels: array of the shape of `logits`: one-hot, smoothed, or any numbers; they
        are converted to the dtype of `logits`.
      axis: the axis or axes of the classes; `None` means all.
      where: boolean array that broadcasts to `logits` or, for whole examples, to the
        loss; classes that are `False` take no part and get no gradient.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The loss of each example [...]. A class with label 0 adds 0, also where its
      log-probability is −∞.

    Raises:
      TypeError: `logits` is not floating point, or `labels` not real.
      ValueError: the shapes differ, or `axis` or `where` does not fit.

    Example:
      >>> import jax, jax.numpy as jnp, handgrad
      >>> labels = jnp.array([1.0, 0.0])
      >>> jax.grad(handgrad.softmax_cross_entropy)(jnp.zeros(2), labels)
      Array([-0.5,  0.5], dtype=float32)

    Source: the article's loss layer, FORMULAS A6. Σ labels need not be 1.
    """
    op = "softmax_cross_entropy"
    logits, labels, where, axes = _distributions(op, logits, labels, axis, where)
    return RULES[op].choose(implementation)(logits, labels, where, axes)


def _distributions(op, logits, labels, axis, where):
    """The checked arguments of a loss between two arrays of one shape."""
    logits = arguments.array(op, "logits", logits, kind="floating")
    labels = arguments.array(op, "labels", labels).astype(logits.dtype)
    arguments.same_shape(op, logits=logits, labels=labels)
    axes = arguments.axes(op, axis, logits.ndim)
    where = _mask(op, where, logits, axes)
    return *sharding.align(logits, labels, where), axes


def _negative_log_probabilities(logits, highest, total):
    """−log softmax(logits) = log Σ + (max − logits)."""
    return jnp.log(total) + (highest - logits.astype(total.dtype))


def _probabilities(logits, where, highest, total):
    """softmax(logits) from its residuals, in their dtype; 0 where all is masked."""
    if where is not None:
        total = jnp.where(total == 0, 1, total)
    return jnp.exp(masked(logits, where).astype(total.dtype) - highest) / total


def _batch(logits, axes):
    """The shape of the loss."""
    return tuple(n for i, n in enumerate(logits.shape) if i not in axes)


def _mask(op, where, logits, axes):
    """`where` broadcast to the logits; it may lack the axes of the classes."""
    if where is not None and jnp.shape(where) == _batch(logits, axes):
        where = jnp.expand_dims(where, axes)
    return arguments.mask(op, "where", where, logits.shape)


def _autodiff_softmax_cross_entropy(logits, labels, where, axes):
    log_probabilities = jax.nn.log_softmax(logits, axes, where)
    if where is not None:  # −∞ there, and labels · −∞ has no finite gradient
        log_probabilities = jnp.where(where, log_probabilities, 0)
    return -jnp.sum(labels * log_probabilities, axes)


def _cross_entropy_value(logits, labels, where, axes):
    normalizer = maximum_and_sum(masked(logits, where), axes)
    terms = _negative_log_probabilities(logits, *normalizer)
    # 0 · ∞ counts for nothing; 0 times a number does, for its label's derivative.
    counts = (labels != 0) | (terms < jnp.inf)
    counts = counts if where is None else where & counts
    terms *= labels.astype(terms.dtype)
    loss = reductions.total(jnp.where(counts, terms, 0), axes)
    return lax.squeeze(loss, axes).astype(logits.dtype), normalizer


@register(
    "softmax_cross_entropy",
    source="the article, A6: softmax(logits) − labels",
    autodiff=_autodiff_softmax_cross_entropy,
)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _softmax_cross_entropy(logits, labels, where, axes):
    loss, _ = _cross_entropy_value(logits, labels, where, axes)
    return loss


def _softmax_cross_entropy_fwd(logits, labels, where, axes):
    loss, normalizer = _cross_entropy_value(logits, labels, where, axes)
    residuals = (logits, labels, where, normalizer)  # logits were there before
    return loss, residuals


def _softmax_cross_entropy_bwd(axes, residuals, dy):
    """dlogits = (softmax Σ labels − labels) dy, dlabels = −log softmax · dy."""
    logits, labels, where, normalizer = residuals
    if where is not None:  # a masked class takes no part, whatever its label
        labels = jnp.where(where, labels, 0)
    probabilities = _probabilities(logits, where, *normalizer)
    dtype, wide = logits.dtype, probabilities.dtype
    labels = labels.astype(wide)
    dy = lax.expand_dims(dy, sorted(axes)).astype(wide)
    dlogits = (probabilities * jnp.sum(labels, axes, keepdims=True) - labels) * dy
    dlabels = _negative_log_probabilities(logits, *normalizer) * dy
    if where is not None:
        dlabels = jnp.where(where, dlabels, 0)
    return dlogits.astype(dtype), dlabels.astype(dtype), None


_softmax_cross_entropy.defvjp(_softmax_cross_entropy_fwd, _softmax_cross_entropy_bwd)


def softmax_cross_entropy_with_integer_labels(
    logits: jax.Array,
    labels: jax.Array,
    axis: int | tuple[int, ...] = -1,
    where: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Cross-entropy between softmax(logits) and one right class.

    L = log Σ_i exp(logits_i) − logits_label
    dlogits_i = (softmax(logits)_i − [i = label]) · dy

    Args:
      logits: floating-point array [..., classes].
      labels: integer array [...]: the index of the right class; −1 is the last one, as
        in NumPy. The loss of an index out of range is NaN.
      axis: the axis or axes of the classes; with several, `labels` counts them in
        row-major order.
      where: boolean array that broadcasts to `logits` or to the loss; classes that are
        `False` take no part in the sum. The label's own logit counts in any case, as
        in optax; the loss of an example without a class is 0 and has no gradient.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The loss of each example [...].

    Raises:
      TypeError: `logits` is not floating point, or `labels` not integer.
      ValueError: the shapes do not fit.

    Example:
      >>> import jax, jax.numpy as jnp, handgrad
      >>> loss = handgrad.softmax_cross_entropy_with_integer_labels
      >>> jax.grad(loss)(jnp.zeros(4), 1)
      Array([ 0.25, -0.75,  0.25,  0.25], dtype=float32)

    Source: the article's loss layer, FORMULAS A6. No one-hot array is built: the
    label's logit is read alone, and [i = label] is a comparison that fuses.
    """
    op = "softmax_cross_entropy_with_integer_labels"
    logits = arguments.array(op, "logits", logits, kind="floating")
    labels = arguments.array(op, "labels", labels, kind="integer")
    axes = arguments.axes(op, axis, logits.ndim)
    where = _mask(op, where, logits, axes)
    batch = _batch(logits, axes)
    arguments.require(
        labels.shape == batch,
        op,
        f"labels must have shape {batch}, that of logits {logits.shape} without "
        f"axis (={axis}), got {labels.shape}",
    )
    logits, labels, where = sharding.align(logits, labels, where)
    return RULES[op].choose(implementation)(logits, labels, where, axes)


def _is_label(logits, labels, axes):
    """[i = label] for every class i, as a comparison that fuses into its user."""
    if labels.dtype.itemsize < 4:  # there may be more classes than it can count
        labels = labels.astype(jnp.int32)
    index, classes = jnp.zeros((), labels.dtype), 1
    for axis in reversed(axes):
        place = lax.broadcasted_iota(labels.dtype, logits.shape, axis)
        index, classes = place * classes + index, classes * logits.shape[axis]
    labels = lax.expand_dims(labels, sorted(axes))
    return index == jnp.where(labels < 0, labels + classes, labels)


def _label_logits(logits, labels, axes):
    """The logit of each example's label, NaN for one out of range; the axes stay."""
    if len(axes) == 1 and sharding.of(logits) is None:
        index = lax.expand_dims(labels, axes)
        return jnp.take_along_axis(logits, index, axes[0], mode="fill")
    one_hot = _is_label(logits, labels, axes)
    found = jnp.sum(jnp.where(one_hot, logits, 0), axes, keepdims=True)
    return jnp.where(jnp.any(one_hot, axes, keepdims=True), found, jnp.nan)


def _autodiff_integer_labels(logits, labels, where, axes):
    normalizer = jax.nn.logsumexp(logits, axes, keepdims=True, where=where)
    loss = normalizer - _label_logits(logits, labels, axes)
    if where is not None:
        loss = jnp.where(jnp.any(where, axes, keepdims=True), loss, 0)
    return lax.squeeze(loss, axes)


def _integer_labels_value(logits, labels, where, axes):
    highest, total = maximum_and_sum(masked(logits, where), axes)
    label_logits = _label_logits(logits, labels, axes).astype(total.dtype)
    loss = jnp.log(total) + (highest - label_logits)
    if where is not None:
        loss = jnp.where(jnp.any(where, axes, keepdims=True), loss, 0)
    return lax.squeeze(loss, axes).astype(logits.dtype), (highest, total)


@register(
    "softmax_cross_entropy_with_integer_labels",
    source="the article, A6: softmax(logits) − onehot(labels)",
    autodiff=_autodiff_integer_labels,
)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _integer_labels(logits, labels, where, axes):
    loss, _ = _integer_labels_value(logits, labels, where, axes)
    return loss


def _integer_labels_fwd(logits, labels, where, axes):
    loss, normalizer = _integer_labels_value(logits, labels, where, axes)
    residuals = (logits, labels, where, normalizer)  # logits were there before
    return loss, residuals


def _integer_labels_bwd(axes, residuals, dy):
    """dlogits_i = (softmax_i − [i = label]) dy."""
    logits, labels, where, normalizer = residuals
    probabilities = _probabilities(logits, where, *normalizer)
    one_hot = _is_label(logits, labels, axes).astype(probabilities.dtype)
    dy = lax.expand_dims(dy, sorted(axes)).astype(probabilities.dtype)
    if where is not None:
        dy = jnp.where(jnp.any(where, axes, keepdims=True), dy, 0)
    return ((probabilities - one_hot) * dy).astype(logits.dtype), None, None


_integer_labels.defvjp(_integer_labels_fwd, _integer_labels_bwd)


def poly_loss_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    epsilon: float = 2.0,
    axis: int | tuple[int, ...] | None = -1,
    where: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Cross-entropy plus the first term of its polynomial expansion.

    L = Σ_i labels_i (−log p_i + ε (1 − p_i)),  p = softmax(logits)
    dlogits = (p Σ_j labels_j − labels − ε p (labels − Σ_j labels_j p_j)) · dy
    dlabels = (−log p + ε (1 − p)) · dy

    Args:
      logits: floating-point array [..., classes].
      labels: array of the shape of `logits`, converted to its dtype.
      epsilon: weight of the term, a number.
      axis: the axis or axes of the classes; `None` means all.
      where: as in `softmax_cross_entropy`.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The loss of each example [...].

    Raises:
      TypeError: `logits` is not floating point, or `labels` not real.
      ValueError: the shapes differ, or `axis` or `where` does not fit.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.poly_loss_cross_entropy(jnp.zeros(2), jnp.array([1.0, 0.0]))
      Array(1.6931472, dtype=float32)

    Source: Leng et al. 2022, arXiv:2204.12511, with ∂p_i/∂x_j = p_i ([i = j] − p_j).
    """
    op = "poly_loss_cross_entropy"
    logits, labels, where, axes = _distributions(op, logits, labels, axis, where)
    return RULES[op].choose(implementation)(logits, labels, where, axes, float(epsilon))


def _autodiff_poly_loss(logits, labels, where, axes, epsilon):
    p = jax.nn.softmax(logits, axes, where)
    remainder = jnp.sum(labels * (1 - p), axes, where=where)
    loss = _autodiff_softmax_cross_entropy(logits, labels, where, axes)
    return loss + epsilon * remainder


def _poly_value(logits, labels, where, axes, epsilon):
    loss, normalizer = _cross_entropy_value(logits, labels, where, axes)
    missing = 1 - _probabilities(logits, where, *normalizer)
    terms = labels.astype(missing.dtype) * missing
    remainder = jnp.sum(terms, axes, where=where)
    loss = loss.astype(remainder.dtype) + epsilon * remainder
    return loss.astype(logits.dtype), normalizer


@register(
    "poly_loss_cross_entropy",
    source="Leng et al. 2022, arXiv:2204.12511",
    autodiff=_autodiff_poly_loss,
)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _poly_loss(logits, labels, where, axes, epsilon):
    loss, _ = _poly_value(logits, labels, where, axes, epsilon)
    return loss


def _poly_loss_fwd(logits, labels, where, axes, epsilon):
    loss, normalizer = _poly_value(logits, labels, where, axes, epsilon)
    residuals = (logits, labels, where, normalizer)  # logits were there before
    return loss, residuals


def _poly_loss_bwd(axes, epsilon, residuals, dy):
    """The cross-entropy's gradient, and −ε p (labels − Σ labels p) dy for the term."""
    logits, labels, where, normalizer = residuals
    dlogits, dlabels, _ = _softmax_cross_entropy_bwd(axes, residuals, dy)
    p = _probabilities(logits, where, *normalizer)
    wide_labels = labels.astype(p.dtype)
    dy = lax.expand_dims(dy, sorted(axes)).astype(p.dtype)
    mean = jnp.sum(wide_labels * p, axes, keepdims=True)
    dlogits = dlogits.astype(p.dtype) - epsilon * p * (wide_labels - mean) * dy
    missing = 1 - p if where is None else jnp.where(where, 1 - p, 0)
    dlabels = dlabels.astype(p.dtype) + epsilon * missing * dy
    return dlogits.astype(logits.dtype), dlabels.astype(labels.dtype), None


_poly_loss.defvjp(_poly_loss_fwd, _poly_loss_bwd)
