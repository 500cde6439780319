"""Groups of as many outputs as inputs, few of each: the inputs rotated in their groups.

With n channels in each group g, an output meets its group's inputs one after the other,
starting with its own. What all outputs meet at a time is a row of all channels as they
lie there, rotated by s within the groups, and one number of the kernel for each:

    y[g,o]  = Σ_kl Σ_s x[k,l,g,o+s] · kernel[k,l,o+s,g,o]                indices mod n
    dx[g,c] = Σ_kl Σ_s dy[g,c+s] · kernel[k,l,c,g,c+s], shifted back

A rotated row is one of two shifted ones, lane by lane: what `narrow` reads turned is
read as it lies there. The kernel's gradient is `narrow`'s. Source: FORMULAS B3.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, windows
from handgrad.buffers import written_down
from handgrad.convolution import groups, places
from handgrad.convolution.spec import ConvSpec

# Rotations of all places in one sum: of more LLVM makes no vector instructions.
_MOST_TERMS = 50


def knows(channels: tuple[int, ...], spec: ConvSpec) -> bool:
    """Whether groups of kernels [..., C/G, O] have so few inputs, and outputs alike."""
    inputs, outputs = channels
    alike = outputs == inputs * spec.feature_group_count
    few = inputs > 1 and spec.places > 1 and inputs * spec.places <= _MOST_TERMS
    return alike and few and not groups.unsuitable("taps", spec)


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y = Σ_kl x[k,l] · kernel[k,l]: [n p q g·c] [s g·o] -> [n p q g·o] a place."""
    dtype = spec.preferred_element_type or x.dtype
    factors = _by_rotation(groups.parted(kernel, spec.feature_group_count))
    views = places.views(_with_margins(x, factors.shape[-2]), spec)
    terms = (_product(view, factors[place], dtype) for place, view in views)
    return places.once(functools.reduce(jnp.add, terms).astype(dtype), spec)


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx = Σ_kl dy · kernel[k,l]ᵀ: [n p q g·o] [s g·c] -> [n p q g·c] a place."""
    kernel = groups.parted(kernel, spec.feature_group_count)
    factors = written_down(_by_rotation(jnp.swapaxes(kernel, -3, -1)), after=dy)

    def term(place, errors):
        return _product(errors, factors[place], dy.dtype)

    dx = windows.spread_views(term, _with_margins(dy, factors.shape[-2]), spec.windows)
    return places.once(dx.astype(dy.dtype), spec)


def _by_rotation(kernel: jax.Array) -> jax.Array:
    """[... c g o] -> [... s g·o]: for each o its number for c = o + s mod n."""
    n = kernel.shape[-1]
    kernel = jnp.expand_dims(kernel, -4)
    s, c, g, o = np.ogrid[:n, :n, :1, :n]
    meets = lax.broadcast_to_rank(c == (o + s) % n + g, kernel.ndim)
    return groups.joined(jnp.sum(jnp.where(meets, kernel, 0), -3, dtype=kernel.dtype))


def _with_margins(x: jax.Array, n: int) -> jax.Array:
    """As many more channels at both ends as a rotation of n shifts them."""
    config = [(0, 0, 0)] * (x.ndim - 1) + [(n - 1, n - 1, 0)]
    return lax.pad(x, arguments.zero(x.dtype), config)


def _rotated(x: jax.Array, n: int) -> list[jax.Array]:
    """The channels between the margins, rotated by s within their groups: [... g·c]."""
    channels = x.shape[-1] - 2 * (n - 1)
    own = np.arange(channels).reshape(*(1 for _ in x.shape[1:]), channels) % n

    def shifted(s: int) -> jax.Array:
        return lax.slice_in_dim(x, n - 1 + s, n - 1 + s + channels, axis=-1)

    others = (jnp.where(own + s < n, shifted(s), shifted(s - n)) for s in range(1, n))
    return [shifted(0), *others]


def _product(x: jax.Array, factors: jax.Array, dtype) -> jax.Array:
    """Σ_s x[..., rotated by s] ⊙ factors[s], in at least float32."""
    wide = arguments.accumulator(dtype)
    rows = _rotated(x, len(factors))
    factors = factors.astype(wide).reshape(len(rows), *(1 for _ in x.shape[1:]), -1)
    terms = (row.astype(wide) * each for row, each in zip(rows, factors, strict=True))
    return functools.reduce(jnp.add, terms)
