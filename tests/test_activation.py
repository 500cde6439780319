"""Activations at kinks, infinities and extremes, and what they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad
from handgrad.cases.activation import ELEMENTWISE

EXTREMES = np.array([-np.inf, -1e30, -100.0, -1.5, 0.25, 100.0, 1e30, np.inf])
EXTREMES = EXTREMES.astype(np.float32)
FROM_INPUT = ("gelu", "silu", "mish", "hard_silu")
# What the gradient is at −∞ and at +∞.
LIMITS = {
    "sigmoid": (0, 0),
    "tanh": (0, 0),
    "relu6": (0, 0),
    "leaky_relu": (0.01, 1),
    "selu": (0, 1.0507009873554805),
    "log_sigmoid": (1, 0),
    "soft_sign": (0, 0),
    "hard_tanh": (0, 0),
    "hard_sigmoid": (0, 0),
}


def value_and_slope(function, x):
    """y and dy/dx of each element."""
    y, vjp = jax.vjp(function, x)
    return y, vjp(jnp.ones_like(y))[0]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_extremes(name):
    """jax.nn's values where they are numbers, and its gradients; the limits at ±∞."""
    ours = jax.jit(lambda x: value_and_slope(getattr(handgrad, name), x))
    stock = jax.jit(lambda x: value_and_slope(getattr(jax.nn, name), x))
    y, dx = ours(EXTREMES)
    y_stock, dx_stock = stock(EXTREMES)
    assert not np.isnan(y).any()
    known = np.isfinite(y_stock) & (np.abs(y_stock) < 1e20)
    np.testing.assert_allclose(y[known], y_stock[known], rtol=2e-6, atol=1e-6)
    assert np.isfinite(dx).all()
    inside = slice(2, 6)
    np.testing.assert_allclose(dx[inside], dx_stock[inside], rtol=2e-6, atol=1e-6)
    below, above = LIMITS.get(name, (0, 1))
    np.testing.assert_allclose(dx[:2], below, rtol=1e-6)
    np.testing.assert_allclose(dx[-2:], above, rtol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_extremes_equal_jax_nn_to_the_bit(name):
    ours, stock = getattr(handgrad, name), getattr(jax.nn, name)
    x = jnp.array([-jnp.inf, -1e30, -100.0, 0.0, 100.0, 1e30, jnp.inf])
    np.testing.assert_array_equal(ours(x), stock(x))
    dx = jax.vmap(jax.grad(ours))(x)
    assert np.isfinite(dx).all()
    np.testing.assert_array_equal(dx, jax.vmap(jax.grad(stock))(x))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_nan_stays_nan(name):
    assert np.isnan(getattr(handgrad, name)(jnp.nan))


@pytest.mark.parametrize(
    ("name", "x", "slope"),
    [
        ("relu", 0.0, 0),
        ("relu", -0.0, 0),
        ("relu", jnp.nan, 0),
        ("relu6", 0.0, 0),
        ("relu6", 6.0, 0),
        ("leaky_relu", 0.0, 1),
        ("elu", 0.0, 1),
        ("celu", 0.0, 1),
        ("hard_tanh", -1.0, 0),
        ("hard_tanh", 1.0, 0),
        ("hard_sigmoid", -3.0, 0),
        ("hard_sigmoid", 3.0, 0),
        ("hard_silu", -3.0, 0),
        ("hard_silu", 3.0, 1),
    ],
)
def test_at_the_kink(name, x, slope):
    assert float(jax.grad(getattr(handgrad, name))(x)) == slope


@pytest.mark.parametrize("name", [*ELEMENTWISE, "softmax", "log_softmax", "glu"])
def test_keeps_one_array(name):
    """Its output where that suffices, else its input."""
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)
    y, vjp = jax.vjp(getattr(handgrad, name), x)
    (kept,) = (leaf for leaf in jax.tree.leaves(vjp) if leaf.size > 1)
    np.testing.assert_array_equal(kept, x if name in (*FROM_INPUT, "glu") else y)


@pytest.mark.parametrize("name", ["leaky_relu", "elu", "celu"])
def test_a_parameter_below_0_takes_the_input(name):
    """y no longer has the sign of x."""
    x = jnp.array([-2.0, -0.5, 1.0])
    ours = jax.grad(lambda x: getattr(handgrad, name)(x, -0.7).sum())(x)
    stock = jax.grad(lambda x: getattr(jax.nn, name)(x, -0.7).sum())(x)
    np.testing.assert_allclose(ours, stock, rtol=1e-6)


def test_squareplus_keeps_its_digits_below_0():
    """x + √(x² + b) is 0 there in float32; the value is b / 4|x|."""
    assert float(handgrad.squareplus(-1e4)) == pytest.approx(1e-4, rel=1e-6)
    assert float(jax.grad(handgrad.squareplus)(-1e4)) == pytest.approx(1e-8, rel=1e-6)
    zero = jax.grad(lambda x: handgrad.squareplus(x, 0.0))
    assert [float(zero(x)) for x in (-1.0, 0.0, 1.0)] == [0, 0, 1]


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize(
    "x", [[1000.0, 1000.0, -1000.0], [0.0, -jnp.inf, 3.0], [1e30, 1.0, 0.0]]
)
def test_normalised_extremes(name, x):
    x = jnp.array(x)
    ours, stock = getattr(handgrad, name), getattr(jax.nn, name)
    y, vjp = jax.vjp(ours, x)
    y_stock, vjp_stock = jax.vjp(stock, x)
    np.testing.assert_allclose(y, y_stock, rtol=1e-6)
    dy = jnp.array([0.3, -1.0, 2.0])[: y.size].reshape(y.shape)
    (dx,), (dx_stock,) = vjp(dy), vjp_stock(dy)
    assert np.isfinite(dx).all()
    np.testing.assert_allclose(dx, dx_stock, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_masked_entries_have_no_gradient_whatever_their_error(name):
    where = jnp.array([True, False, True])
    x, dy = jnp.array([1.0, 50.0, 2.0]), jnp.array([1.0, 7.0, -1.0])
    y, vjp = jax.vjp(lambda x: getattr(handgrad, name)(x, where=where), x)
    short = getattr(handgrad, name)(x[::2])
    np.testing.assert_allclose(y[::2] if y.ndim else y, short, rtol=1e-6)
    if y.ndim:
        assert float(y[1]) == (0 if name == "softmax" else -np.inf)
    assert float(vjp(dy if y.ndim else dy[0])[0][1]) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("softmax", 0), ("log_softmax", -np.inf), ("logsumexp", -np.inf)],
)
def test_where_all_is_masked(name, value):
    x, where = jnp.ones((2, 3)), jnp.array([[False], [True]])
    function = lambda x: getattr(handgrad, name)(x, axis=-1, where=where)
    y, vjp = jax.vjp(function, x)
    assert (y[0] == value).all()
    assert np.isfinite(y[1]).all()
    assert (vjp(jnp.ones_like(y))[0][0] == 0).all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_empty_axis(name):
    y = getattr(handgrad, name)(jnp.ones((2, 0)), axis=-1)
    assert y.shape == ((2,) if name == "logsumexp" else (2, 0))
    assert (np.asarray(y) == -np.inf).all()


def test_logsumexp_of_minus_infinity_has_no_gradient():
    x = jnp.full(3, -jnp.inf)
    assert float(handgrad.logsumexp(x)) == -np.inf
    assert jax.grad(handgrad.logsumexp)(x).tolist() == [0, 0, 0]


def test_logsumexp_with_signs():
    a, b = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, -3.0, 0.5])
    for sign in (1, -1):
        ours = handgrad.logsumexp(a, b=sign * b, return_sign=True)
        stock = jax.nn.logsumexp(a, b=sign * b, return_sign=True)
        np.testing.assert_allclose(ours, stock, rtol=1e-6)
        gradients = (
            jax.grad(lambda a, f, b=sign * b: f(a, b=b, return_sign=True)[0])(a, f)
            for f in (handgrad.logsumexp, jax.nn.logsumexp)
        )
        np.testing.assert_allclose(*gradients, rtol=1e-5)
    assert np.isnan(handgrad.logsumexp(a, b=b))
    assert handgrad.logsumexp(a[None], keepdims=True).shape == (1, 1)
