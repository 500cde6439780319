"""Groups of few channels, depthwise in groups of one: products number by number.

A group's matrix at one place of the kernel is a few numbers, and no engine for matrix
products is at its best. With the groups g side by side the sum over the places is
elementwise, so that a vector register holds one number of each group and no
multiplication is in vain:

    y[g,o]             = Σ_kl Σ_c x[k,l,c,g] · kernel[k,l,c,g,o]
    dx[g,c]            = Σ_kl Σ_o dy[o,g] · kernel[k,l,o,g,c], shifted back
    dkernel[k,l,c,o,g] = Σ_npq x[k,l,c,g] · dy[o,g]

What is read is turned to have the groups last; what is computed comes as it is wanted.
It is how `taps` does such groups. Source: FORMULAS B3.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, sharding, windows
from handgrad.buffers import written_down, zero_after
from handgrad.convolution import blocks, groups, places
from handgrad.convolution.spec import ConvSpec

# Each channel of a group at each place is a term; of more LLVM makes no vectors.
_MOST_TERMS = 75
# Errors of a block: they and the pixels under them fit the cache of a core.
_BLOCK = 2**16
# Each row of a block is a term, too; sums of so many are written seldom enough.
_ROWS = 8


def knows(channels: tuple[int, ...], spec: ConvSpec) -> bool:
    """Whether groups of kernels [..., C/G, O] have so few inputs and outputs."""
    count = spec.feature_group_count
    if channels == (1, count):
        return True
    each = channels[0], channels[1] // count
    few = min(each) > 0 and max(each) * spec.places <= _MOST_TERMS
    return few and not groups.unsuitable("taps", spec)


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y = Σ_kl x[k,l] · kernel[k,l]: [n p q c g] [c g o] -> [n p q g o] a place."""
    dtype = spec.preferred_element_type or x.dtype
    kernel = groups.parted(kernel, spec.feature_group_count)
    views = places.views(_channel_by_channel(x, spec), spec)
    terms = (_of_all_groups(view, kernel[place], dtype) for place, view in views)
    y = functools.reduce(jnp.add, terms).astype(dtype)
    return places.once(groups.joined(y), spec)


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx = Σ_kl dy · kernel[k,l]ᵀ: [n p q o g] [o g c] -> [n p q g c] a place."""
    kernel = groups.parted(kernel, spec.feature_group_count)
    kernel = jnp.swapaxes(kernel, -3, -1)
    if kernel.shape[-3] > 1:  # else it lies there as it is
        kernel = written_down(kernel, after=dy)

    def term(place, errors):
        return _of_all_groups(errors, kernel[place], dy.dtype)

    dx = windows.spread_views(term, _channel_by_channel(dy, spec), spec.windows)
    return places.once(groups.joined(dx.astype(dy.dtype)), spec)


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel[k,l] = Σ_npq x[k,l] ⊙ dy, all places in one pass over both arrays.

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
        total = jnp.sum(products(x, dy), axis=0).astype(x.dtype)
        return groups.joined(jnp.swapaxes(total, -1, -2))
    if (parts := windows.parts_of_rows(spec.windows)) > 1:
        dy = sharding.split(dy, 1, (parts, dy.shape[1] // parts))
    axis, where = dy.ndim - 1 - len(spec.windows), sharding.of(dy)
    together = where is not None or sharding.may_be_split()
    examples, rows = _block(dy, axis, channels[0], together)
    sets = max(dy.shape[0] // max(examples, 1), 1)
    steps = max(-(-dy.shape[axis] // max(rows, 1)), 1)
    single = sets * steps == 1
    if single:  # what a loop reads is written down anyway
        dy = places.once(dy, spec)
    image, described, _ = windows.padded_parts(x, spec.windows, zero_after(dy, x.dtype))
    first, *others = described
    more = steps * rows - dy.shape[axis]
    dy = blocks.longer(dy, more, axis)
    if single and image is x:
        image = places.once(x, spec)
    else:
        image = blocks.longer(image, more * first.stride, axis)
        image, dy = lax.optimization_barrier((image, dy))
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
        return tuple(
            added(total, windows.view(seen, place, described), errors)
            for total, place in zip(sums, windows.places(described), strict=True)
        )

    rest = (*range(axis), *range(axis + 1, dy.ndim - 1))
    where = sharding.rearranged(where, (*rest, None, None, -1))
    shape = (examples, *(dy.shape[i] for i in rest[1:]), *channels, count)
    zeros = sharding.zeros(shape, wide, where, like=(x, dy))
    sums = (zeros,) * spec.places
    sums = step(0, sums) if single else lax.fori_loop(0, sets * steps, step, sums)
    totals = jnp.sum(jnp.stack(sums), axis=range(1, len(rest) + 1))
    dkernel = groups.joined(jnp.swapaxes(totals, -1, -2)).astype(x.dtype)
    return sharding.split(dkernel, 0, tuple(w.size for w in spec.windows))


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
    all_at_once = length <= min(rows, 2 * _ROWS)
    if dy.ndim - axis > 2 and not all_at_once:
        rows = min(rows, _ROWS)
    return examples, -(-length // max(-(-length // rows), 1))


def _channel_by_channel(x: jax.Array, spec: ConvSpec) -> jax.Array:
    """[... g·c] -> [... c·g]: of each channel all groups, side by side."""
    count = spec.feature_group_count
    if x.shape[-1] == count:
        return x
    return groups.joined(jnp.swapaxes(groups.parted(x, count), -1, -2))


def _of_all_groups(x: jax.Array, matrices: jax.Array, dtype) -> jax.Array:
    """[... c·g] [c g o] -> [... g o], in at least float32."""
    wide = arguments.accumulator(dtype)
    inputs, *rest = matrices.shape
    matrices = matrices.astype(wide).reshape(inputs, *(1 for _ in x.shape[1:]), *rest)
    channels = jnp.split(x.astype(wide), inputs, -1)
    terms = (
        jnp.expand_dims(channel, -1) * matrix
        for channel, matrix in zip(channels, matrices, strict=True)
    )
    return functools.reduce(jnp.add, terms)
