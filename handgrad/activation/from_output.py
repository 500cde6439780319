"""Activations whose derivative is a function of their output: they keep nothing else.

    sigmoid  y (1 − y)      tanh  1 − y²       softplus  1 − exp(−y)
    relu     [y > 0]        elu   y + α        log_sigmoid  1 − exp(y)

The output of an activation is the input of the next layer, which keeps it anyway, so
the residual costs no memory of its own; the input can be freed (FORMULAS B9).
"""

import jax
import jax.numpy as jnp
from jax import lax

from handgrad.elementwise import apply, elementwise

_LEAST = 1e-37  # instead of 0 in a denominator


def _softplus(x):
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))  # exp cannot overflow


def _one_minus_exp(x):
    """1 − exp(−x) = 2t / (1 + t) with t = tanh(x/2): small x keep their digits."""
    t = jnp.tanh(0.5 * x)
    return 2 * t / (1 + t)


def _elu(x, alpha):
    return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0)))


elementwise(
    "sigmoid",
    value=lax.logistic,
    from_output=lambda y, dy: dy * y * (1 - y),
    autodiff=jax.nn.sigmoid,
)


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
    return apply("sigmoid", x, implementation=implementation)


elementwise(
    "tanh",
    value=lax.tanh,
    # 1 − y² as a product, which keeps its digits where y is near ±1
    from_output=lambda y, dy: dy * ((1 - y) * (1 + y)),
    autodiff=jnp.tanh,
)


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
    return apply("tanh", x, implementation=implementation)


elementwise(
    "relu",
    value=lambda x: jnp.maximum(x, 0),
    from_output=lambda y, dy: jnp.where(y > 0, dy, 0),
    autodiff=jax.nn.relu,
)


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
    return apply("relu", x, kind="real", implementation=implementation)


elementwise(
    "relu6",
    value=lambda x: jnp.clip(x, 0, 6),
    from_output=lambda y, dy: jnp.where((y > 0) & (y < 6), dy, 0),
    autodiff=jax.nn.relu6,
    source="Krizhevsky 2010, convolutional deep belief networks on CIFAR-10",
)


def relu6(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Rectified linear unit, bounded by 6.

    y = min(max(x, 0), 6),  dx = dy where 0 < y < 6, else 0

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`. The gradient at both kinks is 0, as PyTorch has it (JAX: ½).

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.relu6)(3.0)
      Array(1., dtype=float32, weak_type=True)

    Source: FORMULAS A2 and B9 (the output suffices).
    """
    return apply("relu6", x, implementation=implementation)


elementwise(
    "leaky_relu",
    value=lambda x, slope: jnp.where(x >= 0, x, slope * x),
    from_output=lambda y, dy, slope: jnp.where(y >= 0, dy, slope * dy),
    output_suffices=lambda slope: slope > 0,  # y has the sign of x
    from_input=lambda x, dy, slope: jnp.where(x >= 0, dy, slope * dy),
    parameters=lambda x, dy, slope: (jnp.minimum(x, 0) * dy,),
    autodiff=jax.nn.leaky_relu,
    source="Maas et al. 2013; learnt: He et al. 2015, arXiv:1502.01852",
)


def leaky_relu(
    x: jax.Array,
    negative_slope: float | jax.Array = 0.01,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Rectified linear unit with a slope for negative numbers.

    y = x where x ≥ 0, else slope · x
    dx = dy where x ≥ 0, else slope · dy;  dslope = Σ min(x, 0) dy

    Args:
      x: floating-point array of any shape.
      negative_slope: number, or an array that broadcasts to `x` and is learnt
        (a PReLU).
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; the gradient at the kink is 1, as in `jax.nn.leaky_relu`.

    Raises:
      TypeError: `x` is not floating point.
      ValueError: negative_slope does not broadcast to `x`.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.leaky_relu)(-3.0)
      Array(0.01, dtype=float32, weak_type=True)

    Source: FORMULAS A2 and B9 (the output suffices).
    """
    return apply(
        "leaky_relu", x, negative_slope=negative_slope, implementation=implementation
    )


elementwise(
    "elu",
    value=_elu,
    from_output=lambda y, dy, alpha: jnp.where(y > 0, dy, (y + alpha) * dy),
    output_suffices=lambda alpha: alpha >= 0,  # y has the sign of x
    from_input=lambda x, dy, alpha: jnp.where(
        x > 0, dy, alpha * jnp.exp(jnp.minimum(x, 0)) * dy
    ),
    parameters=lambda x, dy, alpha: (jnp.expm1(jnp.minimum(x, 0)) * dy,),
    autodiff=jax.nn.elu,
    source="Clevert et al. 2016, arXiv:1511.07289",
)


def elu(
    x: jax.Array,
    alpha: float | jax.Array = 1.0,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Exponential linear unit.

    y = x where x > 0, else α (exp(x) − 1)
    dx = dy where x > 0, else (y + α) dy;  dα = Σ (exp(min(x, 0)) − 1) dy

    Args:
      x: floating-point array of any shape.
      alpha: number, or an array that broadcasts to `x` and is learnt.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; −α at −∞, where the gradient is 0; the gradient at the kink is α.

    Raises:
      TypeError: `x` is not floating point.
      ValueError: alpha does not broadcast to `x`.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.elu)(0.0)
      Array(1., dtype=float32, weak_type=True)

    Source: FORMULAS A2 and B9 (the output suffices).
    """
    return apply("elu", x, alpha=alpha, implementation=implementation)


_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946

elementwise(
    "selu",
    value=lambda x: _SELU_SCALE * _elu(x, _SELU_ALPHA),
    from_output=lambda y, dy: (
        jnp.where(y > 0, _SELU_SCALE, y + _SELU_SCALE * _SELU_ALPHA) * dy
    ),
    autodiff=jax.nn.selu,
    source="Klambauer et al. 2017, arXiv:1706.02515",
)


def selu(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Scaled exponential linear unit: it keeps mean 0 and variance 1.

    y = λ x where x > 0, else λα (exp(x) − 1)
    dx = λ dy where y > 0, else (y + λα) dy

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`, with λ = 1.0507 and α = 1.6733; the gradient at the kink is λα.

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.selu)(1.0)
      Array(1.050701, dtype=float32, weak_type=True)

    Source: FORMULAS A2 and B9 (the output suffices).
    """
    return apply("selu", x, implementation=implementation)


elementwise(
    "celu",
    value=lambda x, alpha: jnp.where(
        x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0) / alpha)
    ),
    from_output=lambda y, dy, alpha: jnp.where(y > 0, dy, (y / alpha + 1) * dy),
    output_suffices=lambda alpha: alpha > 0,  # y has the sign of x
    from_input=lambda x, dy, alpha: jnp.exp(jnp.minimum(x, 0) / alpha) * dy,
    parameters=lambda x, dy, alpha: (_celu_slope(jnp.minimum(x, 0) / alpha) * dy,),
    autodiff=jax.nn.celu,
    source="Barron 2017, arXiv:1704.07483",
)


def _celu_slope(u):
    """∂y/∂α = exp(u) − 1 − u exp(u) for u = x/α ≤ 0; 0 at −∞ · 0."""
    return jnp.expm1(u) - jnp.maximum(u, -1e3) * jnp.exp(u)


def celu(
    x: jax.Array,
    alpha: float | jax.Array = 1.0,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Exponential linear unit whose slope is continuous.

    y = x where x > 0, else α (exp(x/α) − 1)
    dx = dy where x > 0, else (y/α + 1) dy

    Args:
      x: floating-point array of any shape.
      alpha: number, or an array that broadcasts to `x` and is learnt; not 0.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; −α at −∞, where the gradient is 0.

    Raises:
      TypeError: `x` is not floating point.
      ValueError: alpha does not broadcast to `x`.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.celu)(0.0)
      Array(1., dtype=float32, weak_type=True)

    Source: FORMULAS A2 and B9 (the output suffices).
    """
    return apply("celu", x, alpha=alpha, implementation=implementation)


elementwise(
    "softplus",
    value=_softplus,
    from_output=lambda y, dy: _one_minus_exp(y) * dy,
    autodiff=jax.nn.softplus,
    source="Dugas et al. 2000",
)


def softplus(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Smooth rectified linear unit.

    y = log(1 + exp(x)),  dx = (1 − exp(−y)) dy

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; 0 at −∞, where the gradient is 0, and +∞ at +∞, where it is 1.

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.softplus)(0.0)
      Array(0.5, dtype=float32, weak_type=True)

    Source: 1 − exp(−y) = σ(x); the output suffices (FORMULAS B9).
    """
    return apply("softplus", x, implementation=implementation)


elementwise(
    "log_sigmoid",
    value=lambda x: -_softplus(-x),
    from_output=lambda y, dy: _one_minus_exp(-y) * dy,
    autodiff=jax.nn.log_sigmoid,
)


def log_sigmoid(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Logarithm of the sigmoid, without its underflow.

    y = log σ(x) = −log(1 + exp(−x)),  dx = (1 − exp(y)) dy

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; −∞ at −∞, where the gradient is 1, and 0 at +∞, where it is 0.

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.log_sigmoid)(0.0)
      Array(0.5, dtype=float32, weak_type=True)

    Source: 1 − exp(y) = σ(−x); the output suffices (FORMULAS B9).
    """
    return apply("log_sigmoid", x, implementation=implementation)


elementwise(
    "soft_sign",
    value=lambda x: (lambda x: x / (jnp.abs(x) + 1))(jnp.clip(x, -1e30, 1e30)),
    from_output=lambda y, dy: lax.square(1 - jnp.abs(y)) * dy,
    autodiff=jax.nn.soft_sign,
    source="Turian et al. 2009",
)


def soft_sign(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Soft sign.

    y = x / (1 + |x|),  dx = (1 − |y|)² dy

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; ±1 at ±∞ (JAX: NaN), where the gradient is 0.

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.soft_sign)(0.0)
      Array(1., dtype=float32, weak_type=True)

    Source: 1 − |y| = 1 / (1 + |x|); the output suffices (FORMULAS B9).
    """
    return apply("soft_sign", x, implementation=implementation)


elementwise(
    "hard_tanh",
    value=lambda x: jnp.clip(x, -1, 1),
    from_output=lambda y, dy: jnp.where(jnp.abs(y) < 1, dy, 0),
    autodiff=jax.nn.hard_tanh,
    source="Collobert 2004",
)


def hard_tanh(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Identity between −1 and 1.

    y = min(max(x, −1), 1),  dx = dy where |y| < 1, else 0

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`. The gradient at both kinks is 0, as PyTorch has it (JAX: 1).

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.hard_tanh)(0.5)
      Array(1., dtype=float32, weak_type=True)

    Source: FORMULAS A2 and B9 (the output suffices).
    """
    return apply("hard_tanh", x, implementation=implementation)


elementwise(
    "hard_sigmoid",
    value=lambda x: jnp.clip(x + 3, 0, 6) / 6,
    from_output=lambda y, dy: jnp.where((y > 0) & (y < 1), dy / 6, 0),
    autodiff=jax.nn.hard_sigmoid,
    source="Howard et al. 2019, arXiv:1905.02244",
)


def hard_sigmoid(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Sigmoid of three straight pieces.

    y = min(max(x + 3, 0), 6) / 6,  dx = dy / 6 where 0 < y < 1, else 0

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`. The gradient at both kinks is 0, as PyTorch has it (JAX: 1/12).

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.hard_sigmoid)(0.0)
      Array(0.16666667, dtype=float32, weak_type=True)

    Source: FORMULAS A2 and B9 (the output suffices).
    """
    return apply("hard_sigmoid", x, implementation=implementation)


elementwise(
    "squareplus",
    value=lambda x, b: _squareplus(x, b),
    from_output=lambda y, dy, b: _squareplus_slope(y, b) * dy,
    from_input=lambda x, dy, b: _squareplus_slope(_squareplus(x, b), b) * dy,
    parameters=lambda x, dy, b: (dy / (4 * _root(x, b)),),
    autodiff=jax.nn.squareplus,
    source="Barron 2021, arXiv:2112.11687",
)


def _root(x, b):
    return jnp.sqrt(lax.square(x) + b)  # ∞ where x² overflows: b is nothing there


def _squareplus(x, b):
    """√(x² + b) = |x| + b / (|x| + √(x² + b)), of which nothing cancels below 0."""
    size = jnp.maximum(jnp.abs(x) + _root(x, b), _LEAST)
    return jnp.maximum(x, 0) + 0.5 * b / size


def _squareplus_slope(y, b):
    """∂y/∂x = y / √(x² + b) = y² / (y² + b/4), since x = y − b / (4y)."""
    square = lax.square(jnp.minimum(y, 1e18))
    return square / (jnp.maximum(square, _LEAST) + 0.25 * b)


def squareplus(
    x: jax.Array,
    b: float | jax.Array = 4,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Smooth rectified linear unit without exponentials.

    y = (x + √(x² + b)) / 2,  dx = y² / (y² + b/4) dy,  db = Σ dy / (4 √(x² + b))

    Args:
      x: floating-point array of any shape.
      b: number ≥ 0, or an array that broadcasts to `x` and is learnt.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; 0 at −∞, where the gradient is 0, and +∞ at +∞, where it is 1.

    Raises:
      TypeError: `x` is not floating point.
      ValueError: b does not broadcast to `x`.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.squareplus)(0.0)
      Array(0.5, dtype=float32, weak_type=True)

    Source: the output suffices (FORMULAS B9), and nothing cancels where x < 0.
    """
    return apply("squareplus", x, b=b, implementation=implementation)
