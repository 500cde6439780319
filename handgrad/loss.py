"""Loss layers: where the backward pass begins.

Forward: a value from predictions and labels. Backward: ∂L/∂predictions, scaled by the
cotangent `dy` of the value (1/N when the mean over N examples is minimised). Each loss
is per example; names, arguments and values are those of optax.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, sharding
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
      where: boolean array that broadcasts to `logits`; classes that are `False` take no
        part and get no gradient.
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
    logits = arguments.array(op, "logits", logits, kind="floating")
    labels = arguments.array(op, "labels", labels).astype(logits.dtype)
    arguments.same_shape(op, logits=logits, labels=labels)
    where = arguments.mask(op, "where", where, logits.shape)
    axes = arguments.axes(op, axis, logits.ndim)
    logits, labels, where = sharding.align(logits, labels, where)
    return RULES[op].choose(implementation)(logits, labels, where, axes)


def _masked(logits, where):
    return logits if where is None else jnp.where(where, logits, -jnp.inf)


def _normalizer(logits, axes):
    """The two numbers an example that give softmax back: max and Σ exp(logits − max).

    In at least float32, and kept apart: log Σ + max would round away digits of every
    probability. The axes stay, with size 1.
    """
    logits = logits.astype(arguments.accumulator(logits.dtype))
    highest = lax.stop_gradient(jnp.max(logits, axes, keepdims=True))
    return highest, jnp.sum(jnp.exp(logits - highest), axes, keepdims=True)


def _negative_log_probabilities(logits, highest, total):
    """−log softmax(logits) = log Σ + (max − logits)."""
    return jnp.log(total) + (highest - logits.astype(total.dtype))


def _probabilities(logits, where, highest, total):
    """softmax(logits) from its residuals, in their dtype."""
    return jnp.exp(_masked(logits, where).astype(total.dtype) - highest) / total


def _autodiff_softmax_cross_entropy(logits, labels, where, axes):
    log_probabilities = jax.nn.log_softmax(logits, axes, where)
    if where is not None:  # −∞ there, and labels · −∞ has no finite gradient
        log_probabilities = jnp.where(where, log_probabilities, 0)
    return -jnp.sum(labels * log_probabilities, axes)


def _cross_entropy_value(logits, labels, where, axes):
    normalizer = _normalizer(_masked(logits, where), axes)
    counts = labels != 0 if where is None else where & (labels != 0)
    terms = _negative_log_probabilities(logits, *normalizer)
    terms *= labels.astype(terms.dtype)
    loss = jnp.sum(jnp.where(counts, terms, 0), axes)
    return loss.astype(logits.dtype), normalizer


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
      where: boolean array that broadcasts to `logits`; classes that are `False` take no
        part and get no gradient.
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

    Source: the article's loss layer, FORMULAS A6. No one-hot array is built.
    """
    op = "softmax_cross_entropy_with_integer_labels"
    logits = arguments.array(op, "logits", logits, kind="floating")
    labels = arguments.array(op, "labels", labels, kind="integer")
    where = arguments.mask(op, "where", where, logits.shape)
    axes = arguments.axes(op, axis, logits.ndim)
    batch = tuple(n for i, n in enumerate(logits.shape) if i not in axes)
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
    index, classes = jnp.zeros((), labels.dtype), 1
    for axis in reversed(axes):
        place = lax.broadcasted_iota(labels.dtype, logits.shape, axis)
        index, classes = place * classes + index, classes * logits.shape[axis]
    labels = lax.expand_dims(labels, sorted(axes))
    return index == jnp.where(labels < 0, labels + classes, labels)


def _autodiff_integer_labels(logits, labels, where, axes):
    one_hot = _is_label(logits, labels, axes)
    log_probabilities = jax.nn.log_softmax(logits, axes, where)
    loss = -jnp.sum(jnp.where(one_hot, log_probabilities, 0), axes)
    return jnp.where(jnp.any(one_hot, axes), loss, jnp.nan)


def _integer_labels_value(logits, labels, where, axes):
    masked = _masked(logits, where)
    normalizer = _normalizer(masked, axes)
    one_hot = _is_label(logits, labels, axes)
    terms = _negative_log_probabilities(masked, *normalizer)
    loss = jnp.sum(jnp.where(one_hot, terms, 0), axes)
    loss = jnp.where(jnp.any(one_hot, axes), loss, jnp.nan)
    return loss.astype(logits.dtype), normalizer


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
    dlogits = (probabilities - one_hot) * dy
    if where is not None:  # also where the label itself is masked
        dlogits = jnp.where(where, dlogits, 0)
    return dlogits.astype(logits.dtype), None, None


_integer_labels.defvjp(_integer_labels_fwd, _integer_labels_bwd)


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


def squared_error(
    predictions: jax.Array,
    targets: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Squared difference, elementwise.

    L = (predictions − targets)²,  dpredictions = 2 (predictions − targets) · dy

    Args:
      predictions: floating-point array of any shape.
      targets: array of the same shape and dtype; `None` means zeros.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The loss of each element.

    Raises:
      TypeError: `predictions` is not floating point, or the dtypes differ.
      ValueError: the shapes differ.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.squared_error)(3.0, 1.0)
      Array(4., dtype=float32, weak_type=True)

    Source: FORMULAS A6.
    """
    op = "squared_error"
    predictions = arguments.array(op, "predictions", predictions, kind="floating")
    if targets is None:
        targets = jnp.zeros_like(predictions)
    targets = arguments.array(op, "targets", targets)
    arguments.same_shape(op, predictions=predictions, targets=targets)
    arguments.same_dtype(op, predictions=predictions, targets=targets)
    predictions, targets = sharding.align(predictions, targets)
    return RULES[op].choose(implementation)(predictions, targets)


def _autodiff_squared_error(predictions, targets):
    return (predictions - targets) ** 2


@register(
    "squared_error",
    source="the article, A6: 2 (p − t)",
    autodiff=_autodiff_squared_error,
)
@jax.custom_vjp
def _squared_error(predictions, targets):
    return lax.square(predictions - targets)


def _squared_error_fwd(predictions, targets):
    difference = predictions - targets  # one array instead of two
    return lax.square(difference), (difference,)


def _squared_error_bwd(residuals, dy):
    """dpredictions = 2 (predictions − targets) dy, dtargets = −dpredictions."""
    (difference,) = residuals
    dpredictions = 2 * difference * dy
    return dpredictions, -dpredictions


_squared_error.defvjp(_squared_error_fwd, _squared_error_bwd)
