"""Drawn geometries: windows against their definition, and every op against float64."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import handgrad
from handgrad import sharding, windows
from handgrad.convolution import narrow
from handgrad.pooling import views
from handgrad.testing import strategies


def scatter(columns, described):
    """The definition of `spread`, pixel by pixel: columns [P, Q, K, L]."""
    x = np.zeros([w.input for w in described])
    grid = [range(w.output) for w in described] + [range(w.size) for w in described]
    for index in itertools.product(*grid):
        n = len(described)
        pixel = []
        for w, p, k in zip(described, index[:n], index[n:], strict=True):
            h = w.stride * p + w.dilation * k - w.low
            if 0 <= h < w.dilated and h % w.input_dilation == 0:
                pixel.append(h // w.input_dilation)
        if len(pixel) == n:
            x[tuple(pixel)] += columns[index]
    return x


@given(st.lists(strategies.windows(), min_size=1, max_size=2), st.integers(0, 9))
def test_spread_is_its_definition_and_view_is_its_transpose(described, seed):
    described = tuple(described)
    random = np.random.default_rng(seed)
    sizes = [w.size for w in described]
    columns = random.integers(-9, 10, (*windows.output_shape(described), *sizes))
    columns = columns.astype(np.float32)
    x = random.integers(-9, 10, [*(w.input for w in described), 1]).astype(np.float32)

    @jax.jit
    def run(columns, x):
        piece = lambda *k: columns[(..., *k)][..., None]
        image = windows.pad(x, described)
        forward = sum(
            jnp.sum(windows.view(image, k, described) * piece(*k))
            for k in windows.places(described)
        )
        return windows.spread(piece, described), forward

    dx, forward = jax.device_get(run(columns, x))
    np.testing.assert_array_equal(dx[..., 0], scatter(columns, described))
    assert float(forward) == float(np.sum(dx * x))


def agrees(function, reference, *arrays):
    """Value and cotangents in float64, for a random cotangent."""

    def run(f):
        def outcome(dy, *arrays):
            y, vjp = jax.vjp(f, *arrays)
            return y, vjp(dy)

        return jax.jit(outcome)

    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        dy = random.standard_normal(jax.eval_shape(reference, *arrays).shape)
        for actual, expected in zip(
            jax.tree.leaves(run(function)(dy, *arrays)),
            jax.tree.leaves(run(reference)(dy, *arrays)),
            strict=True,
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


# The formulas that do every geometry; the others in tests/test_geometries.py.
@pytest.mark.parametrize("formula", ["rot180", "gemm", "taps"])
@given(
    described=st.lists(strategies.windows(), min_size=1, max_size=3),
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    batch=st.integers(0, 2),
)
def test_conv_over_drawn_geometries(formula, described, groups, channels, batch):
    random = np.random.default_rng(0)
    inputs, outputs = channels
    x = random.standard_normal((batch, *(w.input for w in described), groups * inputs))
    kernel = random.standard_normal(
        (*(w.size for w in described), inputs, groups * outputs)
    )
    letters = "HWD"[: len(described)]

    def reference(x, kernel):
        # Pad first: the CPU convolution of jaxlib 0.10.1 misreads negative padding.
        config = [(w.low, w.high, w.input_dilation - 1) for w in described]
        x = jax.lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            [w.stride for w in described],
            [(0, 0)] * len(described),
            rhs_dilation=[w.dilation for w in described],
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            feature_group_count=groups,
        )

    def ours(x, kernel):
        return handgrad.conv(
            x,
            kernel,
            strides=[w.stride for w in described],
            padding=[(w.low, w.high) for w in described],
            input_dilation=[w.input_dilation for w in described],
            kernel_dilation=[w.dilation for w in described],
            feature_group_count=groups,
            implementation=formula,
        )

    agrees(ours, reference, x, kernel)


def pool_options(described):
    return {
        "window_shape": [w.size for w in described],
        "strides": [w.stride for w in described],
        "padding": [(w.low, w.high) for w in described],
        "window_dilation": [w.dilation for w in described],
    }


@st.composite
def at_the_border(draw):
    """Windows of which some lie inside of the image and others reach beyond it."""
    size, dilation = draw(st.integers(2, 3)), draw(st.integers(1, 2))
    last = dilation * (size - 1)
    return windows.Window(
        input=last + draw(st.integers(4, 9)),
        size=size,
        stride=draw(st.integers(2, 3)),
        low=draw(st.integers(0, last)),
        high=draw(st.integers(0, last)),
        dilation=dilation,
    )


UNDILATED = strategies.windows(input_dilation=False)


@pytest.mark.parametrize(
    ("large", "drawn"),
    [(2**16, UNDILATED), (0, UNDILATED), (0, at_the_border())],
    ids=["whole", "large", "by strips"],
)
@given(data=st.data(), kind=st.sampled_from(["continuous", "tied"]))
def test_max_pool_over_drawn_geometries(large, drawn, data, kind):
    """Autodiff's windows are not dilated: it pools the gathered window pixels."""
    described = data.draw(st.lists(drawn, min_size=1, max_size=2))
    random = np.random.default_rng(0)
    shape = (2, *(w.input for w in described), 2)
    x = random.standard_normal(shape)
    if kind == "tied":
        x = np.round(x)
    described = tuple(described)

    def reference(x):
        image = windows.pad(x, described, np.array(-1e300))
        views = [windows.view(image, k, described) for k in windows.places(described)]
        stacked = jnp.stack(views)
        chosen = jax.nn.one_hot(jnp.argmax(stacked, 0), len(views), axis=0)
        return jnp.sum(jnp.where(chosen == 1, stacked, 0), 0)

    def ours(x):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(views, "LARGE_IMAGE", large)
            y = handgrad.max_pool(x, **pool_options(described))
        return jnp.maximum(y, -1e300)

    agrees(ours, reference, x)


@pytest.mark.parametrize(
    ("large", "drawn"),
    [(2**16, strategies.windows()), (0, strategies.windows()), (0, at_the_border())],
    ids=["whole", "large", "by strips"],
)
@given(data=st.data(), kind=st.sampled_from(["max", "min", "sum"]))
def test_reduce_window_over_drawn_geometries(large, drawn, data, kind):
    """Strides, dilations and paddings of all axes, also where the base is dilated."""
    described = tuple(data.draw(st.lists(drawn, min_size=1, max_size=3)))
    x = np.random.default_rng(0).standard_normal([w.input for w in described])
    fill = {"max": -1e300, "min": 1e300, "sum": 0}[kind]
    reduced = {"max": jnp.max, "min": jnp.min, "sum": jnp.sum}[kind]
    options = {
        "window_dimensions": [w.size for w in described],
        "window_strides": [w.stride for w in described],
        "padding": [(w.low, w.high) for w in described],
        "base_dilation": [w.input_dilation for w in described],
        "window_dilation": [w.dilation for w in described],
    }

    def reference(x):
        image = windows.pad(x[..., None], described, np.array(fill, float))
        views = [windows.view(image, k, described) for k in windows.places(described)]
        y = reduced(jnp.stack(views), 0)[..., 0]
        return jnp.where(jnp.abs(y) == 1e300, fill, y)  # no pixel takes the error

    def ours(x):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(views, "LARGE_IMAGE", large)
            y = getattr(handgrad, f"reduce_window_{kind}")(x, **options)
        return jnp.where(jnp.isinf(y), fill, y)

    agrees(ours, reference, x)


@given(
    places=st.integers(17, 99),
    numbers=st.sampled_from([[-1, 0, 1], [-np.inf, 0, np.nan], [-np.inf], [np.nan, 1]]),
    op=st.sampled_from([handgrad.max_pool, handgrad.min_pool]),
)
def test_the_first_of_a_long_line_takes_the_error(places, numbers, op):
    """Lines of more than MANY_PLACES are searched in pieces."""
    random = np.random.default_rng(places)
    x = random.choice(numbers, (2, 3 * places, 2)).astype(np.float32)
    dy = random.integers(1, 9, (2, 3, 2)).astype(np.float32)

    @jax.jit
    def run(x, dy):
        y, vjp = jax.vjp(lambda x: op(x, (places,), (places,)), x)
        return y, *vjp(dy)

    y, dx = jax.device_get(run(x, dy))
    lines = x.reshape(2, 3, places, 2)
    best = {"max_pool": np.argmax, "min_pool": np.argmin}[op.__name__](lines, 2)
    best = best[:, :, None]
    np.testing.assert_array_equal(y, np.take_along_axis(lines, best, 2)[:, :, 0])
    expected = np.zeros_like(lines)
    np.put_along_axis(expected, best, dy[:, :, None], 2)
    np.testing.assert_array_equal(dx, expected.reshape(x.shape))


@given(
    st.lists(strategies.windows(input_dilation=False), min_size=1, max_size=3),
    st.booleans(),
)
def test_avg_pool_over_drawn_geometries(described, count_include_pad):
    random = np.random.default_rng(0)
    x = random.standard_normal((2, *(w.input for w in described), 2))
    if not count_include_pad:
        assume(np.all(windows.count(tuple(described))))
    options = pool_options(described) | {"count_include_pad": count_include_pad}
    described = tuple(described)
    places = list(windows.places(described))

    def reference(x):
        """Each window's pixels, gathered and averaged."""

        def gathered(image):
            image = windows.pad(image, described)
            views = [windows.view(image, k, described) for k in places]
            return jnp.sum(jnp.stack(views), 0)

        count = gathered(jnp.ones_like(x)) if not count_include_pad else len(places)
        return gathered(x) / count

    agrees(lambda x: handgrad.avg_pool(x, **options), reference, x)


@given(st.lists(strategies.windows(input_dilation=False), min_size=1, max_size=2))
def test_im2col_and_col2im_are_each_others_transpose(described):
    random = np.random.default_rng(0)
    image = [w.input for w in described]
    options = {
        "window_shape": [w.size for w in described],
        "strides": [w.stride for w in described],
        "padding": [(w.low, w.high) for w in described],
        "kernel_dilation": [w.dilation for w in described],
    }
    x = random.integers(-9, 10, (2, *image, 2)).astype(np.float32)
    columns = jax.jit(lambda x: handgrad.im2col(x, **options))(x)
    other = random.integers(-9, 10, columns.shape).astype(np.float32)
    back = jax.jit(lambda c: handgrad.col2im(c, image, **options))(other)
    assert back.shape == x.shape
    assert float(np.sum(columns * other)) == float(np.sum(x * back))


def test_same_lower_puts_the_odd_pixel_first():
    (same,) = windows.describe("op", (5,), (2,), 1, "SAME")
    (lower,) = windows.describe("op", (5,), (2,), 1, "SAME_LOWER")
    assert (same.low, same.high) == (0, 1)
    assert (lower.low, lower.high) == (1, 0)
    assert dataclasses.replace(same, low=1, high=0) == lower


def test_a_halo_is_the_neighbours():
    x = np.arange(24).reshape(2, 12)
    found = sharding.with_halos(jnp.asarray(x), 1, 3, 2, 1, np.int32(-1))
    longer = np.pad(x, [(0, 0), (2, 1)], constant_values=-1)
    parts = np.stack([longer[:, 4 * i : 4 * i + 7] for i in range(3)], 1)
    np.testing.assert_array_equal(found, parts)


@st.composite
def among_devices(draw):
    """Windows that overlap, as many as the image has strides, of rows to be cut."""
    stride, size = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    dilation = draw(st.integers(1, 2))
    extent = dilation * (size - 1) + 1
    assume(extent > stride)
    low = draw(st.integers(0, extent - stride))
    length = stride * draw(st.sampled_from([2, 4, 6, 8, 16]))
    return windows.Window(
        length, size, stride, low, extent - stride - low, dilation=dilation
    )


def conv(x, kernel, formula, *, window_shape, window_dilation, **options):
    """Of two channels, depthwise by taps."""
    depthwise = formula == "taps"
    return handgrad.conv(
        x,
        kernel.reshape(*window_shape, *((1, 2) if depthwise else (2, 1))),
        kernel_dilation=window_dilation,
        feature_group_count=2 if depthwise else 1,
        implementation=formula,
        **options,
    )


IN_PARTS = {
    "max_pool": lambda x, kernel, **options: handgrad.max_pool(x, **options),
    "avg_pool": lambda x, kernel, **options: handgrad.avg_pool(x, **options),
    "taps": functools.partial(conv, formula="taps"),
    "gemm": functools.partial(conv, formula="gemm"),
}


@pytest.mark.parametrize("name", IN_PARTS)
@given(
    among_devices(),
    st.lists(strategies.windows(input_dilation=False), max_size=1),
    st.integers(0, 9),
)
def test_rows_among_devices_are_the_same_rows(name, rows, columns, seed):
    """In parts, each with a halo, as in one: small whole numbers, so that sums are."""
    described = (rows, *columns)
    random = np.random.default_rng(seed)
    numbers = lambda *shape: random.integers(-4, 5, shape).astype(np.float32)
    places = np.prod([w.size for w in described])
    x, kernel = numbers(2, *(w.input for w in described), 2), numbers(places * 2)
    op = functools.partial(IN_PARTS[name], **pool_options(described))
    dy = numbers(*jax.eval_shape(op, x, kernel).shape)

    def run(split):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "may_be_split", lambda: split)
            patch.setattr(narrow, "_BLOCK", 8)  # several blocks of a part's rows
            parts = windows.parts_of_rows(described)
            both = lambda x, kernel, dy: jax.vjp(op, x, kernel)[1](dy)
            y = jax.jit(lambda x, kernel: op(x, kernel))(x, kernel)
            return parts, jax.device_get((y, jax.jit(both)(x, kernel, dy)))

    (one, whole), (several, cut) = run(False), run(True)
    assert one == 1
    assume(several > 1)
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
