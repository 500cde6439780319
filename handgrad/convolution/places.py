"""The places of a kernel: what every window sees at each of them.

What all places read and what they add up to is written down once: fused into the loops
that read it, it would be computed anew in each.
"""

import functools
from collections.abc import Iterator

import jax

from handgrad import windows
from handgrad.buffers import written_down
from handgrad.convolution.spec import ConvSpec


def once(x: jax.Array, spec: ConvSpec) -> jax.Array:
    """x, written down if there are places that read it or that it is the sum of."""
    return written_down(x) if spec.places > 1 else x


def views(x: jax.Array, spec: ConvSpec) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """Each place with the pixel that every window sees there, [n p q c]."""
    found = windows.views(x, spec.windows, once=functools.partial(once, spec=spec))
    return zip(windows.places(spec.windows), found, strict=True)
