"""Losses of an error e = predictions − targets, elementwise: `dpredictions = f'(e) dy`.

They follow the elementwise rule, with the error as its input: one array is kept, not
two. The difference is linear, so dtargets = −dpredictions.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, sharding
from handgrad.elementwise import apply, elementwise


def _errors(op, predictions, targets):
    predictions = arguments.array(op, "predictions", predictions, kind="floating")
    if targets is None:
        return predictions
    targets = arguments.array(op, "targets", targets)
    arguments.same_shape(op, predictions=predictions, targets=targets)
    arguments.same_dtype(op, predictions=predictions, targets=targets)
    predictions, targets = sharding.align(predictions, targets)
    return predictions - targets


elementwise(
    "squared_error",
    value=lax.square,
    from_input=lambda e, dy: 2 * e * dy,
    autodiff=lambda e: e**2,
    source="the article, A6: 2 (p − t)",
)


def squared_error(
    predictions: jax.Array,
    targets: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Squared difference, elementwise.

    L = e²,  dpredictions = 2 e · dy,  dtargets = −2 e · dy,  e = predictions − targets

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
    errors = _errors("squared_error", predictions, targets)
    return apply("squared_error", errors, implementation=implementation)


elementwise(
    "l2_loss",
    value=lambda e: 0.5 * lax.square(e),
    from_input=lambda e, dy: e * dy,
    autodiff=lambda e: 0.5 * e**2,
    source="the article, A6: ½ · 2 (p − t)",
)


def l2_loss(
    predictions: jax.Array,
    targets: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Half of the squared difference, elementwise.

    L = ½ e²,  dpredictions = e · dy,  dtargets = −e · dy,  e = predictions − targets

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
      >>> jax.grad(handgrad.l2_loss)(3.0, 1.0)
      Array(2., dtype=float32, weak_type=True)

    Source: FORMULAS A6, the halved form.
    """
    errors = _errors("l2_loss", predictions, targets)
    return apply("l2_loss", errors, implementation=implementation)


def _huber(e, delta):
    quadratic = jnp.minimum(jnp.abs(e), delta)
    return 0.5 * lax.square(quadratic) + delta * (jnp.abs(e) - quadratic)


elementwise(
    "huber_loss",
    value=_huber,
    from_input=lambda e, dy, delta: jnp.clip(e, -delta, delta) * dy,
    parameters=lambda e, dy, delta: (jnp.maximum(jnp.abs(e) - delta, 0) * dy,),
    autodiff=_huber,
    source="Huber 1964, doi:10.1214/aoms/1177703732",
)


def huber_loss(
    predictions: jax.Array,
    targets: jax.Array | None = None,
    *,
    delta: float | jax.Array = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    """Quadratic for small errors, linear for large ones, elementwise.

    L = ½ e² where |e| ≤ δ, else δ (|e| − ½ δ),  e = predictions − targets
    dpredictions = min(max(e, −δ), δ) · dy,  dtargets = −dpredictions

    Args:
      predictions: floating-point array of any shape.
      targets: array of the same shape and dtype; `None` means zeros.
      delta: number > 0, or an array that broadcasts to the errors and is learnt.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The loss of each element. It has no kink; ∞ where e is infinite, with the
      gradient ±δ.

    Raises:
      TypeError: `predictions` is not floating point, or the dtypes differ.
      ValueError: the shapes differ.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.huber_loss)(3.0, 1.0)
      Array(1., dtype=float32, weak_type=True)

    Source: Huber 1964, doi:10.1214/aoms/1177703732.
    """
    errors = _errors("huber_loss", predictions, targets)
    return apply("huber_loss", errors, delta=delta, implementation=implementation)


def _log_cosh(e):
    """From t = tanh|e|, which the gradient needs, too, and one logarithm.

    Small errors keep their digits in −½ log(1 − t²); large ones in
    |e| + log(1 + exp(−2|e|)) − log 2, with exp(−2|e|) = (1 − t) / (1 + t).
    """
    size = jnp.abs(e)
    t = jnp.abs(jnp.tanh(e))
    small = size < 1
    log = jnp.log1p(jnp.where(small, -lax.square(t), (1 - t) / (1 + t)))
    return jnp.where(small, -0.5 * log, size + log - math.log(2))


elementwise(
    "log_cosh",
    value=_log_cosh,
    from_input=lambda e, dy: jnp.tanh(e) * dy,
    autodiff=lambda e: jnp.logaddexp(e, -e) - jnp.log(2.0).astype(e.dtype),
    source="Chen et al. 2019, openreview rkglvsC9Ym",
)


def log_cosh(
    predictions: jax.Array,
    targets: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Logarithm of the hyperbolic cosine of the error, elementwise.

    L = log cosh(e),  dpredictions = tanh(e) · dy,  e = predictions − targets

    Args:
      predictions: floating-point array of any shape.
      targets: array of the same shape and dtype; `None` means zeros.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      The loss of each element, about ½ e² for small errors (without the cancellation
      of optax's formula) and |e| − log 2 for large ones.

    Raises:
      TypeError: `predictions` is not floating point, or the dtypes differ.
      ValueError: the shapes differ.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.log_cosh)(3.0, 3.0)
      Array(0., dtype=float32, weak_type=True)

    Source: Chen et al. 2019, openreview rkglvsC9Ym; optax.losses.log_cosh.
    """
    errors = _errors("log_cosh", predictions, targets)
    return apply("log_cosh", errors, implementation=implementation)
