"""Every rule × formula × case × transformation × dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad
from handgrad import cases, measure

PAIRS = list(measure.pairs())
# Transformations do not depend on the geometry: two small cases a formula suffice, and
# for the other signatures of the convolution rule one formula.
ONE_FORMULA = {"conv_general_dilated": "rot180", "conv_transpose": "transposed"}
SMALL = [
    pair
    for rule, formulas in ((r.name, r.formulas) for r in handgrad.RULES.values())
    for formula in formulas
    if ONE_FORMULA.get(rule, formula) == formula
    for pair in [
        (formula, case)
        for case in cases.of(rule)
        if case.network is None
        and "empty" not in case.name
        and measure.suitable(formula, case)
    ][:2]
]


def identify(value):
    return str(value).replace(" ", "_")


every_pair = pytest.mark.parametrize(("formula", "case"), PAIRS, ids=identify)
small_pair = pytest.mark.parametrize(("formula", "case"), SMALL, ids=identify)


def inputs(case, seed=0):
    return (
        jax.device_put(case.arrays("float32", seed)),
        jnp.asarray(measure.cotangent(case, "float32", seed)),
    )


@functools.cache
def jitted(formula, case):
    """Value and cotangents, compiled once for all tests of the pair."""
    return measure.forward_and_backward(case.function(formula))


def outcome(function, arrays, dy):
    """Value and cotangents, not jitted."""
    floating, fixed = measure.split(arrays)
    y, vjp = jax.vjp(lambda floating: function(**floating, **fixed), floating)
    return y, vjp(dy)[0]


def stack(outcomes):
    """Of NumPy: each eager operation of JAX is a program to compile."""
    return jax.tree.map(lambda *a: np.stack(a), *jax.device_get(outcomes))


def assert_close(actual, expected, tolerance=2e-5):
    """Elementwise, against each array's own size."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        error, worst = measure.elementwise_error(a, np.asarray(e, np.float64))
        assert error < tolerance, f"at {worst}"


def test_every_public_op_is_registered_with_cases():
    assert {case.rule for case in cases.CASES} == set(handgrad.RULES)
    for name, rule in handgrad.RULES.items():
        assert callable(getattr(handgrad, name))
        assert rule.source
        assert len({case.name for case in cases.of(name)}) == len(cases.of(name))


@every_pair
def test_exact_against_float64(formula, case):
    for error in measure.errors(case, formula):
        assert error.passed, error


@small_pair
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_exact_in_other_dtypes(formula, case, dtype):
    for error in measure.errors(case, formula, dtype):
        assert error.passed, error


@pytest.mark.parametrize("case", cases.CASES, ids=identify)
def test_default_is_exact_against_float64(case):
    for error in measure.errors(case, None):
        assert error.passed, error


@small_pair
def test_difference_quotient(formula, case):
    if case.kinked:
        # On a kink the two one-sided slopes differ: the gradient is one of them, and
        # the comparison with autodiff's choice is test_exact_against_float64.
        arrays, dy = inputs(case)
        y, _ = outcome(case.function(formula), arrays, dy)
        assert np.isfinite(y).all()
    else:
        assert measure.difference_quotient(case, formula) < 1e-7


@small_pair
def test_jit_equals_eager(formula, case):
    arrays, dy = inputs(case)
    assert_close(
        jitted(formula, case)(arrays, dy),
        outcome(case.function(formula), arrays, dy),
    )


@small_pair
def test_vmap(formula, case):
    run = jitted(formula, case)
    many = [inputs(case, seed) for seed in range(3)]
    expected = stack([run(*one) for one in many])
    assert_close(jax.jit(jax.vmap(run))(*stack(many)), expected)


@small_pair
def test_vmap_over_one_argument(formula, case):
    run = jitted(formula, case)
    arrays, dy = jax.device_get(inputs(case))
    for name in measure.split(arrays)[0]:
        axes = {n: 0 if n == name else None for n in arrays}
        batch = arrays | {name: np.stack([arrays[name], 2 * arrays[name]])}
        actual = jax.jit(jax.vmap(run, in_axes=(axes, None)))(batch, dy)
        each = [run(arrays | {name: batch[name][i]}, dy) for i in range(2)]
        assert_close(actual, stack(each))


@small_pair
def test_scan_cond_while_and_remat(formula, case):
    function = case.function(formula)
    arrays, dy = inputs(case)
    run = functools.partial(outcome, function)
    expected = jitted(formula, case)(arrays, dy)

    @jax.jit
    def scanned(arrays, dy):
        step = lambda carry, scale: (carry, run(arrays, dy * scale))
        return jax.lax.scan(step, None, jnp.array([1.0, 0.0]))[1]

    both = jax.device_get(scanned(arrays, dy))
    assert_close(jax.tree.map(lambda a: a[0], both), expected)
    zero = jax.tree.map(np.zeros_like, expected[1])
    assert_close(jax.tree.map(lambda a: a[1], both[1]), zero)

    @jax.jit
    def conditional(arrays, dy, yes):
        return jax.lax.cond(yes, run, lambda a, d: run(a, 0 * d), arrays, dy)

    assert_close(conditional(arrays, dy, True), expected)

    @jax.jit
    def looped(arrays):
        body = lambda state: (state[0] + 1, function(**arrays))
        start = (0, jnp.zeros_like(dy))
        return jax.lax.while_loop(lambda state: state[0] < 2, body, start)[1]

    assert_close(looped(arrays), expected[0])
    rematerialised = jax.checkpoint(function)
    assert_close(
        jax.jit(functools.partial(outcome, rematerialised))(arrays, dy), expected
    )


@small_pair
def test_gradient_of_gradient(formula, case):
    """Reverse over reverse: the gradient of ⟨∇ sin⟨op, dy⟩, v⟩ equals autodiff's."""

    def second_order(implementation):
        function = case.function(implementation)

        @jax.jit
        def run(arrays, dy, v):
            floating, fixed = measure.split(arrays)

            def loss(floating):
                return jnp.sum(jnp.sin(function(**floating, **fixed) * dy))

            def slope(floating):
                return jax.tree.reduce(
                    jnp.add,
                    jax.tree.map(
                        lambda g, v: jnp.sum(g * v), jax.grad(loss)(floating), v
                    ),
                )

            return jax.grad(slope)(floating)

        return run

    with jax.enable_x64(True):
        arrays = case.arrays("float64")
        dy = measure.cotangent(case, "float64", 0)
        v = measure.split(case.arrays("float64", seed=1))[0]
        assert_close(
            second_order(formula)(arrays, dy, v),
            second_order("autodiff")(arrays, dy, v),
            tolerance=1e-10,
        )


@small_pair
def test_exports_for_every_platform(formula, case):
    arrays, dy = inputs(case)
    run = jitted(formula, case)
    exported = jax.export.export(run, platforms=["cpu", "cuda", "tpu"])(arrays, dy)
    restored = jax.export.deserialize(exported.serialize())
    assert_close(restored.call(arrays, dy), run(arrays, dy))


@small_pair
def test_repeats_bit_for_bit(formula, case):
    arrays, dy = inputs(case)
    run = jitted(formula, case)
    first, second = run(arrays, dy), run(arrays, dy)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("rule", handgrad.RULES)
def test_unknown_implementation(rule):
    case = cases.of(rule)[0]
    arrays, _ = inputs(case)
    call = case.function("fast")
    message = rf"{rule}: implementation \(='fast'\) must be one of None, 'autodiff'"
    with pytest.raises(ValueError, match=message):
        call(**arrays)
    with pytest.raises(ValueError, match=message):
        jax.jit(call)(**arrays)


@pytest.mark.parametrize("rule", ["conv", "dense"])
def test_gradient_that_nobody_asks_for_costs_nothing(rule):
    case = cases.of(rule)[0]
    arrays, _ = inputs(case)

    def flops(*names):
        def loss(chosen):
            return jnp.sum(jnp.sin(case.function()(**(arrays | chosen))))

        chosen = {name: arrays[name] for name in names}
        compiled = jax.jit(jax.grad(loss)).lower(chosen).compile()
        return compiled.cost_analysis()["flops"]

    both, kernel = flops("x", "kernel"), flops("kernel")
    assert kernel < 0.9 * both
