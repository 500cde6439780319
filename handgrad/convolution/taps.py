"""A convolution as a sum over the few places of its kernel.

    y       = Σ_kl x[shifted to k,l] · kernel[k,l]          one C×O matrix a place
    dx      = Σ_kl dy · kernel[k,l]ᵀ, shifted back
    dkernel[k,l] = x[shifted to k,l]ᵀ dy

In groups of few channels the matrices are a few numbers each, and the products those of
`rotations` or `narrow`. A 1×1 kernel of one group has one place: all three directions
are one matrix product, after a strided slice.

Source: FORMULAS B3.
"""

import functools

import jax
import jax.numpy as jnp

from handgrad import arguments, sharding, windows
from handgrad.buffers import written_down
from handgrad.convolution import groups, narrow, places, rotations
from handgrad.convolution.spec import ConvSpec

# Each place is a term of its own to compile: 8×8 is where that stops being few.
_MOST_PLACES = 64


def unsuitable(spec: ConvSpec) -> str | None:
    """It writes out one term a place, so the kernel must be small."""
    if spec.places > _MOST_PLACES:
        return f"'taps' does kernels of up to {_MOST_PLACES} places, not {spec.places}"
    return None


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y = Σ_kl x[k,l] · kernel[k,l]: [n p q g c] [c g o] -> [n p q g o] a place."""
    dtype = spec.preferred_element_type or x.dtype
    if rotations.knows(kernel.shape[-2:], spec):
        return rotations.forward(x, kernel, spec)
    if narrow.knows(kernel.shape[-2:], spec):
        return narrow.forward(x, kernel, spec)
    g, where = groups.axis(spec.y_sharding, range(x.ndim - 1), spec)
    equation = f"...{g}c,c{g}o->...{g}o"
    terms = (
        _product(
            equation,
            groups.split(view, spec),
            groups.split(kernel[place], spec),
            spec,
            where,
        )
        for place, view in places.views(x, spec)
    )
    total = functools.reduce(jnp.add, terms)
    return places.once(groups.merge(total, spec).astype(dtype), spec)


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx = Σ_kl dy · kernel[k,l]ᵀ: [n p q g o] [c g o] -> [n p q g c] a place."""
    if rotations.knows(kernel.shape[-2:], spec):
        return rotations.input_gradient(dy, kernel, spec)
    if narrow.knows(kernel.shape[-2:], spec):
        return narrow.input_gradient(dy, kernel, spec)
    errors = groups.split(places.once(dy, spec), spec)
    g, where = groups.axis(spec.x_sharding, range(dy.ndim - 1), spec)

    def piece(*place):
        matrix = groups.split(kernel[place], spec)
        product = _product(f"...{g}o,c{g}o->...{g}c", errors, matrix, spec, where)
        return groups.merge(product, spec)

    return places.once(windows.spread(piece, spec.windows).astype(dy.dtype), spec)


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel[k,l] = x[k,l]ᵀ dy: [n p q g c] [n p q g o] -> [c g o] a place."""
    if narrow.knows((x.shape[-1] // spec.feature_group_count, dy.shape[-1]), spec):
        return narrow.kernel_gradient(x, dy, spec)
    whole = spec.feature_group_count == spec.places == 1
    if whole and any(w.stride > 1 for w in spec.windows):
        # Else XLA keeps the forward pass's view beside x, which others read anyway.
        x = written_down(x, after=dy)
    views = [groups.split(view, spec) for _, view in places.views(x, spec)]
    errors = groups.split(dy, spec)
    product = _of_all_pixels if whole else _of_each_example
    products = [product(view, errors, dy.ndim - 1, spec) for view in views]
    dkernel = jnp.stack([groups.merge(each, spec) for each in products]).astype(x.dtype)
    return sharding.split(dkernel, 0, tuple(w.size for w in spec.windows))


def _of_all_pixels(view, errors, axes, spec: ConvSpec) -> jax.Array:
    """[npq c] [npq o] -> [c o]: two matrices as they lie there.

    Of several axes XLA would turn the arrays over first; but rows that devices split it
    gathers to merge them.
    """
    where = sharding.rearranged(spec.kernel_sharding, (-2, -1))
    if not sharding.may_be_split():
        view, errors = (sharding.merge(a, 0, axes) for a in (view, errors))
    at = "npqrs"[: view.ndim - 1]
    return _product(f"{at}c,{at}o->co", view, errors, spec, where)


def _of_each_example(view, errors, axes, spec: ConvSpec) -> jax.Array:
    """[n p q g c] [n p q g o] -> [c g o], of views that are no matrices yet.

    Each example's product first and their sum after: two short sums round less than one
    over all pixels of the batch.
    """
    g, _ = groups.axis(None, (), spec)
    at = "npqrs"[:axes]
    products = _product(f"{at}{g}c,{at}{g}o->nc{g}o", view, errors, spec)
    return jnp.sum(products, axis=0)


def _product(equation: str, a, b, spec: ConvSpec, out_sharding=None) -> jax.Array:
    """One product in at least float32."""
    dtype = arguments.accumulator(spec.preferred_element_type or a.dtype)
    return jnp.einsum(
        equation,
        a,
        b,
        precision=spec.precision,
        preferred_element_type=dtype,
        out_sharding=out_sharding,
    )
