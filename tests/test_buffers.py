"""An array that is written down has the same bits, under every transformation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad
from handgrad.buffers import postponed, written_down

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


@pytest.mark.parametrize("hold", [written_down, postponed])
def test_after_another_array_every_bit_and_derivative_is_the_same(hold):
    special = np.array([[-0.0, np.nan, -np.inf], [np.inf, 1e-45, 2]], np.float32)
    for first in (1.0, np.inf, np.nan, -np.inf):
        after = np.full((2, 4), first, np.float32)
        for run in (hold, jax.vmap(hold)):
            y = np.asarray(jax.jit(run)(special, after))
            np.testing.assert_array_equal(y.view(np.uint32), special.view(np.uint32))
    x, after = jnp.arange(3.0), jnp.ones(2)
    loss = lambda x, after: jnp.sum(hold(x, after) ** 2)
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


def _training(first):
    """Two large layers whose kernels SGD overwrites; `first` makes the first image."""

    def step(kernels, image):
        def loss(kernels):
            x = first(image, kernels)
            for kernel in kernels:
                x = jax.nn.relu(handgrad.conv(x, kernel))
            return jnp.sum(x**2)

        gradients = jax.grad(loss)(kernels)
        return [k - 1e-3 * g for k, g in zip(kernels, gradients, strict=True)]

    kernels = [jnp.zeros((3, 3, 256, 256))] * 2
    lowered = jax.jit(step, donate_argnums=0).lower(kernels, jnp.ones((8, 8, 8, 256)))
    return lowered.compile()


def test_the_update_of_a_donated_kernel_needs_no_copy_of_it():
    compiled = _training(lambda image, kernels: image * kernels[0][0, 0, 0, 0])
    copies = re.findall(r"= f32\[3,3,256,256\]\S* copy\(", compiled.as_text() or "")
    assert not copies


def test_an_image_that_asks_for_no_error_gets_none():
    flops = [
        _training(first).cost_analysis()["flops"]
        for first in (
            lambda image, kernels: image,
            lambda image, kernels: image * kernels[0][0, 0, 0, 0],
        )
    ]
    # Two layers forward and two kernels' gradients, one image's gradient or two.
    assert flops[0] < 0.9 * flops[1]


def test_a_kernel_that_asks_for_no_error_gets_none():
    def flops(argnums):
        loss = lambda x, kernel: jnp.sum(jnp.tanh(handgrad.conv(x, kernel)))
        gradient = jax.jit(jax.grad(loss, argnums))
        lowered = gradient.lower(jnp.ones((8, 4, 4, 512)), jnp.ones((3, 3, 512, 512)))
        return lowered.compile().cost_analysis()["flops"]

    # Forward and one gradient, or two.
    assert flops(0) < 0.8 * flops((0, 1))
