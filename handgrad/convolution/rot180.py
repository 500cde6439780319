"""The article's first route: each gradient of a convolution is a convolution.

    y[n,p,q,o] = Σ_klc x[n, s·p + d·k − b, s·q + d·l − b, c] · kernel[k,l,c,o]

*Kernel.* Every output pixel used kernel[k,l], so the chain rule sums over all of them:

    dkernel[k,l,c,o] = Σ_npq x[n, s·p + d·k − b, …, c] · dy[n,p,q,o]

which is conv(X, δ): the error acts as the kernel, stride and dilation exchange places,
the examples are contracted, and the result has the size of the kernel.

*Input.* Pixel h met kernel place k in window p = (h + b − d·k)/s, if that is whole:

    dx[n,h,w,c] = Σ_klo dy[n, (h + b − d·k)/s, …, o] · kernel[k,l,c,o]

With s − 1 zeros between the errors, and d(K−1) − b zeros around them, this is the
convolution with the kernel turned by 180°, inputs and outputs exchanged. For stride 1
and no padding: δ_prev = conv(pad(δ, K−1), rot180(K)), the *full* convolution.

Source: the article, section "卷积层" (convolution layers); FORMULAS A3 and B1.
"""

import jax
import jax.numpy as jnp
from jax import lax

from handgrad import arguments
from handgrad.buffers import written_down
from handgrad.convolution.spec import ConvSpec, fills_the_cores

_LETTERS = "HWDT"  # spatial dimensions, as `dimension_numbers` wants them named


def _layout(spec: ConvSpec, leading: str, trailing: str) -> str:
    return leading + _LETTERS[: len(spec.windows)] + trailing


def unsuitable(spec: ConvSpec) -> str | None:
    """No geometry is beyond it."""
    del spec
    return None


def _convolve(x, kernel, *, padding, lhs_dilation, **options) -> jax.Array:
    """`lax.conv_general_dilated` that pads and crops first if some padding is negative.

    The CPU convolution of jaxlib 0.10.1 reads outside of the image there.
    """
    if any(low < 0 or high < 0 for low, high in padding):
        config = [(*pair, e - 1) for pair, e in zip(padding, lhs_dilation, strict=True)]
        x = lax.pad(x, arguments.zero(x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
        padding, lhs_dilation = [(0, 0)] * len(padding), [1] * len(padding)
    return lax.conv_general_dilated(
        x, kernel, padding=padding, lhs_dilation=lhs_dilation, **options
    )


def forward(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """y = conv(x, kernel): [n h w c] [k l c o] -> [n p q o]."""
    image = _layout(spec, "N", "C")
    return _convolve(
        x,
        kernel,
        window_strides=[w.stride for w in spec.windows],
        padding=[(w.low, w.high) for w in spec.windows],
        lhs_dilation=[w.input_dilation for w in spec.windows],
        rhs_dilation=[w.dilation for w in spec.windows],
        dimension_numbers=(image, _layout(spec, "", "IO"), image),
        feature_group_count=spec.feature_group_count,
        precision=spec.precision,
        preferred_element_type=spec.preferred_element_type,
        out_sharding=spec.y_sharding,
    )


def input_gradient(dy: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """dx = conv(pad(dy), rot180(kernel)): [n p q o] [k l c o] -> [n h w c]."""
    image = _layout(spec, "N", "C")
    dilated = [w.stride * (w.output - 1) + 1 if w.output else 0 for w in spec.windows]
    return _convolve(
        dy,
        _turned(kernel, dy, spec),
        window_strides=[w.input_dilation for w in spec.windows],
        padding=[
            (w.extent - 1 - w.low, w.dilated + w.low - errors)
            for w, errors in zip(spec.windows, dilated, strict=True)
        ],
        lhs_dilation=[w.stride for w in spec.windows],
        rhs_dilation=[w.dilation for w in spec.windows],
        dimension_numbers=(image, _layout(spec, "", "IO"), image),
        feature_group_count=spec.feature_group_count,
        precision=spec.precision,
        out_sharding=spec.x_sharding,
    )


def _turned(kernel: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """rot180(kernel): [k l c/g o] -> [k l o/g c], inputs and outputs exchanged.

    XLA would turn it before the forward pass, and keep it until the error is there.
    """
    groups = spec.feature_group_count
    turned = lax.rev(kernel, range(len(spec.windows)))
    if groups == 1:
        turned = jnp.swapaxes(turned, -2, -1)
    else:
        *spatial, inputs, outputs = kernel.shape
        turned = turned.reshape(*spatial, inputs, groups, outputs // groups)
        turned = jnp.swapaxes(turned, -3, -1)  # [k l o/g g c/g]
        turned = turned.reshape(*spatial, outputs // groups, groups * inputs)
    large = kernel.size > dy.size or fills_the_cores(dy, kernel)
    return written_down(turned, after=dy) if large else turned


def kernel_gradient(x: jax.Array, dy: jax.Array, spec: ConvSpec) -> jax.Array:
    """dkernel = conv(x, dy): [n h w c] [n p q o] -> [k l c/g o].

    The channels act as examples and the examples as channels.
    """
    return _convolve(
        x,
        dy,
        window_strides=[w.dilation for w in spec.windows],
        padding=[(w.low, w.covered - w.low - w.dilated) for w in spec.windows],
        lhs_dilation=[w.input_dilation for w in spec.windows],
        rhs_dilation=[w.stride for w in spec.windows],
        dimension_numbers=(
            _layout(spec, "C", "N"),
            _layout(spec, "I", "O"),
            _layout(spec, "", "NC"),
        ),
        batch_group_count=spec.feature_group_count,
        precision=spec.precision,
        out_sharding=spec.kernel_sharding,
    )
