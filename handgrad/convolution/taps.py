"""A convolution as a sum over the few places of its kernel.

    y       = Σ_kl x[shifted to k,l] · kernel[k,l]          one C×O matrix a place
    dx      = Σ_kl dy · kernel[k,l]ᵀ, shifted back
    dkernel[k,l] = x[shifted to k,l]ᵀ dy

In groups of few channels, depthwise in groups of one, no engine for matrix products is
at its best: the matrices are a few numbers each. There the products are elementwise,
the groups side by side,

    y[…,g,o] = Σ_kl Σ_c x[k,l,c,g] · kernel[k,l,c,g,o]

so that a vector register holds one number of each group and no multiplication is in
vain; only x (in dx, dy) is turned to have the groups last. A 1×1 kernel of one group
has one place: all three directions are one matrix product, after a strided slice.

What all places read and what they add up to is written down once: fused into the loops
that read it, it would be computed anew in each. Source: FORMULAS B3.
"""

import dataclasses
import functools
import itertools
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
# So is each of a group's channels at each place.
_MOST_TERMS = 128
# Errors of a block: they and the pixels under them fit the cache of a core.
_BLOCK = 2**16
# Each row of a block is a term, too; sums of so many are written seldom enough.
_ROWS = 8


def unsuitable(spec: ConvSpec) -> str | None:
    """It writes out one term a place, so the kernel must be small."""
    places = math.prod(w.size for w in spec.windows)
    if places > _MOST_PLACES:
        return f"'taps' does kernels of up to {_MOST_PLACES} places, not {places}"
    return None


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y = Σ_kl x[k,l] · kernel[k,l]: [n p q g c] [c g o] -> [n p q g o] a place."""
    dtype = spec.preferred_element_type or x.dtype
    if is_narrow(kernel.shape[-2:], spec):
        kernel = groups.parted(kernel, spec.feature_group_count)
        views = _views(_channel_by_channel(x, spec), spec)
        terms = (_of_all_groups(view, kernel[place], dtype) for place, view in views)
        y = groups.joined(functools.reduce(jnp.add, terms).astype(dtype))
        return written_down(y)
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
    if is_narrow(kernel.shape[-2:], spec):
        kernel = groups.parted(kernel, spec.feature_group_count)
        kernel = jnp.swapaxes(kernel, -3, -1)  # [k l o g c]
        if kernel.shape[-3] > 1:
            kernel = written_down(kernel, after=dy)

        def term(place, errors):
            return _of_all_groups(errors, kernel[place], dy.dtype)

        dx = windows.spread_views(term, _channel_by_channel(dy, spec), spec.windows)
        dx = groups.joined(dx.astype(dy.dtype))
        return written_down(dx)
    errors = groups.split(_once(dy, spec), spec)
    g, where = groups.axis(spec.x_sharding, range(dy.ndim - 1), spec)

    def piece(*place):
        matrix = groups.split(kernel[place], spec)
        product = _product(f"...{g}o,c{g}o->...{g}c", errors, matrix, spec, where)
        return groups.merge(product, spec)

    return _once(windows.spread(piece, spec.windows).astype(dy.dtype), spec)


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel[k,l] = x[k,l]ᵀ dy: [n p q g c] [n p q g o] -> [c g o] a place."""
    if is_narrow((x.shape[-1] // spec.feature_group_count, dy.shape[-1]), spec):
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


def is_narrow(channels: tuple[int, ...], spec: ConvSpec) -> bool:
    """Whether groups have so few inputs and outputs, of kernels [..., C/G, O]."""
    count = spec.feature_group_count
    if channels == (1, count):
        return True
    most = max(channels[0], channels[1] // count)
    terms = most * math.prod(w.size for w in spec.windows)
    return terms <= _MOST_TERMS and not groups.unsuitable("taps", spec)


def _channel_by_channel(x: jax.Array, spec: ConvSpec) -> jax.Array:
    """[... g·c] -> [... c·g]: of each channel all groups, side by side."""
    count = spec.feature_group_count
    if x.shape[-1] == count:
        return x
    return groups.joined(jnp.swapaxes(groups.parted(x, count), -1, -2))


def _of_all_groups(x: jax.Array, matrices: jax.Array, dtype) -> jax.Array:
    """Narrow groups: [... c·g] [c g o] -> [... g o], in at least float32."""
    wide = arguments.accumulator(dtype)
    inputs, *rest = matrices.shape
    matrices = matrices.astype(wide).reshape(inputs, *(1 for _ in x.shape[1:]), *rest)
    channels = jnp.split(x.astype(wide), inputs, -1)
    terms = (
        jnp.expand_dims(channel, -1) * matrix
        for channel, matrix in zip(channels, matrices, strict=True)
    )
    return functools.reduce(jnp.add, terms)


def _sums_of_products(x, dy, spec: ConvSpec) -> list[jax.Array]:
    """Narrow groups: Σ_npq x[k,l,c] ⊙ dy[o], all places in one pass over both arrays.

    A block after the other, some rows of an example or some small examples, stays in
    the cache and goes through all places. Within it the rows are summed; columns and
    groups come last, so that the inner loop is long. What several devices share,
    examples and parts of the rows, is summed over them once.
    """
    wide, count = arguments.accumulator(x.dtype), spec.feature_group_count
    x, dy = (_channel_by_channel(a, spec) for a in (x, dy))
    channels = tuple(a.shape[-1] // count for a in (x, dy))

    def products(seen: jax.Array, errors: jax.Array) -> jax.Array:
        """[... c·g] [... o·g] -> [... c o g]."""
        pair = zip((seen, errors), channels, strict=True)
        seen, errors = (groups.parted(a.astype(wide), n) for a, n in pair)
        return jnp.expand_dims(seen, -2) * jnp.expand_dims(errors, -3)

    if not spec.windows:
        total = jnp.sum(products(x, dy), axis=0)
        return [groups.joined(jnp.swapaxes(total, -1, -2))]
    if (parts := windows.parts_of_rows(spec.windows)) > 1:
        dy = sharding.split(dy, 1, (parts, dy.shape[1] // parts))
    axis, where = dy.ndim - 1 - len(spec.windows), sharding.of(dy)
    together = where is not None or sharding.may_be_split()
    examples, rows = _block(dy, axis, channels[0], together)
    sets, steps = dy.shape[0] // max(examples, 1), -(-dy.shape[axis] // max(rows, 1))
    single = sets * steps == 1
    if single:  # what a loop reads is written down anyway
        dy = _once(dy, spec)
    image, described, _ = windows.padded_parts(x, spec.windows, zero_after(dy, x.dtype))
    first, *others = described
    more = steps * rows - dy.shape[axis]
    dy = blocks.longer(dy, more, axis)
    if single and image is x:
        image = _once(x, spec)
    else:
        image = blocks.longer(image, more * first.stride, axis)
        image = lax.optimization_barrier(image)
    reach = (rows - 1) * first.stride + first.extent
    described = (dataclasses.replace(first, input=reach), *others)

    def block(array: jax.Array, i: jax.Array | int, stride: int, reach: int):
        if sets > 1:
            start = i // steps * examples
            array = lax.dynamic_slice_in_dim(array, start, examples)
        if steps > 1:
            start = i % steps * (rows * stride)
            array = lax.dynamic_slice_in_dim(array, start, reach, axis)
        return array if single else written_down(array)

    def added(total: jax.Array, seen: jax.Array, errors: jax.Array) -> jax.Array:
        if len(spec.windows) == 1:
            return total + jnp.sum(products(seen, errors), axis)
        # Row by row: the newest XLA would give a reduction to a library.
        each = (
            [lax.index_in_dim(a, r, axis, False) for a in (seen, errors)]
            for r in range(rows)
        )
        return functools.reduce(jnp.add, itertools.starmap(products, each), total)

    def step(i: jax.Array | int, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        errors, seen = block(dy, i, 1, rows), block(image, i, first.stride, reach)
        views = (windows.view(seen, k, described) for k in windows.places(described))
        pairs = zip(sums, views, strict=True)
        return tuple(added(total, view, errors) for total, view in pairs)

    rest = (*range(axis), *range(axis + 1, dy.ndim - 1))
    where = sharding.rearranged(where, (*rest, None, None, -1))
    shape = (examples, *(dy.shape[i] for i in rest[1:]), *channels, count)
    zeros = sharding.zeros(shape, wide, where, like=(x, dy))
    sums = (zeros,) * math.prod(w.size for w in spec.windows)
    sums = step(0, sums) if single else lax.fori_loop(0, sets * steps, step, sums)
    totals = jnp.sum(jnp.stack(sums), axis=range(1, len(rest) + 1))
    return list(groups.joined(jnp.swapaxes(totals, -1, -2)))


def _block(dy: jax.Array, axis: int, inputs: int, together: bool) -> tuple[int, int]:
    """How many examples and how many rows of each a block has.

    Each error meets so many inputs: their products are what several examples add to
    what is written. Rows are added in the code, each a term to compile. Examples that
    devices share stay `together`.
    """
    examples, length = dy.shape[0], dy.shape[axis]
    row = max(dy.size // max(examples * length, 1), 1)
    if not together:
        most = max(_BLOCK // (row * max(length, 1) * inputs), 1)
        equal = (n for n in range(min(most, examples), 0, -1) if examples % n == 0)
        examples = next(equal, examples)
    rows = max(_BLOCK // (row * max(examples, 1)), 1)
    if dy.ndim - axis > 2:
        rows = min(rows, _ROWS)
    return examples, -(-length // max(-(-length // rows), 1))


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
