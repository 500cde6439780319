"""The dense layer: `y = x W + b`, `dW = xᵀ dy`, `dx = dy Wᵀ`, `db = Σ dy`.

For one example y_o = Σ_i x_i W_io, so ∂y_o/∂W_io = x_i and ∂y_o/∂x_i = W_io. The chain
rule sums over whatever was not asked for:

    dW_io = Σ_n x_ni δ_no          (over the examples)
    dx_ni = Σ_o δ_no W_io          (over the outputs)

which are the two matrix products above. The activation is a layer of its own.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding

from handgrad import arguments, sharding
from handgrad import bias as _bias
from handgrad.rules import RULES, register


@dataclasses.dataclass(frozen=True)
class DenseSpec:
    """The static part of a dense layer: how to multiply, and where the results live."""

    precision: Any = None
    preferred_element_type: Any = None
    x_sharding: NamedSharding | None = None
    kernel_sharding: NamedSharding | None = None


def dense(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
    implementation: str | None = None,
) -> jax.Array:
    """Dense (fully connected) layer.

    y[..., o] = Σ_i x[..., i] · kernel[i, o] + bias[o]

    Args:
      x: array [..., I], any number of leading axes.
      kernel: array [I, O], of the same dtype.
      bias: array [O], or `None`.
      precision: as in `jax.lax.dot_general`.
      preferred_element_type: dtype of the result, as in `jax.lax.dot_general`.
      implementation: `None` or "hand" for the derived rule, "autodiff" for JAX's own.

    Returns:
      Array [..., O].

    Raises:
      ValueError: the shapes do not fit.
      TypeError: the dtypes differ, or are complex.

    Example:
      >>> import jax, jax.numpy as jnp, handgrad
      >>> x, kernel = jnp.array([[1.0, 2.0]]), jnp.eye(2)
      >>> jax.grad(lambda k: handgrad.dense(x, k).sum())(kernel)
      Array([[1., 1.],
             [2., 2.]], dtype=float32)

    Source: Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0; FORMULAS A1.
    """
    x = arguments.array("dense", "x", x)
    kernel = arguments.array("dense", "kernel", kernel)
    arguments.same_dtype("dense", x=x, kernel=kernel)
    arguments.require(
        kernel.ndim == 2 and x.ndim >= 1,
        "dense",
        f"x must have shape [..., I] and kernel [I, O], got x {x.shape} and "
        f"kernel {kernel.shape}",
    )
    arguments.require(
        x.shape[-1] == kernel.shape[0],
        "dense",
        f"the {x.shape[-1]} features of x {x.shape} must equal the {kernel.shape[0]} "
        f"rows of kernel {kernel.shape}",
    )
    x, kernel = sharding.align(x, kernel)
    spec = DenseSpec(
        arguments.hashable_precision(precision),
        preferred_element_type,
        sharding.of(x),
        sharding.of(kernel),
    )
    y = RULES["dense"].choose(implementation, spec)(x, kernel, spec)
    if bias is None:
        return y
    return _bias.add(y, bias, op="dense", implementation=implementation)


def _contract(a, b, a_axes, b_axes, spec: DenseSpec, dtype=None, out_sharding=None):
    return lax.dot_general(
        a,
        b,
        ((tuple(a_axes), tuple(b_axes)), ((), ())),
        precision=spec.precision,
        preferred_element_type=dtype,
        out_sharding=out_sharding,
    )


def _product(x, kernel, spec):
    """[... i] [i o] -> [... o]."""
    return _contract(x, kernel, [x.ndim - 1], [0], spec, spec.preferred_element_type)


@register("dense", source="Rumelhart, Hinton & Williams 1986", autodiff=_product)
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x, kernel, spec):
    return _product(x, kernel, spec)


def _dense_fwd(x, kernel, spec):
    residuals = (x, kernel)  # each is the other's derivative
    return _dense(x, kernel, spec), residuals


def _dense_bwd(spec, residuals, dy):
    """dx = dy Wᵀ, dW = xᵀ dy."""
    x, kernel = residuals
    batch = range(x.ndim - 1)
    # [... o] [i o] -> [... i]
    dx = _contract(
        dy,
        kernel.astype(dy.dtype),
        [dy.ndim - 1],
        [1],
        spec,
        out_sharding=spec.x_sharding,
    )
    # [... i] [... o] -> [i o]
    dkernel = _contract(
        x.astype(dy.dtype), dy, batch, batch, spec, out_sharding=spec.kernel_sharding
    )
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


_dense.defvjp(_dense_fwd, _dense_bwd)
