"""A convolution as a sum over the few places of its kernel.

    y       = Σ_kl x[shifted to k,l] · kernel[k,l]          one C×O matrix a place
    dx      = Σ_kl dy · kernel[k,l]ᵀ, shifted back
    dkernel[k,l] = x[shifted to k,l]ᵀ dy

Depthwise (one input channel a group) the matrix is a vector and the product is
elementwise: a handful of multiplications a pixel, which no engine for matrix products
is made for. A 1×1 kernel has one place: all three directions are one matrix product,
after a strided slice.

What all places read and what they add up to is written down once: fused into the loops
that read it, it would be computed anew in each. Source: FORMULAS B3.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, sharding, windows
from handgrad.buffers import written_down, zero_after
from handgrad.convolution import blocks, groups
from handgrad.convolution.spec import ConvSpec

# Each place is a term of its own to compile: 8×8 is where that stops being few.
_MOST_PLACES = 64
# Errors of a block of rows: they and the pixels under them fit the cache of a core.
_BLOCK = 2**18


def unsuitable(spec: ConvSpec) -> str | None:
    """It writes out one term a place, so the kernel must be small."""
    places = math.prod(w.size for w in spec.windows)
    if places > _MOST_PLACES:
        return f"'taps' does kernels of up to {_MOST_PLACES} places, not {places}"
    return None


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y = Σ_kl x[k,l] · kernel[k,l]: [n p q g c] [c g o] -> [n p q g o] a place."""
    dtype = spec.preferred_element_type or x.dtype
    if _is_depthwise(kernel.shape[-2:], spec):
        products = (
            _times(view, kernel[place], dtype) for place, view in _views(x, spec)
        )
        return functools.reduce(jnp.add, products).astype(dtype)
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
        for place, view in _views(x, spec)
    )
    total = functools.reduce(jnp.add, terms)
    return _once(groups.merge(total, spec).astype(dtype), spec)


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx = Σ_kl dy · kernel[k,l]ᵀ: [n p q g o] [c g o] -> [n p q g c] a place."""
    if _is_depthwise(kernel.shape[-2:], spec):

        def term(place, errors):
            return _times(errors, kernel[place], dy.dtype)

        return windows.spread_views(term, dy, spec.windows).astype(dy.dtype)
    errors = groups.split(_once(dy, spec), spec)
    g, where = groups.axis(spec.x_sharding, range(dy.ndim - 1), spec)

    def piece(*place):
        matrix = groups.split(kernel[place], spec)
        product = _product(f"...{g}o,c{g}o->...{g}c", errors, matrix, spec, where)
        return groups.merge(product, spec)

    return _once(windows.spread(piece, spec.windows).astype(dy.dtype), spec)


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel[k,l] = x[k,l]ᵀ dy: [n p q g c] [n p q g o] -> [c g o] a place."""
    if _is_depthwise((x.shape[-1] // spec.feature_group_count, dy.shape[-1]), spec):
        places = _sums_of_products(x, dy, spec)
    else:
        whole = spec.feature_group_count == math.prod(w.size for w in spec.windows) == 1
        if whole and any(w.stride > 1 for w in spec.windows):
            # Else XLA keeps the forward pass's view beside x, which others read anyway.
            x = written_down(x, after=dy)
        views = [groups.split(view, spec) for _, view in _views(x, spec)]
        errors = groups.split(dy, spec)
        product = _of_all_pixels if whole else _of_each_example
        places = [product(view, errors, dy.ndim - 1, spec) for view in views]
        places = [groups.merge(place, spec) for place in places]
    dkernel = jnp.stack(places).astype(x.dtype)
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


def _once(x: jax.Array, spec: ConvSpec) -> jax.Array:
    """x, written down if there are places that read it or that it is the sum of."""
    return written_down(x) if any(w.size > 1 for w in spec.windows) else x


def _is_depthwise(channels: tuple[int, ...], spec: ConvSpec) -> bool:
    """Whether each group has one input and one output: kernels [..., 1, G]."""
    return channels == (1, spec.feature_group_count)


def _times(x: jax.Array, factors: jax.Array, dtype) -> jax.Array:
    """Depthwise: each channel times its own factor, in at least float32."""
    wide = arguments.accumulator(dtype)
    return x.astype(wide) * factors.astype(wide).reshape((1,) * (x.ndim - 1) + (-1,))


def _sums_of_products(x, dy, spec: ConvSpec) -> list[jax.Array]:
    """Depthwise: Σ_npq x[k,l] ⊙ dy for all places in one pass over both arrays.

    A block of rows after the other, small enough to stay in the cache, goes through all
    places. Within the block the rows are summed; columns and examples come last, so
    that the inner loop is a whole row of pixels and channels long; what several devices
    share, examples and parts of the rows, is summed over them once.
    """
    wide = arguments.accumulator(x.dtype)
    if not spec.windows:
        return [jnp.sum(x.astype(wide) * dy.astype(wide), axis=0)[None]]
    if (parts := windows.parts_of_rows(spec.windows)) > 1:
        dy = sharding.split(dy, 1, (parts, dy.shape[1] // parts))
    axis = dy.ndim - 1 - len(spec.windows)
    where = sharding.of(dy)
    at_once = max(_BLOCK * dy.shape[axis] // max(dy.size, 1), 1)
    steps = -(-dy.shape[axis] // at_once)
    rows = -(-dy.shape[axis] // max(steps, 1))
    if steps <= 1:  # what a loop reads is written down anyway
        dy = _once(dy, spec)
    zero = zero_after(dy, x.dtype)
    image, described, _ = windows.padded_parts(x, spec.windows, zero)
    if steps > 1:
        first, *others = described
        more = steps * rows - dy.shape[axis]
        image = blocks.longer(image, more * first.stride, axis)
        dy = blocks.longer(dy, more, axis)
        reach = (rows - 1) * first.stride + first.extent
        described = (dataclasses.replace(first, input=reach), *others)
        image, dy = lax.optimization_barrier((image, dy))
    else:
        image = _once(x, spec) if image is x else lax.optimization_barrier(image)

    def step(i: jax.Array | int, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        errors, seen = dy, image
        if steps > 1:
            start = i * rows
            errors = lax.dynamic_slice_in_dim(dy, start, rows, axis)
            start *= described[0].stride
            seen = lax.dynamic_slice_in_dim(image, start, described[0].input, axis)
        errors = errors.astype(wide)
        views = (windows.view(seen, k, described) for k in windows.places(described))
        return tuple(
            total + jnp.sum(view.astype(wide) * errors, axis)
            for total, view in zip(sums, views, strict=True)
        )

    rest = (*range(axis), *range(axis + 1, dy.ndim))
    where = sharding.rearranged(where, rest)
    shape = tuple(dy.shape[i] for i in rest)
    zeros = sharding.zeros(shape, wide, where, like=(x, dy))
    sums = (zeros,) * math.prod(w.size for w in spec.windows)
    sums = lax.fori_loop(0, steps, step, sums) if steps > 1 else step(0, sums)
    totals = jnp.sum(jnp.stack(sums), axis=range(1, dy.ndim - 1))
    return [total[None] for total in totals]


def _views(x: jax.Array, spec: ConvSpec):
    """Each place with the pixel that every window sees there, [n p q c]."""
    views = windows.views(x, spec.windows, once=functools.partial(_once, spec=spec))
    return zip(windows.places(spec.windows), views, strict=True)


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
