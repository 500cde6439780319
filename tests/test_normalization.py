"""Norms and dropout: Flax's values, statistics, meshes, extremes, what they keep."""

import functools

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import handgrad

RANDOM = np.random.default_rng(0)


def array(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


X, SCALE, BIAS = array(4, 5, 6), array(6), array(6)


NORMS = (
    (handgrad.batch_norm, nn.BatchNorm(use_running_average=False)),
    (handgrad.layer_norm, nn.LayerNorm()),
    (handgrad.rms_norm, nn.RMSNorm()),
    (functools.partial(handgrad.group_norm, num_groups=3), nn.GroupNorm(3)),
    (handgrad.instance_norm, nn.InstanceNorm()),
)


@hypothesis.settings(max_examples=4)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    masked=st.booleans(),
    seed=st.integers(0, 9),
)
def test_equals_flax(shape, masked, seed):
    """Value and gradients of x and the parameters, all norms in one program."""
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.standard_normal((2, *shape, 6)), jnp.float32)
    dy = jnp.asarray(random.standard_normal(x.shape), jnp.float32)
    mask = None
    if masked:  # one element at least of each mean
        mask = jnp.asarray(random.uniform(size=x.shape) < 0.6)
        mask = mask.at[:, 0, ...].set(True).at[..., 0].set(True)

    def outcome(function, x, dy, params):
        y, vjp = jax.vjp(function, x, params)
        return y, vjp(dy)

    @jax.jit
    def both(x, dy):
        results = []
        for ours, module in NORMS:
            params = {"scale": SCALE}
            if not isinstance(module, nn.RMSNorm):
                params["bias"] = BIAS
            hand = lambda x, p, ours=ours: ours(x, **p, where=mask)

            def flax(x, p, module=module):
                variables = {"params": p, "batch_stats": {}}
                return module.apply(variables, x, mask=mask, mutable="batch_stats")[0]

            results.append([outcome(f, x, dy, params) for f in (hand, flax)])
        return results

    for ours, theirs in both(x, dy):
        for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-4)


def test_standardize_equals_jax_nn():
    where = jnp.asarray(RANDOM.uniform(size=X.shape) < 0.8)
    for options in (
        {},
        {"axis": (0, 2), "epsilon": 0.1},
        {"axis": None, "where": where},
        {"mean": X[..., :1], "variance": jnp.square(X[..., 1:2])},
    ):
        ours, theirs = (
            jax.vjp(functools.partial(f, **options), X)
            for f in (handgrad.standardize, jax.nn.standardize)
        )
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
        dy = array(*X.shape)
        np.testing.assert_allclose(ours[1](dy), theirs[1](dy), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("batch_norm", {"activation": "relu"}),
        ("batch_norm", {"where": np.array([True, False, True, True])[:, None, None]}),
        ("layer_norm", {}),
        ("group_norm", {"num_groups": 2}),
    ],
)
def test_statistics_are_differentiable(name, options):
    """Running averages do not need it; whoever penalises a statistic does."""
    with jax.enable_x64(True):
        arrays = [np.asarray(a, np.float64) for a in (X, SCALE, BIAS, 0.3)]

        def gradients(implementation):
            op = functools.partial(
                getattr(handgrad, name),
                **options,
                return_statistics=True,
                implementation=implementation,
            )

            def loss(x, scale, bias, epsilon):
                y, mean, variance = op(x, scale, bias, epsilon=epsilon)
                first = jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(3 * mean))
                return first + jnp.sum(jnp.cos(variance))

            return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*arrays)

        for a, e in zip(gradients(None), gradients("autodiff"), strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-11)


def test_statistics_are_those_of_the_input():
    y, mean, variance = handgrad.batch_norm(X, return_statistics=True)
    np.testing.assert_allclose(mean, X.mean((0, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, X.var((0, 1)), rtol=1e-5)
    again, *same = handgrad.batch_norm(
        X, mean=mean, variance=variance, return_statistics=True
    )
    np.testing.assert_allclose(again, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(same, [mean, variance])
    half = handgrad.batch_norm(X.astype(jnp.bfloat16), return_statistics=True)
    assert [a.dtype for a in half] == [jnp.bfloat16, jnp.float32, jnp.float32]


@pytest.mark.parametrize("name", ["batch_norm", "layer_norm", "instance_norm"])
def test_a_large_mean_costs_no_digits(name):
    """E[x²] − μ² has none left here: μ² is 10⁸ times σ²."""
    x = X * np.float32(0.1) + 1000
    axes = {"batch_norm": (0, 1), "layer_norm": (2,), "instance_norm": (1,)}[name]
    wide = np.asarray(x, np.float64)
    variance = wide.var(axes, keepdims=True)
    truth = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(variance)
    y = getattr(handgrad, name)(x, epsilon=0.0)
    np.testing.assert_allclose(y, truth, atol=2e-2)


@pytest.mark.parametrize("implementation", [None, "autodiff"])
def test_statistics_of_several_devices(implementation):
    """With `axis_name` a sharded batch is normalised as the whole of it."""
    x, dy = array(8, 3, 6), array(8, 3, 6)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    norm = functools.partial(
        handgrad.batch_norm, activation="relu", return_statistics=True
    )

    def normalised(x, scale, bias, epsilon, **options):
        return norm(x, scale, bias, epsilon=epsilon, **options)

    def loss(function, *arrays):
        y, mean, variance = function(*arrays)
        return jnp.sum(y * dy) + jnp.sum(jnp.sin(mean)) + jnp.sum(jnp.cos(variance))

    sharded = jax.shard_map(
        functools.partial(normalised, axis_name="data", implementation=implementation),
        mesh=mesh,
        in_specs=(P("data"), P(), P(), P()),
        out_specs=(P("data"), P(), P()),
    )
    ours, whole = (
        jax.jit(jax.value_and_grad(functools.partial(loss, f), (0, 1, 2, 3)))(
            x, SCALE, BIAS, jnp.float32(0.3)
        )
        for f in (sharded, normalised)
    )
    for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


def test_statistics_over_a_vmapped_axis():
    x = array(4, 5, 6)
    norm = functools.partial(handgrad.batch_norm, axis_name="many")
    y = jax.vmap(norm, axis_name="many")(x)
    np.testing.assert_allclose(y, handgrad.batch_norm(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["batch_norm", "layer_norm", "rms_norm"])
def test_each_example_may_have_its_epsilon(name):
    norm = getattr(handgrad, name)
    slope = jax.grad(lambda e, x: jnp.sum(jnp.sin(norm(x, epsilon=e))))
    x, epsilons = array(3, 5, 6), jnp.array([0.1, 1.0, 3.0])
    each = [slope(e, a) for e, a in zip(epsilons, x, strict=True)]
    np.testing.assert_allclose(jax.vmap(slope)(epsilons, x), each, rtol=1e-4, atol=1e-5)


def test_norms_keep_their_input_and_two_numbers_a_statistic():
    x, scale, bias = array(8, 9, 9, 6), SCALE, BIAS
    norm = functools.partial(handgrad.batch_norm, activation="relu")
    _, vjp = jax.vjp(norm, x, scale, bias)
    large = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size > 6]
    assert [leaf.shape for leaf in large] == [x.shape]
    np.testing.assert_array_equal(large[0], x)


def test_empty_batch_has_finite_gradients():
    x = jnp.ones((0, 4, 6))
    _, vjp = jax.vjp(handgrad.batch_norm, x, SCALE, BIAS)
    dx, dscale, dbias = vjp(x)
    assert dx.shape == x.shape
    assert dscale.tolist() == dbias.tolist() == [0] * 6


def test_constant_input():
    """The variance is 0: y is β, and nothing is divided by it."""
    x = jnp.full((3, 4, 6), 1e4)
    for norm in (handgrad.batch_norm, handgrad.layer_norm):
        y, vjp = jax.vjp(norm, x, SCALE, BIAS)
        np.testing.assert_allclose(y, np.broadcast_to(BIAS, y.shape), atol=1e-6)
        assert all(np.isfinite(d).all() for d in vjp(jnp.ones_like(y)))


def test_relu_is_that_of_its_own():
    for options in ({}, {"mean": BIAS, "variance": jnp.square(SCALE)}):
        norm = functools.partial(handgrad.batch_norm, **options)
        fused = functools.partial(norm, activation="relu")
        both = lambda *a, norm=norm: handgrad.relu(norm(*a))
        dy = array(*X.shape)
        (y, vjp), (z, vjp_both) = (jax.vjp(f, X, SCALE, BIAS) for f in (fused, both))
        np.testing.assert_allclose(y, z, rtol=1e-6)
        for a, e in zip(vjp(dy), vjp_both(dy), strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


def test_dropout_draws_flax_masks_and_keeps_the_key():
    x, key = array(64, 8), jax.random.key(3)
    y, vjp = jax.vjp(lambda x: handgrad.dropout(key, x, 0.3), x)
    assert max(leaf.size for leaf in jax.tree.leaves(vjp)) <= 2
    dx = vjp(jnp.ones_like(x))[0]
    np.testing.assert_array_equal(dx != 0, y != 0)
    np.testing.assert_allclose(dx[dx != 0], 1 / 0.7, rtol=1e-6)
    raw = handgrad.dropout(jax.random.key_data(key), x, 0.3)
    np.testing.assert_array_equal(raw, y)
    kept = jax.random.bernoulli(key, 0.7, x.shape)  # as flax.linen.Dropout has it
    np.testing.assert_array_equal(np.asarray(kept), y != 0)


def test_dropout_of_whole_channels_and_of_nothing():
    x, key = jnp.ones((5, 4, 4, 6)), jax.random.key(0)
    y = handgrad.dropout(key, x, 0.5, broadcast_axes=(1, 2))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert 0 < np.mean(y == 0) < 1
    np.testing.assert_array_equal(handgrad.dropout(key, x, 0.0), x)
    nan = handgrad.dropout(key, jnp.full(1000, jnp.nan), 0.5)
    assert (np.asarray(nan) == 0).any()
    other = handgrad.dropout(jax.random.key(0, impl="rbg"), jnp.ones(1000), 0.5)
    assert 400 < np.sum(other == 0) < 600
