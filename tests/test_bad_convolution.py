"""Each requirement of `lax`'s own rules, and those of our formulas, violated."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.lax import ConvDimensionNumbers

import handgrad
from handgrad import ConvFormulas

ones = jnp.ones
PAIRS = [(0, 0), (0, 0)]


def rows(op, defaults, table):
    """(call, exception, message) of each row's arguments over the defaults."""
    for arguments, exception, message in table:
        call = functools.partial(getattr(handgrad, op), **defaults | arguments)
        names = ", ".join(arguments)
        yield pytest.param(
            call, exception, f"^{op}: .*{message}", id=f"{op}-{names}-{message[:30]}"
        )


# What conv_general_dilated and conv_transpose call by the same names.
LAX = [
    ({"lhs": None}, TypeError, r"lhs must be an array, got NoneType"),
    ({"rhs": "kernel"}, TypeError, r"rhs must be an array, got str"),
    ({"lhs": ones(4), "rhs": ones(4)}, ValueError, r"2 to 6, got lhs \(4,\)"),
    (
        {"lhs": ones((1,) * 7), "rhs": ones((1,) * 7)},
        ValueError,
        r"same number of dimensions, 2 to 6",
    ),
    ({"rhs": ones((3, 4, 4))}, ValueError, r"same number of dimensions.*\(3, 4, 4\)"),
    ({"rhs": ones((4,) * 4, "bfloat16")}, TypeError, r"one dtype.*rhs bfloat16"),
    (
        {"lhs": ones((2, 4, 6, 6), int)},
        TypeError,
        r"one dtype, got lhs int32, rhs float32",
    ),
    (
        {"lhs": ones((2, 6, 6, 4), complex), "rhs": ones((4,) * 4, complex)},
        TypeError,
        r"lhs must be real, got dtype complex64",
    ),
    (
        {"lhs": ones((2, 6, 6, 4), bool), "rhs": ones((4,) * 4, bool)},
        TypeError,
        r"lhs must be real, got dtype bool",
    ),
    ({"rhs_dilation": (0, 1)}, ValueError, r"rhs_dilation \(=0\) must be at least 1"),
    ({"rhs_dilation": (-1, 1)}, ValueError, r"rhs_dilation \(=-1\) must be at least"),
    ({"rhs_dilation": (1,)}, ValueError, r"rhs_dilation \(=\(1,\)\).*2 spatial"),
    ({"rhs_dilation": (1.5, 1)}, TypeError, r"rhs_dilation must be a static integer"),
    ({"padding": "FULL"}, ValueError, r"padding \(='FULL'\) must be 'SAME'"),
    ({"padding": None}, TypeError, r"padding must be .*got NoneType"),
    ({"padding": []}, ValueError, r"padding \(=\[\]\) must hold a \(low, high\) pair"),
    ({"padding": PAIRS[:1]}, ValueError, r"padding .* for each of the 2 spatial"),
    ({"padding": PAIRS * 2}, ValueError, r"padding .* for each of the 2 spatial"),
    ({"padding": [(0,), (0,)]}, ValueError, r"padding .*\(low, high\) pair"),
    ({"padding": [(0, 0, 0), (0, 0)]}, ValueError, r"padding .*\(low, high\) pair"),
    ({"padding": [(0.5, 0), (0, 0)]}, TypeError, r"padding must be a static integer"),
    ({"padding": [(None, 0), (0, 0)]}, TypeError, r"padding .*got NoneType"),
    (
        {"padding": [(-9, -9), (0, 0)]},
        ValueError,
        r"padding \(=\(-9, -9\)\) must not crop more than the \d+ pixels",
    ),
    ({"dimension_numbers": ("NHWC",)}, ValueError, r"dimension_numbers .*length 3"),
    ({"dimension_numbers": "NHWC"}, ValueError, r"dimension_numbers \(=NHWC\) must"),
    ({"dimension_numbers": 5}, ValueError, r"dimension_numbers \(=5\) must fit"),
    ({"dimension_numbers": (1, 2, 3)}, ValueError, r"dimension_numbers .*strings"),
    (
        {"dimension_numbers": ("NHWX", "HWIO", "NHWC")},
        ValueError,
        r"dimension_numbers .*'N' and 'C' exactly once",
    ),
    (
        {"dimension_numbers": ("NHWC", "HWOO", "NHWC")},
        ValueError,
        r"dimension_numbers .*'O' and 'I' exactly once",
    ),
    (
        {"dimension_numbers": ("NHHC", "HWIO", "NHWC")},
        ValueError,
        r"dimension_numbers .*duplicate",
    ),
    (
        {"dimension_numbers": ("NHWC", "HXIO", "NHWC")},
        ValueError,
        r"dimension_numbers .*same set of spatial",
    ),
    (
        {"dimension_numbers": ("NHWC", "HWIO", "NHWCC")},
        ValueError,
        r"dimension_numbers .*ndim",
    ),
    *(
        (
            {"dimension_numbers": ConvDimensionNumbers(*numbers)},
            ValueError,
            r"dimension_numbers .*each axis of lhs \(2, .* once",
        )
        for numbers in [
            ((0, 1, 2), (0, 1, 2), (0, 1, 2)),
            ((0, 1, 2, 2), (0, 1, 2, 3), (0, 1, 2, 3)),
            ((0, 1, 2, 3), (0, 1, 2, 7), (0, 1, 2, 3)),
            ((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, -1)),
        ]
    ),
    ({"precision": "best"}, ValueError, r"precision \(=best\).*must suit float32"),
    ({"precision": ("highest",)}, ValueError, r"precision \(=\('highest',\)\)"),
    ({"preferred_element_type": "int32"}, TypeError, r"preferred_.* \(=int32\) must"),
    ({"preferred_element_type": "float16"}, TypeError, r"must not be narrower"),
    ({"preferred_element_type": "nonsense"}, TypeError, r"preferred_.* \(=nonsense\)"),
]

GENERAL = [
    ({"rhs": ones((4, 5, 3, 3))}, ValueError, r"must have 4 input channels"),
    ({"feature_group_count": 0}, ValueError, r"feature_group_count \(=0\) must be at"),
    ({"feature_group_count": -1}, ValueError, r"feature_group_count \(=-1\) must be"),
    ({"feature_group_count": 2.0}, TypeError, r"feature_group_count .*got float"),
    ({"feature_group_count": 3}, ValueError, r"\(=3\) must divide the 4 input chan"),
    ({"feature_group_count": 2}, ValueError, r"must have 2 input channels"),
    (
        {"feature_group_count": 2, "rhs": ones((3, 2, 3, 3))},
        ValueError,
        r"feature_group_count \(=2\) must divide the 3 output channels",
    ),
    ({"batch_group_count": 0}, ValueError, r"batch_group_count \(=0\) must be at le"),
    ({"batch_group_count": -2}, ValueError, r"batch_group_count \(=-2\) must be at"),
    ({"batch_group_count": 1.5}, TypeError, r"batch_group_count .*got float"),
    ({"batch_group_count": 3}, ValueError, r"\(=3\) must divide the 2 examples"),
    (
        {"batch_group_count": 2, "rhs": ones((3, 4, 3, 3))},
        ValueError,
        r"batch_group_count \(=2\) must divide the 3 output channels",
    ),
    (
        {"batch_group_count": 2, "feature_group_count": 2, "rhs": ones((4, 2, 3, 3))},
        ValueError,
        r"feature_group_count \(=2\) and batch_group_count \(=2\) must not both",
    ),
    ({"window_strides": ()}, ValueError, r"window_strides \(=\(\)\) .* 2 spatial"),
    ({"window_strides": (1, 1, 1)}, ValueError, r"window_strides .* 2 spatial"),
    ({"window_strides": (0, 1)}, ValueError, r"window_strides \(=0\) must be at least"),
    ({"window_strides": (1, -1)}, ValueError, r"window_strides \(=-1\) must be at"),
    ({"window_strides": (1.5, 1)}, TypeError, r"window_strides .*integer, got float"),
    ({"lhs_dilation": (0, 1), "padding": PAIRS}, ValueError, r"lhs_dilation \(=0\)"),
    ({"lhs_dilation": (-1, 1), "padding": PAIRS}, ValueError, r"lhs_dilation \(=-1\)"),
    ({"lhs_dilation": (1,), "padding": PAIRS}, ValueError, r"lhs_dilation \(=\(1,\)\)"),
    ({"lhs_dilation": (1.5, 1), "padding": PAIRS}, TypeError, r"lhs_dilation .*float"),
    (
        {"lhs_dilation": (2, 2)},
        ValueError,
        r"padding \(='SAME'\) must be \(low, high\) pairs with lhs_dilation",
    ),
    (
        {"padding": [(-3, -4), (0, 0)]},
        ValueError,
        r"padding \(=\(-3, -4\)\) must not crop more than the 6 pixels",
    ),
    ({"rhs": ones((4, 4, 0, 3))}, ValueError, r"rhs \(=0\) must be at least 1"),
    ({"out_sharding": "data"}, ValueError, r"out_sharding \(='data'\) must be a"),
]

TRANSPOSE = [
    ({"rhs": ones((3, 3, 5, 4))}, ValueError, r"must have 4 input channels"),
    (
        {"rhs": ones((3, 3, 4, 5)), "transpose_kernel": True},
        ValueError,
        r"must have 4 input channels",
    ),
    ({"strides": (0, 1)}, ValueError, r"strides \(=0\) must be at least 1"),
    ({"strides": (-1, 1)}, ValueError, r"strides \(=-1\) must be at least 1"),
    ({"strides": (1,)}, ValueError, r"strides \(=\(1,\)\) .* 2 spatial"),
    ({"strides": (1, 1, 1)}, ValueError, r"strides \(=\(1, 1, 1\)\) .* 2 spatial"),
    ({"strides": (1.5, 1)}, TypeError, r"strides must be a static integer, got float"),
    ({"padding": "SAME_LOWER"}, ValueError, r"padding \(='SAME_LOWER'\) must be"),
    *(
        ({"use_consistent_padding": True, "padding": padding}, ValueError, "padding")
        for padding in ("FULL", PAIRS[:1], PAIRS * 2, [(0, 0, 0)] * 2, [(20, 20)] * 2)
    ),
    ({"rhs": ones((0, 3, 4, 4))}, ValueError, r"rhs \(=0\) must be at least 1"),
]

CONV = [
    ({"x": None}, TypeError, r"x must be an array, got NoneType"),
    ({"x": ones(4)}, ValueError, r"x must have shape .*got x \(4,\)"),
    (
        {"x": ones((1,) * 6), "kernel": ones((1,) * 6)},
        ValueError,
        r"1 to 3 spatial dimensions",
    ),
    ({"kernel": ones((0, 3, 4, 4))}, ValueError, r"kernel \(=0\) must be at least 1"),
    ({"x": ones((2, 0, 6, 4))}, ValueError, r"kernel .* does not fit an image of 0"),
    ({"feature_group_count": -2}, ValueError, r"feature_group_count \(=-2\) must"),
    ({"feature_group_count": 1.0}, TypeError, r"feature_group_count .*got float"),
    ({"strides": (-1, 1)}, ValueError, r"strides \(=-1\) must be at least 1"),
    ({"strides": "ab"}, TypeError, r"strides must be a static integer, got str"),
    ({"kernel_dilation": 0}, ValueError, r"kernel_dilation \(=0\) must be at least 1"),
    ({"kernel_dilation": (1,)}, ValueError, r"kernel_dilation \(=\(1,\)\) .*2 spatial"),
    ({"input_dilation": -1}, ValueError, r"input_dilation \(=-1\) must be at least 1"),
    ({"input_dilation": (1, 1, 1)}, ValueError, r"input_dilation .* 2 spatial"),
    ({"padding": None}, TypeError, r"padding must be .*got NoneType"),
    ({"padding": 1.5}, TypeError, r"padding must be a static integer, got float"),
    ({"padding": PAIRS * 2}, ValueError, r"padding .* for each of the 2 spatial"),
    ({"padding": [(-9, 0), (0, 0)]}, ValueError, r"padding .*not crop more than the 6"),
    ({"padding": [(-3, -3), (0, 0)]}, ValueError, r"does not fit an image of 6 pixels"),
    ({"bias": ones((1, 4))}, ValueError, r"bias must have shape \(4,\)"),
    ({"bias": ones(4, "bfloat16")}, TypeError, r"one dtype, got x float32, bias bfl"),
    ({"bias": ones(4, int)}, TypeError, r"one dtype, got x float32, bias int32"),
    ({"bias": "b"}, TypeError, r"bias must be an array, got str"),
    ({"precision": "best"}, ValueError, r"precision \(=best\).*must suit float32"),
    ({"preferred_element_type": "int32"}, TypeError, r"preferred_.* \(=int32\) must"),
]

# Unsuitable and unknown formulas; each message ends in the formula's own reason.
ANY = r"None, 'autodiff', 'rot180', 'gemm'"
FORMULAS = [
    ({"implementation": "fft"}, rf"\(='fft'\) must be one of {ANY}.*no such formula"),
    ({"implementation": 5}, rf"\(=5\) must be one of {ANY}.*no such formula"),
    ({"implementation": ["gemm"]}, rf"\(=\['gemm'\]\) must be one of {ANY}"),
    *(
        (
            {"implementation": ConvFormulas("gemm", "gemm", name)},
            r"must be one of 'rot180', 'gemm', .* in a ConvFormulas",
        )
        for name in ("fft", "autodiff", None, ["gemm"])
    ),
]
UNSUITABLE = [
    *(
        ({"implementation": name}, rf"{ANY}.*: '{name}' does several groups")
        for name in ("grouped", "block_diagonal")
    ),
    (
        {"implementation": "transposed", "strides": 2, "input_dilation": 2},
        rf"{ANY}, 'taps', 'slices': 'transposed' does strides of 1, not \(2, 2\)",
    ),
    (
        {
            "implementation": "mec",
            "kernel": ones((3, 3, 2, 4)),
            "feature_group_count": 2,
        },
        rf"{ANY}.*: 'mec' does one group, not 2",
    ),
    (
        {"implementation": "mec", "input_dilation": 2},
        rf"{ANY}.*: 'mec' does no dilated images",
    ),
    (
        {"implementation": "mec", "x": ones((2, 6, 4)), "kernel": ones((3, 4, 4))},
        rf"{ANY}.*: 'mec' does 2 dimensions, not 1",
    ),
    ({"implementation": "winograd", "strides": 2}, rf"{ANY}.*: .* neither strides"),
    (
        {"implementation": "winograd_2x2", "kernel_dilation": 2},
        rf"{ANY}.*: .*F\(2×2, 3×3\) does neither strides nor dilations",
    ),
    (
        {"implementation": "winograd", "kernel": ones((5, 3, 4, 4))},
        rf"{ANY}.*: .* kernels of 3 places in each dimension, not \(5, 3\)",
    ),
    (
        {
            "implementation": "winograd",
            "kernel": ones((3, 3, 2, 4)),
            "feature_group_count": 2,
        },
        rf"{ANY}.*: .* does one group, not 2",
    ),
    (
        {
            "implementation": "winograd",
            "x": ones((2, 6, 6, 4), int),
            "kernel": ones((3, 3, 4, 4), int),
        },
        rf"{ANY}.*: .* does floating dtypes, not int32",
    ),
    (
        {"implementation": "phases", "input_dilation": 2},
        rf"{ANY}.*: 'phases' does no input_dilation",
    ),
    (
        {"implementation": "phases", "strides": 2, "kernel_dilation": 2},
        rf"{ANY}.*: 'phases' does no kernel_dilation along a dimension with a stride",
    ),
    (
        {"implementation": "taps", "kernel": ones((9, 9, 4, 4))},
        rf"{ANY}.*: 'taps' does kernels of up to 64 places, not 81",
    ),
    (
        {"implementation": ConvFormulas("gemm", "winograd", "gemm"), "strides": 2},
        rf"\(='winograd'\) must be one of {ANY}.*neither strides",
    ),
]

FIRST = {"lhs": ones((2, 4, 6, 6)), "rhs": ones((4, 4, 3, 3)), "padding": "SAME"}
LAST = {"lhs": ones((2, 6, 6, 4)), "rhs": ones((3, 3, 4, 4)), "padding": "SAME"}
X = {"x": ones((2, 6, 6, 4)), "kernel": ones((3, 3, 4, 4))}


def formulas(table):
    return [(arguments, ValueError, message) for arguments, message in table]


BAD = [
    *rows(
        "conv_general_dilated",
        {**FIRST, "window_strides": (1, 1)},
        [*LAX, *GENERAL, *formulas(FORMULAS)],
    ),
    *rows(
        "conv_transpose",
        {**LAST, "strides": (2, 2)},
        [*LAX, *TRANSPOSE, *formulas(FORMULAS)],
    ),
    *rows("conv", X, [*CONV, *formulas(FORMULAS), *formulas(UNSUITABLE)]),
]


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(("call", "exception", "message"), BAD)
def test_bad_input(call, exception, message, jitted):
    with pytest.raises(exception, match=message):
        (jax.jit(call) if jitted else call)()


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_names_of_paddings_in_small_letters(padding):
    """They pass the checks, so they must mean the same."""
    general = functools.partial(
        handgrad.conv_general_dilated, **FIRST | {"window_strides": (2, 1)}
    )
    transpose = functools.partial(handgrad.conv_transpose, **LAST | {"strides": (2, 3)})
    for op in (general, transpose):
        assert op(padding=padding.lower()).tolist() == op(padding=padding).tolist()
