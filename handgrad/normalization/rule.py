"""Norms: `x̂ = (x − μ) r`, `y = γ x̂ + β`, with `r = 1/√(σ² + ε)`.

Batch, layer, group, instance and RMS norm differ in the axes over which μ and σ² are
means, and in nothing else. With g = γ dy (dy where a fused relu let it through):

    dβ = Σ dy,   dγ = Σ dy ⊙ x̂,   dx = r [g − mean(g) − x̂ ⊙ mean(g ⊙ x̂)]

from ∂μ/∂x_i = 1/n and ∂r/∂x_i = −r² x̂_i / n; and dε = −½ Σ r² Σ g ⊙ x̂. The statistics
are outputs, too, for running averages; their own cotangents add
dμ/n + 2 (x − μ) dσ²/n. RMS norm drops the centring and its mean.

Kept are x and two numbers a statistic, μ and r; x̂ and the relu's mask are computed
anew, which costs less than to read them. All sums are float32 at least. Both directions
are jitted: the layers of one shape are traced once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments, reductions, sharding
from handgrad.rules import RULES, register

_SOURCE = "FORMULAS B8: dx = r [g − mean(g) − x̂ mean(g x̂)]"


@dataclasses.dataclass(frozen=True)
class NormSpec:
    """The static part of a norm.

    Attributes:
      axes: the axes that the statistics are means over.
      centred: whether the mean is subtracted.
      relu: whether a relu follows within the rule.
      axis_name: mesh axis or axes over which the statistics are means as well.
    """

    axes: tuple[int, ...]
    centred: bool = True
    relu: bool = False
    axis_name: str | tuple[str, ...] | None = None

    def across(self, x):
        """The mean over the devices, if the statistics are shared."""
        return x if self.axis_name is None else lax.pmean(x, self.axis_name)


def _wide(x):
    return x.astype(arguments.accumulator(x.dtype))


def _count(x, where, spec):
    """How many elements a statistic is a mean of."""
    if where is None:
        return max(math.prod(x.shape[i] for i in spec.axes), 1)
    return jnp.sum(where.astype(x.dtype), spec.axes, keepdims=True)


def _statistics(x, where, spec):
    """μ and σ² in one pass over x, or in two where a row is read at once.

    E[x²] − μ² would lose the digits that μ and σ differ by. So x is shifted first, by
    the mean of a few of its elements, which costs nothing: it fuses.
    """
    count = _count(x, where, spec)
    kept = x if where is None else jnp.where(where, x, 0)
    if not spec.centred:
        return None, spec.across(reductions.total(lax.square(kept), spec.axes) / count)
    if spec.axes == (x.ndim - 1,):
        local = mean = reductions.total(kept, spec.axes) / count
        centred = x - mean if where is None else jnp.where(where, x - mean, 0)
        variance = reductions.total(lax.square(centred), spec.axes) / count
    else:
        shift = lax.stop_gradient(_shift(kept, spec.axes))
        centred = x - shift if where is None else jnp.where(where, x - shift, 0)
        sums = reductions.two_totals(centred, lax.square(centred), spec.axes)
        offset, square = (total / count for total in sums)
        local = mean = shift + offset
        variance = jnp.maximum(square - lax.square(offset), 0)
    if spec.axis_name is not None:  # of means: their distance counts as well
        mean = spec.across(local)
        variance = spec.across(variance + lax.square(local - mean))
    return mean, variance


def _shift(x, axes):
    """The mean over the innermost axis but the last, at the others' beginning."""
    if x.size == 0:
        return jnp.zeros((), x.dtype)
    inner = max((i for i in axes if i != x.ndim - 1), default=0)
    where = sharding.of(x)
    for axis in axes:
        # Under an explicit mesh no device has the beginning alone.
        if axis not in (inner, x.ndim - 1) and not (where and where.spec[axis]):
            x = lax.slice_in_dim(x, 0, 1, axis=axis)
    return jnp.mean(x, axes, keepdims=True)


def _affine(x, mean, r, scale, bias):
    """γ (x − μ) r + β."""
    y = x if mean is None else x - mean
    y *= r if scale is None else r * _wide(scale)
    return y if bias is None else y + _wide(bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
@functools.partial(jax.jit, static_argnums=5)
def _normalize(x, scale, bias, epsilon, where, spec):
    wide = _wide(x)
    mean, variance = _statistics(wide, where, spec)
    y = _affine(wide, mean, lax.rsqrt(variance + epsilon), scale, bias)
    if spec.relu:
        y = jnp.maximum(y, 0)
    return y.astype(x.dtype), mean, variance


def _normalize_fwd(x, scale, bias, epsilon, where, spec):
    y, mean, variance = _normalize(x, scale, bias, epsilon, where, spec)  # type: ignore[misc]
    r = lax.rsqrt(variance + epsilon)
    residuals = (x, mean, r, scale, bias, where)  # x̂ = (x − μ) r
    return (y, mean, variance), residuals


@functools.partial(jax.jit, static_argnums=0)
def _normalize_bwd(spec, residuals, cotangents):
    """dx = r [g − mean(g) − x̂ mean(g x̂)] + dμ/n + 2 (x − μ) dσ²/n, g = γ dy."""
    x, mean, r, scale, bias, where = residuals
    dy, dmean, dvariance = cotangents
    wide, dy, count = _wide(x), _wide(dy), _count(_wide(x), where, spec)
    if spec.relu:
        dy = jnp.where(_affine(wide, mean, r, scale, bias) > 0, dy, 0)
    normal = (wide if mean is None else wide - mean) * r
    product = dy * normal
    gamma = 1 if scale is None else _wide(scale)
    g = gamma * dy
    if all(p is None or _broadcasts(p, x, spec.axes) for p in (scale, bias)):
        # γ and β are the same for all of a mean: their sums serve the mean, too.
        sums = reductions.two_totals(dy, product, spec.axes)
        total_g, total_g_normal = (gamma * total for total in sums)
    else:
        total_g, total_g_normal = reductions.two_totals(g, g * normal, spec.axes)
        sums = dy, product
    dbias, dscale = _parameters(*sums, bias, scale)
    devices = 1 if spec.axis_name is None else lax.axis_size(spec.axis_name)
    count_of_all = count * devices
    along = spec.across(total_g_normal) / count
    along -= 2 * dvariance / (lax.square(r) * count_of_all)
    away = along * normal
    if mean is not None:
        away += spec.across(total_g) / count - dmean / (r * count_of_all)
    if where is not None:  # the others are normalised, but no part of the statistics
        away = jnp.where(where, away, 0)
    dx = r * (g - away)
    depsilon = jnp.sum(-0.5 * lax.square(r) * total_g_normal)
    return dx.astype(x.dtype), dscale, dbias, depsilon, None


def _broadcasts(parameter, x, axes):
    """Whether γ, or β, is the same number along all the axes of a mean."""
    return all(parameter.shape[i] == 1 or x.shape[i] == 1 for i in axes)


def _parameters(dy, product, bias, scale):
    """dβ = Σ dy and dγ = Σ dy x̂ over the axes along which β and γ have one entry."""
    like = bias if scale is None else scale
    if like is None:
        return None, None
    axes = [i for i, n in enumerate(like.shape) if n == 1 and dy.shape[i] != 1]
    sums = reductions.two_totals(dy, product, tuple(axes)) if axes else (dy, product)
    return tuple(
        None if parameter is None else total.astype(parameter.dtype)
        for total, parameter in zip(sums, (bias, scale), strict=True)
    )


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


def _autodiff_normalize(x, scale, bias, epsilon, where, spec):
    """As Flax has it: E[x²] − μ², both in one fusion."""
    wide = _wide(x)
    mean = None
    variance = jnp.mean(lax.square(wide), spec.axes, keepdims=True, where=where)
    if spec.centred:
        mean = spec.across(jnp.mean(wide, spec.axes, keepdims=True, where=where))
        variance = jnp.maximum(spec.across(variance) - lax.square(mean), 0)
    else:
        variance = spec.across(variance)
    y = _affine(wide, mean, lax.rsqrt(variance + epsilon), scale, bias)
    if spec.relu:
        y = jax.nn.relu(y)
    return y.astype(x.dtype), mean, variance


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
@functools.partial(jax.jit, static_argnums=5)
def _rescale(x, scale, bias, mean, variance, spec):
    """The norm with statistics that were given; ε is part of this variance."""
    y = _affine(_wide(x), mean, lax.rsqrt(variance), scale, bias)
    return (jnp.maximum(y, 0) if spec.relu else y).astype(x.dtype)


def _rescale_fwd(x, scale, bias, mean, variance, spec):
    residuals = (x, scale, bias, mean, variance)
    return _rescale(x, scale, bias, mean, variance, spec), residuals


@functools.partial(jax.jit, static_argnums=0)
def _rescale_bwd(spec, residuals, dy):
    """dx = r g,  dμ = −Σ r g,  dσ² = −½ Σ r² g x̂, and dγ, dβ as above."""
    x, scale, bias, mean, variance = residuals
    wide, dy, r = _wide(x), _wide(dy), lax.rsqrt(variance)
    if spec.relu:
        dy = jnp.where(_affine(wide, mean, r, scale, bias) > 0, dy, 0)
    gamma = 1 if scale is None else _wide(scale)
    sums = reductions.two_totals(dy, dy * ((wide - mean) * r), spec.axes)
    dbias, dscale = _parameters(*sums, bias, scale)
    dmean, dvariance = -gamma * r * sums[0], -0.5 * gamma * lax.square(r) * sums[1]
    return (gamma * r * dy).astype(x.dtype), dscale, dbias, dmean, dvariance


_rescale.defvjp(_rescale_fwd, _rescale_bwd)


def _norm(x, scale, bias, epsilon, where, given, spec):
    if given is None:
        return _normalize(x, scale, bias, epsilon, where, spec)
    mean, variance = given
    return _rescale(x, scale, bias, mean, variance + epsilon, spec), *given


def _autodiff_norm(x, scale, bias, epsilon, where, given, spec):
    if given is None:
        return _autodiff_normalize(x, scale, bias, epsilon, where, spec)
    mean, variance = given
    y = _affine(_wide(x), mean, lax.rsqrt(variance + epsilon), scale, bias)
    return (jax.nn.relu(y) if spec.relu else y).astype(x.dtype), mean, variance


for _op, _source in {
    "batch_norm": "Ioffe & Szegedy 2015, arXiv:1502.03167, and " + _SOURCE,
    "layer_norm": "Ba et al. 2016, arXiv:1607.06450, and " + _SOURCE,
    "group_norm": "Wu & He 2018, arXiv:1803.08494, and " + _SOURCE,
    "instance_norm": "Ulyanov et al. 2016, arXiv:1607.08022, and " + _SOURCE,
    "rms_norm": "Zhang & Sennrich 2019, arXiv:1910.07467, and " + _SOURCE,
    "standardize": _SOURCE,
}.items():
    register(_op, source=_source, autodiff=_autodiff_norm)(_norm)


def compute(
    op: str,
    x: jax.Array,
    spec: NormSpec,
    epsilon: Any,
    implementation: str | None,
    *,
    features: tuple[int, ...] = (),
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    where: jax.Array | None = None,
    given: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Checks what is left to check and computes y and the statistics.

    Args:
      op: the op's public name.
      x: its checked input.
      spec: the static part.
      epsilon: added to the variance.
      implementation: which formula.
      features: the axes that the entries of γ and β belong to.
      scale: γ.
      bias: β.
      where: which elements are part of the statistics.
      given: mean and variance, if they are not to be computed.
    """
    shape = tuple(x.shape[i] for i in features)
    others = tuple(i for i in range(x.ndim) if i not in features)

    def parameter(name, value):
        if value is None:
            return None
        value = arguments.array(op, name, value, kind="floating")
        arguments.require(
            value.shape == shape,
            op,
            f"{name} must have shape {shape}, one number for each feature of x "
            f"{x.shape}, got shape {value.shape}",
        )
        return lax.expand_dims(value, others)

    scale, bias = parameter("scale", scale), parameter("bias", bias)
    where = arguments.mask(op, "where", where, x.shape)
    epsilon = arguments.array(op, "epsilon", epsilon)
    arguments.require(
        epsilon.ndim == 0, op, f"epsilon must be a number, got shape {epsilon.shape}"
    )
    epsilon = epsilon.astype(arguments.accumulator(x.dtype))
    mean, variance = given or (None, None)
    x, scale, bias, epsilon, where, mean, variance = sharding.align(
        x, scale, bias, epsilon, where, mean, variance
    )
    given = given and (mean, variance)
    rule = RULES[op].choose(implementation)
    return rule(x, scale, bias, epsilon, where, given, spec)


def given_statistics(
    op: str, mean: Any, variance: Any, expand: Callable[[str, jax.Array], jax.Array]
) -> Any:
    """Given statistics, `expand`ed to x's rank, at least float32; both or neither."""
    arguments.require(
        (mean is None) == (variance is None),
        op,
        "mean and variance must be given together",
    )
    if mean is None:
        return None
    names = {"mean": mean, "variance": variance}
    arrays = [arguments.array(op, n, a, kind="floating") for n, a in names.items()]
    return tuple(expand(n, _wide(a)) for n, a in zip(names, arrays, strict=True))


def result(outputs: Any, axes: tuple[int, ...], return_statistics: bool) -> Any:
    """y, or y and the statistics without the axes that they are means over."""
    y, *statistics = outputs
    if not return_statistics:
        return y
    return y, *(a if a is None else lax.squeeze(a, axes) for a in statistics)
