"""What stands between the replaced equations is differentiated once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import handgrad
from handgrad._rewrite import function, pieces
from handgrad._rewrite.replacements import named

IMAGE, KERNEL = (2, 8, 8, 3), (3, 3, 3, 3)


def conv(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )


def layer(x, kernel):
    y = conv(x, kernel)
    return x + jnp.sin(y) * lax.logistic(y * 2)


def model(x, kernels):
    for kernel in kernels:
        x = layer(x, kernel)
    return jnp.sum(x * x)


def arrays(layers, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), layers + 1)
    kernels = [jax.random.normal(key, KERNEL, dtype) / 5 for key in keys[1:]]
    return jax.random.normal(keys[0], IMAGE, dtype), kernels


def packed(fn, *args):
    """The rewritten program as it is evaluated, and its calls."""
    program = function.trace(fn, args, {}).program
    program = function.jaxprs.rewrite(program, named(None))
    program = pieces.together(program)
    return program, [eqn for eqn in program.eqns if eqn.params.get("name") == "piece"]


def test_equal_neighbours_are_one_program():
    calls = [packed(model, *arrays(n))[1] for n in (3, 5)]
    # A layer's, three or five times, and the sum.
    programs = [[eqn.params["jaxpr"] for eqn in each] for each in calls]
    assert [len(each) for each in programs] == [3, 5]
    assert len({id(p) for each in programs for p in each[:-1]}) == 1
    assert programs[0][-1] is programs[1][-1] is not programs[0][0]


@pytest.mark.parametrize("mode", ["value", "grad", "grad of grad", "vmap", "remat"])
def test_the_values_stay(mode):
    def changed(f):
        gradient = jax.grad(f)
        return {
            "value": f,
            "grad": gradient,
            "grad of grad": jax.grad(lambda *a: jnp.sum(gradient(*a) ** 2)),
            "vmap": jax.vmap(gradient, (0, None)),
            "remat": jax.grad(jax.checkpoint(f)),
        }[mode]

    with jax.enable_x64(True):
        x, kernels = arrays(3, jnp.float64)
        x = jnp.stack([x, 2 * x]) if mode == "vmap" else x
        ours = jax.jit(changed(handgrad.rewrite(model)))(x, kernels)
        theirs = jax.jit(changed(model))(x, kernels)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_compiled_program_holds_no_calls():
    x, kernels = arrays(2)
    program = jax.make_jaxpr(jax.grad(handgrad.rewrite(model)))(x, kernels)
    assert "name=piece" not in str(program)
    text = jax.jit(handgrad.rewrite(model)).lower(x, kernels).as_text(debug_info=True)
    assert "piece" not in text.replace("test_rewrite_pieces", "").replace(
        "pieces.py", ""
    )


def test_names_part_neighbours():
    def fn(x, kernel):
        y = conv(x, kernel)
        with jax.named_scope("inner"):
            y = jnp.sin(y) + 1
        return jnp.cos(y) * 2

    x, (kernel,) = arrays(1)
    _, calls = packed(fn, x, kernel)
    assert [str(eqn.source_info.name_stack) for eqn in calls] == ["inner", ""]
    text = jax.jit(handgrad.rewrite(fn)).lower(x, kernel).as_text(debug_info=True)
    assert "inner/sin" in text
    assert "inner/cos" not in text


def test_a_policy_finds_its_names():
    def fn(x, kernel):
        y = checkpoint_name(jnp.sin(conv(x, kernel)) * 2, "kept")
        return jnp.sum(jnp.sin(y) * y)

    x, (kernel,) = arrays(1)
    policy = jax.checkpoint_policies.save_only_these_names("kept")
    theirs, ours = (
        str(jax.make_jaxpr(jax.grad(jax.checkpoint(f, policy=policy)))(x, kernel))
        for f in (fn, handgrad.rewrite(fn))
    )
    assert ours.count("name=kept") == theirs.count("name=kept") == 1
    assert ours.count(" = sin ") == theirs.count(" = sin ") > 0


def test_other_literals_parameters_and_types_are_other_programs():
    def fn(x, kernel):
        y = conv(x, kernel)
        found = []
        for f in (
            lambda y: jnp.sin(y) * 2,
            lambda y: jnp.sin(y) * 3,
            lambda y: jnp.sin(y) * jnp.nan,
            lambda y: jnp.sin(y) * jnp.nan,
            lambda y: jnp.sum(y, 0),
            lambda y: jnp.sum(y, 1),
            lambda y: jnp.sin(y[:1]) * 2,
        ):
            found.append(f(y))
            y = conv(y, kernel)
        return found

    x, (kernel,) = arrays(1)
    _, calls = packed(fn, x, kernel)
    programs = [id(eqn.params["jaxpr"]) for eqn in calls]
    assert len(programs) == 7
    assert len(set(programs)) == 6  # the two with NaN are one
    assert programs[2] == programs[3]
    for a, b in zip(handgrad.rewrite(fn)(x, kernel), fn(x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_keys_callbacks_and_effects_stay_the_equations_that_they_were():
    def fn(key, x, kernel):
        y = conv(x, kernel)
        bits = jax.random.bits(jax.random.split(key)[0], (2,))
        y = jnp.sin(y) + jax.pure_callback(lambda y: y, y, y)
        jax.debug.print("{}", bits[0])
        return jnp.cos(y), bits

    program = function.trace(fn, (jax.random.key(0), *unlisted(arrays(1))), {}).program
    new = pieces.together(function.jaxprs.rewrite(program, named(None)))
    kept = {id(eqn) for eqn in new.eqns}
    alone = ("pure_callback", "debug_callback", "debug_print", "random_bits")
    for eqn in program.eqns:
        if eqn.primitive.name in alone or eqn.effects:
            assert id(eqn) in kept
    assert any(eqn.primitive.name == "pure_callback" for eqn in new.eqns)


def unlisted(pair):
    x, (kernel,) = pair
    return x, kernel
