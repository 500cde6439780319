"""Activations at kinks, infinities and extremes, and what they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad

EXTREMES = jnp.array([-jnp.inf, -1e30, -100.0, 0.0, 100.0, 1e30, jnp.inf])


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_extremes_equal_jax_nn(name):
    ours, stock = getattr(handgrad, name), getattr(jax.nn, name)
    np.testing.assert_array_equal(ours(EXTREMES), stock(EXTREMES))
    dx = jax.vmap(jax.grad(ours))(EXTREMES)
    assert np.isfinite(dx).all()
    np.testing.assert_array_equal(dx, jax.vmap(jax.grad(stock))(EXTREMES))


def test_relu_at_the_kink_and_at_nan():
    assert float(jax.grad(handgrad.relu)(0.0)) == 0.0
    assert float(jax.grad(handgrad.relu)(-0.0)) == 0.0
    assert np.isnan(handgrad.relu(jnp.nan))
    assert float(jax.grad(handgrad.relu)(jnp.nan)) == 0.0


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "softmax", "log_softmax"])
def test_keeps_its_output_only(name):
    y, vjp = jax.vjp(getattr(handgrad, name), jnp.linspace(-1, 1, 12).reshape(3, 4))
    (kept,) = (leaf for leaf in jax.tree.leaves(vjp) if leaf.size > 1)
    np.testing.assert_array_equal(kept, y)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(
    "x", [[1000.0, 1000.0, -1000.0], [0.0, -jnp.inf, 3.0], [1e30, 1.0, 0.0]]
)
def test_normalised_extremes(name, x):
    x = jnp.array(x)
    ours, stock = getattr(handgrad, name), getattr(jax.nn, name)
    np.testing.assert_allclose(ours(x), stock(x), rtol=1e-6)
    dy = jnp.array([0.3, -1.0, 2.0])
    dx = jax.vjp(ours, x)[1](dy)[0]
    assert np.isfinite(dx).all()
    np.testing.assert_allclose(dx, jax.vjp(stock, x)[1](dy)[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_masked_entries_have_no_gradient_whatever_their_error(name):
    where = jnp.array([True, False, True])
    x, dy = jnp.array([1.0, 50.0, 2.0]), jnp.array([1.0, 7.0, -1.0])
    y, vjp = jax.vjp(lambda x: getattr(handgrad, name)(x, where=where), x)
    short = getattr(handgrad, name)(x[::2])
    np.testing.assert_allclose(y[::2], short, rtol=1e-6)
    assert float(y[1]) == (0 if name == "softmax" else -np.inf)
    assert float(vjp(dy)[0][1]) == 0
