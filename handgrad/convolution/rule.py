"""Convolution: one trilinear form, three directions, each the others' derivative.

With any cotangent δ of the output, a convolution is the number

    T(x, kernel, δ) = Σ δ ⊙ conv(x, kernel),

linear in each of its three arguments. Its three partial derivatives are the layer's
three directions:

    ∂T/∂δ      = y        forward(x, kernel)
    ∂T/∂x      = dx       input_gradient(δ, kernel)
    ∂T/∂kernel = dkernel  kernel_gradient(x, δ)

Each of the three is bilinear in the two arguments that it has left, so the derivative
of one is made of the other two, and gradients of every order stay within them. A
*formula* (`rot180`, `gemm`, ...) is a module with these three functions;
`spec.formulas` says which module computes which direction.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from handgrad import arguments, sharding, windows
from handgrad import bias as _bias
from handgrad.buffers import postponed
from handgrad.convolution import (
    block_diagonal,
    choose,
    gemm,
    grouped,
    mec,
    phases,
    rot180,
    slices,
    taps,
    transposed,
    winograd,
)
from handgrad.convolution.geometry import Geometry
from handgrad.convolution.spec import ConvFormulas, ConvSpec, fills_the_cores
from handgrad.rules import RULES, Formula, register

FORMULAS: dict[str, ModuleType | winograd.Winograd] = {
    "rot180": rot180,
    "gemm": gemm,
    "taps": taps,
    "phases": phases,
    "transposed": transposed,
    "block_diagonal": block_diagonal,
    "grouped": grouped,
    "slices": slices,
    "mec": mec,
    "winograd": winograd.F4,
    "winograd_2x2": winograd.F2,
}


def _run(direction: str, a, b, spec: ConvSpec) -> jax.Array:
    """Computes one direction by the formula of the platform that lowering meets."""
    named = {platform: getattr(each, direction) for platform, each in spec.formulas}

    spec = dataclasses.replace(spec, formulas=())
    compute = {
        platform: _traced_once(
            getattr(FORMULAS[name], direction), spec, sharding.may_be_split()
        )
        for platform, name in named.items()
    }
    if len(set(named.values())) == 1:
        return compute["default"](a, b)
    return lax.platform_dependent(a, b, **compute)


@functools.lru_cache(maxsize=1024)
def _traced_once(compute: Callable[..., jax.Array], spec: ConvSpec, split: bool):
    """The formula; layers of one geometry share its trace, its lowering, its code."""
    del split  # among devices; the formula asks itself, but not twice

    def formula(a, b):
        return compute(a, b, spec)

    formula.__name__ = compute.__name__  # the direction, in a profile
    return jax.jit(formula)


def _bilinear(direction: str, a, b, spec: ConvSpec, dtype) -> jax.Array:
    """Runs one direction in the wider dtype of its arguments; the result is `dtype`."""
    wide = a.dtype
    if b.dtype != a.dtype:  # y has a preferred_element_type of its own
        accumulators = arguments.accumulator(a.dtype), arguments.accumulator(b.dtype)
        wide = max(accumulators, key=lambda dtype: dtype.itemsize)
    result = _run(direction, a.astype(wide), b.astype(wide), spec)
    return result.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, kernel, spec) -> jax.Array:
    dtype = spec.preferred_element_type or x.dtype
    return _bilinear("forward", x, kernel, spec, dtype)


def _conv_fwd(x, kernel, spec):
    # Bilinear: each is the other's derivative. The data's image asks for no error.
    residuals = (x.value, kernel.value, () if x.perturbed else None)
    return _conv(x.value, kernel.value, spec), residuals


def _conv_bwd(spec, residuals, dy):
    """dx = ∂T/∂x, dkernel = ∂T/∂kernel at δ = dy."""
    x, kernel, asked = residuals
    dx = jnp.asarray(_input_gradient(dy, kernel, spec))
    dkernel = jnp.asarray(_kernel_gradient(x, dy, spec))
    if asked is not None and fills_the_cores(dy, kernel):
        # One after the other: side by side they share the cache, and the update of a
        # donated kernel, which dx reads, would find it in use and leave it to a copy.
        dkernel = postponed(dkernel, after=dx)
    return dx, dkernel


_conv.defvjp(_conv_fwd, _conv_bwd, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _input_gradient(dy, kernel, spec):
    return _bilinear("input_gradient", dy, kernel, spec, kernel.dtype)


def _input_gradient_fwd(dy, kernel, spec):
    return _input_gradient(dy, kernel, spec), (dy, kernel)


def _input_gradient_bwd(spec, residuals, ddx):
    """The second order: T with ddx in the place of x."""
    dy, kernel = residuals
    ddy = jnp.astype(_conv(ddx, kernel, spec), dy.dtype)
    return ddy, _kernel_gradient(ddx, dy, spec)


_input_gradient.defvjp(_input_gradient_fwd, _input_gradient_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x, dy, spec):
    return _bilinear("kernel_gradient", x, dy, spec, x.dtype)


def _kernel_gradient_fwd(x, dy, spec):
    return _kernel_gradient(x, dy, spec), (x, dy)


def _kernel_gradient_bwd(spec, residuals, ddkernel):
    """The second order: T with ddkernel in the place of kernel."""
    x, dy = residuals
    ddy = jnp.astype(_conv(x, ddkernel, spec), dy.dtype)
    return _input_gradient(dy, ddkernel, spec), ddy


_kernel_gradient.defvjp(_kernel_gradient_fwd, _kernel_gradient_bwd)

COMPUTE = {
    "forward": _conv,
    "input_gradient": _input_gradient,
    "kernel_gradient": _kernel_gradient,
}


def _with_formulas(*formulas: tuple[str, ConvFormulas]):
    def core(x, kernel, spec):
        return _conv(x, kernel, dataclasses.replace(spec, formulas=formulas))

    return core


def _best(spec: ConvSpec):
    def core(x, kernel, spec):
        geometry = Geometry(x.shape, kernel.shape, spec)
        return _with_formulas(*choose.formulas(geometry))(x, kernel, spec)

    del spec  # the choice needs the arrays' shapes, too
    return core


def _unsuitable(name: str, module: Any, spec: ConvSpec) -> str | None:
    """Why a formula cannot do this convolution, or `None` if it can.

    Of pixels that are split over devices XLA's own convolution exchanges the halos. The
    others pad and cut, which JAX does of an explicitly split axis for some sizes only.
    """
    if name != "rot180" and spec.splits_pixels:
        return f"'{name}' does no pixels that an explicit mesh splits"
    return module.unsuitable(spec)


def register_rule(op: str) -> None:
    """Registers a public op that computes by this rule."""
    register(
        op,
        source="the article, A3 and A5; every geometry: FORMULAS B1",
        autodiff=rot180.forward,
        formulas={
            name: Formula(
                _with_formulas(("default", ConvFormulas(name, name, name))),
                functools.partial(_unsuitable, name, module),
                getattr(module, "rounding", 1.0),
            )
            for name, module in FORMULAS.items()
        },
        best=_best,
    )(_conv)


def choose_formulas(op: str, implementation: str | ConvFormulas | None, spec: ConvSpec):
    """The core that computes as `implementation` asks; see `handgrad.conv`."""
    if not isinstance(implementation, ConvFormulas):
        return RULES[op].choose(implementation, spec)
    for name in dataclasses.astuple(implementation):
        arguments.require(
            name in list(FORMULAS),
            op,
            f"implementation (={name!r}) must be one of "
            f"{', '.join(map(repr, FORMULAS))} in a ConvFormulas",
        )
        RULES[op].choose(name, spec)  # raises where the formula is unsuitable
    return _with_formulas(("default", implementation))


def check_channels(op: str, channels: int, kernel: tuple, groups: int) -> None:
    """Raises `ValueError` unless image, kernel [K, L, C/G, O] and groups G fit."""
    arguments.integer(op, "feature_group_count", groups)
    arguments.require(
        channels % groups == 0,
        op,
        f"feature_group_count (={groups}) must divide the {channels} input channels",
    )
    arguments.require(
        kernel[-2] * groups == channels,
        op,
        f"kernel {kernel} must have {channels // groups} input channels, those of x "
        f"(={channels}) divided by feature_group_count (={groups})",
    )
    arguments.require(
        kernel[-1] % groups == 0,
        op,
        f"feature_group_count (={groups}) must divide the {kernel[-1]} output channels",
    )


def check_types(op: str, dtype: Any, precision: Any, preferred: Any) -> None:
    """Raises where `lax` does; not every formula would, nor every platform."""
    if precision is None and preferred is None:
        return
    one = jax.ShapeDtypeStruct((1, 1), dtype)
    options = {"precision": precision, "preferred_element_type": preferred}
    convolve = functools.partial(
        lax.conv_general_dilated, window_strides=(), padding=(), **options
    )
    try:
        jax.eval_shape(convolve, one, one)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{op}: precision (={precision}) and preferred_element_type "
            f"(={preferred}) must suit {dtype}: {error}"
        ) from error


def describe(
    op: str,
    x: jax.Array,
    kernel: jax.Array,
    strides: int | Sequence[int],
    padding: arguments.Padding,
    input_dilation: int | Sequence[int] | None,
    kernel_dilation: int | Sequence[int] | None,
    *,
    groups: int,
    precision: Any,
    preferred_element_type: Any,
    y_sharding: NamedSharding | None,
    **names: str,
) -> ConvSpec:
    """The static part of a convolution x[N,H,W,C] * kernel[K,L,C/G,O]; it checks both.

    `names` are what the op calls its arguments, as `windows.describe` takes them.
    """
    check_channels(op, x.shape[-1], kernel.shape, groups)
    check_types(op, x.dtype, precision, preferred_element_type)
    return ConvSpec(
        windows=windows.describe(
            op,
            x.shape[1:-1],
            kernel.shape[:-2],
            strides,
            padding,
            kernel_dilation,
            input_dilation,
            **names,
        ),
        feature_group_count=groups,
        dtype=x.dtype,
        precision=arguments.hashable_precision(precision),
        preferred_element_type=preferred_element_type
        and jnp.dtype(preferred_element_type),
        x_sharding=sharding.of(x),
        kernel_sharding=sharding.of(kernel),
        y_sharding=y_sharding,
    )


register_rule("conv")


def conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: arguments.Padding = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    implementation: str | ConvFormulas | None = None,
) -> jax.Array:
    """Convolution layer in 1, 2 or 3 spatial dimensions, channels last.

    y[n,p,q,o] = Σ_klc x[n, s·p + d·k − b, s·q + d·l − b, c] · kernel[k,l,c,o] + bias[o]
    dx = conv(pad(dy), rot180(kernel)),  dkernel = conv(x, dy),  dbias = Σ_npq dy

    Args:
      x: real image [N, H, W, C], or one example [H, W, C].
      kernel: array [K, L, C/G, O] of the same dtype.
      bias: array [O], or `None`.
      strides: s, distance between neighbouring windows in pixels.
      padding: "SAME", "VALID", "SAME_LOWER" or (low, high) pixels for each dimension;
        b is the low one; negative numbers crop.
      input_dilation: e, distance that neighbouring pixels are moved apart to.
      kernel_dilation: d, distance between neighbouring kernel pixels.
      feature_group_count: G, independent groups of channels.
      precision: as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the result, as in
        `jax.lax.conv_general_dilated`.
      implementation: `None` for the best formulas, which `explain_choice` tells;
        "autodiff" for JAX's own gradient; one of "rot180", "gemm", "taps", "phases",
        "transposed", "block_diagonal", "grouped", "slices", "mec", "winograd" and
        "winograd_2x2" for one formula in all directions; or a `ConvFormulas`.

    Returns:
      Image [N, P, Q, O], or [P, Q, O]; P = ⌊(e(H−1)+1 + low + high − Kd) / s⌋ + 1 with
      Kd = d(K−1)+1. What is not finite in x, kernel or dy never gets lost, but may
      spread: "winograd" over its tile, "block_diagonal" and "grouped" over merged
      groups, "mec" and "taps" over a kernel gradient's rows.

    Raises:
      ValueError: the shapes or numbers do not fit, the kernel is larger than the padded
        image, or the formula is unknown or unsuitable.
      TypeError: the dtypes differ, or are complex.

    Example:
      >>> import jax, jax.numpy as jnp, handgrad
      >>> x, kernel = jnp.ones((4, 4, 1)), jnp.ones((3, 3, 1, 1))
      >>> loss = lambda x: handgrad.conv(x, kernel, padding="VALID").sum()
      >>> jax.grad(loss)(x).squeeze()
      Array([[1., 2., 2., 1.],
             [2., 4., 4., 2.],
             [2., 4., 4., 2.],
             [1., 2., 2., 1.]], dtype=float32)

    Source: the article (rot180 and im2col); LeCun et al. 1989,
    doi:10.1162/neco.1989.1.4.541; FORMULAS A3, A5 and B1.
    """
    x = arguments.array("conv", "x", x)
    kernel = arguments.array("conv", "kernel", kernel)
    arguments.same_dtype("conv", x=x, kernel=kernel)
    n = kernel.ndim - 2
    arguments.require(
        1 <= n <= 3 and x.ndim in (n + 1, n + 2),
        "conv",
        "x must have shape [N, spatial..., C] or [spatial..., C] and kernel "
        "[spatial..., C/G, O] with 1 to 3 spatial dimensions, got x "
        f"{x.shape} and kernel {kernel.shape}",
    )
    single = x.ndim == n + 1
    if single:
        x = x[None]
    x, kernel = sharding.align(x, kernel)
    spec = describe(
        "conv",
        x,
        kernel,
        strides,
        padding,
        input_dilation,
        kernel_dilation,
        groups=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        y_sharding=sharding.of_convolution(x, kernel),
        name="kernel",
        dilation_name="kernel_dilation",
    )
    windows.require_fit("conv", spec.windows, name="kernel")
    y = choose_formulas("conv", implementation, spec)(x, kernel, spec)
    if single:
        y = y[0]
    if bias is None:
        return y
    how = "autodiff" if implementation == "autodiff" else None
    return _bias.add(y, bias, op="conv", implementation=how)
