"""A convolution as a sum over the few places of its kernel.

    y       = Σ_kl x[shifted to k,l] · kernel[k,l]          one C×O matrix a place
    dx      = Σ_kl dy · kernel[k,l]ᵀ, shifted back
    dkernel[k,l] = x[shifted to k,l]ᵀ dy

Depthwise (one input channel a group) the matrix is a vector and the product is
elementwise: a handful of multiplications a pixel, which no engine for matrix products
is made for. A 1×1 kernel has one place: all three directions are one matrix product,
after a strided slice.

The padded image is made once, behind a barrier: fused into the sum it would be made
anew for every place. Source: FORMULAS B3.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, sharding, windows
from handgrad.convolution.spec import ConvSpec

# Each place is a term of its own to compile: 8×8 is where that stops being few.
_MOST_PLACES = 64


def unsuitable(spec: ConvSpec) -> str | None:
    """It writes out one term a place, so the kernel must be small."""
    places = math.prod(w.size for w in spec.windows)
    if places > _MOST_PLACES:
        return f"'taps' does kernels of up to {_MOST_PLACES} places, not {places}"
    return None


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y = Σ_kl x[k,l] · kernel[k,l]: [n p q g c] [c g o] -> [n p q g o] a place."""
    dtype = spec.preferred_element_type or x.dtype
    where = sharding.rearranged(spec.y_sharding, (*range(x.ndim - 1), None, -1))
    terms = (
        _product("...gc,cgo->...go", view, kernel[place], spec, where)
        for place, view in _views(x, spec)
    )
    return _merge(functools.reduce(jnp.add, terms)).astype(dtype)


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx = Σ_kl dy · kernel[k,l]ᵀ: [n p q g o] [c g o] -> [n p q g c] a place."""
    errors = _split(dy, spec)
    where = (*range(errors.ndim - 2), None, -1)
    where = sharding.rearranged(spec.x_sharding, where)

    def piece(*place):
        return _merge(_product("...go,cgo->...gc", errors, kernel[place], spec, where))

    return windows.spread(piece, spec.windows).astype(dy.dtype)


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel[k,l] = x[k,l]ᵀ dy: [n p q g c] [n p q g o] -> [c g o] a place."""
    errors = _split(dy, spec)
    if _is_depthwise(x.shape[-1], dy.shape[-1], spec):
        places = _sums_of_products(x, errors, spec)
    else:
        # Each example's product first and their sum after: two short sums round less
        # than one over all pixels of the batch.
        pixels = "npqrs"[: errors.ndim - 2]
        equation = f"{pixels}gc,{pixels}go->ncgo"
        places = [
            jnp.sum(_product(equation, view, errors, spec), axis=0)
            for _, view in _views(x, spec)
        ]
    dkernel = _merge(jnp.stack(places)).astype(x.dtype)
    return sharding.split(dkernel, 0, tuple(w.size for w in spec.windows))


def _is_depthwise(inputs: int, outputs: int, spec: ConvSpec) -> bool:
    return inputs == outputs == spec.feature_group_count


def _sums_of_products(x, errors, spec: ConvSpec) -> list[jax.Array]:
    """Depthwise: Σ_npq x[k,l] ⊙ dy for all places in one pass over both arrays.

    One `lax.reduce` with an operand a place; the rows are summed first and the columns
    after, so that the inner loop is a whole row of pixels and channels long.
    """
    wide = arguments.accumulator(x.dtype)
    products = tuple(
        view.astype(wide) * errors.astype(wide) for _, view in _views(x, spec)
    )
    zeros = (arguments.zero(wide),) * len(products)
    columns = max(errors.ndim - 3, 1)  # the last spatial axis, if there is one
    rows = lax.reduce(
        products,
        zeros,
        lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True)),
        tuple(range(columns)),
    )
    return [jnp.sum(row, axis=range(row.ndim - 2))[None] for row in rows]


def _views(x: jax.Array, spec: ConvSpec):
    """Each place with the pixel that every window sees there, [n p q g c/g]."""
    image = lax.optimization_barrier(windows.pad(x, spec.windows))
    for place in windows.places(spec.windows):
        yield place, _split(windows.view(image, place, spec.windows), spec)


def _split(x: jax.Array, spec: ConvSpec) -> jax.Array:
    """[... c] -> [... g c/g]; the axis of size 1 keeps an explicit mesh's sharding."""
    groups = spec.feature_group_count
    if groups == 1:
        return jnp.expand_dims(x, -2)
    if groups == x.shape[-1]:
        return jnp.expand_dims(x, -1)
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def _merge(x: jax.Array) -> jax.Array:
    """[... g c/g] -> [... c]."""
    for axis in (-2, -1):
        if x.shape[axis] == 1:
            return jnp.squeeze(x, axis)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _product(equation: str, a, b, spec: ConvSpec, out_sharding=None) -> jax.Array:
    """One product in at least float32; elementwise where each group has one channel."""
    if b.ndim == 2:  # a kernel's place [c/g o] -> [c/g g o/g]
        b = _split(b, spec)
    dtype = arguments.accumulator(spec.preferred_element_type or a.dtype)
    if a.shape[-1] == 1 and b.ndim == 3 and b.shape[0] == b.shape[-1] == 1:
        return a.astype(dtype) * b.astype(dtype).reshape((1,) * (a.ndim - 2) + (-1, 1))
    return jnp.einsum(
        equation,
        a,
        b,
        precision=spec.precision,
        preferred_element_type=dtype,
        out_sharding=out_sharding,
    )
