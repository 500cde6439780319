"""What pooling promises at ties, NaN, infinity and borders, and what it keeps."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import handgrad
from handgrad import cases, windows


def gradient(x, window_shape, op=handgrad.max_pool, **options):
    """∂Σ(pool · dy)/∂x with dy = 1, 2, 3, ... so that every window is told apart."""

    def loss(x):
        y = op(x, window_shape, **options)
        dy = jnp.arange(1, y.size + 1, dtype=y.dtype).reshape(y.shape)
        return jnp.sum(_linear(y, dy))

    return jax.grad(loss)(x)


@jax.custom_vjp
def _linear(y, dy):
    """Σ y·dy whose cotangent is dy even where y is NaN or infinite."""
    return jnp.zeros_like(y)


_linear.defvjp(
    lambda y, dy: (jnp.zeros_like(y), dy), lambda dy, _: (dy, jnp.zeros_like(dy))
)


def image(rows):
    return jnp.asarray(rows, jnp.float32)[..., None]


@pytest.mark.parametrize("value", [0.0, 1.0, -jnp.inf, jnp.inf])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_ties_go_to_the_first_pixel_as_in_lax(value, padding):
    x = jnp.full((1, 5, 6, 2), value)
    options = {"strides": (2, 1), "padding": padding}
    ours = gradient(x, (3, 2), **options)
    assert float(ours.sum()) == sum(
        range(1, handgrad.max_pool(x, (3, 2), **options).size + 1)
    )
    if np.isfinite(value):  # lax loses the error where the maximum equals its padding
        lax = gradient(x, (3, 2), implementation="autodiff", **options)
        np.testing.assert_array_equal(ours, lax)


def test_a_window_of_relu_zeros_hands_its_error_to_the_first():
    x = image([[0, 0, 1, 0], [0, 0, 0, 1]])
    expected = image([[1, 0, 2, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(gradient(x, (2, 2), strides=(2, 2)), expected)


def test_nan_wins_and_takes_the_error():
    x = image([[1, np.nan, 3, 4], [5, 6, np.nan, np.nan]])
    y = handgrad.max_pool(x, (2, 2), strides=(2, 2))
    assert np.isnan(y).all()
    expected = image([[0, 1, 0, 0], [0, 0, 2, 0]])
    np.testing.assert_array_equal(gradient(x, (2, 2), strides=(2, 2)), expected)


@pytest.mark.parametrize("op", ["max", "min", "adaptive", "global", "rows", "argmax"])
def test_no_nan_is_lost_in_a_large_image(op):
    """XLA on a CPU loses it where it reduces an array that lies in memory."""
    pool = {
        "max": lambda x: handgrad.max_pool(x, (1, 2), (1, 2)),
        "min": lambda x: handgrad.min_pool(x, (1, 2), (1, 2)),
        "adaptive": lambda x: handgrad.adaptive_max_pool(x, (2, 2)),
        "global": lambda x: handgrad.max_pool(x, None),
        "rows": lambda x: handgrad.reduce_window_max(x, (1, 7, 1, 1), (1, 7, 1, 1)),
        "argmax": lambda x: handgrad.max_pool_with_argmax(x, (7, 1))[0],
    }[op]
    x = jax.random.normal(jax.random.key(0), (2, 7, 7, 2048)).at[0, 3, 3, 5].set(np.nan)
    far = -np.inf if op == "min" else np.inf
    holding = np.isinf(pool(jnp.where(jnp.isnan(x), far, x)))
    for run in (pool, jax.jit(pool), lambda x: jax.vjp(pool, x)[0]):
        np.testing.assert_array_equal(np.isnan(run(x)), holding)


def test_padding_never_takes_the_error():
    x = jnp.full((1, 3, 3, 1), -jnp.inf)
    padding = ((1, 1), (1, 1))
    assert float(gradient(x, (2, 2), padding=padding).sum()) == sum(range(1, 17))


def test_a_window_wholly_in_padding_has_no_gradient():
    x = jnp.ones((1, 2, 1))
    y = handgrad.max_pool(x, (1, 1), padding=((0, 2), (0, 0)))
    assert y.ravel().tolist() == [1, 1, -np.inf, -np.inf, -np.inf, -np.inf][: y.size]
    dx = gradient(x, (1, 1), padding=((0, 2), (0, 0)))
    np.testing.assert_array_equal(dx, jnp.asarray([[[1.0], [2.0]]]))


@pytest.mark.parametrize(
    ("window_shape", "dtype"), [((16, 16), "uint8"), ((16, 17), "uint32")]
)
def test_keeps_one_byte_a_window_up_to_256_places(window_shape, dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 20, 20, 3)))
    options = {"strides": (2, 2)}
    pool = lambda x: handgrad.max_pool(x, window_shape, **options)
    y, vjp = jax.jit(lambda x: jax.vjp(pool, x))(x)  # 256 places, one by one, are slow
    kept = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size > 1]
    assert [(leaf.shape, str(leaf.dtype)) for leaf in kept] == [(y.shape, dtype)]
    both = [
        jax.jit(functools.partial(gradient, window_shape=window_shape, **how))(x)
        for how in (options, options | {"implementation": "autodiff"})
    ]
    np.testing.assert_allclose(*both, rtol=1e-6)


POOLS = [
    "max_pool",
    "min_pool",
    "avg_pool",
    "sum_pool",
    "lp_pool",
    "max_pool_with_argmax",
    "max_unpool",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "reduce_window_max",
    "reduce_window_min",
    "reduce_window_sum",
]


@pytest.mark.parametrize("rule", POOLS)
def test_lowered_gradient_has_no_scatter(rule):
    """Of no case, for no platform; autodiff's has one where it chooses a pixel."""

    def text(case, implementation):
        arrays = case.arrays("float32")

        def loss(floating, fixed):
            return jnp.sum(jnp.sin(case.function(implementation)(**floating, **fixed)))

        fixed = {n: arrays.pop(n) for n in list(arrays) if arrays[n].dtype == np.int32}
        lowered = jax.jit(jax.grad(loss)).trace(arrays, fixed)
        platforms = ("cpu", "cuda", "tpu")
        return lowered.lower(lowering_platforms=platforms).as_text()

    chooses = "max" in rule or "min" in rule
    for case in cases.of(rule)[-2:]:
        assert "scatter" not in text(case, None)
    assert ("scatter" in text(cases.of(rule)[0], "autodiff")) == chooses


@pytest.mark.parametrize(
    ("op", "options", "kept"),
    [
        ("min_pool", {}, ["uint8"]),
        ("max_pool_with_argmax", {}, ["uint8"]),
        ("sum_pool", {}, []),
        ("lp_pool", {}, ["float32", "float32"]),
    ],
)
def test_what_other_pools_keep(op, options, kept):
    def pool(x):
        y = getattr(handgrad, op)(x, (3, 3), (2, 2), "SAME", **options)
        return y[0] if isinstance(y, tuple) else y

    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 6, 3)), jnp.float32)
    _, vjp = jax.jit(lambda x: jax.vjp(pool, x))(x)
    leaves = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size > 1]
    assert [str(leaf.dtype) for leaf in leaves] == kept


def test_max_pool_on_a_cpu_reads_its_byte_and_not_its_input():
    """XLA would move the search into the backward pass, and so keep the input."""

    def both(x, dy):
        y, vjp = jax.vjp(lambda x: handgrad.max_pool(x, (2, 2), (2, 2)), x)
        return y, vjp(dy)

    x, dy = jnp.ones((8, 64, 64, 16)), jnp.ones((8, 32, 32, 16))
    compiled = jax.jit(both).lower(x, dy).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert dy.size <= temporary < 1.1 * dy.size


def test_offsets_are_not_kept_twice():
    """XLA would pad them, a byte a window, before the error is there."""

    def dx(x, kernel):
        def loss(x):
            y = handgrad.max_pool(x, (3, 3), (2, 2), "SAME")
            return jnp.sum(
                functools.reduce(lambda y, k: jnp.tanh(y @ k), [kernel] * 3, y)
            )

        return jax.grad(loss)(x)

    compiled = (
        jax.jit(dx).lower(jnp.ones((8, 64, 64, 16)), jnp.ones((16, 16))).compile()
    )
    temporary = compiled.memory_analysis().temp_size_in_bytes
    # Three layers of y in float32 and the offsets.
    assert temporary < 13.5 * (8 * 32 * 32 * 16)


@pytest.mark.parametrize("pixels", [63, 64])
def test_the_errors_of_overlapping_windows_are_added_up_once(pixels):
    """Left to itself, XLA would add them up anew for each reader, sines and all."""

    def neighbours(x, z):
        pool = lambda x: handgrad.max_pool(x, (3, 3), (2, 2), "SAME")
        (dx,) = jax.vjp(pool, x)[1](jnp.sin(z))
        return jnp.maximum(dx[:, 1:], dx[:, :-1]), jnp.minimum(dx[:, 1:], dx[:, :-1])

    x, z = jnp.ones((8, pixels, pixels, 32)), jnp.ones((8, 32, 32, 32))
    compiled = jax.jit(neighbours).lower(x, z).compile()
    assert compiled.cost_analysis()["transcendentals"] <= 4 * z.size


@pytest.mark.parametrize(("window", "stride"), [(14, 14), (9, 1)])
def test_long_windows_are_added_up_line_by_line(window, stride):
    """No loop has the sums of two lines: it would add one up anew for each of the other
    or, going backward, for each pixel that an error is spread to."""
    pool = lambda x: handgrad.avg_pool(x, (window, window), (stride, stride))
    dx = jax.jit(jax.grad(lambda x: jnp.sum(pool(x) ** 2)))
    text = dx.lower(jnp.ones((2, 28, 28, 8))).compile().as_text()
    assert max(loop.count(" add(") for loop in text.split("\n}\n")) == window - 1


def test_avg_pool_keeps_nothing():
    x = jnp.ones((2, 6, 6, 3))
    _, vjp = jax.vjp(lambda x: handgrad.avg_pool(x, (3, 3), padding="SAME"), x)
    assert [leaf for leaf in jax.tree.leaves(vjp) if leaf.size > 1] == []


def test_gradient_of_a_dilated_max_pool_which_jax_lacks():
    x = image([[5, 1, 4, 2, 3]])
    dx = gradient(x, (1, 3), window_dilation=(1, 2))
    np.testing.assert_array_equal(dx, image([[1, 0, 0, 0, 0]]))


def test_bfloat16_overlaps_are_summed_in_float32():
    """256 windows hold one maximum: bfloat16 sums would stop growing at 256."""
    x = jnp.zeros((1, 33, 1), jnp.bfloat16).at[0, 16, 0].set(1)
    _, vjp = jax.vjp(lambda x: handgrad.max_pool(x, (1, 17)), x)
    dy = jnp.full((1, 17, 1), 1 + 1 / 128, jnp.bfloat16)
    assert float(vjp(dy)[0][0, 16, 0]) == float(jnp.bfloat16(17 * (1 + 1 / 128)))


@st.composite
def drawn_pool(draw):
    """An image with ties and any windows over it, each of which holds a pixel."""

    def window():
        size, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        extent = dilation * (size - 1) + 1
        low, high = draw(st.integers(0, extent - 1)), draw(st.integers(0, extent - 1))
        pixels = max(draw(st.integers(1, 7)), extent - low - high, dilation)
        return windows.Window(
            pixels, size, draw(st.integers(1, 3)), low, high, dilation
        )

    described = [window() for _ in range(draw(st.integers(1, 2)))]
    channels = draw(st.sampled_from([1, 2, 17]))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    x = random.integers(-2, 3, (*(w.input for w in described), channels))
    return described, x.astype(np.float32)


def by_definition(described, x, dy):
    """Maxima, the pixels they are first found at, and each error at its pixel."""
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    grid = itertools.product(*(range(w.output) for w in described))
    for p, c in itertools.product(list(grid), range(x.shape[-1])):
        best, where = -np.inf, None
        for k in itertools.product(*(range(w.size) for w in described)):
            pixel = tuple(
                w.stride * i + w.dilation * j - w.low
                for w, i, j in zip(described, p, k, strict=True)
            )
            real = all(0 <= h < w.input for h, w in zip(pixel, described, strict=True))
            if real and x[(*pixel, c)] > best:
                best, where = x[(*pixel, c)], (*pixel, c)
        y[(*p, c)] = best
        dx[where] += dy[(*p, c)]
    return y, dx


@given(drawn_pool())
def test_max_pool_is_its_definition(drawn):
    """Dilated windows too, where JAX has no gradient; no error is lost or doubled."""
    described, x = drawn
    shape = (*windows.output_shape(tuple(described)), x.shape[-1])
    dy = np.random.default_rng(0).integers(-9, 10, shape).astype(np.float32)
    options = {
        "window_shape": [w.size for w in described],
        "strides": [w.stride for w in described],
        "padding": [(w.low, w.high) for w in described],
        "window_dilation": [w.dilation for w in described],
    }

    @jax.jit
    def run(x, dy):
        y, vjp = jax.vjp(lambda x: handgrad.max_pool(x, **options), x)
        return y, vjp(dy)[0]

    y, dx = jax.device_get(run(x, dy))
    expected = by_definition(described, x, dy)
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(dx, expected[1])
    assert dx.sum() == dy.sum()


@pytest.mark.parametrize("norm", [1, 2, 3, 1.5])
def test_lp_pool_of_zeros_has_a_finite_gradient(norm):
    x = jnp.asarray([[0.0], [0.0], [3.0], [0.0]])
    dx = gradient(x, (2,), op=handgrad.lp_pool, strides=(2,), norm=norm)
    np.testing.assert_allclose(dx, [[0.0], [0.0], [2.0], [0.0]], rtol=1e-6)


def test_second_derivative_of_lp_pool_at_zeros():
    """y² of norm 2 is Σ x²: 2 where x is 0, too, but 0 where a whole window is."""
    x = jnp.array([0.0, 1.0, 0.0, 0.0])[:, None]

    def slope(x):
        return jax.grad(lambda x: jnp.sum(handgrad.lp_pool(x, (2,), (2,)) ** 2))(x)

    hessian = jax.jacobian(slope)(x).reshape(4, 4)
    np.testing.assert_allclose(hessian, np.diag([2, 2, 0, 0]), atol=1e-6)


def test_min_pool_wants_the_least():
    x = image([[3, np.inf, 1, 1], [2, 2, np.nan, 0]])
    y = handgrad.min_pool(x, (2, 2), (2, 2))
    np.testing.assert_array_equal(y[..., 0], [[2, np.nan]])
    expected = image([[0, 0, 0, 0], [1, 0, 2, 0]])
    dx = gradient(x, (2, 2), op=handgrad.min_pool, strides=(2, 2))
    np.testing.assert_array_equal(dx, expected)
    assert handgrad.min_pool(jnp.arange(4)[:, None], (2,), (2,)).ravel().tolist() == [
        0,
        2,
    ]


def test_indices_count_pixels_or_places():
    x = image([[0, 1, 2], [3, 4, 9], [6, 7, 8]])
    options = {"window_shape": (2, 2), "padding": ((0, 2), (0, 0))}
    y, t = handgrad.max_pool_with_argmax(x, **options)
    assert t[..., 0].tolist() == [[4, 5], [7, 5], [7, 8], [-1, -1]]
    assert y[:3, :, 0].tolist() == x.ravel()[t[:3, :, 0]].tolist()
    y, t = handgrad.max_pool_with_argmax(x, **options, index="window")
    assert t[..., 0].tolist() == [[3, 3], [3, 1], [1, 1], [-1, -1]]


@pytest.mark.parametrize("index", [-1, 0, 1, 4, 99])
def test_an_index_of_no_pixel_of_its_window_is_left_out(index):
    """The second window of four pixels holds the pixels 2 and 3."""
    y, t = jnp.asarray([[5.0], [7.0]]), jnp.asarray([[0], [index]])
    unpool = lambda y: handgrad.max_unpool(y, t, (2,), (2,))
    assert unpool(y).ravel().tolist() == [5, 0, 0, 0]
    assert jax.grad(lambda y: unpool(y).sum())(y).ravel().tolist() == [1, 0]


def test_the_last_window_that_names_a_pixel_wins():
    y, t = jnp.asarray([[5.0], [7.0]]), jnp.asarray([[1], [1]])
    unpool = lambda y: handgrad.max_unpool(y, t, (2,))
    assert unpool(y).ravel().tolist() == [0, 7, 0]


def test_one_window_over_the_whole_image():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 30, 3)))
    largest = lambda x: jnp.sum(handgrad.max_pool(x, None) ** 2)
    expected = jax.grad(lambda x: jnp.sum(jnp.max(x, (1, 2)) ** 2))(x)
    np.testing.assert_allclose(jax.jit(jax.grad(largest))(x), expected)
    mean = handgrad.avg_pool(x, None)
    np.testing.assert_allclose(mean, jnp.mean(x, (1, 2), keepdims=True), rtol=1e-6)
    assert handgrad.sum_pool(jnp.ones((1, 2, 3, 1), int), None).ravel().tolist() == [6]


@pytest.mark.parametrize("op", [handgrad.max_pool, handgrad.lp_pool])
@pytest.mark.parametrize("places", [3, 20])
@pytest.mark.parametrize("strides", [2, 20])
def test_second_derivative_in_every_way_to_search(op, places, strides):
    """Of an S that the maxima themselves are part of, not the errors alone."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 60, 2)))

    def second(implementation):
        def cubes(x):
            y = op(x, (places,), (strides,), "SAME", implementation=implementation)
            return jnp.sum(y**3)

        return jax.grad(lambda x: jnp.sum(jnp.sin(x) * jax.grad(cubes)(x)))(x)

    np.testing.assert_allclose(second(None), second("autodiff"), rtol=2e-5, atol=1e-5)


def test_what_sticks_out_is_not_counted():
    """PyTorch's ceil_mode: the mean of the last window is over what it holds."""
    x = jnp.arange(1.0, 6.0)[:, None]
    options = {"window_shape": (2,), "strides": (2,), "ceil_mode": True}
    assert handgrad.avg_pool(x, **options).ravel().tolist() == [1.5, 3.5, 5]
    assert handgrad.max_pool(x, **options).ravel().tolist() == [2, 4, 5]
    assert handgrad.sum_pool(x, **options).ravel().tolist() == [3, 7, 5]


@pytest.mark.parametrize("kind", ["max", "min", "sum"])
def test_reduce_window_is_laxs(kind):
    random = np.random.default_rng(0)
    x = random.integers(-9, 10, (4, 5, 3)).astype(np.int32)
    options = {
        "window_dimensions": (2, 3, 2),
        "window_strides": (1, 2, 1),
        "window_dilation": (2, 1, 1),
    }
    ours = getattr(handgrad, f"reduce_window_{kind}")
    bounds = np.iinfo(np.int32)
    init = np.int32({"max": bounds.min, "min": bounds.max, "sum": 0}[kind])
    compute = {"max": jax.lax.max, "min": jax.lax.min, "sum": jax.lax.add}[kind]
    for padding in ("SAME", "VALID", ((0, 1), (2, 0), (1, 1))):
        theirs = jax.lax.reduce_window(x, init, compute, **options, padding=padding)
        np.testing.assert_array_equal(ours(x, **options, padding=padding), theirs)
    one = {"window_dimensions": (1, 1, 1)}
    np.testing.assert_array_equal(ours(x, **one), x)


def equations(jaxpr):
    """All equations of a program, those of the programs in it, too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: handgrad.max_pool(x, (2, 2), (2, 2)),
        lambda x: handgrad.min_pool(x, (3, 3)),
        lambda x: handgrad.max_pool(x, None),
        lambda x: handgrad.max_pool(x, (20, 20), (20, 20)),
        lambda x: handgrad.max_pool(x, (5, 5)),
        lambda x: handgrad.adaptive_max_pool(x, (7, 3)),
        lambda x: handgrad.max_pool_with_argmax(x, (2, 2))[0],
    ],
)
def test_no_pixel_is_looked_for_by_its_value(pool):
    """XLA may compute x once for the maximum and once for the search, and round it two
    ways: then no pixel is equal, and the error is lost."""
    gradient = jax.make_jaxpr(jax.grad(lambda x: pool(x).sum()))
    program = gradient(jnp.ones((2, 20, 20, 3)))
    equal = [
        eqn
        for eqn in equations(program.jaxpr)
        if eqn.primitive.name == "eq"
        and jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating)
    ]
    assert not equal
