"""PyTorch's autograd, written apart from JAX's: value and every gradient in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import handgrad

torch = pytest.importorskip("torch", reason="PyTorch comes with the extra `compare`")


@st.composite
def drawn_layer(draw, *, transposed):
    """Shapes and options of a layer, in PyTorch's words; y has at least one pixel."""
    n = draw(st.integers(1, 3))
    each = lambda least, most: draw(
        st.lists(st.integers(least, most), min_size=n, max_size=n)
    )
    groups = draw(st.integers(1, 3))
    inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    # Some formulas take long to compile a kernel of many places.
    places = each(1, 3 if n < 3 else 2)
    strides, dilation = each(1, 3), each(1, 3)
    if n < 3 and draw(st.booleans()):  # what Winograd's formulas do
        places, strides, dilation = [3] * n, [1] * n, [1] * n
    padding = each(0, 3)
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, places, strict=True)]
    least = extents if not transposed else [1] * n
    sizes = [
        max(h, k - 2 * p) for h, k, p in zip(each(1, 6), least, padding, strict=True)
    ]
    options = {"stride": strides, "padding": padding, "dilation": dilation}
    options["groups"] = groups
    channels = outputs, inputs
    if transposed:
        channels = inputs, outputs
        most = [max(s, d) - 1 for s, d in zip(strides, dilation, strict=True)]
        options["output_padding"] = [draw(st.integers(0, m)) for m in most]
        options["padding"] = [
            min(p, (s * (h - 1) + k - 1) // 2)
            for p, s, h, k in zip(padding, strides, sizes, extents, strict=True)
        ]
    first, second = channels
    first *= groups
    x = (draw(st.integers(1, 2)), groups * inputs, *sizes)
    return x, (first, second, *places), groups * outputs, options


def truth(function, options, x, kernel, bias, dy):
    """PyTorch's y and the gradients of x, kernel and bias."""
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, kernel, bias)]
    y = function(*leaves, **options)
    y.backward(torch.tensor(dy))
    return [y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]


def suitable(function, *arrays):
    """The default and the formulas that do not decline."""
    names = [None]
    for name in handgrad.RULES["conv"].formulas:
        try:
            jax.eval_shape(functools.partial(function, name), *arrays)
        except ValueError as error:
            assert "implementation" in str(error)  # noqa: PT017
        else:
            names.append(name)
    return names


def assert_agrees(torch_function, options, shapes, ours):
    """`ours(implementation, x, kernel, bias)`, channels first, against PyTorch."""
    random = np.random.default_rng(0)
    x, kernel, bias = (random.standard_normal(shape) for shape in shapes)
    with jax.enable_x64(True):
        shape = jax.eval_shape(functools.partial(ours, None), x, kernel, bias).shape
        dy = random.standard_normal(shape)

        @jax.jit
        def formulas(dy, *arrays):
            results = {}
            for name in suitable(ours, *arrays):
                y, vjp = jax.vjp(functools.partial(ours, name), *arrays)
                results[str(name)] = y, *vjp(dy)
            return results

        results = formulas(dy, x, kernel, bias)
    expected = truth(torch_function, options, x, kernel, bias, dy)
    for name, arrays in results.items():
        for which, actual, want in zip(
            ("y", "dx", "dkernel", "dbias"), arrays, expected, strict=True
        ):
            np.testing.assert_allclose(
                actual, want, rtol=1e-10, atol=1e-10, err_msg=f"{name}, {which}"
            )


def torch_function(name, n):
    return getattr(torch.nn.functional, f"{name}{n}d")


@given(drawn_layer(transposed=False))
def test_conv(drawn):
    """`conv`, channels last."""
    x, kernel, outputs, options = drawn
    n = len(x) - 2

    def ours(implementation, x, kernel, bias):
        y = handgrad.conv(
            jnp.moveaxis(x, 1, -1),
            kernel.transpose(*range(2, n + 2), 1, 0),
            bias,
            strides=options["stride"],
            padding=[(p, p) for p in options["padding"]],
            kernel_dilation=options["dilation"],
            feature_group_count=options["groups"],
            implementation=implementation,
        )
        return jnp.moveaxis(y, -1, 1)

    shapes = x, kernel, (outputs,)
    assert_agrees(torch_function("conv", n), options, shapes, ours)


@given(drawn_layer(transposed=True))
def test_conv_transpose(drawn):
    """A convolution of a dilated image; PyTorch's kernel is that of its transpose."""
    x, kernel, outputs, options = drawn
    n = len(x) - 2
    groups = options["groups"]
    each = zip(
        *(options[name] for name in ("padding", "dilation", "output_padding")),
        kernel[2:],
        strict=True,
    )
    pads = [(d * (k - 1) - p, d * (k - 1) - p + extra) for p, d, extra, k in each]

    def ours(implementation, x, kernel, bias):
        kernel = lax.rev(kernel, range(2, n + 2))
        kernel = kernel.reshape(groups, -1, *kernel.shape[1:])  # [g c/g o/g k l]
        kernel = jnp.swapaxes(kernel, 1, 2)
        kernel = kernel.reshape(outputs, -1, *kernel.shape[3:])  # [o c/g k l]
        y = handgrad.conv_general_dilated(
            x,
            kernel,
            (1,) * n,
            pads,
            lhs_dilation=options["stride"],
            rhs_dilation=options["dilation"],
            feature_group_count=groups,
            implementation=implementation,
        )
        return handgrad.add_bias(y.swapaxes(1, -1), bias).swapaxes(1, -1)

    shapes = x, kernel, (outputs,)
    assert_agrees(torch_function("conv_transpose", n), options, shapes, ours)


@given(drawn_layer(transposed=True))
def test_conv_transpose_with_its_own_signature(drawn):
    """One group: `conv_transpose` with PyTorch's paddings is PyTorch's, no turning."""
    x, kernel, _, options = drawn
    options["groups"], n = 1, len(x) - 2
    pads = [
        (p, p - extra)
        for p, extra in zip(options["padding"], options["output_padding"], strict=True)
    ]
    pixels = "HWD"[:n]

    def ours(implementation, x, kernel, bias):
        y = handgrad.conv_transpose(
            x,
            kernel,
            options["stride"],
            pads,
            rhs_dilation=options["dilation"],
            # The kernel's axes as the transposed convolution's own [C, O] have them.
            dimension_numbers=(f"NC{pixels}", f"OI{pixels}", f"NC{pixels}"),
            transpose_kernel=True,
            use_consistent_padding=True,
            implementation=implementation,
        )
        return handgrad.add_bias(y.swapaxes(1, -1), bias).swapaxes(1, -1)

    shapes = x, kernel, (kernel[1],)
    assert_agrees(torch_function("conv_transpose", n), options, shapes, ours)
