"""rewrite(fn) is fn: its results, gradients, effects, names; and what it replaces."""

import functools
import gc
import json
import os
import traceback
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback
from jax.extend.core import primitives
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import handgrad
from handgrad._rewrite import gradients, replacements
from handgrad.convolution import choose, tuned

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((8, 8, 6, 4))
KERNEL = 0.3 * RANDOM.standard_normal((3, 3, 4, 4))
LAYOUT = ("NHWC", "HWIO", "NHWC")
LEAST = np.iinfo(np.int32).min


# What is compared in float64 need not be fast, and compiles in half the time.
quickly = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def conv(x, kernel, strides=(1, 1), padding="SAME", **options):
    options = {"dimension_numbers": LAYOUT, **options}
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def pool(x, reducer=lax.max, init=-np.inf, window=(3, 2), strides=(2, 2)):
    init = np.asarray(init, x.dtype)
    sizes = (1, *window, 1), (1, *strides, 1)
    return lax.reduce_window(x, init, reducer, *sizes, "SAME")


def layer(x, kernel):
    return pool(conv(x, kernel))


def pools(x, kernel):
    y = jnp.tanh(pool(conv(x, kernel)))
    return pool(y, lax.min, np.inf) + pool(y, lax.add, 0)


def of_count(program, name):
    """How often a primitive stands in a program, in all that it holds."""
    program = getattr(program, "jaxpr", program)
    inner = jax.extend.core.jaxprs_in_params
    return sum(
        (eqn.primitive.name == name) + sum(of_count(j, name) for j in inner(eqn.params))
        for eqn in program.eqns
    )


def replaced(fn, *args):
    """How many equations `rewrite` replaces, and whether it leaves any."""
    rows = handgrad.rewrite.report(fn, *args).rows
    left = [row.left_because for row in rows if row.left_because]
    return sum(len(row.places) for row in rows), left


@jax.custom_jvp
def with_jvp(x, kernel):
    return jnp.sin(conv(x, kernel))


@with_jvp.defjvp
def _with_jvp(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    dy = conv(dx, kernel) + conv(x, dkernel)
    return with_jvp(x, kernel), 2 * jnp.cos(conv(x, kernel)) * dy  # twice too much


@jax.custom_vjp
def with_vjp(x, kernel):
    return jnp.sin(conv(x, kernel))


with_vjp.defvjp(
    lambda x, kernel: (with_vjp(x, kernel), (x, kernel)),
    lambda kept, dy: (dy + kept[0], jnp.sum(dy) * kept[1]),  # anything
)


def loop(x, kernel):
    start = lax.stop_gradient(x)
    until = lambda carry: (carry[0] < 2) & (jnp.max(pool(carry[1])) < 99)
    step = lambda carry: (carry[0] + 1, jnp.tanh(conv(carry[1], jnp.ones_like(kernel))))
    _, start = lax.while_loop(until, step, (0, start))
    return conv(x + start, kernel)


def scanned(x, kernel):
    def step(carry, scale):
        return jnp.tanh(conv(carry, scale * kernel)), pool(carry)

    return lax.scan(step, x, jnp.arange(1, 3, dtype=x.dtype))


def branches(x, kernel):
    index = (x[0, 0, 0, 0] > 0).astype(jnp.int32)
    return lax.switch(index, [layer, lambda x, kernel: 2 * layer(x, kernel)], x, kernel)


@functools.partial(
    jax.shard_map,
    mesh=jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)),
    in_specs=(PartitionSpec("data"), PartitionSpec()),
    out_specs=PartitionSpec("data"),
)
def sharded(x, kernel):
    y, _ = lax.scan(lambda carry, _: (conv(carry, kernel), None), x, length=2)
    return jax.jit(layer)(y, kernel) * lax.pmean(jnp.sum(y), "data")


# What stands where -> the function, and how many equations have a rule.
NESTED = {
    "plain": (pools, 4),
    "jit": (jax.jit(layer), 2),
    "jit in jit": (
        jax.jit(lambda x, k: jax.jit(layer)(x, k) + jax.jit(layer)(x, k)),
        4,
    ),
    "scan": (scanned, 2),
    "while": (loop, 3),
    "fori": (lambda x, k: lax.fori_loop(0, 2, lambda i, c: jnp.tanh(conv(c, k)), x), 1),
    "cond": (branches, 4),
    "remat": (jax.checkpoint(layer), 2),
    "remat in scan": (
        lambda x, k: lax.scan(
            jax.checkpoint(lambda c, _: (conv(c, k), 0.0)), x, None, 2
        ),
        1,
    ),
    "custom_jvp": (lambda x, k: pool(with_jvp(x, k)), 2),
    "custom_vjp": (lambda x, k: pool(with_vjp(x, k)), 2),
    "vmap": (jax.vmap(lambda x, k: layer(x[None], k)[0], (0, None)), 2),
    "vmap of kernels": (
        lambda x, k: jax.vmap(conv, (None, 0))(x, jnp.stack([k, 2 * k])),
        1,
    ),
    "shard_map": (sharded, 3),
    "closed over": (lambda x, k: layer(conv(x, jnp.asarray(KERNEL, k.dtype)), k), 3),
    "gradient inside": (
        lambda x, k: jax.grad(lambda k: jnp.sum(jnp.sin(layer(x, k))))(k),
        4,
    ),
}


def arrays(dtype):
    return jnp.asarray(X, dtype), jnp.asarray(KERNEL, dtype)


def everything(fn):
    """Value, auxiliary and gradients; the same of a batch of images."""

    def loss(kernel, x):
        leaves = jax.tree.leaves(fn(x, kernel))
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves), {"y": leaves}

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    def both(x, kernel):
        batch = jnp.stack([x, -x])
        return gradient(kernel, x), jax.vmap(gradient, (None, 0))(kernel, batch)

    return both


def same(ours, theirs, dtype):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.dtype, a.shape, a.weak_type) == (b.dtype, b.shape, b.weak_type)
        size = np.max(np.abs(b), initial=1e-30)
        np.testing.assert_allclose(a / size, b / size, atol=300 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("name", NESTED)
def test_equals_the_function(name):
    fn, count = NESTED[name]
    with jax.enable_x64(True):
        args = arrays("float64")
        assert replaced(fn, *args) == (count, [])
        ours, theirs = handgrad.rewrite(fn), fn
        both = lambda *args: (everything(ours)(*args), everything(theirs)(*args))
        same(*quickly(both)(*args), float)
        assert replaced(ours, *args) == (0, [])  # nothing is left to do
        once = jax.make_jaxpr(everything(ours))(*args)
        twice = jax.make_jaxpr(everything(handgrad.rewrite(ours)))(*args)
        assert str(once) == str(twice)
        assert of_count(once, "select_and_scatter_add") == 0


@pytest.mark.parametrize("name", ["plain", "gradient inside"])
def test_float32(name):
    fn, _ = NESTED[name]
    args = arrays("float32")
    ours, theirs = (jax.jit(everything(f))(*args) for f in (handgrad.rewrite(fn), fn))
    same(ours, theirs, "float32")
    eager = handgrad.rewrite(fn)(*args)
    same(eager, jax.jit(fn)(*args), "float32")


def test_a_training_step_of_a_rewritten_function_donates():
    @functools.partial(jax.jit, donate_argnums=0)
    def step(kernel, x):
        loss = handgrad.rewrite(lambda kernel: jnp.sum(layer(x, kernel) ** 2))
        return kernel - 0.1 * jax.grad(loss)(kernel)

    x, kernel = arrays("float32")
    step(kernel, x)
    assert kernel.is_deleted()
    x, kernel = arrays("float32")
    inner = jax.jit(lambda kernel: kernel + jnp.sum(conv(x, kernel)), donate_argnums=0)
    handgrad.rewrite(inner)(kernel)
    assert kernel.is_deleted()


def test_gradients_of_gradients():
    x, kernel = arrays("float32")

    def second(fn):
        first = jax.grad(lambda kernel: jnp.sum(jnp.sin(fn(x, kernel))))
        return jax.jit(jax.grad(lambda kernel: jnp.sum(first(kernel) ** 2)))(kernel)

    same(second(handgrad.rewrite(layer)), second(layer), "float32")


def test_forward_mode_is_not_offered():
    x, kernel = arrays("float32")
    along = lambda fn: jax.jvp(lambda x: fn(x, kernel), (x,), (x,))
    with pytest.raises(TypeError, match="forward-mode"):
        along(handgrad.rewrite(conv))
    same(along(handgrad.rewrite(conv, rules=())), along(conv), "float32")


# Every geometry of a convolution, and its gradients, taken inside and outside.
GEOMETRIES = [
    {
        "strides": (strides, 1),
        "padding": ((2, 0), (-1, 3)),
        "rhs_dilation": (1, dilation),
        "lhs_dilation": (1 + (groups == 1), 1),
        "dimension_numbers": layout,
        "feature_group_count": groups,
        "batch_group_count": examples,
    }
    for layout, strides, groups, examples, dilation in [
        (LAYOUT, 1, 1, 1, 2),
        (("NCHW", "OIHW", "CNHW"), 2, 1, 1, 1),
        (("HWNC", "OHWI", "NHWC"), 2, 2, 1, 2),
        (("NCHW", "OIHW", "NCHW"), 2, 4, 1, 1),
        (("CHWN", "HWIO", "NCHW"), 3, 1, 2, 1),
    ]
]


def differences(options):
    """Asserts that gradients inside and outside of `rewrite` are autodiff's."""
    x, kernel = X, KERNEL[:, :2, : 4 // options["feature_group_count"]]
    numbers = lax.conv_dimension_numbers(
        (1,) * 4, (1,) * 4, options["dimension_numbers"]
    )
    x = np.moveaxis(x, (0, 3, 1, 2), numbers.lhs_spec)
    kernel = np.moveaxis(kernel, (3, 2, 0, 1), numbers.rhs_spec)
    loss = lambda fn: lambda x, kernel: jnp.sum(jnp.sin(fn(x, kernel)))
    fn = functools.partial(conv, **options)
    autodiff = jax.grad(loss(fn), (0, 1))
    inside = jax.grad(loss(handgrad.rewrite(fn)), (0, 1))
    outside = handgrad.rewrite(autodiff)
    assert replaced(autodiff, x, kernel) == (3, [])
    all_of = lambda *args: (inside(*args), outside(*args), autodiff(*args))
    inside, outside, autodiff = quickly(all_of)(x, kernel)
    same(inside, autodiff, float)
    same(outside, autodiff, float)


@pytest.mark.parametrize("options", GEOMETRIES)
def test_every_geometry(options):
    with jax.enable_x64(True):
        differences(options)


def test_gradients_are_known_for_what_they_are():
    loss = lambda x, k: jnp.sum(conv(x, k, (2, 2), feature_group_count=4) ** 2)
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 1, 4))
    rows = handgrad.rewrite.report(jax.grad(loss, (0, 1)), x, kernel).rows
    _, dkernel, dx = (row.formulas for row in rows)
    assert list(dkernel) == ["kernel_gradient"]
    assert list(dx) == ["input_gradient"]
    explained = handgrad.explain_choice(
        x.shape, kernel.shape, (2, 2), "SAME", None, None, LAYOUT, 4
    ).formulas
    assert dkernel["kernel_gradient"][0] == explained.kernel_gradient
    assert dx["input_gradient"][0] == explained.input_gradient


def pools_differ():
    with jax.enable_x64(True):
        x, kernel = arrays("float64")
        autodiff = jax.grad(lambda x: jnp.sum(jnp.sin(pools(x, kernel))))
        same(quickly(handgrad.rewrite(autodiff))(x), quickly(autodiff)(x), float)


def changed(name, **changes):
    """The op of a primitive with some of its parameters changed."""
    op = replacements.OPS[name]

    def wrong(*arrays, **parameters):
        new = {n: change(parameters[n]) for n, change in changes.items()}
        return op(*arrays, **{**parameters, **new})

    return {name: wrong}


swap = lambda pairs: tuple(pair[::-1] for pair in pairs)
WRONG_OPS = {
    "padding swapped": changed("conv_general_dilated", padding=swap),
    "dimension numbers ignored": changed(
        "conv_general_dilated",
        dimension_numbers=lambda _: lax.conv_dimension_numbers(
            (1,) * 4, (1,) * 4, None
        ),
    ),
    "kernel dilation ignored": changed(
        "conv_general_dilated", rhs_dilation=lambda _: (1, 1)
    ),
    "groups ignored": changed("conv_general_dilated", feature_group_count=lambda _: 1),
    "window's padding swapped": changed("reduce_window_max", padding=swap),
    "minimum for maximum": {"reduce_window_max": handgrad.reduce_window_min},
    "maximum for minimum": {"reduce_window_min": handgrad.reduce_window_max},
    "maximum for sum": {"reduce_window_sum": handgrad.reduce_window_max},
    "gradient's padding swapped": changed("select_and_scatter_add", padding=swap),
}
no_turn = types.SimpleNamespace(rev=lambda x, dimensions: x)
WRONG_PARTS = {
    "kernel not turned": {"lax": no_turn},
    "layout of the gradient ignored": {"_laid_out": lambda x, spec, axes: x},
    "padding at the end ignored": {"_with_output": lambda w, output: w},
    "gradient of the other extremum": {
        "_POOLS": {
            primitives.ge_p: handgrad.reduce_window_min,
            primitives.le_p: handgrad.reduce_window_max,
        }
    },
}


def all_differences():
    pools_differ()
    for options in GEOMETRIES:
        test_every_geometry(options)


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("wrong", [*WRONG_OPS, *WRONG_PARTS])
def test_a_wrong_mapping_is_found(wrong, monkeypatch):
    for name, op in WRONG_OPS.get(wrong, {}).items():
        monkeypatch.setitem(replacements.OPS, name, op)
    for name, part in WRONG_PARTS.get(wrong, {}).items():
        monkeypatch.setattr(gradients, name, part)
    with pytest.raises(AssertionError):
        all_differences()


def test_effects_stay_in_order(capfd):
    said = []

    def fn(x, kernel):
        io_callback(lambda n: said.append(int(n)), None, 1, ordered=True)
        y = pool(conv(x, kernel))
        jax.debug.print("{}", y.shape[0], ordered=True)
        io_callback(lambda n: said.append(int(n)), None, 2, ordered=True)
        return y

    def scanned(x, kernel):
        return lax.scan(lambda c, _: (c + jnp.sum(fn(x, kernel)), None), 0.0, None, 2)[
            0
        ]

    args = arrays("float32")
    rewritten = handgrad.rewrite(fn)
    assert jax.make_jaxpr(rewritten)(*args).effects == jax.make_jaxpr(fn)(*args).effects
    for run, times in ((rewritten, 1), (jax.jit(rewritten), 1)):
        said.clear()
        jax.block_until_ready(run(*args))
        jax.effects_barrier()
        assert said == [1, 2] * times
    said.clear()
    jax.block_until_ready(jax.jit(handgrad.rewrite(scanned))(*args))
    jax.effects_barrier()
    assert said == [1, 2, 1, 2]
    assert capfd.readouterr().out.split() == ["8"] * 4


def test_references_are_written():
    x, kernel = arrays("float32")
    kept = jax.new_ref(jnp.zeros(()))

    def fn(given, x):
        given[...] += jnp.sum(conv(x, kernel))
        kept[...] += 1
        return given[...]

    given = jax.new_ref(jnp.zeros(()))
    total = handgrad.rewrite(fn)(given, x)
    np.testing.assert_allclose(total, jnp.sum(conv(x, kernel)), rtol=1e-4)
    jax.jit(handgrad.rewrite(fn))(given, x)
    assert int(kept[...]) == 2
    np.testing.assert_allclose(given[...], 2 * total, rtol=1e-6)


def test_random_bits_types_and_tracers_from_outside():
    def fn(key, x, kernel):
        key, subkey = jax.random.split(key)
        kept = jax.random.bernoulli(subkey, 0.5, x.shape)
        y = conv(jnp.where(kept, x, 0), kernel)
        half = conv(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
        weak = jnp.sum(lax.full_like(x, 1)) * 0 + 2
        return {"key": key, "y": y, "half": half, "n": (weak, 2.0 * weak, kept)}

    args = jax.random.key(0), *arrays("float32")
    ours, theirs = quickly(handgrad.rewrite(fn))(*args), quickly(fn)(*args)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.aval == b.aval
    np.testing.assert_array_equal(ours["n"][2], theirs["n"][2])
    bits = jax.random.key_data
    np.testing.assert_array_equal(bits(ours["key"]), bits(theirs["key"]))

    def outside(kernel, x):
        weighted = lambda scale: jnp.sum(conv(scale * x, kernel) ** 2)
        return jax.grad(handgrad.rewrite(weighted))(jnp.sum(x))

    x, kernel = args[1:]
    finite = quickly(jax.grad(outside))(kernel, x)
    assert bool(jnp.all(jnp.isfinite(finite)))


def test_names_stay():
    @jax.jit
    def block(x, kernel):
        with jax.named_scope("scope"):
            return pool(conv(x, kernel))

    def model(x, kernel):
        return jnp.sum(block(x, kernel))

    x, kernel = arrays("float32")
    rewritten = handgrad.rewrite(model)
    assert (rewritten.__name__, rewritten.__doc__) == (model.__name__, model.__doc__)
    text = jax.jit(rewritten).lower(x, kernel).as_text(debug_info=True)
    assert "module @jit_model" in text
    assert '"jit(model)/jit(block)"' in text
    assert "scope/" in text
    assert os.path.basename(__file__) in text
    partial = handgrad.rewrite(functools.partial(conv, kernel=kernel))
    assert partial.__name__ == "conv"
    assert handgrad.rewrite(Callable()).__name__ == "Callable"


class Callable:
    def __call__(self, x):
        return x


def test_what_is_no_array_stays():
    seen = []

    def fn(x, kernel, mode, scale=2.0, *, options):
        seen.append((mode, scale, options["names"]))
        y = conv(x, kernel) if mode == "train" and scale > 1 else x
        return {"y": y, "mode": mode, "scale": scale, "none": None, "np": np.float64(1)}

    x, kernel = arrays("float32")
    options = {"names": ["a", {1, 2}], "array": np.ones(3)}
    out = handgrad.rewrite(fn)(x, kernel, "train", options=options)
    assert seen == [("train", 2.0, ["a", {1, 2}])]
    assert (out["mode"], out["scale"], out["none"]) == ("train", 2.0, None)
    assert type(out["np"]) is np.float64
    same(out["y"], conv(x, kernel), "float32")
    compiled = jax.jit(
        handgrad.rewrite(lambda x, *, mode: mode), static_argnames="mode"
    )
    assert compiled(x, mode=3) == 3


def test_compiles_no_more_often_than_jit():
    compiled = []

    def count(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    x, kernel = arrays("float32")
    loss = jax.jit(lambda x, kernel: jnp.sum(scanned(x, kernel)[0]))
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for fn in (loss, jax.grad(loss), jax.jit(jax.grad(loss))):
            rewritten = handgrad.rewrite(fn)
            rewritten(x, kernel)
            assert compiled
            compiled.clear()
            for _ in range(3):
                rewritten(x + 1, kernel)
                handgrad.rewrite(fn)(x, kernel)
            # `x + 1` is a program of its own.
            assert len(compiled) <= 1
            compiled.clear()
        step = jax.jit(jax.grad(handgrad.rewrite(loss)))
        step(x, kernel)
        compiled.clear()
        step(x, kernel)
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def test_what_needs_no_rewriting_is_the_very_same():
    @jax.jit
    def plain(x):
        return jnp.sin(x) @ x

    def both(x):
        return plain(x), lax.scan(lambda c, _: (plain(c), c), x, None, 2)

    def held(fn, *args):
        eqns = jax.make_jaxpr(fn)(*args).eqns
        (eqn,) = (eqn for eqn in eqns if eqn.params.get("name") == "plain")
        return eqn.params["jaxpr"]

    square, image = jnp.ones((3, 3)), jnp.ones((1, 4, 4, 1))
    fn = lambda x, y: (both(x), pool(y))
    assert held(handgrad.rewrite(fn), square, image) is held(fn, square, image)
    once, again = (jax.make_jaxpr(f)(square) for f in (both, handgrad.rewrite(both)))
    assert str(once) == str(again)


def test_forgets_what_is_gone():
    x, kernel = arrays("float32")
    fn = jax.jit(lambda x: jnp.sum(conv(x, kernel)))
    jax.make_jaxpr(handgrad.rewrite(fn))(x)
    (eqn,) = jax.make_jaxpr(fn)(x).eqns
    program = weakref.ref(eqn.params["jaxpr"])
    del fn, eqn
    jax.clear_caches()
    gc.collect()
    assert program() is None


def test_follows_measured_choices(tmp_path):
    x, kernel = arrays("float32")
    fn = jax.jit(conv)
    before = str(jax.make_jaxpr(handgrad.rewrite(fn))(x, kernel))
    path = tmp_path / "tuned.json"
    jax.clear_caches()
    with choose.recording() as asked:
        jax.eval_shape(handgrad.rewrite(conv), x, kernel)
    key = tuned.key(asked[0].x_shape, asked[0].kernel_shape, asked[0].spec)
    everywhere = handgrad.ConvFormulas("gemm", "gemm", "gemm")
    tuned.save(path, {key: tuned.Measured(everywhere, {})})
    try:
        assert handgrad.load_tuned(path) == 1
        after = str(jax.make_jaxpr(handgrad.rewrite(fn))(x, kernel))
    finally:
        handgrad.load_tuned(None)
    assert after != before
    assert "dot_general" in after
    assert "dot_general" not in before


def users_error(x):
    raise KeyError("the user's own")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.grad])
def test_errors_are_the_users(wrap):
    with pytest.raises(KeyError, match="the user's own") as caught:
        wrap(handgrad.rewrite(users_error))(1.0)
    frames = [
        frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)
    ]
    assert frames[-1] == __file__
    assert not [name for name in frames if "handgrad/" in name]
    with pytest.raises(TypeError, match=r"users_error\(\) takes 1 positional argument"):
        wrap(handgrad.rewrite(users_error))(1.0, 2.0)
    with pytest.raises(jax.errors.TracerBoolConversionError, match="the argument x"):
        handgrad.rewrite(lambda params, mode, x: 1 if x > 0 else 2)(
            {}, "m", jnp.ones(())
        )


def test_bad_input():
    with pytest.raises(TypeError, match=r"^rewrite: fn must be callable, got int"):
        handgrad.rewrite(3)
    with pytest.raises(
        TypeError, match=r"^rewrite\.report: fn must be callable, got str"
    ):
        handgrad.rewrite.report("fn")
    unknown = (
        r"^rewrite: rules \(=\('conv',\)\) must be among 'conv_general_dilated', 'red"
    )
    for rules in ("conv", ["conv"]):
        with pytest.raises(ValueError, match=unknown):
            handgrad.rewrite(conv, rules=rules)


def test_rules_are_chosen():
    x, kernel = arrays("float32")
    some = handgrad.rewrite(pools, rules="reduce_window_max")
    program = jax.make_jaxpr(some)(x, kernel)
    assert of_count(program, "custom_vjp_call") == 1
    assert replaced(some, x, kernel) == (3, [])
    none = jax.make_jaxpr(handgrad.rewrite(pools, rules=()))(x, kernel)
    assert str(none) == str(jax.make_jaxpr(pools)(x, kernel))


kernel_of = lambda x: jnp.ones((2,) * (x.ndim - 2) + (1, 1), x.dtype)
UNSUPPORTED = {
    "integers": (lambda x: pool(x.astype(int), init=LEAST), "int32 has no gradient"),
    "complex": (
        lambda x: conv(x.astype(complex), KERNEL.astype("complex64")),
        "complex64",
    ),
    "5 dimensions": (
        lambda x: lax.conv(
            x[:1, :1, :4, :4, None, None, None], jnp.ones((1,) * 7), (1,) * 5, "SAME"
        ),
        "not supported",
    ),
    "another reducer": (
        lambda x: pool(x, lambda a, b: a * b + 1, 1.0, (2, 2)),
        "its reducer is no max",
    ),
    "weakly typed": (
        lambda x: conv(
            jnp.broadcast_to(2.0, (1, 4, 4, 1)), jnp.broadcast_to(1.0, (2, 2, 1, 1))
        ),
        "the type would change",
    ),
    "in a solver": (
        lambda x: lax.custom_linear_solve(
            lambda v: 9 * v + conv(v, jnp.ones((1, 1, 4, 4))),
            x,
            lambda matvec, b: b / 9,
        ),
        "custom_linear_solve is not looked into",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_rule_is_left(name):
    fn, because = UNSUPPORTED[name]
    x, _ = arrays("float32")
    before, after = (jax.make_jaxpr(f)(x) for f in (fn, handgrad.rewrite(fn)))
    assert str(before) == str(after)
    left = [row.left_because for row in handgrad.rewrite.report(fn, x).rows]
    assert left
    assert all(because in reason for reason in left)


def test_an_explicit_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    x, kernel = arrays("float32")
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
        loss = lambda fn: lambda x, kernel: jnp.sum(jnp.sin(fn(x, kernel)))
        theirs = jax.grad(loss(layer), (0, 1))
        assert replaced(layer, x, kernel) == (2, [])
        ours = [
            jax.grad(loss(handgrad.rewrite(layer)), (0, 1)),
            handgrad.rewrite(theirs),
        ]
        theirs = jax.jit(theirs)(x, kernel)
        for fn in ours:
            found = jax.jit(fn)(x, kernel)
            same(found, theirs, "float32")
            assert [a.sharding for a in found] == [a.sharding for a in theirs]


def test_report():
    x, kernel = arrays("float32")

    @jax.jit
    def block(x, kernel):
        with jax.named_scope("scope"):
            return conv(conv(x, kernel), kernel)

    def fn(x, kernel, mode):
        return (
            pool(block(x, kernel)),
            pool(x.astype(int), init=LEAST),
            with_vjp(x, kernel),
        )

    report = handgrad.rewrite.report(fn, x, kernel, "train")
    convs, window, left, valued = report.rows
    assert convs.places == ("block/scope", "block/scope")
    assert convs.operands == ("float32[8,8,6,4]", "float32[3,3,4,4]")
    choice = handgrad.explain_choice(
        x.shape, kernel.shape, (1, 1), "SAME", dimension_numbers=LAYOUT
    )
    assert {d: name for d, (name, _) in convs.formulas.items()} == vars(choice.formulas)
    assert {d: why for d, (_, why) in convs.formulas.items()} == choice.reasons
    assert window.primitive == "reduce_window_max"
    assert left.left_because == "int32 has no gradient of ours"
    assert list(valued.formulas) == ["forward"]
    text = str(report)
    assert text.startswith(
        "4 of 5 replaced, on cpu\n2 × conv_general_dilated of float32"
    )
    assert "padding [[1, 1], [1, 1]]" in text
    assert "left alone: int32 has no gradient of ours" in text
    content = json.loads(report.to_json())
    assert [row["primitive"] for row in content["rows"]] == [
        r.primitive for r in report.rows
    ]
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, kernel)]
    assert str(handgrad.rewrite.report(fn, *shapes, "train")) == text
