"""Each wrong rule is caught by the check that is made for it; right ones pass."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad
from handgrad.testing import ALL, RuleError, check_rule
from handgrad.testing.subject import Subject
from tests.mutants import MUTANTS, RIGHT
from tests.mutants.convolution import LAYER, dense_rule
from tests.mutants.mutant import normal, rule

DEVICES = ("shard_map", "explicit_mesh")
ONE_DEVICE = tuple(name for name in ALL if name not in DEVICES)
VECTOR = normal(6)


@pytest.fixture
def lenient():
    """Mutants are written as users write: a scalar is promoted."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def report(f, *args, checks=ONE_DEVICE, **options):
    return check_rule(f, args, checks=checks, raise_on_failure=False, **options)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_wrong_rule_fails_its_check(mutant, lenient):
    found = report(
        mutant.rule, *mutant.args, checks=[mutant.check], reference=mutant.reference
    )
    assert found.failed == [mutant.check], found
    hints = [f.hint for r in found.results for f in r.failures]
    assert not mutant.hint or any(mutant.hint in str(hint) for hint in hints), hints


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_rule_passes(name, lenient):
    f, args = RIGHT[name]
    found = report(f, *args)
    assert found.passed, found


def test_enough_mutants_with_names_of_their_own():
    assert len({str(mutant) for mutant in MUTANTS}) == len(MUTANTS) >= 60
    assert {mutant.check for mutant in MUTANTS} <= set(ALL)


@pytest.mark.parametrize("check", DEVICES)
def test_devices(check, lenient):
    """What handgrad does for them and a plain rule does not."""
    x, kernel = normal(4, 3), normal(3, 5)
    reference = functools.partial(handgrad.dense, implementation="autodiff")
    assert report(handgrad.dense, x, kernel, checks=[check], reference=reference).passed
    found = report(dense_rule(), *LAYER, checks=[check])
    assert found.failed == [check]
    assert "the rule raises" in found.results[0].message


def sine(backward):
    return rule(lambda x: jnp.sin(x), backward)


def test_raises_with_the_report():
    with pytest.raises(RuleError, match="Hint: its sign is wrong") as caught:
        check_rule(
            sine(lambda dy, y, x: (-dy * jnp.cos(x),)), (VECTOR,), checks=["cotangents"]
        )
    assert caught.value.report.failed == ["cotangents"]


def test_finds_the_worst_element():
    wrong = rule(
        lambda p: jnp.sin(p["a"]) + p["b"][0],
        lambda dy, y, p: ({"a": (dy * jnp.cos(p["a"])).at[2, 1].add(1), "b": [dy]},),
    )
    found = report(wrong, {"a": normal(3, 4), "b": [normal(3, 4)]}, checks="cotangents")
    assert found.worst.path == "gradient of p['a']"
    assert found.worst.index == (2, 1)
    assert found.worst.actual - found.worst.expected == pytest.approx(1, abs=1e-5)
    assert found.worst.ulps > 1e5
    assert "only wrong element of 12" in found.worst.hint


def test_static_integer_and_complex_arguments(lenient):
    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def f(x, power, index, z):
        return x[index] ** power * jnp.abs(z[index]) ** 2

    def forward(x, power, index, z):
        return f(x, power, index, z), (x, index, z)

    def backward(power, residuals, dy):
        x, index, z = residuals
        dx = dy * power * x[index] ** (power - 1) * jnp.abs(z[index]) ** 2
        dz = 2 * dy * x[index] ** power * jnp.conj(z[index])
        return (
            jnp.zeros_like(x).at[index].add(dx),
            None,
            jnp.zeros_like(z).at[index].add(dz),
        )

    f.defvjp(forward, backward)
    z = (normal(6) + 1j * normal(6, seed=1)).astype(np.complex64)
    found = report(f, VECTOR, 3, np.array([4, 0, 4]), z)
    assert found.passed, found


def test_finite_differences_are_the_last_reference():
    def half(x):
        return jnp.sum(sine(lambda dy, y, x: (dy * jnp.cos(x) / 2,))(x) ** 2)

    small = report(half, VECTOR, checks=["differences", "second_order"])
    assert "1/2 times the truth" in small.worst.hint

    def spoiled(x):
        wrong = sine(lambda dy, y, x: ((dy * jnp.cos(x)).at[700].add(0.1),))
        return wrong(x)

    large = report(spoiled, normal(2000), checks=["differences"])
    assert large.worst.index == (700,)
    assert report(jnp.tanh, normal(2000), checks=["differences"]).passed


def test_what_the_forward_rule_computes_has_a_derivative():
    """As a gradient of a gradient sees it, where the backward rule alone is right."""

    def squared(forward):
        f = jax.custom_vjp(lambda x: x**2)
        f.defvjp(lambda x: (forward(x), x), lambda x, dy: (2 * x * dy,))
        return f

    opaque = squared(lambda x: jax.lax.stop_gradient(x) ** 2)
    for reference in (None, lambda x: x**2):
        options = {"reference": reference, "checks": ["second_order"]}
        assert report(squared(lambda x: x**2), VECTOR, **options).passed
        assert not report(opaque, VECTOR, **options).passed


def test_an_error_that_neither_side_alone_explains_is_told(monkeypatch):
    """The second order computes both in one program first, and alone if that raises."""
    compiled = Subject.compiled

    def together_only(self, key, make, **options):
        if key == ("twice", None):
            raise RuntimeError("only together")
        return compiled(self, key, make, **options)

    monkeypatch.setattr(Subject, "compiled", together_only)
    found = report(jnp.sin, VECTOR, reference=jnp.sin, checks=["second_order"])
    (result,) = (r for r in found.results if r.check == "second_order")
    assert result.status == "failed"
    assert "only together" in result.message


def test_kinks_are_told_and_not_counted():
    x = np.array([-1, 0, 2], np.float32)
    found = report(jax.nn.relu, x)
    assert found.passed, found
    (kinks,) = (r for r in found.results if r.check == "kinks")
    assert kinks.message.startswith("1 found, not counted as failures: x[1]: slopes 0")
    # A reference of the caller's decides.
    assert not report(jax.nn.relu, x, reference=lambda x: jnp.maximum(x, 0)).passed


def test_given_cotangents_come_first():
    blind = sine(lambda dy, y, x: (dy * jnp.cos(x) * jnp.where(dy == 7, 2, 1),))
    assert report(blind, VECTOR, checks=["cotangents"]).passed
    sevens = np.full(6, 7, np.float32)
    assert not report(blind, VECTOR, checks=["cotangents"], cotangents=sevens).passed


def test_budget(lenient):
    rough = sine(lambda dy, y, x: (dy * jnp.cos(x) * np.float32(1 + 3e-6),))
    checks = ["cotangents"]
    assert not report(rough, VECTOR, checks=checks).passed
    assert report(rough, VECTOR, checks=checks, dtype_budget={"float32": 20}).passed


def test_report_as_json_and_picture(tmp_path):
    found = report(
        sine(lambda dy, y, x: (dy,)), VECTOR, checks=["values", "cotangents"]
    )
    plain = json.loads(found.to_json(), parse_constant=pytest.fail)
    assert plain["passed"] is False
    assert [c["status"] for c in plain["checks"]] == ["passed", "failed"]
    assert plain["worst"]["path"] == "gradient of x"
    assert "FAILED" in str(found)
    for f in (found, report(sine(lambda dy, y, x: (dy * jnp.cos(x),)), VECTOR)):
        path = tmp_path / "maps.png"
        f.plot(path)
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="there are no arrays"):
        report(jnp.sin, VECTOR, checks=["structure"]).plot(tmp_path / "none.png")


def prints(x):
    jax.debug.print("{}", x)
    return x


def without_backward(x):
    return jax.custom_vjp(jnp.sin)(x)


BAD = [
    (TypeError, "f must be a function, got int", {"f": 3}),
    (TypeError, "args must be a tuple, got ndarray", {"args": VECTOR}),
    (TypeError, "hold no floating-point array", {"args": (np.arange(3),)}),
    (TypeError, "f has no floating-point result", {"f": jnp.argmax}),
    (TypeError, r"must return arrays, got str at y\[1\]", {"f": lambda x: (x, "a")}),
    (ValueError, "must have no side effects", {"f": prints}),
    (TypeError, "no backward pass", {"f": jax.custom_vjp(jnp.sin)}),
    (
        TypeError,
        "f cannot be differentiated: ValueError: Reverse-mode",
        {"f": lambda x: jax.lax.while_loop(lambda x: x[0] < 1, lambda x: x + 1, x)},
    ),
    (
        TypeError,
        "the reference cannot be differentiated",
        {"reference": lambda x: jax.pure_callback(np.sin, x, x)},
    ),
    (ValueError, "the reference must return what f", {"reference": lambda x: x[:2]}),
    (ValueError, r"checks \(=\['fast'\]\) must be among", {"checks": ["fast"]}),
    (ValueError, r"directions \(=1\)", {"directions": 1}),
    (ValueError, "dtype_budget", {"dtype_budget": {"float8": 1.0}}),
    (ValueError, "structure of the result", {"cotangents": (VECTOR, VECTOR)}),
    (ValueError, "shapes of the result", {"cotangents": VECTOR[:2]}),
]


@pytest.mark.parametrize(
    ("error", "message", "options"), BAD, ids=[message for _, message, _ in BAD]
)
def test_bad_input_is_no_failed_check(error, message, options):
    options = {"f": jnp.sin, "args": (VECTOR,)} | options
    with pytest.raises(error, match=f"check_rule: .*{message}") as caught:
        check_rule(options.pop("f"), options.pop("args"), **options)
    assert not isinstance(caught.value, RuleError)


def test_what_the_function_raises_is_its_own():
    with pytest.raises(TypeError, match="dot_general") as caught:
        check_rule(jnp.dot, (VECTOR, VECTOR[:2]))
    assert "check_rule: dot raises this when it is called" in caught.value.__notes__
