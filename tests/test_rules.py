"""Every rule × formula × case × transformation × dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad
from handgrad import cases, measure
from handgrad.testing import ALL, check_rule

PAIRS = list(measure.pairs())
# Transformations do not depend on the geometry: two small cases a formula suffice, one
# on the oldest and one on the newest JAX, and for the other signatures of the
# convolution rule one formula.
ONE_FORMULA = {"conv_general_dilated": "rot180", "conv_transpose": "transposed"}
FIRST, SECOND = (
    [
        chosen[number]
        for rule in handgrad.RULES.values()
        for formula in rule.formulas
        if ONE_FORMULA.get(rule.name, formula) == formula
        for chosen in [
            [
                (formula, case)
                for case in cases.of(rule.name)
                if case.network is None
                and "empty" not in case.name
                and measure.suitable(formula, case)
            ]
        ]
        if len(chosen) > number
    ]
    for number in range(2)
)
SMALL = [
    pytest.param(*pair, marks=mark)
    for pairs, mark in ((FIRST, pytest.mark.first), (SECOND, pytest.mark.second))
    for pair in pairs
]
ONE = {rule.name for rule in handgrad.RULES.values() if len(rule.formulas) == 1}
# Several devices are in test_sharding.py; what is exported, is called below.
CHECKS = [c for c in ALL if c not in ("shard_map", "explicit_mesh", "export")]
DTYPES = ("float64", "float32", "bfloat16", "float16")


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


@pytest.mark.parametrize(
    "case", [case for case in cases.CASES if case.rule not in ONE], ids=identify
)
def test_default_is_exact_against_float64(case):
    for error in measure.errors(case, None):
        assert error.passed, error


@pytest.mark.parametrize("rule", sorted(ONE))
def test_the_only_formula_is_the_default(rule):
    (formula,) = handgrad.RULES[rule].formulas
    assert handgrad.RULES[rule].choose(None) is handgrad.RULES[rule].choose(formula)


@small_pair
def test_every_check(formula, case):
    """Dtypes, difference quotients, kinks, the second order, every transformation."""
    rounding = handgrad.RULES[case.rule].formulas[formula].rounding
    check_rule(
        case.positional(formula),
        tuple(case.arrays("float32").values()),
        reference=case.positional("autodiff"),
        dtype_budget=dict.fromkeys(DTYPES, rounding),
        checks=CHECKS,
    )


@small_pair
def test_cond_and_while(formula, case):
    function = case.function(formula)
    arrays, dy = inputs(case)
    run = functools.partial(outcome, function)
    expected = jitted(formula, case)(arrays, dy)

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


@pytest.mark.parametrize(
    ("formula", "case"),
    [pair for pair in PAIRS if pair[1].kinked],
    ids=identify,
)
def test_gradient_of_gradient_on_a_kink(formula, case):
    """Reverse over reverse: the gradient of ⟨∇ sin⟨op, dy⟩, v⟩ equals autodiff's.

    `check_rule` leaves the second order out where slopes are not unique.
    """

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


def value_beside_a_gradient(function, x, dy):
    """What the forward rule returns, and its cotangents."""
    y, vjp = jax.vjp(lambda x: jax.vjp(function, x)[0], x)
    return y, vjp(dy)[0]


@pytest.mark.parametrize(
    ("formula", "case"),
    [pair for pair in PAIRS if pair[1].network is None and pair[1].rule in ONE],
    ids=identify,
)
def test_the_value_beside_a_gradient_has_the_rules_gradient(formula, case):
    """A gradient of a gradient differentiates what the forward rule returns."""
    function = case.function(formula)

    @jax.jit
    def beside(arrays, dy):
        floating, fixed = measure.split(arrays)
        f = lambda floating: function(**floating, **fixed)
        return value_beside_a_gradient(f, floating, dy)

    arrays, dy = inputs(case)
    assert_close(beside(arrays, dy), jitted(formula, case)(arrays, dy))


LOGITS = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), jnp.float32)
ONE_HOT = jax.nn.one_hot(jnp.array([0, 2, 1]), 4)
ZEROS = jnp.zeros((2, 4, 1)).at[0, 0].set(1)
AT_ODDS = {  # where the formula of the value has another derivative than the rule
    **{
        f"lp_pool of zeros, norm {e}": (
            lambda x, e=e: handgrad.lp_pool(x, (2,), (2,), norm=e),
            ZEROS,
        )
        for e in (1, 1.5, 2, 3)
    },
    "cross-entropy, labels of 0": (
        lambda labels: handgrad.softmax_cross_entropy(LOGITS, labels),
        ONE_HOT,
    ),
    "poly loss, labels of 0": (
        lambda labels: handgrad.poly_loss_cross_entropy(LOGITS, labels),
        ONE_HOT,
    ),
    "logsumexp, factors of 0": (
        lambda b: handgrad.logsumexp(LOGITS, axis=-1, b=b),
        ONE_HOT,
    ),
}


@pytest.mark.parametrize("name", AT_ODDS)
def test_the_value_beside_a_gradient_where_its_formula_is_at_odds(name):
    function, x = AT_ODDS[name]
    y, vjp = jax.vjp(function, x)
    dy = jnp.arange(1.0, y.size + 1).reshape(y.shape)
    assert_close(value_beside_a_gradient(function, x, dy), (y, vjp(dy)[0]))


@small_pair
def test_exports_for_every_platform(formula, case):
    arrays, dy = inputs(case)
    run = jitted(formula, case)
    exported = jax.export.export(run, platforms=["cpu", "cuda", "tpu"])(arrays, dy)
    restored = jax.export.deserialize(exported.serialize())
    assert_close(restored.call(arrays, dy), run(arrays, dy))


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
