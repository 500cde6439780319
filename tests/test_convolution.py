"""The public forms of convolution: layouts, groups of examples, dtypes, Flax's hook."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad
from handgrad import ConvFormulas

RANDOM = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return jnp.asarray(RANDOM.standard_normal(shape), dtype)


@pytest.mark.parametrize(
    "arguments",
    [
        {"window_strides": (1, 1), "padding": "VALID"},
        {"window_strides": (2, 1), "padding": "SAME", "rhs_dilation": (1, 2)},
        {"window_strides": [1, 2], "padding": [(1, 0), (2, 1)], "lhs_dilation": (2, 1)},
        {
            "window_strides": (1, 1),
            "padding": "SAME_LOWER",
            "dimension_numbers": ("NHWC", "OIHW", "CHWN"),
        },
        {
            "window_strides": (1, 1),
            "padding": "SAME",
            "dimension_numbers": jax.lax.ConvDimensionNumbers(
                (0, 3, 1, 2), (0, 1, 2, 3), (1, 0, 2, 3)
            ),
        },
    ],
    ids=str,
)
def test_equals_lax(arguments):
    numbers = arguments.get("dimension_numbers")
    channels_last = numbers is not None
    lhs = normal(2, 6, 5, 4) if channels_last else normal(2, 4, 6, 5)
    rhs = normal(3, 4, 3, 2)
    ours = handgrad.conv_general_dilated(lhs, rhs, **arguments)
    stock = jax.lax.conv_general_dilated(lhs, rhs, **arguments)
    np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("formula", ["rot180", "gemm", None])
def test_preferred_element_type(formula):
    x, kernel = normal(2, 6, 6, 4, dtype=jnp.bfloat16), normal(3, 3, 4, 5)
    kernel = kernel.astype(jnp.bfloat16)
    conv = lambda x, k: handgrad.conv(
        x, k, preferred_element_type=jnp.float32, implementation=formula
    )
    y, vjp = jax.vjp(conv, x, kernel)
    assert y.dtype == jnp.float32
    wide = handgrad.conv(x.astype(jnp.float32), kernel.astype(jnp.float32))
    np.testing.assert_allclose(y, wide, rtol=1e-5, atol=1e-5)
    assert [g.dtype for g in vjp(y)] == [jnp.bfloat16, jnp.bfloat16]


def test_formulas_may_differ_by_direction():
    x, kernel = normal(2, 6, 6, 4), normal(3, 3, 4, 5)
    mixed = ConvFormulas("gemm", "rot180", "gemm")
    grad = lambda how: jax.grad(
        lambda x, k: jnp.sum(jnp.sin(handgrad.conv(x, k, implementation=how))), (0, 1)
    )(x, kernel)
    for a, b in zip(grad(mixed), grad("autodiff"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_per_example_gradients():
    """vmap(grad): one kernel gradient an example; they sum to the batch's."""
    x, kernel = normal(4, 6, 6, 2), normal(3, 3, 2, 3)
    loss = lambda k, x: jnp.sum(jnp.sin(handgrad.conv(x, k)))
    each = jax.vmap(jax.grad(loss), (None, 0))(kernel, x)
    assert each.shape == (4, *kernel.shape)
    np.testing.assert_allclose(
        each.sum(0), jax.grad(loss)(kernel, x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ({"window_strides": (1,)}, ValueError, r"window_strides \(=\(1,\)\)"),
        ({"window_strides": (0, 1)}, ValueError, r"window_strides \(=0\)"),
        ({"rhs_dilation": (1, 0)}, ValueError, r"rhs_dilation \(=0\)"),
        ({"lhs_dilation": (0, 1)}, ValueError, r"lhs_dilation \(=0\)"),
        ({"padding": "FULL"}, ValueError, r"padding \(='FULL'\)"),
        ({"dimension_numbers": ("NHWC",)}, ValueError, r"dimension_numbers \(="),
        ({"dimension_numbers": ("NHWX", "HWIO", "NHWC")}, ValueError, r"dimension_num"),
        ({"feature_group_count": 3}, ValueError, r"feature_group_count \(=3\) must"),
        ({"batch_group_count": 3}, ValueError, r"must divide the 2 examples"),
        (
            {"batch_group_count": 2, "feature_group_count": 2},
            ValueError,
            r"must not both exceed 1",
        ),
        ({"rhs": jnp.ones((4, 4, 3))}, ValueError, r"same number of dimensions"),
        ({"rhs": jnp.ones((4, 5, 3, 3))}, ValueError, r"kernel .* 4 input channels"),
        ({"rhs": jnp.ones((4, 4, 3, 3), "bfloat16")}, TypeError, r"one dtype, got lhs"),
    ],
)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_bad_input(arguments, exception, message, jitted):
    arguments = {
        "lhs": jnp.ones((2, 4, 6, 6)),
        "rhs": jnp.ones((4, 4, 3, 3)),
        "window_strides": (1, 1),
        "padding": "SAME",
    } | arguments
    call = lambda: handgrad.conv_general_dilated(**arguments)
    with pytest.raises(exception, match=rf"conv_general_dilated: .*{message}"):
        (jax.jit(call) if jitted else call)()


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", 1])
def test_flax_takes_it_as_its_hook(padding):
    """One argument of `nn.Conv` changes; parameters and results stay."""
    options = {"features": 6, "kernel_size": (3, 3), "strides": 2, "padding": padding}
    stock = nn.Conv(**options)
    ours = nn.Conv(**options, conv_general_dilated=handgrad.conv_general_dilated)
    x = normal(2, 8, 8, 4)
    params = stock.init(jax.random.key(0), x)
    same = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    grad = lambda module: jax.grad(lambda p: jnp.sum(jnp.sin(module.apply(p, x))))(
        params
    )
    for a, b in zip(
        jax.tree.leaves(grad(ours)), jax.tree.leaves(grad(stock)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
