"""The public forms of convolution: layouts, groups of examples, dtypes, Flax's hook."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad
from handgrad import ConvFormulas, buffers, cases
from handgrad.convolution import choose, engines, mec, rule

RANDOM = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return jnp.asarray(RANDOM.standard_normal(shape), dtype)


@pytest.mark.parametrize(
    "arguments",
    [
        {"window_strides": (1, 1), "padding": "VALID"},
        {"window_strides": (2, 1), "padding": "SAME", "rhs_dilation": (1, 2)},
        {"window_strides": [1, 2], "padding": [(1, 0), (2, 1)], "lhs_dilation": (2, 1)},
        {
            "window_strides": (1, 1),
            "padding": "SAME_LOWER",
            "dimension_numbers": ("NHWC", "OIHW", "CHWN"),
        },
        {
            "window_strides": (1, 1),
            "padding": "SAME",
            "dimension_numbers": jax.lax.ConvDimensionNumbers(
                (0, 3, 1, 2), (0, 1, 2, 3), (1, 0, 2, 3)
            ),
        },
    ],
    ids=str,
)
def test_equals_lax(arguments):
    numbers = arguments.get("dimension_numbers")
    channels_last = numbers is not None
    lhs = normal(2, 6, 5, 4) if channels_last else normal(2, 4, 6, 5)
    rhs = normal(3, 4, 3, 2)
    ours = handgrad.conv_general_dilated(lhs, rhs, **arguments)
    stock = jax.lax.conv_general_dilated(lhs, rhs, **arguments)
    np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("formula", ["rot180", "gemm", None])
def test_preferred_element_type(formula):
    x, kernel = normal(2, 6, 6, 4, dtype=jnp.bfloat16), normal(3, 3, 4, 5)
    kernel = kernel.astype(jnp.bfloat16)
    conv = lambda x, k: handgrad.conv(
        x, k, preferred_element_type=jnp.float32, implementation=formula
    )
    y, vjp = jax.vjp(conv, x, kernel)
    assert y.dtype == jnp.float32
    wide = handgrad.conv(x.astype(jnp.float32), kernel.astype(jnp.float32))
    np.testing.assert_allclose(y, wide, rtol=1e-5, atol=1e-5)
    assert [g.dtype for g in vjp(y)] == [jnp.bfloat16, jnp.bfloat16]


def test_formulas_may_differ_by_direction():
    x, kernel = normal(2, 6, 6, 4), normal(3, 3, 4, 5)
    mixed = ConvFormulas("gemm", "rot180", "gemm")
    grad = lambda how: jax.grad(
        lambda x, k: jnp.sum(jnp.sin(handgrad.conv(x, k, implementation=how))), (0, 1)
    )(x, kernel)
    for a, b in zip(grad(mixed), grad("autodiff"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_per_example_gradients():
    """vmap(grad): one kernel gradient an example; they sum to the batch's."""
    x, kernel = normal(4, 6, 6, 2), normal(3, 3, 2, 3)
    loss = lambda k, x: jnp.sum(jnp.sin(handgrad.conv(x, k)))
    each = jax.vmap(jax.grad(loss), (None, 0))(kernel, x)
    assert each.shape == (4, *kernel.shape)
    np.testing.assert_allclose(
        each.sum(0), jax.grad(loss)(kernel, x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ({"window_strides": (1,)}, ValueError, r"window_strides \(=\(1,\)\)"),
        ({"window_strides": (0, 1)}, ValueError, r"window_strides \(=0\)"),
        ({"rhs_dilation": (1, 0)}, ValueError, r"rhs_dilation \(=0\)"),
        ({"lhs_dilation": (0, 1)}, ValueError, r"lhs_dilation \(=0\)"),
        ({"padding": "FULL"}, ValueError, r"padding \(='FULL'\)"),
        ({"dimension_numbers": ("NHWC",)}, ValueError, r"dimension_numbers \(="),
        ({"dimension_numbers": ("NHWX", "HWIO", "NHWC")}, ValueError, r"dimension_num"),
        ({"feature_group_count": 3}, ValueError, r"feature_group_count \(=3\) must"),
        ({"batch_group_count": 3}, ValueError, r"must divide the 2 examples"),
        (
            {"batch_group_count": 2, "feature_group_count": 2},
            ValueError,
            r"must not both exceed 1",
        ),
        ({"rhs": jnp.ones((4, 4, 3))}, ValueError, r"same number of dimensions"),
        ({"rhs": jnp.ones((4, 5, 3, 3))}, ValueError, r"kernel .* 4 input channels"),
        ({"rhs": jnp.ones((4, 4, 3, 3), "bfloat16")}, TypeError, r"one dtype, got lhs"),
    ],
)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_bad_input(arguments, exception, message, jitted):
    arguments = {
        "lhs": jnp.ones((2, 4, 6, 6)),
        "rhs": jnp.ones((4, 4, 3, 3)),
        "window_strides": (1, 1),
        "padding": "SAME",
    } | arguments
    call = lambda: handgrad.conv_general_dilated(**arguments)
    with pytest.raises(exception, match=rf"conv_general_dilated: .*{message}"):
        (jax.jit(call) if jitted else call)()


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", 1])
def test_flax_takes_it_as_its_hook(padding):
    """One argument of `nn.Conv` changes; parameters and results stay."""
    options = {"features": 6, "kernel_size": (3, 3), "strides": 2, "padding": padding}
    stock = nn.Conv(**options)
    ours = nn.Conv(**options, conv_general_dilated=handgrad.conv_general_dilated)
    x = normal(2, 8, 8, 4)
    params = stock.init(jax.random.key(0), x)
    same = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    grad = lambda module: jax.grad(lambda p: jnp.sum(jnp.sin(module.apply(p, x))))(
        params
    )
    for a, b in zip(
        jax.tree.leaves(grad(ours)), jax.tree.leaves(grad(stock)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "kernel", "groups", "expected"),
    [
        ((8, 8, 4), (3, 3, 1, 4), 4, ("taps", "taps", "taps")),
        ((8, 8, 64), (3, 3, 1, 128), 64, ("taps",) * 3),
        ((8, 8, 8), (3, 3, 1, 128), 8, ("taps",) + ("block_diagonal",) * 2),
        ((8, 8, 8), (3, 3, 4, 8), 2, ("block_diagonal",) * 3),
        ((8, 8, 8), (1, 1, 4, 8), 2, ("block_diagonal",) * 2 + ("gemm",)),
        ((8, 8, 16), (1, 1, 2, 16), 8, ("block_diagonal",) * 2 + ("gemm",)),
        ((4, 5, 4, 8), (1, 1, 1, 8, 4), 1, ("taps", "taps", "taps")),
        ((4, 5, 4, 8), (3, 3, 3, 8, 4), 1, ("slices", "slices", "slices")),
        ((20, 20, 128), (3, 3, 128, 128), 1, ("winograd",) * 3),
        ((20, 20, 96), (3, 3, 96, 96), 1, ("rot180", "rot180", "winograd")),
        ((20, 20, 48), (3, 3, 48, 64), 1, ("rot180", "rot180", "winograd")),
        ((14, 14, 48), (3, 3, 48, 64), 1, ("rot180",) * 3),
        ((112, 112, 32), (3, 3, 32, 32), 1, ("rot180", "rot180", "winograd")),
        ((64, 64, 32), (3, 3, 32, 32), 1, ("rot180", "rot180", "rot180")),
        ((64, 64, 32), (3, 3, 32, 64), 1, ("rot180", "rot180", "winograd")),
        ((2, 2, 32), (3, 3, 32, 32), 1, ("gemm", "gemm", "rot180")),
        ((2, 2, 16), (3, 3, 16, 16), 1, ("rot180", "rot180", "rot180")),
        ((2, 9, 32), (3, 3, 32, 32), 1, ("rot180", "rot180", "rot180")),
        ((4, 4, 256), (3, 3, 256, 256), 1, ("rot180", "gemm", "mec")),
        ((20, 20, 192), (3, 3, 192, 192), 1, ("winograd",) * 3),
        ((6, 6, 192), (3, 3, 192, 192), 1, ("rot180", "rot180", "mec")),
        ((6, 6, 160), (3, 3, 160, 160), 1, ("rot180",) * 3),
        (
            (10, 10, 256),
            (3, 3, 256, 192),
            1,
            ("winograd_2x2", "winograd_2x2", "winograd"),
        ),
        ((10, 10, 400), (3, 3, 400, 200), 1, ("winograd_2x2",) * 3),
        ((6, 6, 400), (3, 3, 400, 200), 1, ("rot180", "rot180", "mec")),
        ((6, 6, 16), (5, 1, 16, 16), 1, ("rot180", "rot180", "rot180")),
        ((6, 6, 32), (5, 1, 32, 32), 1, ("rot180", "rot180", "mec")),
        ((6, 6, 16), (5, 5, 16, 16), 1, ("rot180", "rot180", "mec")),
        ((64, 64, 32), (5, 5, 32, 64), 1, ("rot180", "rot180", "mec")),
        ((64, 64, 3), (3, 3, 3, 64), 1, ("rot180", "rot180", "mec")),
        ((8, 8, 1), (5, 5, 1, 6), 1, ("taps", "taps", "rot180")),
        ((8, 8, 1), (3, 3, 1, 32), 1, ("rot180", "mec", "slices")),
        ((8, 8, 3), (7, 7, 3, 16), 1, ("rot180", "mec", "rot180")),
        ((8, 8, 3), (3, 3, 3, 16), 1, ("rot180", "gemm", "rot180")),
        ((8, 8, 3), (7, 7, 3, 32), 1, ("rot180", "rot180", "slices")),
        ((8, 8, 16), (1, 1, 16, 16), 1, ("taps", "taps", "taps")),
        ((8, 8, 64), (1, 3, 64, 64), 1, ("rot180", "rot180", "slices")),
        ((8, 8, 16), (1, 3, 16, 16), 1, ("rot180", "rot180", "rot180")),
        ((8, 8, 16), (3, 3, 16, 16), 1, ("rot180", "rot180", "rot180")),
        ((12, 12, 3), (11, 11, 3, 4), 1, ("rot180", "mec", "rot180")),
    ],
)
def test_every_line_of_the_choice(monkeypatch, x, kernel, groups, expected):
    """The table's line, and the gradients of what it chose against autodiff's."""
    chosen = []
    formulas = choose.formulas

    def recording(*arguments):
        chosen.append(formulas(*arguments))
        return chosen[-1]

    monkeypatch.setattr(choose, "formulas", recording)
    arrays = normal(2, *x), normal(*kernel)
    grad = lambda how: jax.jit(
        jax.grad(
            lambda x, k: jnp.sum(
                jnp.sin(
                    handgrad.conv(x, k, feature_group_count=groups, implementation=how)
                )
            ),
            (0, 1),
        )
    )(*arrays)
    for a, b in zip(grad(None), grad("autodiff"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.abs(b).max()))
    assert dict(chosen[0])["cpu"] == ConvFormulas(*expected)


def strided(stride):
    return {"window_strides": stride, "padding": "SAME"}


def dilated(image, kernel):
    """Two pixels of padding at each end."""
    dilations = {"lhs_dilation": image, "rhs_dilation": kernel}
    return {"window_strides": 1, "padding": (2, 2), **dilations}


@pytest.mark.parametrize(
    ("x", "kernel", "options", "expected"),
    [
        ((8, 8, 3), (4, 4, 3, 48), strided(4), ("rot180", "phases", "gemm")),
        ((8, 8, 3), (7, 7, 3, 64), strided(2), ("rot180", "phases", "slices")),
        ((8, 8, 3), (3, 3, 3, 32), strided(2), ("phases", "phases", "rot180")),
        ((4, 4, 64), (2, 2, 64, 48), strided(2), ("rot180", "rot180", "gemm")),
        ((8, 8, 64), (3, 3, 64, 64), strided(2), ("rot180", "rot180", "mec")),
        ((8, 8, 64), (4, 4, 64, 64), strided(2), ("rot180", "rot180", "rot180")),
        ((46, 46, 32), (3, 3, 32, 64), strided(2), ("rot180", "rot180", "rot180")),
        ((4, 4, 64), (3, 3, 64, 64), strided(2), ("rot180", "gemm", "mec")),
        ((14, 14, 256), (3, 3, 256, 512), strided(2), ("rot180", "gemm", "mec")),
        ((8, 8, 8), (1, 1, 8, 8), strided(2), ("rot180", "rot180", "taps")),
        ((8, 8, 8), (3, 3, 8, 16), strided(2), ("rot180", "phases", "rot180")),
        ((9, 9, 64), (3, 3, 64, 64), dilated(1, 2), ("rot180", "rot180", "slices")),
        ((9, 9, 16), (3, 3, 16, 16), dilated(1, 2), ("rot180", "rot180", "rot180")),
        ((9, 9, 16), (4, 4, 16, 16), dilated(2, 1), ("transposed",) * 3),
        ((4, 4, 16), (4, 4, 16, 16), dilated(2, 1), ("rot180",) + ("transposed",) * 2),
        ((9, 8), (4, 8, 16), dilated(2, 1), ("rot180",) + ("transposed",) * 2),
        ((8, 8, 8, 8), (2, 2, 2, 8, 4), dilated(2, 1), ("transposed",) * 3),
        ((6, 6, 6, 3), (3, 3, 3, 3, 4), dilated(2, 1), ("transposed",) * 3),
    ],
)
def test_the_choice_with_strides_and_dilations(x, kernel, options, expected):
    """The table's line, and the gradients of what it chose against autodiff's."""
    n = len(kernel) - 2
    options = {k: v if v == "SAME" else (v,) * n for k, v in options.items()}
    spatial = "DHW"[-n:]
    options["dimension_numbers"] = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    arrays = normal(2, *x), normal(*kernel)

    def gradients(how):
        def loss(x, kernel):
            y = handgrad.conv_general_dilated(x, kernel, implementation=how, **options)
            return jnp.sum(jnp.sin(y))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(*arrays)

    for a, b in zip(
        *map(jax.tree.leaves, map(gradients, (None, "autodiff"))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.abs(b).max()))
    chosen = handgrad.explain_choice((2, *x), kernel, **options, platform="cpu")
    assert chosen.formulas == ConvFormulas(*expected)


@pytest.mark.parametrize("formula", [None, *handgrad.RULES["conv"].formulas])
@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        ((2, 6, 6, 0), (3, 3, 0, 4)),
        ((2, 6, 6, 4), (3, 3, 4, 0)),
        ((0, 6, 6, 4), (3, 3, 4, 4)),
    ],
    ids=["no inputs", "no outputs", "no examples"],
)
def test_no_inputs_outputs_or_examples(formula, x, kernel):
    options = {"strides": 2} if formula == "phases" else {}
    if formula == "transposed":
        options = {"input_dilation": 2}
    if formula in ("grouped", "block_diagonal"):
        options = {"feature_group_count": 2}
        kernel = (*kernel[:2], kernel[2] // 2, kernel[3])
    arrays = jnp.ones(x), jnp.ones(kernel)

    def outcome(implementation):
        conv = functools.partial(handgrad.conv, implementation=implementation)
        y, vjp = jax.vjp(functools.partial(conv, **options), *arrays)
        return y, *vjp(jnp.ones_like(y))

    for a, b in zip(outcome(formula), outcome("autodiff"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("places", [(3, 3), ()])
def test_groups_without_inputs_or_outputs(places, inputs, outputs):
    x = jnp.ones((2, *(5 for _ in places), inputs))
    kernel = jnp.ones((*places, inputs // 2, outputs))
    layout = ("NHWC", "HWIO", "NHWC") if places else ("NC", "IO", "NC")

    def outcome(implementation):
        conv = functools.partial(
            handgrad.conv_general_dilated,
            window_strides=(1,) * len(places),
            padding="SAME",
            dimension_numbers=layout,
            feature_group_count=2,
            implementation=implementation,
        )
        y, vjp = jax.vjp(conv, x, kernel)
        return y, *vjp(jnp.ones_like(y))

    for a, b in zip(outcome("taps"), outcome("autodiff"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("x", "kernel", "options", "expected"),
    [
        ((9, 9, 64), (3, 3, 4, 64), {}, ("taps",) * 3),
        ((9, 9, 64), (3, 3, 8, 64), strided(2), ("rot180",) + ("taps",) * 2),
        ((9, 9, 64), (3, 3, 8, 64), {}, ("block_diagonal",) * 3),
        ((40, 40, 64), (3, 3, 8, 64), {}, ("block_diagonal",) * 2 + ("grouped",)),
        (
            (9, 9, 64),
            (3, 3, 16, 64),
            strided(2),
            ("rot180", "grouped", "block_diagonal"),
        ),
        (
            (9, 9, 64),
            (3, 3, 8, 64),
            dilated(2, 1),
            ("grouped",) + ("block_diagonal",) * 2,
        ),
        ((9, 9, 64), (3, 3, 16, 128), {}, ("grouped",) * 3),
        ((9, 9, 64), (3, 3, 32, 64), {}, ("grouped",) * 3),
        ((9, 64), (3, 4, 64), {}, ("taps",) + ("grouped",) * 2),
        ((9, 9, 32), (17, 17, 1, 32), {}, ("grouped",) * 3),
    ],
)
def test_groups_on_one_device_are_merged(x, kernel, options, expected):
    n = len(kernel) - 2
    options = {k: v if v == "SAME" else (v,) * n for k, v in options.items()}
    spatial = "HW"[:n]
    choice = handgrad.explain_choice(
        (2, *x),
        kernel,
        **{"window_strides": (1,) * n, "padding": "SAME"} | options,
        feature_group_count=x[-1] // kernel[-2],
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        platform="cpu",
    )
    assert choice.formulas == ConvFormulas(*expected)


@pytest.mark.parametrize(
    ("x", "kernel", "groups", "strides"),
    [
        ((4, 21, 5, 12), (3, 3, 1, 12), 12, 2),  # three blocks of rows, longer
        ((6, 3, 3, 8), (3, 3, 2, 12), 4, 1),  # examples in threes
        ((2, 40, 8), (4, 2, 8), 4, 1),  # rows without columns
        ((2, 9, 4, 4, 6), (2, 2, 2, 3, 4), 2, 1),
        ((2, 7, 6, 32), (3, 3, 16, 32), 2, 1),  # a matrix product a group
    ],
    ids=["depthwise", "narrow", "1-D", "3-D", "wide"],
)
def test_groups_in_blocks_by_taps(monkeypatch, x, kernel, groups, strides):
    """The cache of a core holds few numbers here."""
    monkeypatch.setattr("handgrad.convolution.narrow._BLOCK", 300)
    rule._traced_once.cache_clear()
    arrays = normal(*x), normal(*kernel)
    options = {"feature_group_count": groups, "strides": strides}

    def outcome(implementation):
        conv = functools.partial(handgrad.conv, implementation=implementation)
        y, vjp = jax.vjp(functools.partial(conv, **options), *arrays)
        return y, *vjp(jnp.sin(y))

    for a, b in zip(outcome("taps"), outcome("autodiff"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    rule._traced_once.cache_clear()


def test_every_line_of_the_choice_decides_for_a_named_layer():
    with choose.recording() as asked:
        for case in (*cases.CASES, *cases.LAYERS):
            if case.rule.startswith("conv"):
                jax.eval_shape(case.function(), **case.arrays("float32"))
    chosen = {
        because
        for geometry in asked
        for _, because in choose.by_table(geometry, "cpu").values()
    }
    assert {line.because for line in choose.TABLE} <= chosen


@pytest.mark.parametrize("pixels", [1, 40, 10_000])
@pytest.mark.parametrize("rows", [6, 7, 13])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": (3, 2)},
        {"kernel_dilation": (2, 3)},
        {"strides": (2, 1), "padding": ((0, 2), (-1, 3)), "kernel_dilation": 2},
    ],
)
def test_mec_in_blocks_of_rows(monkeypatch, pixels, rows, options):
    """Blocks of one row, blocks that do not divide the rows, and one block."""
    x, kernel = normal(2, rows, 9, 3), normal(3, 2, 3, 4)
    conv = functools.partial(handgrad.conv, x, **options)
    dy = normal(*jax.eval_shape(conv, kernel).shape)

    def gradient(how):
        _, vjp = jax.vjp(functools.partial(conv, implementation=how), kernel)
        return vjp(dy)[0]

    monkeypatch.setattr(mec, "_PIXELS", pixels)
    jax.clear_caches()  # of a trace with other blocks
    np.testing.assert_allclose(
        gradient("mec"), gradient("rot180"), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("direction", choose.DIRECTIONS)
@pytest.mark.parametrize("groups", [1, 2])
def test_an_engine_is_looked_up_by_the_convolution_s_shapes(
    monkeypatch, direction, groups
):
    """And computes that direction, whichever it is."""
    x, kernel = normal(2, 9, 8, 6), normal(3, 2, 6 // groups, 4)
    conv = functools.partial(handgrad.conv, strides=(2, 1), feature_group_count=groups)
    with choose.recording() as asked:
        y, vjp = jax.vjp(conv, x, kernel)
    (geometry,) = asked
    dx, dkernel = vjp(y)
    operands, expected = {
        "forward": ((x, kernel), y),
        "input_gradient": ((y, kernel), dx),
        "kernel_gradient": ((x, y), dkernel),
    }[direction]
    seen = []
    by_table = choose.by_table

    def recording(geometry, *args, **options):
        seen.append(geometry)
        return by_table(geometry, *args, **options)

    monkeypatch.setattr(choose, "by_table", recording)
    actual = engines.compute(direction, *operands, geometry.spec)
    assert seen[0] == geometry
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_group_s_kernel_gradient_waits_for_the_platform():
    """The table's loop over blocks of rows for a CPU, a convolution elsewhere."""
    x, kernel = normal(2, 64, 64, 64), normal(5, 5, 32, 128)
    gradient = jax.grad(
        lambda kernel: jnp.sum(
            handgrad.conv(x, kernel, feature_group_count=2, implementation="grouped")
            ** 2
        )
    )
    traced = jax.jit(gradient).trace(kernel)
    lower = lambda platform: traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" in lower("cpu")
    assert "stablehlo.while" not in lower("cuda")


def test_choice_waits_for_the_platform():
    """One traced function: taps where it is lowered for a CPU, lax's own elsewhere."""
    x, kernel = normal(2, 8, 8, 4), normal(3, 3, 1, 4)
    conv = jax.jit(lambda x, k: handgrad.conv(x, k, feature_group_count=4))
    lower = lambda platform: conv.trace(x, kernel).lower(lowering_platforms=(platform,))
    assert "stablehlo.convolution" not in lower("cpu").as_text()
    assert "stablehlo.convolution" in lower("cuda").as_text()
    exported = jax.export.export(conv, platforms=["cpu", "cuda", "tpu"])(x, kernel)
    restored = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(restored.call(x, kernel), conv(x, kernel), rtol=1e-6)


def test_a_transposed_kernel_gradient_waits_for_the_platform():
    """A matrix product where it is lowered for a CPU, a convolution elsewhere."""
    x, kernel = normal(1, 4, 4, 8), normal(2, 2, 8, 8)

    def loss(kernel):
        y = handgrad.conv_transpose(
            x, kernel, (2, 2), "SAME", implementation="transposed"
        )
        return jnp.sum(jnp.sin(y))

    traced = jax.jit(jax.grad(loss)).trace(kernel)
    lower = lambda platform: traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.dot_general" in lower("cpu")
    assert "stablehlo.dot_general" not in lower("cuda")


@pytest.mark.parametrize("transform", ["vmap", "shard_map", "explicit", "second"])
def test_the_default_of_a_depthwise_convolution_transforms(transform):
    """The choice by platform stands inside of the rule: each transformation sees it."""
    x, kernel = normal(4, 6, 6, 3), normal(3, 3, 1, 3)
    loss = lambda x, k, how=None: jnp.sum(
        jnp.sin(handgrad.conv(x, k, feature_group_count=3, implementation=how))
    )
    expected = jax.grad(loss, (0, 1))(x, kernel, "autodiff")
    mesh = lambda kind: jax.make_mesh((4,), ("data",), axis_types=(kind,))
    split = jax.sharding.PartitionSpec("data")
    whole = jax.sharding.PartitionSpec()
    if transform == "vmap":
        dx, dk = jax.vmap(jax.grad(loss, (0, 1)), (0, None))(x, kernel)
        actual = dx, dk.sum(0)
    elif transform == "shard_map":
        actual = jax.jit(
            jax.shard_map(
                jax.grad(loss, (0, 1)),
                mesh=mesh(jax.sharding.AxisType.Auto),
                in_specs=(split, whole),
                out_specs=(split, whole),
            )
        )(x, kernel)
    elif transform == "explicit":
        devices = mesh(jax.sharding.AxisType.Explicit)
        with jax.set_mesh(devices):
            arrays = (
                jax.device_put(x, jax.sharding.NamedSharding(devices, split)),
                jax.device_put(kernel, jax.sharding.NamedSharding(devices, whole)),
            )
            actual = jax.jit(jax.grad(loss, (0, 1)))(*arrays)
    else:
        second = lambda how: jax.jit(
            jax.grad(lambda x, k: jnp.sum(jax.grad(loss)(x, k, how) ** 2), (0, 1))
        )(x, kernel)
        expected, actual = second("autodiff"), second(None)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.abs(b).max()))


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def taps(x, kernel, groups=1):
    return handgrad.conv(x, kernel, feature_group_count=groups, implementation="taps")


def test_what_reads_a_sum_over_places_does_not_compute_it_again():
    """Relu and the two loops of a max pool read y; the places of dx read its error."""
    x, kernel = normal(64, 28, 28, 1), normal(5, 5, 1, 6)

    def loss(x, kernel):
        return jnp.sum(
            handgrad.max_pool(handgrad.relu(taps(x, kernel)), (2, 2), (2, 2)) ** 2
        )

    once = flops(taps, x, kernel)
    assert flops(jax.grad(loss, argnums=1), x, kernel) < 2.5 * once
    assert flops(jax.grad(loss), x, kernel) < 3 * once


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_the_places_of_a_kernel_do_not_compute_what_they_read_again(padding):
    """A depthwise layer between a dear function of its image and of its result."""
    x, kernel = normal(4, 12, 12, 6), normal(3, 3, 1, 6)

    def loss(kernel, x):
        y = handgrad.conv(
            jnp.sin(x),
            kernel,
            feature_group_count=6,
            padding=padding,
            implementation="taps",
        )
        return jnp.sum(jnp.cos(y))

    compiled = jax.jit(jax.grad(loss)).lower(kernel, x).compile()
    # A sine of each pixel, perhaps once more for each direction, and one of each y.
    assert compiled.cost_analysis()["transcendentals"] <= 3 * x.size


def test_what_reads_a_sum_over_a_group_does_not_compute_it_again():
    """The sums of a batch norm, and what it makes, read y; before a layer, its dx."""
    x, kernel = normal(8, 14, 14, 64), normal(3, 3, 2, 64)
    norm = lambda x: handgrad.batch_norm(x, jnp.ones(64), jnp.zeros(64))

    def behind(x, kernel):
        return norm(taps(x, kernel, 32))

    def before(dy, kernel):
        return jax.vjp(lambda x: taps(norm(x), kernel, 32), x)[1](dy)

    products = 2 * x.size * kernel[..., 0].size
    for function in (behind, before):
        assert products <= flops(function, x, kernel) < 2 * products


def temporaries(function, *shapes):
    arrays = [jnp.ones(shape) for shape in shapes]
    compiled = jax.jit(function).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_a_kernel_larger_than_the_errors_is_not_turned_over():
    """Of few pixels and many channels it is nearly all that there is."""
    kernel = (3, 3, 256, 256)

    def dx(dy, kernel):
        conv = functools.partial(handgrad.conv, implementation="gemm")
        return jax.vjp(lambda x: conv(x, kernel), jnp.zeros((2, 4, 4, 256)))[1](dy)

    assert temporaries(dx, (2, 4, 4, 256), kernel) < 4 * np.prod(kernel)


def test_a_strided_view_is_not_kept_beside_its_image(monkeypatch):
    """Of a 1×1 layer beside others, as in a residual block."""

    def layer(x, kernel):
        x = jnp.tanh(x)
        y = handgrad.conv(x, kernel, strides=2, implementation="taps")
        return x + jnp.repeat(jnp.repeat(y, 2, 1), 2, 2)

    loss = lambda kernels, x: jnp.sum(functools.reduce(layer, kernels, x))

    def of_a_layer_more():
        rule._traced_once.cache_clear()
        gradients = lambda x, *kernels: jax.grad(loss)(kernels, x)
        kernel = (1, 1, 64, 64)
        few, more = (
            temporaries(gradients, (8, 32, 32, 64), *[kernel] * n) for n in (3, 7)
        )
        return more - few

    later = of_a_layer_more()
    monkeypatch.setattr(buffers, "_element", lambda array: None)
    assert later <= 0.9 * of_a_layer_more()
    rule._traced_once.cache_clear()


@pytest.mark.parametrize(
    ("formula", "groups"), [("winograd", 1), ("mec", 1), ("block_diagonal", 8)]
)
def test_what_a_kernel_gradient_reads_is_not_copied_in_the_forward_pass(
    monkeypatch, formula, groups
):
    """Left to itself, XLA keeps another form of each layer's input from there on."""
    shape, kernel = (4, 16, 16, 64), (3, 3, 64 // groups, 64)
    formulas = ConvFormulas("rot180", "rot180", formula)
    conv = functools.partial(
        handgrad.conv, feature_group_count=groups, implementation=formulas
    )
    layer = lambda x, kernel: handgrad.relu(conv(x, kernel))
    loss = lambda kernels, x: jnp.sum(functools.reduce(layer, kernels, x))

    def of_a_layer_more():
        rule._traced_once.cache_clear()
        gradients = lambda x, *kernels: jax.grad(loss)(kernels, x)
        few, more = (temporaries(gradients, shape, *[kernel] * n) for n in (3, 7))
        return more - few

    later = of_a_layer_more()
    monkeypatch.setattr(buffers, "_element", lambda array: None)
    assert later <= 0.95 * of_a_layer_more()
    rule._traced_once.cache_clear()
