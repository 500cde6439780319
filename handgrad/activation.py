"""Activations as layers of their own: `y = f(x)`, `dx = f'(x) ⊙ dy`.

An activation has no parameters, so its backward pass only hands the error on. Each rule
below keeps its *output* and nothing else: σ' = y(1−y), tanh' = 1−y², relu' = [y > 0],
and the Jacobians of softmax and log-softmax are functions of y, too. The output is kept
by the next layer anyway, so the residual costs no memory of its own.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments
from handgrad.rules import RULES, register

_SOURCE = "the article, A2: dx = f'(x) ⊙ dy"


def sigmoid(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Logistic sigmoid.

    y = 1 / (1 + exp(−x)),  dx = y (1 − y) dy

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; 0 at −∞ and 1 at +∞, where the gradient is 0.

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.sigmoid)(0.0)
      Array(0.25, dtype=float32, weak_type=True)

    Source: FORMULAS A2 and B9 (the output suffices).
    """
    x = arguments.array("sigmoid", "x", x, kind="floating")
    return RULES["sigmoid"].choose(implementation)(x)


@register("sigmoid", source=_SOURCE, autodiff=jax.nn.sigmoid)
@jax.custom_vjp
def _sigmoid(x):
    return lax.logistic(x)


def _sigmoid_fwd(x):
    y = _sigmoid(x)
    return y, (y,)


def _sigmoid_bwd(residuals, dy):
    (y,) = residuals
    return (dy * y * (1 - y),)


_sigmoid.defvjp(_sigmoid_fwd, _sigmoid_bwd)


def tanh(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Hyperbolic tangent.

    y = tanh(x),  dx = (1 − y²) dy

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; ±1 at ±∞, where the gradient is 0.

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.tanh)(0.0)
      Array(1., dtype=float32, weak_type=True)

    Source: FORMULAS A2 and B9 (the output suffices).
    """
    x = arguments.array("tanh", "x", x, kind="floating")
    return RULES["tanh"].choose(implementation)(x)


@register("tanh", source=_SOURCE, autodiff=jnp.tanh)
@jax.custom_vjp
def _tanh(x):
    return lax.tanh(x)


def _tanh_fwd(x):
    y = _tanh(x)
    return y, (y,)


def _tanh_bwd(residuals, dy):
    """1 − y² as (1 − y)(1 + y): the product keeps its digits where y is near ±1."""
    (y,) = residuals
    return (dy * ((1 - y) * (1 + y)),)


_tanh.defvjp(_tanh_fwd, _tanh_bwd)


def relu(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Rectified linear unit.

    y = max(x, 0),  dx = dy where y > 0, else 0

    Args:
      x: real array of any shape; integers have a forward pass only.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`. The gradient at the kink x = 0 is 0, as in `jax.nn.relu`; NaN
      stays NaN and its gradient is 0.

    Raises:
      TypeError: `x` is complex or not a number.

    Example:
      >>> import jax, jax.numpy as jnp, handgrad
      >>> jax.grad(lambda x: handgrad.relu(x).sum())(jnp.array([-1.0, 0.0, 2.0]))
      Array([0., 0., 1.], dtype=float32)

    Source: FORMULAS A2 and B9; the gradient 0 at 0 follows Bertoin et al. 2021,
    arXiv:2106.12915.
    """
    x = arguments.array("relu", "x", x)
    return RULES["relu"].choose(implementation)(x)


@register("relu", source=_SOURCE, autodiff=jax.nn.relu)
@jax.custom_vjp
def _relu(x):
    return jnp.maximum(x, 0)


def _relu_fwd(x):
    y = _relu(x)
    return y, (y,)


def _relu_bwd(residuals, dy):
    (y,) = residuals
    return (jnp.where(y > 0, dy, 0),)


_relu.defvjp(_relu_fwd, _relu_bwd)


def softmax(
    x: jax.Array,
    axis: int | tuple[int, ...] | None = -1,
    where: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Softmax: positive numbers that sum to 1 along `axis`.

    y_i = exp(x_i) / Σ_j exp(x_j),  dx = y ⊙ (dy − Σ_j dy_j y_j)

    Args:
      x: floating-point array of any shape.
      axis: the axis or axes to normalise; `None` means all.
      where: boolean array that broadcasts to `x`; entries that are `False` take no
        part, have the value 0 and get no gradient.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`. An entry of −∞ has the value 0 and the gradient 0.

    Raises:
      TypeError: `x` is not floating point, or `where` not boolean.
      ValueError: `axis` or `where` does not fit the shape of `x`.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.softmax(jnp.zeros(4))
      Array([0.25, 0.25, 0.25, 0.25], dtype=float32)

    Source: Bridle 1990, doi:10.1007/978-3-642-76153-9_28. From ∂y_i/∂x_j =
    y_i ([i = j] − y_j); the output suffices.
    """
    x = arguments.array("softmax", "x", x, kind="floating")
    where = arguments.mask("softmax", "where", where, x.shape)
    axes = arguments.axes("softmax", axis, x.ndim)
    return RULES["softmax"].choose(implementation)(x, where, axes)


def _shifted(x, where, axes):
    """x minus its maximum (exp cannot overflow), −∞ where masked."""
    if where is not None:
        x = jnp.where(where, x, -jnp.inf)
    return x - lax.stop_gradient(jnp.max(x, axes, keepdims=True, initial=-jnp.inf))


def _autodiff_softmax(x, where, axes):
    return jax.nn.softmax(x, axes, where)


@register("softmax", source="Bridle 1990", autodiff=_autodiff_softmax)
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _softmax(x, where, axes):
    numerators = jnp.exp(_shifted(x, where, axes))
    return numerators / jnp.sum(numerators, axes, keepdims=True)


def _softmax_fwd(x, where, axes):
    y = _softmax(x, where, axes)
    return y, (y,)


def _softmax_bwd(axes, residuals, dy):
    """dx_i = Σ_j dy_j y_j ([i = j] − y_i) = y_i (dy_i − mean of dy weighted by y).

    Where one y is near 1 the two terms cancel. Centring twice keeps the digits: the
    first difference is exact there, the second removes the mean's own rounding.
    """
    (y,) = residuals
    wide = arguments.accumulator(y.dtype)
    y_wide, centred = y.astype(wide), dy.astype(wide)
    for _ in range(2):
        centred -= jnp.sum(centred * y_wide, axes, keepdims=True)
    return (y_wide * centred).astype(y.dtype), None


_softmax.defvjp(_softmax_fwd, _softmax_bwd)


def log_softmax(
    x: jax.Array,
    axis: int | tuple[int, ...] | None = -1,
    where: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Logarithm of the softmax, without its overflow and cancellation.

    y_i = x_i − log Σ_j exp(x_j),  dx = dy − exp(y) ⊙ Σ_j dy_j

    Args:
      x: floating-point array of any shape.
      axis: the axis or axes to normalise; `None` means all.
      where: boolean array that broadcasts to `x`; entries that are `False` take no
        part, have the value −∞ and get no gradient.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`. An entry of −∞ has the value −∞.

    Raises:
      TypeError: `x` is not floating point, or `where` not boolean.
      ValueError: `axis` or `where` does not fit the shape of `x`.

    Example:
      >>> import jax.numpy as jnp, handgrad
      >>> handgrad.log_softmax(jnp.array([1000.0, 1000.0]))
      Array([-0.6931472, -0.6931472], dtype=float32)

    Source: from ∂y_i/∂x_j = [i = j] − exp(y_j); the output suffices.
    """
    x = arguments.array("log_softmax", "x", x, kind="floating")
    where = arguments.mask("log_softmax", "where", where, x.shape)
    axes = arguments.axes("log_softmax", axis, x.ndim)
    return RULES["log_softmax"].choose(implementation)(x, where, axes)


def _autodiff_log_softmax(x, where, axes):
    return jax.nn.log_softmax(x, axes, where)


@register("log_softmax", source="Bridle 1990", autodiff=_autodiff_log_softmax)
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _log_softmax(x, where, axes):
    shifted = _shifted(x, where, axes)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axes, keepdims=True))


def _log_softmax_fwd(x, where, axes):
    y = _log_softmax(x, where, axes)
    return y, (y, where)


def _log_softmax_bwd(axes, residuals, dy):
    """dx_i = Σ_j dy_j ([i = j] − exp(y_i))."""
    y, where = residuals
    if where is not None:  # a masked entry is the constant −∞
        dy = jnp.where(where, dy, 0)
    return dy - jnp.exp(y) * jnp.sum(dy, axes, keepdims=True), None


_log_softmax.defvjp(_log_softmax_fwd, _log_softmax_bwd)
