"""All arguments of a convolution drawn at once: every formula against float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import handgrad
from handgrad import measure
from handgrad.windows import Window

DTYPES = st.sampled_from(["float32", "float64", "bfloat16", "float16", "int32"])


@st.composite
def drawn_window(draw):
    """Any window that does not crop more than the image; it need not fit."""
    window = Window(
        input=draw(st.integers(1, 7)),
        size=draw(st.integers(1, 4) | st.just(9)),
        stride=draw(st.integers(1, 4)),
        low=draw(st.integers(-5, 5)),
        high=draw(st.integers(-5, 5)),
        dilation=draw(st.integers(1, 3)),
        input_dilation=draw(st.integers(1, 3)),
    )
    crop = min(window.dilated + window.low + window.high, 0)
    return Window(**vars(window) | {"high": window.high - crop})


def three_places():
    """What Winograd's formulas do."""
    integers = st.integers
    return st.builds(
        Window,
        input=integers(1, 7),
        size=st.just(3),
        low=integers(0, 3),
        high=integers(0, 3),
    )


def drawn_windows(dimensions):
    lists = functools.partial(st.lists, min_size=dimensions, max_size=dimensions)
    return lists(drawn_window()) | lists(three_places())


@st.composite
def drawn_layout(draw, pixels):
    """Three permuted names of axes, as in `dimension_numbers`."""
    names = ("NC" + pixels, "OI" + pixels, "NC" + pixels)
    return tuple("".join(draw(st.permutations(name))) for name in names)


@st.composite
def drawn_convolution(draw):
    """Shapes and options of `conv_general_dilated`, and the reference's padding."""
    pixels = "HWD"[: draw(st.integers(0, 3))]
    windows = dict(zip(pixels, draw(drawn_windows(len(pixels))), strict=True))
    layout = draw(drawn_layout(pixels))
    feature_groups, batch_groups = draw(
        st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2), (1, 3)])
    )
    inputs, outputs = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    sizes = {c: w.input for c, w in windows.items()} | {
        "N": draw(st.integers(0, 2)) * batch_groups,
        "C": inputs * feature_groups,
    }
    places = {c: w.size for c, w in windows.items()} | {
        "I": inputs,
        "O": outputs * feature_groups * batch_groups,
    }
    # The options follow the order of the kernel's axes.
    ordered = [windows[c] for c in layout[1] if c in windows]
    padding = [(w.low, w.high) for w in ordered]
    if all(w.input_dilation == 1 for w in ordered):
        padding = draw(st.sampled_from([padding, "SAME", "VALID", "SAME_LOWER"]))
    options = {
        "window_strides": [w.stride for w in ordered],
        "padding": padding,
        "lhs_dilation": [w.input_dilation for w in ordered],
        "rhs_dilation": [w.dilation for w in ordered],
        "dimension_numbers": layout,
        "feature_group_count": feature_groups,
        "batch_group_count": batch_groups,
    }
    lhs, rhs = [sizes[c] for c in layout[0]], [places[c] for c in layout[1]]
    if draw(st.booleans()):
        options["dimension_numbers"] = lax.conv_dimension_numbers(lhs, rhs, layout)
    return lhs, rhs, options


def padded_first(lhs, rhs, *, padding, lhs_dilation, dimension_numbers, **options):
    """`lax.conv_general_dilated`; jaxlib 0.10.1 misreads negative padding on CPU."""
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if not isinstance(padding, str):
        config = [(0, 0, 0)] * lhs.ndim
        for axis, pair, e in zip(
            numbers.lhs_spec[2:], padding, lhs_dilation, strict=True
        ):
            config[axis] = (*pair, e - 1)
        lhs = lax.pad(lhs, np.zeros((), lhs.dtype), config)
        padding = [(0, 0)] * len(padding)
    return lax.conv_general_dilated(
        lhs, rhs, padding=padding, dimension_numbers=numbers, **options
    )


def outcome(function, lhs, rhs, dy):
    """The value and, of floating arrays, both gradients."""
    if not jnp.issubdtype(lhs.dtype, jnp.floating):
        return (function(lhs, rhs),)
    y, vjp = jax.vjp(function, lhs, rhs)
    return y, *vjp(dy.astype(y.dtype))


def suitable(op, function, *arrays):
    """The default, autodiff and the formulas that do not decline."""
    names = [None, "autodiff"]
    for name in handgrad.RULES[op].formulas:
        try:
            jax.eval_shape(functools.partial(function, implementation=name), *arrays)
        except ValueError as error:
            assert "implementation" in str(error)  # noqa: PT017
        else:
            names.append(name)
    return names


def assert_exact(op, function, reference, shapes, dtype):
    """Each formula errs at most as `measure.errors` lets it."""
    random, dtype = np.random.default_rng(0), jnp.dtype(dtype)
    exact = not jnp.issubdtype(dtype, jnp.floating)
    wide = jnp.dtype("int32" if exact else "float64")
    # Rounded integers are the integers' numbers.
    numbers = lambda shape: np.round(
        4 * random.standard_normal(shape), 0 if exact else 9
    )
    lhs, rhs = (numbers(shape).astype(dtype) for shape in shapes)
    with jax.enable_x64(not exact):
        arrays = lhs.astype(wide), rhs.astype(wide)
        dy = numbers(jax.eval_shape(reference, *arrays).shape).astype(dtype)
        run = jax.jit(functools.partial(outcome, reference))
        truths = jax.device_get(run(*arrays, dy.astype(wide)))
    with jax.enable_x64(dtype == np.float64):

        @jax.jit
        def formulas(*arrays):
            return {
                str(name): outcome(
                    functools.partial(function, implementation=name), *arrays
                )
                for name in suitable(op, function, *arrays[:2])
            }

        results = jax.device_get(formulas(lhs, rhs, dy))
    eps = 0.0 if exact else float(jnp.finfo(dtype).eps)
    roundings = measure.ROUNDINGS_FLOAT64 if dtype == np.float64 else measure.ROUNDINGS
    for name, arrays in results.items():
        formula = handgrad.RULES[op].formulas.get(name)
        for which, array, truth, autodiff in zip(
            ("y", "dlhs", "drhs"), arrays, truths, results["autodiff"], strict=False
        ):
            assert (array.dtype, array.shape) == (dtype, truth.shape), (name, which)
            error, _ = measure.elementwise_error(array, truth)
            allowed, _ = measure.elementwise_error(autodiff, truth)
            allowed = measure.AUTODIFF_FACTOR * min(allowed, eps**0.5)
            allowed = (formula.rounding if formula else 1) * (allowed + roundings * eps)
            assert error <= allowed, (name, which)


@given(drawn_convolution(), DTYPES)
def test_conv_general_dilated(drawn, dtype):
    lhs, rhs, options = drawn
    assert_exact(
        "conv_general_dilated",
        functools.partial(handgrad.conv_general_dilated, **options),
        functools.partial(padded_first, **options),
        (lhs, rhs),
        dtype,
    )


@st.composite
def drawn_transpose(draw):
    """Shapes and options of `conv_transpose`."""
    pixels = "HWD"[: draw(st.integers(0, 3))]
    layout = ("N" + pixels + "C", pixels + "IO", "N" + pixels + "C")
    named = draw(st.booleans())
    if named:
        layout = draw(drawn_layout(pixels))
    integers = lambda least, most: {c: draw(st.integers(least, most)) for c in pixels}
    sizes, places = integers(1, 5), integers(1, 5)
    inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    transpose_kernel = draw(st.booleans())
    consistent = draw(st.booleans())
    strides, dilation = integers(1, 4), integers(1, 3)

    def pair(c):
        """Of each kind of padding, what leaves at least nothing of the image."""
        dilated = strides[c] * (sizes[c] - 1) + 1
        extent = dilation[c] * (places[c] - 1) + 1
        low = draw(st.integers(-4, 4))
        high = draw(st.integers(-4, 4))
        if consistent:
            return low, min(high, dilated + 2 * (extent - 1) - low)
        return low, max(high, -dilated - low)

    ordered = [c for c in layout[1] if c in pixels]
    pairs = [pair(c) for c in ordered]
    options = {
        "strides": [strides[c] for c in ordered],
        "padding": draw(st.sampled_from(["SAME", "VALID", pairs])),
        "rhs_dilation": [dilation[c] for c in ordered],
        "dimension_numbers": layout if named else None,
        "transpose_kernel": transpose_kernel,
        "use_consistent_padding": consistent,
    }
    sizes |= {"N": draw(st.integers(0, 2)), "C": inputs}
    channels = (outputs, inputs) if transpose_kernel else (inputs, outputs)
    places |= dict(zip("IO", channels, strict=True))
    return [sizes[c] for c in layout[0]], [places[c] for c in layout[1]], options


@given(drawn_transpose(), DTYPES)
def test_conv_transpose(drawn, dtype):
    lhs, rhs, options = drawn
    assert_exact(
        "conv_transpose",
        functools.partial(handgrad.conv_transpose, **options),
        functools.partial(lax.conv_transpose, **options),
        (lhs, rhs),
        dtype,
    )


# Huge and tiny numbers in one layer, as far as each product and sum stays in range.
@pytest.mark.parametrize("scales", [(1e30, 1e-30, 1e-3), (1e-18, 1e-15, 1e18)], ids=str)
@pytest.mark.parametrize("formula", [None, *handgrad.RULES["conv"].formulas])
def test_scale_does_not_matter(formula, scales):
    """Powers of two pass through all three directions without a rounding."""
    random = np.random.default_rng(0)
    groups, inputs, outputs = (3, 1, 6) if formula in MERGED else (1, 3, 4)
    conv = functools.partial(
        handgrad.conv,
        padding=1,
        input_dilation=2 if formula == "transposed" else 1,
        feature_group_count=groups,
        implementation=formula,
    )
    run = jax.jit(functools.partial(outcome, conv))
    x = random.standard_normal((2, 5, 5, 3)).astype(np.float32)
    kernel = random.standard_normal((3, 3, inputs, outputs)).astype(np.float32)
    dy = random.standard_normal(jax.eval_shape(conv, x, kernel).shape)
    dy = dy.astype(np.float32)
    powers = [np.float32(2.0 ** round(math.log2(scale))) for scale in scales]
    sx, sk, sdy = powers
    scaled = run(x * sx, kernel * sk, dy * sdy)
    for a, b, s in zip(
        scaled, run(x, kernel, dy), (sx * sk, sdy * sk, sx * sdy), strict=True
    ):
        np.testing.assert_array_equal(a, b * s)


# By how many pixels a formula may spread what is not finite beyond the windows that
# see it. Winograd's tiles mix their m + 2 pixels; phases fill the kernel up with zeros
# to whole strides, and zero times infinity is NaN; so does transposed, which uses them.
# In the same way groups that were merged spread it over their channels.
MERGED = "grouped", "block_diagonal"
SPREAD = {"winograd": 3, "winograd_2x2": 1, "phases": 1, "transposed": 1}


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["x", "kernel", "dy"])
@pytest.mark.parametrize("formula", [None, *handgrad.RULES["conv"].formulas])
def test_what_is_not_finite_is_never_lost(formula, where, value):
    """All that depends on it is not finite either; the rest is, up to `SPREAD`."""
    random = np.random.default_rng(0)
    options = {"padding": 1}
    if formula == "phases":
        options["strides"] = 2
    if formula == "transposed":
        options["input_dilation"] = 2
    inputs = 2
    if formula in MERGED:
        options["feature_group_count"], inputs = 2, 1
    conv = functools.partial(handgrad.conv, **options)
    arrays = [
        random.standard_normal((1, 9, 9, 2)),
        random.standard_normal((3, 3, inputs, 4)),
    ]
    arrays.append(random.standard_normal(jax.eval_shape(conv, *arrays).shape))
    arrays = [a.astype(np.float32) for a in arrays]
    place = (0, 4, 4, 1) if where != 1 else (0, 2, inputs - 1, 1)
    ones = [np.ones_like(a) for a in arrays]
    ones[where][...] = 0
    ones[where][place] = 1
    touched = outcome(functools.partial(conv, implementation="gemm"), *ones)
    arrays[where][place] = value
    run = functools.partial(conv, implementation=formula)
    results = jax.jit(functools.partial(outcome, run))(*arrays)
    for i, (array, seen) in enumerate(zip(results, touched, strict=True)):
        finite, seen = np.isfinite(array), np.asarray(seen) != 0
        if i == (1, 2, 0)[where]:
            assert finite.all()  # does not look at it
            continue
        assert not finite[seen].any()
        # Zeros around the image times an infinite kernel are NaN, in lax as well; and a
        # kernel's gradient is the sum over all tiles.
        if where != 1 and i != 2:
            reach = SPREAD.get(formula, 0)
            channels = 7 if formula in MERGED else 1
            window = (1, 2 * reach + 1, 2 * reach + 1, channels)
            near = lax.reduce_window(
                seen, False, lax.bitwise_or, window, (1, 1, 1, 1), "SAME"
            )
            assert finite[~np.asarray(near)].all()
