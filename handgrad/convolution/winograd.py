"""Winograd's minimal filtering F(m×m, 3×3): fewer products, by interpolation.

Two polynomials of m and 3 coefficients are multiplied by evaluating both at m + 2
points, multiplying value by value, and interpolating; m + 2 products do the work of 3m.
Transposed, the same three maps compute m neighbouring outputs of a three-place
correlation. With V_n the Vandermonde matrix of the points and n columns (the last point
is ∞),

    Aᵀ = V_mᵀ,   G = D⁻¹ V_3,   Bᵀ = D V_{m+2}⁻ᵀ,       y = Aᵀ[(G k) ⊙ (Bᵀ x)]

for any diagonal D. In two dimensions each map acts on rows and columns, on tiles of
m + 2 pixels that overlap by two; the channels are contracted by one matrix product for
each of the (m+2)² points:

    y  = Aᵀ[(G k Gᵀ) ⊙ (Bᵀ x B)]A

Every step is linear, so the gradients are its transposes in reverse order:

    dk = Gᵀ[Σ_tiles (Bᵀ x B) ⊙ (A dy Aᵀ)]G
    dx = y's own algorithm with the kernel turned by 180° (FORMULAS A3)

The points decide the rounding. D makes Bᵀ the coefficients of Π_{j≠i}(z − z_j), exact
in binary like A. With random numbers the rounding of output i is amplified

    γ_i = √(Σ_j (Aᵀ_ij ‖Bᵀ_j‖ ‖G_j‖)² / 3)

times in each dimension, and the points that keep the largest γ small are taken: for
m = 4, 0, ±11/16 and ±23/16 give 2.7 where the usual 0, ±1, ±2 give 5.6. In float32 that
is 2 to 3 times the error of XLA's convolution, with the channels summed in chains of 64
(in one chain of 256 it is 4 to 5 times); m = 2 errs no more than XLA's. All pixels of a
tile mix: a huge one costs its neighbours their last digits, and an infinity or NaN
spreads over the tile.

One block of rows of tiles after the other goes through all three steps, so that its
values at the points stay in the cache.

Source: Lavin & Gray 2016, arXiv:1509.09308; Winograd 1980, "Arithmetic complexity of
computations", ch. V; on points: Barabasz et al. 2018, arXiv:1803.10986; FORMULAS B6.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from handgrad import arguments, sharding
from handgrad.buffers import written_down, zero_after
from handgrad.convolution import blocks
from handgrad.convolution.spec import ConvSpec
from handgrad.windows import Window

_POINTS = {2: (0, 1, -1), 4: (0, 11 / 16, -11 / 16, 23 / 16, -23 / 16)}  # and ∞
# So many tiles go through the steps together, with few channels fewer: more fill more
# than the 32 MiB that the C library keeps from call to call.
_TILES = 400


@functools.cache
def matrices(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns Aᵀ [m, m+2], G [m+2, 3] and Bᵀ [m+2, m+2]."""
    points = _POINTS[m]

    def vandermonde(columns: int) -> np.ndarray:
        infinity = [0.0] * (columns - 1) + [1.0]
        return np.array([*([z**j for j in range(columns)] for z in points), infinity])

    others = [[z for z in points if z != each] for each in points]
    bt = np.zeros((m + 2, m + 2))
    for row, roots in zip(bt, [*others, points], strict=True):
        row[: len(roots) + 1] = np.polynomial.polynomial.polyfromroots(roots)
    at_points = zip(points, others, strict=True)
    d = [*(math.prod(z - w for w in rest) for z, rest in at_points), 1.0]
    return vandermonde(m).T, vandermonde(3) / np.array(d)[:, None], bt


@dataclasses.dataclass(frozen=True)
class Winograd:
    """The formula with tiles of m outputs in each dimension.

    Attributes:
      m: outputs of a tile along one dimension, 2 or 4.
      rounding: how many times as much as others it may round.
      chain: how many channels are summed in one chain.
    """

    m: int
    rounding: float
    chain: int

    def unsuitable(self, spec: ConvSpec) -> str | None:
        """Its points are those of three neighbouring places."""
        name = f"Winograd's F({self.m}×{self.m}, 3×3)"
        if spec.feature_group_count > 1:
            return f"{name} does one group, not {spec.feature_group_count}"
        sizes = tuple(w.size for w in spec.windows)
        if not sizes or set(sizes) != {3}:
            return f"{name} does kernels of 3 places in each dimension, not {sizes}"
        if any(w.stride * w.dilation * w.input_dilation > 1 for w in spec.windows):
            return f"{name} does neither strides nor dilations"
        if not jnp.issubdtype(spec.dtype, jnp.floating):
            return f"{name} does floating dtypes, not {spec.dtype}"
        return None

    def forward(self, x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
        """y = Aᵀ[(G k Gᵀ) ⊙ (Bᵀ x B)]A: [z t c] [z c o] -> [z t o] at tiles t."""
        _, g, _ = matrices(self.m)
        return self._filter(x, self._kernel_at_points(g, kernel), spec)

    def input_gradient(self, dy: jax.Array, kernel: jax.Array, spec: ConvSpec):
        """dx: the same of dy, the kernel turned: [z t o] [z o c] -> [z t c].

        G with its columns turned meets the kernel as it is, its channels exchanged.
        """
        _, g, _ = matrices(self.m)
        windows = tuple(
            Window(w.output, 3, 1, 2 - w.low, w.input + w.low - w.output)
            for w in spec.windows
        )
        other = dataclasses.replace(
            spec,
            windows=windows,
            preferred_element_type=None,
            x_sharding=spec.y_sharding,
            y_sharding=spec.x_sharding,
        )
        exchanged = written_down(jnp.swapaxes(kernel, -1, -2), after=dy)
        return self._filter(dy, self._kernel_at_points(g[:, ::-1], exchanged), other)

    def _kernel_at_points(self, g: np.ndarray, kernel: jax.Array) -> jax.Array:
        """G k Gᵀ: [k l c o] -> [z c o], in the wide dtype."""
        kernel = kernel.astype(arguments.accumulator(kernel.dtype))
        dimensions = kernel.ndim - 2
        for i in range(dimensions):
            kernel = _apply(g, _unstack(kernel, i), axis=0)
        return sharding.merge(kernel, 0, dimensions)

    def _filter(self, x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
        """Aᵀ[kernel ⊙ (Bᵀ x B)]A.

        Channels are summed in chains of `chain`: a long chain rounds more.
        """
        at, _, bt = matrices(self.m)
        dimensions = len(spec.windows)
        size = kernel.shape[-1]
        steps = self._steps(x.shape[0], max(kernel.shape[-2:]), spec)
        image = self._image(x, steps, spec)
        chains = [
            (start, min(start + self.chain, x.shape[-1]))
            for start in range(0, max(x.shape[-1], 1), self.chain)
        ]
        kernels = lax.optimization_barrier(
            [lax.slice_in_dim(kernel, *chain, axis=-2) for chain in chains]
        )
        where = spec.y_sharding or sharding.rearranged(
            spec.x_sharding, (*range(x.ndim - 1), None)
        )

        def step(i: jax.Array, y: jax.Array) -> jax.Array:
            tiles = [
                self._at_points(bt, image[..., slice(*chain)], i, steps)
                for chain in chains
            ]
            terms = (
                jnp.einsum(
                    "ztc,zco->zto",
                    _flat(tile, dimensions),
                    kernel,
                    precision=spec.precision,
                    out_sharding=sharding.rearranged(where, (None, 0, -1)),
                )
                for tile, kernel in zip(tiles, kernels, strict=True)
            )
            products = functools.reduce(jnp.add, terms)
            shape = tiles[0].shape
            products = sharding.split(products, 1, shape[dimensions:-1])
            products = sharding.split(products, 0, shape[:dimensions])
            for d in reversed(range(dimensions)):
                products = lax.optimization_barrier(products)
                products = _apply(at, _unstack(products, 0), axis=2 * d + 2)
                products = sharding.merge(products, 2 * d + 1, 2 * d + 3)
            start = i * products.shape[1]
            return lax.dynamic_update_slice_in_dim(y, products, start, axis=1)

        pixels = [h - 2 for h in image.shape[1:-1]]
        shape = (x.shape[0], *pixels, size)
        if where is None and x.shape[-1]:
            # Any numbers will do, each is written over. Zeros would be one buffer for
            # all layers of this shape, which lives as long as the first to the last.
            # Without channels there are none, and zeros are the result.
            y = image[(slice(None), *(slice(h) for h in pixels), slice(1))]
            y = jnp.broadcast_to(y, shape)
        else:
            y = sharding.zeros(shape, image.dtype, where, like=(x, kernel))
        y = lax.fori_loop(0, steps, step, y)
        for i, w in enumerate(spec.windows):
            y = lax.slice_in_dim(y, 0, w.output, axis=1 + i)
        return y.astype(spec.preferred_element_type or x.dtype)

    def kernel_gradient(self, x: jax.Array, dy: jax.Array, spec: ConvSpec):
        """dk = Gᵀ[Σ (Bᵀ x B) ⊙ (A dy Aᵀ)]G: [z t c] [z t o] -> [z c o] at tiles t."""
        at, g, bt = matrices(self.m)
        dimensions = len(spec.windows)
        steps = self._steps(x.shape[0], max(x.shape[-1], dy.shape[-1]), spec)
        image = self._image(x, steps, spec, after=dy)
        errors = dy.astype(image.dtype)
        room = zip(image.shape[1:-1], spec.windows, strict=True)
        errors = _pad(errors, [(0, h - 2 - w.output) for h, w in room])
        where = sharding.rearranged(spec.kernel_sharding, (None, -2, -1))

        def step(i: jax.Array, dkernel: jax.Array) -> jax.Array:
            return dkernel + jnp.einsum(
                "ztc,zto->zco",
                _flat(self._at_points(bt, image, i, steps), dimensions),
                _flat(self._at_points(at.T, errors, i, steps), dimensions),
                precision=spec.precision,
                out_sharding=where,
            )

        points = (self.m + 2,) * dimensions
        shape = (math.prod(points), x.shape[-1], dy.shape[-1])
        dkernel = sharding.zeros(shape, image.dtype, where, like=(x, dy))
        dkernel = lax.fori_loop(0, steps, step, dkernel)
        dkernel = sharding.split(dkernel, 0, points)
        for i in reversed(range(dimensions)):  # [u v c o] -> [k l c o]
            dkernel = _apply(g.T, _unstack(dkernel, 0), axis=i)
        return dkernel.astype(x.dtype)

    def _steps(self, examples: int, channels: int, spec: ConvSpec) -> int:
        """Into how many blocks the rows of tiles fall.

        The tiles of a block are enough for a good matrix product, and more than the
        channels: each block reads the kernel's points, or adds to them, once.
        """
        rows, *others = (-(-w.output // self.m) for w in spec.windows)
        tiles = max(min(_TILES, 6 * channels), 2 * channels)
        at_once = -(-tiles // max(examples * math.prod(others), 1))
        return blocks.count(rows, at_once)

    def _image(
        self, x: jax.Array, steps: int, spec: ConvSpec, after: jax.Array | None = None
    ) -> jax.Array:
        """x, padded to whole blocks of tiles and two pixels more, in the wide dtype.

        Interpolation cancels: bfloat16 would have no digits left.
        """
        tiles = [-(-w.output // self.m) for w in spec.windows]
        tiles[0] = steps * -(-tiles[0] // steps) if steps else 0
        sizes = (self.m * t + 2 for t in tiles)
        room = zip(sizes, spec.windows, strict=True)
        x = x.astype(arguments.accumulator(x.dtype))
        pairs = [(w.low, h - w.low - w.input) for h, w in room]
        return _pad(x, pairs, None if after is None else zero_after(after, x.dtype))

    def _at_points(
        self, matrix: np.ndarray, image: jax.Array, block: jax.Array, steps: int
    ) -> jax.Array:
        """Bᵀ x B, or A dy Aᵀ, of a block's tiles: [n h w c] -> [z z n i j c].

        The matrix's columns are the tile's pixels; the tiles are m apart.
        """
        reach = matrix.shape[1]
        halo = reach - self.m
        rows = (image.shape[1] - halo) // steps
        x = lax.dynamic_slice_in_dim(image, block * rows, rows + halo, axis=1)
        for i in range(image.ndim - 2):
            axis = 2 * i + 1
            last = x.shape[axis] - reach
            views = [
                lax.slice_in_dim(x, j, j + last + 1, self.m, axis) for j in range(reach)
            ]
            # Without the barrier each point's product would map the tiles anew.
            x = lax.optimization_barrier(_apply(matrix, views, axis=0))
        return x


F2 = Winograd(2, rounding=1.0, chain=512)
F4 = Winograd(4, rounding=4.0, chain=64)


def _flat(x: jax.Array, dimensions: int) -> jax.Array:
    """[u v n i j c] -> [z t c]: of several axes XLA would turn the array over first."""
    x = sharding.merge(x, dimensions, x.ndim - 1)
    return sharding.merge(x, 0, dimensions)


def _pad(x: jax.Array, pairs: Sequence[tuple[int, int]], zero=None) -> jax.Array:
    config = [(0, 0, 0), *((low, high, 0) for low, high in pairs), (0, 0, 0)]
    zero = arguments.zero(x.dtype) if zero is None else zero
    return lax.optimization_barrier(lax.pad(x, zero, config))


def _apply(matrix: np.ndarray, views: Sequence[jax.Array], axis: int) -> jax.Array:
    """Σ_j matrix[i, j] · views[j], stacked over i."""

    def term(factor: float, view: jax.Array) -> jax.Array:
        return view if factor == 1 else view * np.asarray(factor, view.dtype)

    def combine(row: np.ndarray) -> jax.Array:
        terms = (term(f, v) for f, v in zip(row, views, strict=True) if f)
        return functools.reduce(jnp.add, terms)

    return jnp.stack([combine(row) for row in matrix], axis)


def _unstack(x: jax.Array, axis: int) -> list[jax.Array]:
    """The slices along an axis."""
    return [lax.index_in_dim(x, i, axis, False) for i in range(x.shape[axis])]
