"""Every rule on several devices: shard_map, automatic and explicit meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import handgrad
from handgrad import cases, elementwise, measure
from handgrad.cases import Case, activation, classes, key, normal, uniform

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
        y, cotangents = measure.forward_and_backward(function)(arrays, dy)
    assert_close((y, cotangents), expected)
    assert y.sharding.is_equivalent_to(dy.sharding, y.ndim)
    for name, cotangent in cotangents.items():
        wanted = arrays[name].sharding
        assert cotangent.sharding.is_equivalent_to(wanted, cotangent.ndim), name


def test_groups_are_not_split_over_devices():
    devices = mesh(AxisType.Explicit)
    with jax.set_mesh(devices):
        x = jax.device_put(jnp.ones((2, 6, 6, 4)), NamedSharding(devices, P()))
        kernel = jnp.ones((3, 3, 2, 4), out_sharding=P(None, None, None, "data"))
        with pytest.raises(ValueError, match="'grouped' does no channels that"):
            handgrad.conv(x, kernel, feature_group_count=2, implementation="grouped")


@pytest.mark.parametrize(
    "formula", [None, *(f for f in handgrad.RULES["conv"].formulas if f != "grouped")]
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
