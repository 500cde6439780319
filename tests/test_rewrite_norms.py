"""rewrite knows batch norms, in every form that libraries write them in."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import handgrad
from handgrad._rewrite import norms

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((8, 6, 5, 3)) + 0.5
CHANNELS = RANDOM.standard_normal((2, 3)) + 1
PIXELS = (0, 1, 2)


def moments(x, square=lax.square):
    mean, of_squares = x.mean(PIXELS), square(x).mean(PIXELS)
    return mean, jnp.maximum(of_squares - lax.square(mean), 0)


def flax(x, scale, bias, statistics=moments):
    """As Flax writes it, and Haiku."""
    mean, variance = (lax.expand_dims(a, PIXELS) for a in statistics(x))
    factor = lax.rsqrt(variance + 1e-5) * scale.reshape(1, 1, 1, -1)
    return (x - mean) * factor + bias.reshape(1, 1, 1, -1)


def keras(x, scale, bias):
    """As Keras writes it."""
    mean, variance = moments(x)
    factor = lax.rsqrt(variance + 1e-5) * scale
    whole = lambda a: jnp.broadcast_to(a, x.shape)
    return x * whole(factor) + whole(bias - mean * factor)


def turned_round(x, scale, bias):
    """Each operand on the other side."""
    mean, variance = moments(x, lambda x: x * x)
    whole = lambda a: lax.broadcast_in_dim(a, x.shape, (3,))
    return whole(bias) + whole(lax.rsqrt(variance) * scale) * (x - whole(mean))


def two_passes(x, scale, bias):
    """The difference is read twice; one sum of squares, of another array."""
    difference = x - x.mean(PIXELS, keepdims=True)
    variance = (difference**2).mean(PIXELS, keepdims=True)
    whole = lambda a: a.reshape(1, 1, 1, -1)
    return difference * (lax.rsqrt(variance) * whole(scale)) + whole(bias)


def kept(x, scale, bias):
    """What is computed on the way is a result, too."""
    squares = x**2
    total, of_squares = squares.sum(PIXELS), x.sum(PIXELS)
    y = (x - total.reshape(1, 1, 1, -1)) * scale.reshape(1, 1, 1, -1)
    return y + bias.reshape(1, 1, 1, -1), y, of_squares, squares


def matrix(x, scale, bias):
    """[N, C]: no pixels."""
    x = x.reshape(-1, x.shape[-1])
    mean, of_squares = x.mean(0), (x**2).mean(0)
    r = lax.rsqrt(of_squares - mean**2 + 1e-5)
    return (x - mean[None]) * (r * scale)[None] + bias[None]


# How a batch norm is written -> the function, and how many groups are found.
FORMS = {
    "as Flax": (flax, 2),
    "as Keras": (keras, 2),
    "turned round": (turned_round, 2),
    "powers": (
        functools.partial(flax, statistics=lambda x: moments(x, lambda x: x**2)),
        2,
    ),
    "given statistics": (
        functools.partial(flax, statistics=lambda x: jnp.asarray(CHANNELS, x.dtype)),
        1,
    ),
    "two passes": (two_passes, 1),
    "no bias": (lambda x, s, b: jnp.tanh(flax(x, s, 0 * b) - b.sum()), 2),
    "nothing added": (
        lambda x, s, b: (x - b.reshape(1, 1, 1, -1)) * s.reshape(1, 1, 1, -1),
        1,
    ),
    "the way kept": (kept, 2),
    "of what nobody else reads": (
        lambda x, s, b: jnp.sin(x) * s.reshape(1, 1, 1, -1) + b.reshape(1, 1, 1, -1),
        1,
    ),
    "twice the sums": (
        lambda x, s, b: (flax(x, s, b), x.sum(PIXELS), lax.square(x).sum(PIXELS)),
        3,
    ),
    "matrix": (matrix, 2),
    "one channel": (lambda x, s, b: flax(x[..., :1], s[:1], b[:1]), 2),
    "no example": (lambda x, s, b: matrix(x[:0], s, b), 1),
    "one after another": (lambda x, s, b: flax(jax.nn.relu(flax(x, s, b)), b, s), 4),
    "in a scan": (
        lambda x, s, b: lax.scan(lambda x, _: (flax(x, s, b), x.sum()), x, length=2),
        2,
    ),
    "gradient inside": (
        lambda x, s, b: jax.grad(lambda s: jnp.sum(jnp.sin(flax(x, s, b))))(s),
        2,
    ),
}
LEFT = {
    "a layer's norm": lambda x, s, b: (
        (x - x.mean(-1, keepdims=True)) * lax.rsqrt((x**2).mean(-1, keepdims=True))
    ),
    "an example's": lambda x, s, b: x.sum((1, 2)) + (x**2).sum((1, 2)),
    "one sum": lambda x, s, b: x * s.reshape(1, 1, 1, -1) + x.sum(),
    "of two arrays": lambda x, s, b: (x + 1).sum(PIXELS) + (x**2).sum(PIXELS),
    "cubes": lambda x, s, b: x.sum(PIXELS) + (x**3).sum(PIXELS),
    "numbers": lambda x, s, b: (x - 1.0) * 2.0 + 3.0,
    "turned difference": lambda x, s, b: b.reshape(1, 1, 1, -1) - x,
    "a vector's": lambda x, s, b: s.sum(()) + (s * s).sum(()) + s * b + b,
    "of every pixel": lambda x, s, b: (x - x[::-1]) * x + s.reshape(1, 1, 1, -1),
    "quotient": lambda x, s, b: (x - b.reshape(1, 1, 1, -1)) / s.reshape(1, 1, 1, -1),
}


def arrays(dtype):
    return jnp.asarray(X, dtype), *jnp.asarray(CHANNELS, dtype)


def found(fn, *args):
    """How many batch norms' groups are replaced; none is left."""
    rows = handgrad.rewrite.report(fn, *args).rows
    assert not [row for row in rows if row.left_because]
    return sum(len(row.places) for row in rows if row.primitive == norms.NAME)


def everything(fn):
    """Results and gradients, with another number for each result."""

    def loss(*args):
        leaves = jax.tree.leaves(fn(*args))
        weights = [jnp.sin(jnp.arange(y.size, dtype=y.dtype)) for y in leaves]
        terms = (
            jnp.sum(jnp.tanh(y) * w.reshape(y.shape))
            for y, w in zip(leaves, weights, strict=True)
        )
        return sum(terms), leaves

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def differ(fn, dtype="float64", times=1e4):
    """By how much results and gradients differ, in units of their rounding."""
    with jax.enable_x64(dtype == "float64"):
        args = arrays(dtype)
        ours = jax.tree.leaves(everything(handgrad.rewrite(fn))(*args))
        theirs = jax.tree.leaves(everything(fn)(*args))
        assert [(a.dtype, a.weak_type) for a in ours] == [
            (a.dtype, a.weak_type) for a in theirs
        ]
        worst = max(
            np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(b), initial=0), 1e-3)
            for a, b in zip(ours, theirs, strict=True)
        )
        return worst / (times * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("name", FORMS)
def test_is_known_and_equal(name):
    fn, count = FORMS[name]
    assert found(fn, *arrays("float32")) == count
    assert differ(fn) < 1
    ours = handgrad.rewrite(fn)
    assert found(ours, *arrays("float32")) == 0  # nothing is left to do
    twice = (
        jax.make_jaxpr(f)(*arrays("float32")) for f in (ours, handgrad.rewrite(ours))
    )
    assert len({str(program) for program in twice}) == 1


@pytest.mark.parametrize("name", ["as Flax", "as Keras", "the way kept"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_the_dtype_of_the_function(name, dtype):
    fn, _ = FORMS[name]
    assert differ(fn, dtype, times=100 if dtype == "float32" else 10) < 1


@pytest.mark.parametrize("name", LEFT)
def test_what_is_none_is_left(name):
    args = arrays("float32")
    before, after = (
        jax.make_jaxpr(f)(*args) for f in (LEFT[name], handgrad.rewrite(LEFT[name]))
    )
    assert str(before) == str(after)
    assert not handgrad.rewrite.report(LEFT[name], *args).rows


@pytest.mark.parametrize("train", [True, False])
def test_flax_modules(train):
    linen = nn.BatchNorm(use_running_average=not train)
    x = jnp.asarray(X, "float32")
    variables = linen.init(jax.random.key(0), x)
    apply = lambda v, x: linen.apply(v, x, mutable=["batch_stats"])
    assert found(apply, variables, x) == 1 + train
    module = nnx.BatchNorm(3, use_running_average=not train, rngs=nnx.Rngs(0))
    definition, state = nnx.split(module)
    assert found(lambda s, x: nnx.merge(definition, s)(x), state, x) == 1 + train
    layers = nn.LayerNorm(), nn.GroupNorm(3), nn.RMSNorm()
    for layer in layers:
        assert found(layer.apply, layer.init(jax.random.key(0), x), x) == 0


def test_rules_are_chosen():
    def fn(x, scale, bias):
        return lax.reduce_window(
            flax(x, scale, bias), -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"
        )

    args = arrays("float32")
    program = lambda rules: str(
        jax.make_jaxpr(handgrad.rewrite(fn, rules=rules))(*args)
    )
    assert program(()) == str(jax.make_jaxpr(fn)(*args))
    assert program("batch_norm").count("custom_vjp_call") == 2
    assert "reduce_window_max" in program("batch_norm")
    assert program("reduce_window_max").count("custom_vjp_call") == 1


def test_report():
    report = handgrad.rewrite.report(flax, *arrays("float32"))
    statistics, normal = report.rows
    assert statistics.primitive == normal.primitive == "batch_norm"
    assert statistics.operands == ("float32[8,6,5,3]",)
    assert len(normal.operands) == 4
    integers = [a.astype(int) for a in arrays("float32")]
    (left,) = handgrad.rewrite.report(FORMS["nothing added"][0], *integers).rows
    assert left.left_because == "int32 has no gradient of ours"


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    x, *channels = arrays("float32")
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        whole = NamedSharding(mesh, PartitionSpec())
        channels = [jax.device_put(a, whole) for a in channels]
        loss = lambda fn: lambda *args: jnp.sum(jnp.sin(fn(*args)))
        assert found(flax, x, *channels) == 2
        ours, theirs = (
            jax.jit(jax.grad(loss(fn), (0, 1, 2)))(x, *channels)
            for fn in (handgrad.rewrite(flax), flax)
        )
        for a, b in zip(ours, theirs, strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
            np.testing.assert_allclose(a, b, atol=2e-5 * np.max(np.abs(b)))


def wrong(name, change):
    right = getattr(norms, name)
    return {name: lambda *args, **options: change(right, *args, **options)}


RIGHT_ROOT = norms._Program.root
WRONG = {
    "sums exchanged": wrong("moments", lambda right, x: right(x)[::-1]),
    "a term dropped": wrong("moments", lambda right, x: right(x.at[0, 0].set(0))),
    "mean ignored": wrong(
        "rescaled",
        lambda right, x, *c, names: (
            right(x, c[0], *c[2:], names=(names[0], *names[2:]))
            if "mean" in names
            else right(x, *c, names=names)
        ),
    ),
    "bias for mean": wrong(
        "rescaled",
        lambda right, x, *c, names: right(
            x,
            *c,
            names=tuple({"mean": "bias", "bias": "mean"}.get(n, n) for n in names),
        ),
    ),
    "any power is a square": {
        "root": lambda self, v: (
            eqn.invars[0]
            if (eqn := self.made(v, norms.primitives.integer_pow_p))
            else RIGHT_ROOT(self, v)
        )
    },
    "what others read is gone": {
        "unread": lambda self, members, v: frozenset(
            {*members, self.maker.get(v, -1)} - {-1}
        )
    },
    "any axes are the pixels": {"_is_over_pixels": lambda eqn: True},
    "any array is of channels": {
        "channels": lambda self, v, image: v if isinstance(v, norms.core.Var) else None
    },
}


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_copy_is_found(name, monkeypatch):
    for part, new in WRONG[name].items():
        monkeypatch.setattr(
            norms if hasattr(norms, part) else norms._Program, part, new
        )

    def differs(fn):
        try:
            return not differ(fn) < 1
        except (KeyError, NameError, TypeError, ValueError):
            return True  # a program that cannot be computed

    args = arrays("float32")
    assert any(differs(fn) for fn, _ in FORMS.values()) or any(
        handgrad.rewrite.report(fn, *args).rows for fn in LEFT.values()
    )
