"""An array that is written down has the same bits, under every transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handgrad.buffers import written_down

DTYPES = ("float16", "bfloat16", "float32", "int4", "uint8", "int32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.checkpoint])
def test_any_number(dtype, shape, transform):
    x = np.random.default_rng(0).integers(-8, 8, shape).astype(dtype)
    y = transform(written_down)(jnp.asarray(x))
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(y), x)


def test_every_bit():
    special = [-0.0, 0.0, np.nan, -np.nan, -np.inf, np.inf, 1e-45, -3.4e38]
    x = np.array([special, special[::-1]], np.float32)
    for run in (written_down, jax.vmap(written_down)):
        y = np.asarray(jax.jit(run)(x))
        np.testing.assert_array_equal(y.view(np.uint32), x.view(np.uint32))


def test_it_is_computed_once():
    """Left to itself, XLA would move the sines into the loops of both results."""

    def neighbours(x):
        y = written_down(sum(jnp.sin(k * x) for k in range(8)))
        return jnp.maximum(y[1:], y[:-1]), jnp.minimum(y[1:], y[:-1])

    compiled = jax.jit(neighbours).lower(jnp.ones(999)).compile()
    assert compiled.cost_analysis()["transcendentals"] == 8 * 999


def test_its_derivative_is_the_identitys():
    x = jnp.arange(3.0)
    assert jax.grad(lambda x: jnp.sum(written_down(x) ** 2))(x).tolist() == [0, 2, 4]
    tangent = jax.jvp(written_down, (x,), (x + 1,))[1]
    np.testing.assert_array_equal(tangent, x + 1)


def test_after_another_array_every_bit_and_derivative_is_the_same():
    special = np.array([[-0.0, np.nan, -np.inf], [np.inf, 1e-45, 2]], np.float32)
    for first in (1.0, np.inf, np.nan, -np.inf):
        after = np.full((2, 4), first, np.float32)
        for run in (written_down, jax.vmap(written_down)):
            y = np.asarray(jax.jit(run)(special, after))
            np.testing.assert_array_equal(y.view(np.uint32), special.view(np.uint32))
    x, after = jnp.arange(3.0), jnp.ones(2)
    loss = lambda x, after: jnp.sum(written_down(x, after) ** 2)
    dx, dafter = jax.grad(loss, argnums=(0, 1))(x, after)
    assert dx.tolist() == [0, 2, 4]
    assert dafter.tolist() == [0, 0]


def test_what_is_needed_later_is_computed_later():
    """Each copy at its turn needs the memory of one, all beforehand that of each."""

    def temporary(after):
        def step(total, x):
            copy = written_down(jnp.sin(x).T, after=total if after else None)
            return jnp.tanh(copy @ total)

        def chain(total, *xs):
            return functools.reduce(step, xs, total)

        arrays = [jnp.ones((256, 256))] * 8
        compiled = jax.jit(chain).lower(jnp.ones((256, 256)), *arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(after=True) <= 0.6 * temporary(after=False)
