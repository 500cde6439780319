"""Activations whose derivative needs their input: they are not monotonic.

    silu  σ + x σ (1 − σ)           gelu  Φ(x) + x φ(x)
    mish  t + x t'                  hard_silu  (2x + 3) / 6 between −3 and 3

Each keeps x alone and computes the rest anew, which costs less than to read it. Far out
on either side a factor that is 0 meets one that is ∞; there x is held at a bound, so no
NaN arises. All else is written as in the forward pass, so that within one program the
compiler computes it once.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad.elementwise import apply, elementwise


def _bounded(x):
    """x as a factor of what is 0 in every dtype beyond these bounds."""
    return jnp.clip(x, -1e3, 1e3)


def _times(x, factor):
    """x · factor, where the factor is 0 at −∞."""
    return jnp.maximum(x, -1e4) * factor


def _silu_slope(x, dy):
    p = lax.logistic(x)
    return p * (1 + _bounded(x) * (1 - p)) * dy


elementwise(
    "silu",
    value=lambda x: _times(x, lax.logistic(x)),
    from_input=_silu_slope,
    autodiff=jax.nn.silu,
    source="Hendrycks & Gimpel 2016, arXiv:1606.08415",
)


def silu(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Sigmoid-weighted linear unit, also called swish.

    y = x σ(x),  dx = σ(x) (1 + x (1 − σ(x))) dy

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; 0 at −∞ (JAX: NaN), where the gradient is 0; at +∞ it is 1.

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.silu)(0.0)
      Array(0.5, dtype=float32, weak_type=True)

    Source: FORMULAS A2; the input suffices.
    """
    return apply("silu", x, implementation=implementation)


def _mish_terms(x):
    """n and e with tanh(softplus(x)) = n / (n + 2): e = exp(x), n = e² + 2e."""
    e = jnp.exp(jnp.minimum(x, 20))  # beyond, the quotient is 1 in every dtype
    return e * (e + 2), e


def _mish(x):
    n, _ = _mish_terms(x)
    return _times(x, n / (n + 2))


def _mish_slope(x, dy):
    """t + x dt/dx, with t = n / (n + 2) and dt/dx = 4e (e + 1) / (n + 2)²."""
    n, e = _mish_terms(x)
    return (n / (n + 2) + _bounded(x) * 4 * e * (e + 1) / lax.square(n + 2)) * dy


elementwise(
    "mish",
    value=_mish,
    from_input=_mish_slope,
    autodiff=jax.nn.mish,
    source="Misra 2020, arXiv:1908.08681",
)


def mish(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Mish, a smooth function that is not monotonic.

    y = x tanh(log(1 + exp(x)))
    dx = (t + 4x e (e + 1) / (n + 2)²) dy,  e = exp(x), n = e² + 2e, t = n / (n + 2)

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; 0 at −∞ (JAX: NaN), where the gradient is 0; at +∞ it is 1.

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.mish)(0.0)
      Array(0.6, dtype=float32, weak_type=True)

    Source: tanh(log(1 + e)) = ((1 + e)² − 1) / ((1 + e)² + 1): one exponential in all.
    """
    return apply("mish", x, implementation=implementation)


def _hard_silu_slope(x, dy):
    inside = jnp.where((x > -3) & (x < 3), (2 * x + 3) / 6 * dy, 0)
    return jnp.where(x >= 3, dy, inside)


elementwise(
    "hard_silu",
    value=lambda x: _times(x, jnp.clip(x + 3, 0, 6) / 6),
    from_input=_hard_silu_slope,
    autodiff=jax.nn.hard_silu,
    source="Howard et al. 2019, arXiv:1905.02244",
)


def hard_silu(x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Silu of three pieces, MobileNetV3's, also called hard swish.

    y = x min(max(x + 3, 0), 6) / 6
    dx = 0 where x ≤ −3, dy where x ≥ 3, else (2x + 3) / 6 dy

    Args:
      x: floating-point array of any shape.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; 0 at −∞ (JAX: NaN). The gradients at the kinks −3 and 3 are 0 and
      1, as PyTorch has them.

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.hard_silu)(0.0)
      Array(0.5, dtype=float32, weak_type=True)

    Source: FORMULAS A2; the input suffices.
    """
    return apply("hard_silu", x, implementation=implementation)


_SQRT_2_PI = math.sqrt(2 / math.pi)
_CUBE = 0.044715
# From here on tanh u is 1 in the dtype that is computed in.
_GELU_IS_FLAT = {np.dtype("float32"): 5.0, np.dtype("float64"): 7.5}


def _gelu_tanh(x):
    return jnp.tanh(_SQRT_2_PI * x * (1 + _CUBE * lax.square(x)))


def _gelu(x, approximate):
    if approximate:
        return _times(x, 0.5 * (1 + _gelu_tanh(x)))
    return _times(x, 0.5 * lax.erfc(-x * math.sqrt(0.5)))


def _gelu_slope(x, dy, approximate):
    """Φ(x) + x φ(x), or the same of the approximation of Φ."""
    if approximate:
        t = _gelu_tanh(x)
        du = _SQRT_2_PI * (1 + 3 * _CUBE * lax.square(x))
        # Further out 1 − t² would be a rounding, which meets a large u' there.
        near = jnp.where(jnp.abs(x) < _GELU_IS_FLAT[x.dtype], x * du, 0)
        return 0.5 * ((1 + t) + near * ((1 - t) * (1 + t))) * dy
    z = -x * math.sqrt(0.5)
    # erfc(z) needs this exponential, too; of exp(−x²/2) the compiler would not know.
    density = lax.exp(-lax.square(z)) / math.sqrt(2 * math.pi)
    return (0.5 * lax.erfc(z) + _bounded(x) * density) * dy


elementwise(
    "gelu",
    value=_gelu,
    from_input=_gelu_slope,
    autodiff=jax.nn.gelu,
    source="Hendrycks & Gimpel 2016, arXiv:1606.08415",
)


def gelu(
    x: jax.Array,
    approximate: bool = True,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Gaussian error linear unit.

    y = x Φ(x),  dx = (Φ(x) + x φ(x)) dy

    Φ is the normal distribution and φ its density; `approximate` has
    ½ (1 + tanh(√(2/π) (x + 0.044715 x³))) for Φ.

    Args:
      x: floating-point array of any shape.
      approximate: whether to approximate Φ, as in `jax.nn.gelu`.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array like `x`; 0 at −∞ (JAX: NaN), where the gradient is 0; at +∞ it is 1.

    Raises:
      TypeError: `x` is not floating point.

    Example:
      >>> import jax, handgrad
      >>> jax.grad(handgrad.gelu)(0.0)
      Array(0.5, dtype=float32, weak_type=True)

    Source: FORMULAS A2; the input suffices.
    """
    return apply(
        "gelu", x, approximate=bool(approximate), implementation=implementation
    )
