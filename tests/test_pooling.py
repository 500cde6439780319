"""What pooling promises at ties, NaN, infinity and borders, and what it keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad


def gradient(x, window_shape, op=handgrad.max_pool, **options):
    """∂Σ(pool · dy)/∂x with dy = 1, 2, 3, ... so that every window is told apart."""

    def loss(x):
        y = op(x, window_shape, **options)
        dy = jnp.arange(1, y.size + 1, dtype=y.dtype).reshape(y.shape)
        return jnp.sum(_linear(y, dy))

    return jax.grad(loss)(x)


@jax.custom_vjp
def _linear(y, dy):
    """Σ y·dy whose cotangent is dy even where y is NaN or infinite."""
    return jnp.zeros_like(y)


_linear.defvjp(
    lambda y, dy: (jnp.zeros_like(y), dy), lambda dy, _: (dy, jnp.zeros_like(dy))
)


def image(rows):
    return jnp.asarray(rows, jnp.float32)[..., None]


@pytest.mark.parametrize("value", [0.0, 1.0, -jnp.inf, jnp.inf])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_ties_go_to_the_first_pixel_as_in_lax(value, padding):
    x = jnp.full((1, 5, 6, 2), value)
    options = {"strides": (2, 1), "padding": padding}
    ours = gradient(x, (3, 2), **options)
    assert float(ours.sum()) == sum(
        range(1, handgrad.max_pool(x, (3, 2), **options).size + 1)
    )
    if np.isfinite(value):  # lax loses the error where the maximum equals its padding
        lax = gradient(x, (3, 2), implementation="autodiff", **options)
        np.testing.assert_array_equal(ours, lax)


def test_a_window_of_relu_zeros_hands_its_error_to_the_first():
    x = image([[0, 0, 1, 0], [0, 0, 0, 1]])
    expected = image([[1, 0, 2, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(gradient(x, (2, 2), strides=(2, 2)), expected)


def test_nan_wins_and_takes_the_error():
    x = image([[1, np.nan, 3, 4], [5, 6, np.nan, np.nan]])
    y = handgrad.max_pool(x, (2, 2), strides=(2, 2))
    assert np.isnan(y).all()
    expected = image([[0, 1, 0, 0], [0, 0, 2, 0]])
    np.testing.assert_array_equal(gradient(x, (2, 2), strides=(2, 2)), expected)


def test_padding_never_takes_the_error():
    x = jnp.full((1, 3, 3, 1), -jnp.inf)
    padding = ((1, 1), (1, 1))
    assert float(gradient(x, (2, 2), padding=padding).sum()) == sum(range(1, 17))


def test_a_window_wholly_in_padding_has_no_gradient():
    x = jnp.ones((1, 2, 1))
    y = handgrad.max_pool(x, (1, 1), padding=((0, 2), (0, 0)))
    assert y.ravel().tolist() == [1, 1, -np.inf, -np.inf, -np.inf, -np.inf][: y.size]
    dx = gradient(x, (1, 1), padding=((0, 2), (0, 0)))
    np.testing.assert_array_equal(dx, jnp.asarray([[[1.0], [2.0]]]))


@pytest.mark.parametrize(
    ("window_shape", "dtype"), [((16, 16), "uint8"), ((16, 17), "uint32")]
)
def test_keeps_one_byte_a_window_up_to_256_places(window_shape, dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 20, 20, 3)))
    options = {"strides": (2, 2)}
    pool = lambda x: handgrad.max_pool(x, window_shape, **options)
    y, vjp = jax.jit(lambda x: jax.vjp(pool, x))(x)  # 256 places, one by one, are slow
    kept = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size > 1]
    assert [(leaf.shape, str(leaf.dtype)) for leaf in kept] == [(y.shape, dtype)]
    both = [
        jax.jit(functools.partial(gradient, window_shape=window_shape, **how))(x)
        for how in (options, options | {"implementation": "autodiff"})
    ]
    np.testing.assert_allclose(*both, rtol=1e-6)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
@pytest.mark.parametrize("window_shape", [(2, 2), (3, 3)])
def test_lowered_gradient_has_no_scatter(op, window_shape):
    def loss(x, implementation=None):
        pool = getattr(handgrad, op)
        options = {"strides": (2, 2), "implementation": implementation}
        return jnp.sum(jnp.sin(pool(x, window_shape, **options)))

    x = jnp.ones((1, 8, 8, 2))
    assert "scatter" not in jax.jit(jax.grad(loss)).lower(x).as_text()
    stock = jax.jit(jax.grad(lambda x: loss(x, "autodiff"))).lower(x).as_text()
    assert ("scatter" in stock) == (op == "max_pool")


def test_avg_pool_keeps_nothing():
    x = jnp.ones((2, 6, 6, 3))
    _, vjp = jax.vjp(lambda x: handgrad.avg_pool(x, (3, 3), padding="SAME"), x)
    assert [leaf for leaf in jax.tree.leaves(vjp) if leaf.size > 1] == []


def test_gradient_of_a_dilated_max_pool_which_jax_lacks():
    x = image([[5, 1, 4, 2, 3]])
    dx = gradient(x, (1, 3), window_dilation=(1, 2))
    np.testing.assert_array_equal(dx, image([[1, 0, 0, 0, 0]]))


def test_bfloat16_overlaps_are_summed_in_float32():
    """256 windows hold one maximum: bfloat16 sums would stop growing at 256."""
    x = jnp.zeros((1, 33, 1), jnp.bfloat16).at[0, 16, 0].set(1)
    _, vjp = jax.vjp(lambda x: handgrad.max_pool(x, (1, 17)), x)
    dy = jnp.full((1, 17, 1), 1 + 1 / 128, jnp.bfloat16)
    assert float(vjp(dy)[0][0, 16, 0]) == float(jnp.bfloat16(17 * (1 + 1 / 128)))
