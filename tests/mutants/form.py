"""Right numbers in the wrong form, or right only sometimes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from tests.mutants.mutant import Mutant, normal, rule, spoiled

VECTOR = (normal(6),)
PAIR = (normal(4, 3), normal(4, 3, seed=1))
_precision = functools.partial(Mutant, "precision")
_form = functools.partial(Mutant, "form")
_sometimes = functools.partial(Mutant, "sometimes")


def sine(backward, value=None):
    return rule(lambda x: jnp.sin(x), backward, value)


def cosine(dy, y, x):
    return (dy * jnp.cos(x),)


def state_dependent():
    calls = itertools.count()

    def backward(dy, y, x):
        return (dy * jnp.cos(x) * (1 + 1e-3 * (next(calls) % 2)),)

    return sine(backward)


def random_at_trace():
    random = np.random.default_rng(0)

    def backward(dy, y, x):
        noise = random.standard_normal(x.shape).astype(x.dtype)
        return (dy * jnp.cos(x) * (1 + 1e-7 * noise),)

    return sine(backward)


def random_at_run():
    random = np.random.default_rng(0)

    def noise(x):
        return (1 + 1e-6 * random.standard_normal(x.shape)).astype(x.dtype)

    def backward(dy, y, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        factor = jax.pure_callback(noise, shape, x, vmap_method="broadcast_all")
        return (dy * jnp.cos(x) * factor,)

    return sine(backward)


def wrong_under_vmap():
    @custom_vmap
    def derivative(dy, x):
        return dy * jnp.cos(x)

    @derivative.def_vmap
    def batched(size, which, dy, x):
        del size, which
        return dy * jnp.cos(x[..., ::-1]), True

    return sine(lambda dy, y, x: (derivative(dy, x),))


def wrong_for_one_example():
    @custom_vmap
    def derivative(dy, x):
        return dy * jnp.cos(x)

    @derivative.def_vmap
    def batched(size, which, dy, x):
        by_dy, by_x = which
        if not by_x:  # the mistake: only the first of a batch of errors
            return jnp.broadcast_to(dy[0] * jnp.cos(x), dy.shape), True
        dy = dy if by_dy else jnp.broadcast_to(dy, x.shape)
        return dy * jnp.cos(x), True

    return sine(lambda dy, y, x: (derivative(dy, x),))


def wrong_under_jit():
    def backward(dy, y, x):
        right = dy * jnp.cos(x)
        return (right * 1.01 if isinstance(x, jax.core.Tracer) else right,)

    return sine(backward)


def wrong_in_part():
    """With symbolic zeros: an argument that is alone gets half of its gradient."""

    @functools.partial(jax.custom_vjp)
    def product(a, b):
        return a * b

    def forward(a, b):
        both = a.perturbed and b.perturbed
        return a.value * b.value, (a.value, b.value, None if both else ())

    def backward(residuals, dy):
        a, b, alone = residuals
        factor = 0.5 if alone is not None else 1.0
        return dy * b * factor, dy * a * factor

    product.defvjp(forward, backward, symbolic_zeros=True)
    return product


def two_results(x):
    return jnp.sin(x), jnp.cos(x)


def hoarder(x):
    return jnp.sin(x)


def hoards():
    f = jax.custom_vjp(hoarder)
    f.defvjp(
        lambda x: (jnp.sin(x), jnp.stack([jnp.cos(x) + k for k in range(64)])),
        lambda kept, dy: (dy * kept[0],),
    )
    return f


def tree(parameters, x):
    return x * parameters["scale"] + parameters["shift"]


def tree_rule(backward):
    f = jax.custom_vjp(tree)
    f.defvjp(lambda p, x: (tree(p, x), (p, x)), lambda r, dy: backward(dy, *r))
    return f


def low_sum():
    """The sum of a bfloat16 cotangent, rounded at every step."""

    def backward(dy, y, x, bias):
        total, _ = jax.lax.scan(
            lambda carry, row: (carry + row, None), jnp.zeros_like(bias), dy
        )
        return dy, total

    return rule(lambda x, bias: x + bias, backward)


TREE = ({"scale": normal(5), "shift": normal(5, seed=1)}, normal(5, seed=2))
RIGHT = {
    "sine": (sine(cosine), VECTOR),
    "pytree": (
        tree_rule(lambda dy, p, x: ({"scale": dy * x, "shift": dy}, dy * p["scale"])),
        TREE,
    ),
}
MUTANTS = (
    _precision(
        "computed in bfloat16",
        sine(
            lambda dy, y, x: ((dy * jnp.cos(x.astype(jnp.bfloat16))).astype(x.dtype),)
        ),
        VECTOR,
    ),
    _precision(
        "cotangent cast too early",
        sine(lambda dy, y, x: ((dy * jnp.cos(x)).astype(jnp.float16).astype(x.dtype),)),
        VECTOR,
        hint="float16",
    ),
    _precision(
        "a constant with six digits",
        rule(
            lambda x: jnp.deg2rad(x), lambda dy, y, x: (dy * x.dtype.type(0.0174533),)
        ),
        VECTOR,
        "float64",
    ),
    _precision(
        "accumulated in bfloat16",
        low_sum(),
        (normal(10000, 2, dtype=jnp.bfloat16), normal(2, dtype=jnp.bfloat16)),
    ),
    _precision(
        "a difference of close numbers",
        rule(lambda x: jnp.log1p(x), lambda dy, y, x: (dy * (1 - x / (1 + x)),)),
        (np.linspace(500, 2000, 6, dtype=np.float32),),
    ),
    _form(
        "wrong dtype of the cotangent",
        sine(lambda dy, y, x: ((dy * jnp.cos(x)).astype(jnp.float16),)),
        VECTOR,
        "structure",
    ),
    _form(
        "wrong shape of the cotangent",
        sine(lambda dy, y, x: ((dy * jnp.cos(x))[:1],)),
        VECTOR,
        "structure",
    ),
    _form(
        "a cotangent too many",
        sine(lambda dy, y, x: (dy * jnp.cos(x), dy)),
        VECTOR,
        "structure",
    ),
    _form(
        "a cotangent too few",
        rule(lambda a, b: a * b, lambda dy, y, a, b: (dy * b,)),
        PAIR,
        "structure",
    ),
    _form(
        "None for an argument that counts",
        rule(lambda a, b: a * b, lambda dy, y, a, b: (dy * b, None)),
        PAIR,
        hint="zero everywhere",
    ),
    _form(
        "two leaves of a pytree exchanged",
        tree_rule(lambda dy, p, x: ({"scale": dy, "shift": dy * x}, dy * p["scale"])),
        TREE,
    ),
    _form(
        "the second result's error is ignored",
        rule(two_results, lambda dy, y, x: (dy[0] * jnp.cos(x),)),
        VECTOR,
    ),
    _form(
        "another value when differentiated",
        sine(cosine, lambda x: x - x**3 / 6 + x**5 / 120),
        VECTOR,
        "values",
    ),
    _form("keeps 64 times its argument", hoards(), (normal(50),), "residuals"),
    _sometimes("depends on state", state_dependent(), VECTOR, "repeatable"),
    _sometimes("random when traced", random_at_trace(), VECTOR, "repeatable"),
    _sometimes("random when run", random_at_run(), VECTOR, "repeatable"),
    _sometimes("wrong only under vmap", wrong_under_vmap(), VECTOR, "vmap"),
    _sometimes(
        "wrong only for a batch of errors", wrong_for_one_example(), VECTOR, "vmap"
    ),
    _sometimes("wrong only under jit", wrong_under_jit(), VECTOR, "jit"),
    _sometimes(
        "wrong for an argument alone", wrong_in_part(), PAIR, "undifferentiated"
    ),
    _sometimes(
        "wrong only in the second derivative",
        sine(lambda dy, y, x: (dy * jax.lax.stop_gradient(jnp.cos(x)),)),
        VECTOR,
        "second_order",
    ),
    _sometimes(
        "the second derivative has no error",
        sine(lambda dy, y, x: (jax.lax.stop_gradient(dy) * jnp.cos(x),)),
        VECTOR,
        "second_order",
    ),
    _sometimes(
        "not linear in the error",
        sine(lambda dy, y, x: (jnp.clip(dy, -0.5, 0.5) * jnp.cos(x),)),
        VECTOR,
        "linear",
    ),
    _sometimes(
        "an error for a cotangent of zeros",
        sine(lambda dy, y, x: (dy * jnp.cos(x) + 1e-9 * jnp.all(dy == 0),)),
        VECTOR,
        "linear",
    ),
    _sometimes(
        "without a reference: half of a composition",
        lambda x: jnp.tanh(spoiled(jnp.exp, lambda dx: (dx / 2,))(x)),
        VECTOR,
        "differences",
        hint="1/2 times",
    ),
)
