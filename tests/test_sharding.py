"""Every rule on several devices: shard_map, automatic and explicit meshes.

Values and gradients are those of one device. What travels between the devices is read
from the compiled module: under batch sharding sums of parameters' gradients and no
activation, under spatial sharding rows, under channel sharding the sum that the
mathematics asks for.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import handgrad
from handgrad import cases, elementwise, measure
from handgrad.cases import Case, activation, classes, key, normal, uniform

pytestmark = pytest.mark.several_devices

POOL = {"window_shape": (3, 3), "strides": (2, 2), "padding": "SAME"}
PATCH = {"window_shape": (2, 2), "strides": 2}
# One case a rule, and which of its arguments are split over the batch.
CASES = {
    "conv": [
        Case(
            "conv",
            "strided",
            {"x": normal(8, 6, 6, 4), "kernel": normal(3, 3, 4, 4), "bias": normal(4)},
            {"strides": 2},
        ),
        Case(
            "conv",
            "grouped",
            {"x": normal(8, 6, 6, 4), "kernel": normal(3, 3, 2, 4)},
            {"feature_group_count": 2},
        ),
        Case("conv", "3x3", {"x": normal(8, 6, 6, 4), "kernel": normal(3, 3, 4, 4)}),
        Case(
            "conv",
            "dilated image",
            {"x": normal(8, 6, 6, 4), "kernel": normal(3, 3, 4, 4)},
            {"input_dilation": 2},
        ),
    ],
    "conv_transpose": [
        Case(
            "conv_transpose",
            "4x4/2",
            {"lhs": normal(8, 4, 4, 4), "rhs": normal(4, 4, 4, 4)},
            {"strides": (2, 2), "padding": "SAME"},
        )
    ],
    "conv_general_dilated": [
        Case(
            "conv_general_dilated",
            "channels first",
            {"lhs": normal(8, 4, 6, 6), "rhs": normal(4, 4, 3, 3)},
            {"window_strides": (2, 2), "padding": "SAME"},
        )
    ],
    "im2col": [Case("im2col", "2x2", {"x": normal(8, 4, 4, 3)}, PATCH)],
    "col2im": [
        Case(
            "col2im",
            "2x2",
            {"columns": normal(8, 12, 4)},
            PATCH | {"image_shape": (4, 4)},
        )
    ],
    "dot_general": [
        Case(
            "dot_general",
            "matrices",
            {"lhs": normal(8, 5), "rhs": normal(4, 5)},
            {"dimension_numbers": (((1,), (1,)), ((), ()))},
        )
    ],
    "dense": [
        Case(
            "dense",
            "batch",
            {"x": normal(8, 5), "kernel": normal(5, 4), "bias": normal(4)},
        )
    ],
    "add_bias": [Case("add_bias", "batch", {"x": normal(8, 5), "bias": normal(5)})],
    **{
        rule: [Case(rule, "3x3/2", {"inputs": normal(8, 6, 6, 2)}, POOL)]
        for rule in (
            "max_pool",
            "min_pool",
            "avg_pool",
            "sum_pool",
            "lp_pool",
            "max_pool_with_argmax",
        )
    },
    "max_unpool": [
        Case(
            "max_unpool",
            "2x2",
            {"inputs": normal(8, 2, 2, 3), "indices": classes(4, 8, 2, 2, 3)},
            {"window_shape": (2, 2), "strides": (2, 2), "index": "window"},
        )
    ],
    **{
        rule: [Case(rule, "bins", {"inputs": normal(8, 5, 2)}, {"output_shape": (3,)})]
        for rule in ("adaptive_avg_pool", "adaptive_max_pool")
    },
    **{
        rule: [
            Case(
                rule,
                "channels first",
                {"operand": normal(8, 2, 5, 5)},
                {"window_dimensions": (1, 1, 3, 2), "padding": "SAME"},
            )
        ]
        for rule in ("reduce_window_max", "reduce_window_min", "reduce_window_sum")
    },
    **{
        rule: [Case(rule, "batch", {"x": normal(8, 5)})]
        for rule in (*activation.ELEMENTWISE, "softmax", "log_softmax")
    },
    "glu": [Case("glu", "batch", {"x": normal(8, 6)})],
    "logsumexp": [Case("logsumexp", "batch", {"a": normal(8, 5)}, {"axis": 1})],
    # Group, instance and RMS norm follow the rule of these.
    "batch_norm": [
        Case(
            "batch_norm",
            "inference",
            {"x": normal(8, 5)}
            | {n: uniform(5) for n in ("scale", "bias", "mean", "variance")},
            {"activation": "relu"},
        )
    ],
    **{
        rule: [Case(rule, "batch", {"x": normal(8, 3, 6), "scale": normal(6)}, options)]
        for rule, options in {
            "layer_norm": {},
            "rms_norm": {},
            "group_norm": {"num_groups": 2},
            "instance_norm": {},
        }.items()
    },
    "standardize": [Case("standardize", "batch", {"x": normal(8, 5)})],
    "local_response_norm": [Case("local_response_norm", "batch", {"x": normal(8, 5)})],
    "dropout": [
        Case(
            "dropout",
            "one mask for all examples",
            {"key": key(), "x": normal(8, 5)},
            {"rate": 0.5, "broadcast_axes": (0,)},
        )
    ],
    **{
        rule: [Case(rule, "batch", {"logits": normal(8, 5), "labels": uniform(8, 5)})]
        for rule in (
            "softmax_cross_entropy",
            "poly_loss_cross_entropy",
            "sigmoid_binary_cross_entropy",
            "sigmoid_focal_loss",
        )
    },
    **{
        rule: [Case(rule, "batch", {name: normal(8, 5), "labels": classes(5, 8)})]
        for rule, name in (
            ("softmax_cross_entropy_with_integer_labels", "logits"),
            ("multiclass_hinge_loss", "scores"),
        )
    },
    **{
        rule: [Case(rule, "batch", {name: normal(8, 5), "targets": uniform(8, 5)})]
        for rule, name in (
            ("squared_error", "predictions"),
            ("l2_loss", "predictions"),
            ("huber_loss", "predictions"),
            ("log_cosh", "predictions"),
            ("cosine_distance", "predictions"),
            ("hinge_loss", "predictor_outputs"),
            ("kl_divergence", "log_predictions"),
        )
    },
}
# Those of one elementwise rule are alike on any mesh: two of them are run.
ALIKE = {*elementwise.CURVES} - {"relu", "leaky_relu"}
PAIRS = [
    (formula, case)
    for rule, listed in CASES.items()
    for formula in handgrad.RULES[rule].formulas
    for case in listed
    if rule not in ALIKE and measure.suitable(formula, case)
]
every_pair = pytest.mark.parametrize(("formula", "case"), PAIRS, ids=str)


def test_every_rule_has_a_case():
    assert set(CASES) == set(handgrad.RULES) == {case.rule for case in cases.CASES}


def specs(arrays):
    return {n: P() if n in cases.PARAMETERS else P("data") for n in arrays}


def mesh(axis_type):
    return jax.make_mesh((4,), ("data",), axis_types=(axis_type,))


@functools.cache
def prepare(case, formula):
    arrays = jax.device_put(case.arrays("float32"))
    dy = jnp.asarray(measure.cotangent(case, "float32", 0))
    function = case.function(formula)
    return function, arrays, dy, measure.forward_and_backward(function)(arrays, dy)


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        error, _ = measure.elementwise_error(a, np.asarray(e, np.float64))
        assert error < 1e-5


@every_pair
def test_gradient_through_shard_map(formula, case):
    """A replicated kernel's gradient is summed over the devices."""
    function, arrays, dy, expected = prepare(case, formula)
    sharded = jax.shard_map(
        lambda arrays: function(**arrays),
        mesh=mesh(AxisType.Auto),
        in_specs=(specs(arrays),),
        out_specs=P("data"),
    )
    run = measure.forward_and_backward(lambda **arrays: sharded(arrays))
    assert_close(run(arrays, dy), expected)


@every_pair
def test_gradient_inside_shard_map(formula, case):
    function, arrays, dy, expected = prepare(case, formula)
    floating, _ = measure.split(arrays)

    def body(arrays, dy):
        floating, fixed = measure.split(arrays)
        y, vjp = jax.vjp(lambda f: function(**f, **fixed), floating)
        return y, vjp(dy)[0]

    run = jax.shard_map(
        body,
        mesh=mesh(AxisType.Auto),
        in_specs=(specs(arrays), P("data")),
        out_specs=(P("data"), specs(floating)),
    )
    assert_close(jax.jit(run)(arrays, dy), expected)


class Collective(NamedTuple):
    """An exchange between devices: its kind, and the elements of what it results in."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def elements(self):
        return sum(math.prod(shape) for shape in self.shapes)


KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def collectives(compiled) -> Iterator[Collective]:
    """Those of a compiled module, in its order."""
    text = re.sub(r"/\*.*?\*/", "", compiled.as_text())  # a long tuple's indices
    for found in re.finditer(rf"= ([^=\n]*?) ({KINDS})(-start)?\(", text):
        shapes = re.findall(r"\w+\[([\d,]*)\]", found[1])
        sizes = (tuple(int(n) for n in shape.split(",") if n) for shape in shapes)
        yield Collective(found[2], tuple(sizes))


# Of a grouped convolution XLA gathers the images (openxla/xla issue 47945): so do the
# formulas that are made of it.
GATHERED_BY_XLA = {"rot180", "block_diagonal", "phases", "slices"}
# A kernel's gradient may be summed in another form: 6×6 numbers of Winograd's tiles
# instead of 3×3, say, or with zeros between the groups.
LARGER_FORM = 4


def assert_only_sums_of_parameters(compiled, formula, case, arrays):
    """No activation leaves its device, whole or in parts."""
    if case.name == "grouped" and formula in GATHERED_BY_XLA:
        return
    parameters = sum(a.size for n, a in arrays.items() if n in cases.PARAMETERS)
    for found in collectives(compiled):
        if found.kind == "all-gather":  # each device's sums, added up by all of them
            assert found.elements <= 4 * parameters, found
            assert formula == "hand", found
            assert len({*found.shapes}) == 1
            assert found.shapes[0][0] == 4, found
        else:
            assert found.kind == "all-reduce", found
            assert found.elements <= LARGER_FORM * parameters, found


@every_pair
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_mesh(formula, case, axis_type):
    function, arrays, dy, expected = prepare(case, formula)
    devices = mesh(axis_type)
    with jax.set_mesh(devices):
        arrays = {
            name: jax.device_put(arrays[name], NamedSharding(devices, spec))
            for name, spec in specs(arrays).items()
        }
        dy = jax.device_put(dy, NamedSharding(devices, P("data")))
        run = measure.forward_and_backward(function).lower(arrays, dy).compile()
        y, cotangents = run(arrays, dy)
    assert_close((y, cotangents), expected)
    assert_only_sums_of_parameters(run, formula, case, arrays)
    assert y.sharding.is_equivalent_to(dy.sharding, y.ndim)
    for name, cotangent in cotangents.items():
        wanted = arrays[name].sharding
        assert cotangent.sharding.is_equivalent_to(wanted, cotangent.ndim), name


GROUPS_ONLY = {"grouped", "block_diagonal"}


def test_groups_are_not_split_over_devices():
    devices = mesh(AxisType.Explicit)
    with jax.set_mesh(devices):
        x = jax.device_put(jnp.ones((2, 6, 6, 4)), NamedSharding(devices, P()))
        kernel = jnp.ones((3, 3, 2, 4), out_sharding=P(None, None, None, "data"))
        for formula in GROUPS_ONLY:
            with pytest.raises(ValueError, match=f"'{formula}' does no channels that"):
                handgrad.conv(x, kernel, feature_group_count=2, implementation=formula)
        x = jnp.ones((2, 6, 6, 4), out_sharding=P(None, None, None, "data"))
        with pytest.raises(ValueError, match="'mec' does no input channels that"):
            handgrad.conv(x, jnp.ones((3, 3, 4, 8)), implementation="mec")


@pytest.mark.parametrize(
    "formula", [None, *sorted(handgrad.RULES["conv"].formulas.keys() - GROUPS_ONLY)]
)
def test_output_channels_sharded_explicitly(formula):
    """The kernel split over its output channels: dx sums over the devices."""
    options = {"input_dilation": 2 if formula == "transposed" else 1}
    samples = {"x": normal(2, 6, 6, 3), "kernel": normal(3, 3, 3, 4)}
    case = Case("conv", "3x3", samples, options)
    _, arrays, dy, expected = prepare(case, formula)
    devices = mesh(AxisType.Explicit)
    with jax.set_mesh(devices):
        split = NamedSharding(devices, P(None, None, None, "data"))
        whole = NamedSharding(devices, P(None, None, None, None))
        arrays = {
            "x": jax.device_put(arrays["x"], whole),
            "kernel": jax.device_put(arrays["kernel"], split),
        }
        dy = jax.device_put(dy, split)
        run = measure.forward_and_backward(
            lambda **a: handgrad.conv(**a, **options, implementation=formula)
        )
        assert_close(run(arrays, dy), expected)


# Where compilation is all of a test, LLVM need not work on the result.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def on_devices(function, arguments, specs, dy_spec, *, axis, devices=8):
    """Compiles value and gradients on devices; returns that, value and gradients."""
    grid = jax.make_mesh(
        (devices,),
        (axis,),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:devices],
    )
    places = [NamedSharding(grid, spec) for spec in specs]
    random = np.random.default_rng(1)
    shape = jax.eval_shape(function, *arguments).shape
    dy = random.standard_normal(shape, np.float32)
    where = NamedSharding(grid, dy_spec)

    def run(dy, *arguments):
        y, vjp = jax.vjp(function, *arguments)
        return y, vjp(dy)

    jitted = jax.jit(
        run, in_shardings=(where, *places), out_shardings=(where, tuple(places))
    )
    compiled = jitted.lower(dy, *arguments).compile(QUICK)
    placed = jax.device_put((dy, *arguments), (where, *places))
    return compiled, compiled(*placed)


def arrays_of(*shapes):
    random = np.random.default_rng(0)
    return [random.standard_normal(shape, np.float32) for shape in shapes]


def assert_as_on_one_device(function, arguments, result):
    whole = [P()] * len(arguments)
    _, expected = on_devices(function, arguments, whole, P(), axis="all", devices=1)
    assert_close(result, expected)


ROWS = P(None, "space")
SPATIAL = {
    **{
        f"conv {formula}": functools.partial(handgrad.conv, implementation=formula)
        for formula in (
            "rot180",
            "gemm",
            "taps",
            "phases",
            "slices",
            "mec",
            "winograd",
        )
    },
    "conv strided": functools.partial(
        handgrad.conv, strides=2, implementation="rot180"
    ),
    **{
        f"{pool.__name__} {size}": functools.partial(
            pool, window_shape=(size, size), strides=(2, 2), padding="SAME"
        )
        for pool in (handgrad.max_pool, handgrad.avg_pool)
        for size in (2, 3)
    },
}


@pytest.mark.parametrize("name", SPATIAL)
def test_rows_of_images_on_eight_devices(name):
    function = SPATIAL[name]
    arguments = arrays_of((2, 32, 8, 4), (3, 3, 4, 4))
    if "conv" not in name:
        arguments = arguments[:1]
    specs = [ROWS, P()][: len(arguments)]
    compiled, result = on_devices(function, arguments, specs, ROWS, axis="space")
    assert_as_on_one_device(function, arguments, result)
    found = list(collectives(compiled))
    if name in ("conv slices", "conv mec", "conv winograd"):
        # Their tiles are not those of the devices: XLA gathers the image, so that they
        # are not taken here, see `HALOS`.
        return
    moved = [c for c in found if c.kind == "collective-permute"]
    sums = [c for c in found if c.kind == "all-reduce"]
    assert len(moved) + len(sums) == len(found), found
    # The kernel's gradient, of each tap by itself and for each example perhaps.
    parameters = sum(a.size for a in arguments[1:])
    assert parameters <= sum(c.elements for c in sums) <= LARGER_FORM * parameters
    if name.endswith(" 2"):  # windows that do not overlap
        assert found == []
    if "rot180" in name or "strided" in name:
        # The halo only: one row of the two neighbours for each of three passes.
        assert 2 <= len(moved) <= 6
        for exchange in moved:
            ((batch, rows, columns, channels),) = exchange.shapes
            assert (batch, rows, channels) == (2, 1, 4)
            assert columns in (4, 8)


def layer(*shapes, of=handgrad.conv, **options):
    return functools.partial(of, **options), shapes


def pooling(of, size, stride, **options):
    window = {"window_shape": (size,) * 2, "strides": (stride,) * 2, "padding": "SAME"}
    return layer((2, 32, 8, 4), of=of, **window | options)


# Whatever is taken where nobody names a formula, with the rows that its windows see of
# other devices, above and below together.
HALOS = {
    "conv 3x3": (*layer((2, 32, 16, 128), (3, 3, 128, 128)), 2),  # by Winograd on one
    "conv 3x3/2": (*layer((2, 32, 8, 64), (3, 3, 64, 64), strides=2), 1),
    "conv 7x7/2": (*layer((2, 64, 8, 3), (7, 7, 3, 64), strides=2), 5),
    "conv dilated": (*layer((2, 32, 8, 64), (3, 3, 64, 64), kernel_dilation=2), 4),
    "conv 5x5": (*layer((2, 32, 8, 1), (5, 5, 1, 6)), 4),
    "conv 1x1": (*layer((2, 32, 8, 16), (1, 1, 16, 32)), 0),
    "conv 4x4/4": (*layer((2, 32, 8, 3), (4, 4, 3, 8), strides=4), 0),
    "groups": (*layer((2, 32, 8, 8), (3, 3, 4, 8), feature_group_count=2), 2),
    "depthwise": (*layer((2, 32, 8, 8), (3, 3, 1, 8), feature_group_count=8), 2),
    "depthwise 5x5/2": (
        *layer((2, 32, 8, 8), (5, 5, 1, 8), feature_group_count=8, strides=2),
        3,
    ),
    # Of several blocks of rows, with a memory of its own.
    "depthwise large": (
        *layer((2, 64, 96, 192), (3, 3, 1, 192), feature_group_count=192),
        2,
    ),
    "max_pool 2x2/2": (*pooling(handgrad.max_pool, 2, 2), 0),
    "max_pool 3x3/2": (*pooling(handgrad.max_pool, 3, 2), 1),
    "max_pool 3x3/1": (*pooling(handgrad.max_pool, 3, 1), 2),
    "max_pool 5x5/1": (*pooling(handgrad.max_pool, 5, 1), 4),
    "max_pool dilated": (
        *pooling(handgrad.max_pool, 2, 1, window_dilation=(2, 2)),
        2,
    ),
    "avg_pool 3x3/2": (*pooling(handgrad.avg_pool, 3, 2), 1),
    "avg_pool 3x3/1": (*pooling(handgrad.avg_pool, 3, 1), 2),
    "avg_pool 5x5/1": (*pooling(handgrad.avg_pool, 5, 1), 4),
    "lp_pool 3x3/2": (*pooling(handgrad.lp_pool, 3, 2, norm=2), 1),
}


@pytest.mark.parametrize("name", HALOS)
def test_halos_and_no_more(name):
    """The rows on the border, and sums of the kernel's gradient, are all that moves."""
    function, shapes, seen = HALOS[name]
    arguments = arrays_of(*shapes)
    specs = [ROWS, P()][: len(arguments)]
    compiled, result = on_devices(function, arguments, specs, ROWS, axis="space")
    if name != "max_pool dilated":  # whose gradient JAX does not have
        function = functools.partial(function, implementation="autodiff")
    assert_as_on_one_device(function, arguments, result)
    found = list(collectives(compiled))
    sums = [c for c in found if c.kind == "all-reduce"]
    parameters = sum(a.size for a in arguments[1:])
    assert sum(c.elements for c in sums) <= LARGER_FORM * parameters
    moved = [c for c in found if c.kind != "all-reduce"]
    assert {c.kind for c in moved} <= {"collective-permute"}
    y = jax.eval_shape(function, *arguments).shape
    row = max(math.prod(shape[2:]) * shape[0] for shape in (shapes[0], y))
    # Above and below, for each pass or for each dimension of one.
    assert sum(c.elements for c in moved) <= 6 * seen * row
    assert all(c.elements <= seen * row for c in moved)


def test_what_gathers_rows_is_for_those_who_know_the_rows():
    """An automatic mesh may split them later; the others tell when a rule is traced."""

    def forward(channels, groups=1):
        return handgrad.explain_choice(
            (2, 32, 16, channels),
            (3, 3, channels // groups, channels),
            (1, 1),
            "SAME",
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            platform="cpu",
        ).forward

    def found():
        return forward(128), forward(128, groups=16)

    assert found() == ("rot180", "grouped")
    with jax.set_mesh(mesh(AxisType.Auto)):
        assert found() == ("rot180", "grouped")
    with jax.set_mesh(mesh(AxisType.Explicit)):
        assert found() == ("winograd", "block_diagonal")
    within = []
    jax.shard_map(
        lambda x: within.append(found()) or x,
        mesh=mesh(AxisType.Auto),
        in_specs=P("data"),
        out_specs=P("data"),
    )(jnp.ones(4))
    assert within == [("winograd", "block_diagonal")]


EXPLICIT_ROWS = {
    "3x3": ({}, [(2, 32, 32, 64), (3, 3, 64, 64)]),  # elsewhere by winograd
    "strided": ({"strides": 2}, [(2, 32, 8, 4), (3, 3, 4, 4)]),
    "1x1": ({}, [(2, 32, 8, 4), (1, 1, 4, 8)]),
    "depthwise": ({"feature_group_count": 8}, [(2, 32, 8, 8), (3, 3, 1, 8)]),
}


@pytest.mark.parametrize("name", EXPLICIT_ROWS)
def test_rows_that_an_explicit_mesh_splits(name):
    """The default is XLA's own convolution; no other formula is taken there."""
    options, shapes = EXPLICIT_ROWS[name]
    function = functools.partial(handgrad.conv, **options)
    arguments = arrays_of(*shapes)
    run = measure.forward_and_backward(lambda x, kernel: function(x, kernel))
    dy = arrays_of(jax.eval_shape(function, *arguments).shape)[0]
    expected = run({"x": arguments[0], "kernel": arguments[1]}, dy)
    grid = jax.make_mesh((4,), ("space",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(grid):
        rows, whole = NamedSharding(grid, ROWS), NamedSharding(grid, P(*[None] * 4))
        x, kernel = jax.device_put(tuple(arguments), (rows, whole))
        placed = {"x": x, "kernel": kernel}, jax.device_put(dy, rows)
        y, cotangents = run(*placed)
        with pytest.raises(ValueError, match="pixels that an explicit mesh splits"):
            function(x, kernel, implementation="taps")
    assert_close((y, cotangents), expected)
    assert y.sharding.is_equivalent_to(rows, 4)
    assert cotangents["x"].sharding.is_equivalent_to(rows, 4)


CHANNELS = P(None, None, None, "model")
LAYERS = {
    "dense": (handgrad.dense, [(16, 32), (32, 64)]),
    **{
        f"1x1 {formula}": (
            functools.partial(handgrad.conv, implementation=formula),
            [(2, 4, 4, 32), (1, 1, 32, 64)],
        )
        for formula in (None, "rot180", "gemm", "taps", "phases")
    },
}


def last(rank, axis):
    return P(*[None] * (rank + axis), "model")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("split", ["outputs", "inputs"])
def test_channels_on_eight_devices(name, split):
    """One sum: of dx where the outputs are split, of y where the inputs are."""
    function, shapes = LAYERS[name]
    arguments, rank = arrays_of(*shapes), len(shapes[0])
    if split == "outputs":
        specs, dy_spec = [P(), last(rank, -1)], last(rank, -1)
        summed = arguments[0].size
    else:
        specs, dy_spec = [last(rank, -1), last(rank, -2)], P()
        summed = 2 * arguments[0].size  # y has twice the channels
    compiled, result = on_devices(function, arguments, specs, dy_spec, axis="model")
    assert_as_on_one_device(function, arguments, result)
    (found,) = collectives(compiled)
    assert (found.kind, found.elements) == ("all-reduce", summed)


NORM_SPECS = {
    "batch": ([P("i"), P(), P()], P("i")),
    "rows": ([P(None, "i"), P(), P()], P(None, "i")),
    "channels": ([P(None, None, None, "i"), P("i"), P("i")], P(None, None, None, "i")),
}


@pytest.mark.parametrize("split", NORM_SPECS)
def test_batch_norm_on_eight_devices(split):
    """Statistics of the whole batch: only they, and their cotangents, are summed."""
    arguments = arrays_of((8, 8, 3, 16), (16,), (16,))
    specs, dy_spec = NORM_SPECS[split]
    norm = lambda x, scale, bias: handgrad.batch_norm(x, scale, bias)
    compiled, result = on_devices(norm, arguments, specs, dy_spec, axis="i")
    assert_as_on_one_device(norm, arguments, result)
    found = list(collectives(compiled))
    if split == "channels":
        assert found == []
        return
    assert {c.kind for c in found} == {"all-reduce"}
    assert {shape for c in found for shape in c.shapes} == {(16,)}
    # Mean, variance, and the two sums of the backward pass, each once or twice.
    assert sum(len(c.shapes) for c in found) <= 6

    if split == "batch":
        grid = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
        own = lambda x, scale, bias: handgrad.batch_norm(x, scale, bias, axis_name="i")
        mapped = jax.shard_map(own, mesh=grid, in_specs=tuple(specs), out_specs=dy_spec)
        _, result = on_devices(mapped, arguments, specs, dy_spec, axis="i")
        assert_as_on_one_device(norm, arguments, result)


def test_batch_norm_on_an_explicit_mesh():
    dy, *arguments = arrays_of((8, 3, 16), (8, 3, 16), (16,), (16,))
    run = lambda *a: jax.vjp(handgrad.batch_norm, *a[1:])[1](a[0])
    expected = jax.jit(run)(dy, *arguments)
    grid = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(grid):
        split, whole = NamedSharding(grid, P("i")), NamedSharding(grid, P())
        places = (split, split, whole, whole)
        placed = jax.device_put((dy, *arguments), places)
        result = jax.jit(run)(*placed)
    assert_close(result, expected)
    assert result[0].sharding.is_equivalent_to(split, 3)


DIVIDED = {
    **{
        f"conv {formula}": (
            functools.partial(handgrad.conv, implementation=formula),
            [(32, 8, 8, 8), (3, 3, 8, 8)],
        )
        for formula in ("gemm", "taps", "winograd")
    },
    "max_pool": (SPATIAL["max_pool 3"], [(32, 8, 8, 8)]),
    "batch_norm": (
        lambda x, scale, bias: handgrad.batch_norm(x, scale, bias),
        [(32, 8, 8, 8), (8,), (8,)],
    ),
}


@pytest.mark.parametrize("name", DIVIDED)
def test_memory_is_divided(name):
    """Eight devices need about an eighth each, in temporaries beside what is kept."""
    function, shapes = DIVIDED[name]
    arguments = arrays_of(*shapes)
    specs = [P("data")] + [P()] * (len(arguments) - 1)
    one, two, eight = (
        on_devices(function, arguments, specs, P("data"), axis="data", devices=n)[0]
        .memory_analysis()
        .temp_size_in_bytes
        for n in (1, 2, 8)
    )
    # Of a transformed kernel and its gradient each device has its own.
    parameters = 2 * LARGER_FORM * sum(a.nbytes for a in arguments[1:])
    assert parameters < one
    assert one > two > eight
    assert eight <= 0.2 * one + parameters
