"""Each violated requirement: the op, the requirement, the values; eager and jitted."""

import jax
import jax.numpy as jnp
import pytest

import handgrad
from handgrad.cases.activation import ELEMENTWISE

IMAGE = jnp.ones((2, 6, 6, 4))
KERNEL = jnp.ones((3, 3, 4, 8))
LOGITS = jnp.ones((3, 5))


def conv(x=IMAGE, kernel=KERNEL, bias=None, **options):
    return lambda: handgrad.conv(x, kernel, bias, **options)


def pool(op, x=IMAGE, window_shape=(2, 2), **options):
    return lambda: getattr(handgrad, op)(x, window_shape, **options)


POOLS = [
    row
    for op in ("max_pool", "min_pool", "avg_pool", "sum_pool", "lp_pool")
    for row in [
        (pool(op, jnp.ones((3, 3))), ValueError, rf"{op}: inputs must have 2 spatial"),
        (pool(op, window_shape=(7, 7)), ValueError, rf"{op}: window_shape \(=7\).*6"),
        (pool(op, window_shape=(0, 2)), ValueError, rf"{op}: window_shape \(=0\)"),
        (pool(op, window_shape=2), ValueError, rf"{op}: window_shape \(=2\)"),
        (pool(op, window_shape=(2.0, 2)), TypeError, rf"{op}: window_shape.*float"),
        (pool(op, strides=(0, 1)), ValueError, rf"{op}: strides \(=0\)"),
        (pool(op, strides=(1,)), ValueError, rf"{op}: strides \(=\(1,\)\)"),
        (pool(op, padding="FULL"), ValueError, rf"{op}: padding \(='FULL'\)"),
        (pool(op, padding=((0, 0),)), ValueError, rf"{op}: padding"),
        (pool(op, padding=((0, 0, 0), (0, 0))), ValueError, rf"{op}: padding"),
        (pool(op, padding=((-3, -3), (0, 0))), ValueError, rf"{op}: window_shape"),
        (pool(op, window_dilation=(0, 1)), ValueError, rf"{op}: window_dilation"),
        (pool(op, window_dilation=(6, 1)), ValueError, r"spans 7 pixels"),
        (pool(op, jnp.ones((4, 4, 1), complex)), TypeError, rf"{op}: inputs.*complex"),
        (pool(op, "image"), TypeError, rf"{op}: inputs must be an array, got str"),
        (pool(op, jnp.ones((4, 4, 1), bool)), TypeError, rf"{op}: inputs.*bool"),
    ]
]


def unpool(indices=None, **options):
    """2×2 blocks of a 4×4 image."""
    given = jnp.zeros((2, 2, 1), int) if indices is None else indices
    options = {"window_shape": (2, 2), "strides": (2, 2), **options}
    return lambda: handgrad.max_unpool(jnp.ones((2, 2, 1)), given, **options)


def reduce_window(kind, *window, **options):
    op = getattr(handgrad, f"reduce_window_{kind}")
    return lambda: op(jnp.ones((4, 4)), window, **options)


OTHER_POOLS = [
    (pool("max_pool", IMAGE[0, 0], None), ValueError, r"max_pool: inputs .*\(=None\)"),
    (pool("avg_pool", jnp.ones((3, 3, 1), int)), TypeError, "avg_pool: inputs .*float"),
    (pool("lp_pool", norm=0.5), ValueError, r"lp_pool: norm \(=0.5\) must be finite"),
    (pool("lp_pool", norm=float("inf")), ValueError, r"lp_pool: norm \(=inf\)"),
    (pool("lp_pool", norm="two"), TypeError, "lp_pool: norm must be a number, got str"),
    (
        pool("max_pool_with_argmax", index="pixel"),
        ValueError,
        r"max_pool_with_argmax: index \(='pixel'\) must be 'image' or 'window'",
    ),
    (unpool(jnp.ones((2, 2, 1))), TypeError, "max_unpool: indices must be integer"),
    (unpool(jnp.zeros((2, 1, 1), int)), ValueError, "max_unpool: .* one shape, got"),
    (unpool(image_shape=(4, 6)), ValueError, r"max_unpool: image_shape \(=\(4, 6\)\)"),
    (unpool(image_shape=(4,)), ValueError, r"max_unpool: image_shape \(=\(4,\)\)"),
    (unpool(window_shape=(2, 2, 2)), ValueError, "max_unpool: inputs must have 3"),
    (unpool(index="flat"), ValueError, r"max_unpool: index \(='flat'\)"),
    *(
        row
        for op in ("adaptive_avg_pool", "adaptive_max_pool")
        for row in [
            (pool(op, window_shape=(0, 2)), ValueError, rf"{op}: output_shape \(=0\)"),
            (pool(op, window_shape=2), ValueError, rf"{op}: output_shape \(=2\)"),
            (pool(op, IMAGE[0, 0], (2, 2)), ValueError, rf"{op}: inputs must have 2"),
            (pool(op, jnp.ones((0, 1)), (2,)), ValueError, rf"{op}: .* have pixels"),
            (
                pool(op, window_shape=(2.0, 2)),
                TypeError,
                rf"{op}: output_shape",
            ),
        ]
    ),
    *(
        row
        for kind in ("max", "min", "sum")
        for row in [
            (reduce_window(kind, 2), ValueError, f"reduce_window_{kind}: window_dim"),
            (reduce_window(kind, 5, 1), ValueError, r"window_dimensions \(=5\)"),
            (
                reduce_window(kind, 2, 2, base_dilation=(0, 1)),
                ValueError,
                rf"reduce_window_{kind}: base_dilation \(=0\) must be at least 1",
            ),
            (
                reduce_window(kind, 2, 2, padding=((0, 0),)),
                ValueError,
                f"reduce_window_{kind}: padding",
            ),
        ]
    ),
]

CONVS = [
    (
        conv(feature_group_count=3),
        ValueError,
        r"conv: feature_group_count \(=3\) must divide the 4 input channels",
    ),
    (conv(kernel=jnp.ones((3, 3, 3, 8))), ValueError, r"conv: kernel .* 4 input chann"),
    (
        conv(kernel=jnp.ones((3, 3, 2, 7)), feature_group_count=2),
        ValueError,
        r"conv: feature_group_count \(=2\) must divide the 7 output channels",
    ),
    (conv(feature_group_count=0), ValueError, r"conv: feature_group_count \(=0\)"),
    (conv(x=jnp.ones(4)), ValueError, r"conv: x must have shape .* got x \(4,\)"),
    (conv(kernel=jnp.ones((4, 8))), ValueError, r"conv: x must have shape"),
    (conv(kernel=jnp.ones((1, 1, 1, 1, 4, 8))), ValueError, r"1 to 3 spatial"),
    (conv(strides=0), ValueError, r"conv: strides \(=0\) must be at least 1"),
    (conv(strides=(1, 2, 3)), ValueError, r"conv: strides \(=\(1, 2, 3\)\)"),
    (conv(strides=1.5), TypeError, r"conv: strides must be a static integer, got fl"),
    (conv(kernel_dilation=-1), ValueError, r"conv: kernel_dilation \(=-1\)"),
    (conv(input_dilation=0), ValueError, r"conv: input_dilation \(=0\)"),
    (conv(padding="same-ish"), ValueError, r"conv: padding \(='same-ish'\)"),
    (conv(padding=((1, 1),)), ValueError, r"conv: padding"),
    (conv(padding=(("a", 1), (0, 0))), TypeError, r"conv: padding .*integer, got str"),
    (
        conv(kernel=jnp.ones((7, 7, 4, 8)), padding="VALID"),
        ValueError,
        r"conv: kernel \(=7\).*does not fit an image of 6 pixels",
    ),
    (conv(bias=jnp.ones(4)), ValueError, r"conv: bias must have shape \(8,\)"),
    (conv(kernel=KERNEL.astype(jnp.bfloat16)), TypeError, r"conv: .* one dtype, got x"),
    (conv(x=IMAGE.astype(complex)), TypeError, r"conv: x must be real, got dtype comp"),
    (
        conv(implementation="fft"),
        ValueError,
        r"conv: implementation .*'rot180'",
    ),
    (
        conv(implementation=handgrad.ConvFormulas("rot180", "gemm", "fft")),
        ValueError,
        r"conv: implementation \(='fft'\)",
    ),
]

NORMS = [
    (
        lambda: handgrad.batch_norm(IMAGE, jnp.ones(3)),
        ValueError,
        r"batch_norm: scale must have shape \(4,\).*got shape \(3,\)",
    ),
    (
        lambda: handgrad.batch_norm(IMAGE, mean=jnp.ones(4)),
        ValueError,
        r"batch_norm: mean and variance must be given together",
    ),
    (
        lambda: handgrad.batch_norm(IMAGE, mean=jnp.ones(3), variance=jnp.ones(3)),
        ValueError,
        r"batch_norm: mean must have shape \(4,\), got \(3,\)",
    ),
    (
        lambda: handgrad.batch_norm(IMAGE, epsilon=jnp.ones(4)),
        ValueError,
        r"batch_norm: epsilon must be a number, got shape \(4,\)",
    ),
    (
        lambda: handgrad.batch_norm(IMAGE, axis=4),
        ValueError,
        r"batch_norm: axis \(=4\)",
    ),
    (
        lambda: handgrad.batch_norm(IMAGE, activation="tanh"),
        ValueError,
        r"batch_norm: activation \(='tanh'\) must be None or 'relu'",
    ),
    (
        lambda: handgrad.batch_norm(IMAGE, where=jnp.ones(4)),
        TypeError,
        r"batch_norm: where must be boolean",
    ),
    (
        lambda: handgrad.group_norm(IMAGE, num_groups=3),
        ValueError,
        r"group_norm: num_groups \(=3\) must divide the 4 channels",
    ),
    (
        lambda: handgrad.group_norm(IMAGE, group_size=2),
        ValueError,
        r"group_norm: either num_groups \(=32\) or group_size \(=2\) must be None",
    ),
    (
        lambda: handgrad.group_norm(IMAGE, jnp.ones(3), num_groups=2),
        ValueError,
        r"group_norm: scale must have shape \(4,\)",
    ),
    (lambda: handgrad.instance_norm(LOGITS), ValueError, r"instance_norm: x must have"),
    (lambda: handgrad.layer_norm(1), TypeError, r"layer_norm: x must be floating"),
    (
        lambda: handgrad.layer_norm(IMAGE, bias=LOGITS, axis=(1, -1)),
        ValueError,
        r"layer_norm: bias must have shape \(6, 4\)",
    ),
    (lambda: handgrad.rms_norm(IMAGE, axis=7), ValueError, r"rms_norm: axis \(=7\)"),
    (
        lambda: handgrad.standardize(LOGITS, mean=LOGITS, variance=LOGITS),
        ValueError,
        r"standardize: mean must broadcast to shape \(3, 1\)",
    ),
    (
        lambda: handgrad.local_response_norm(IMAGE, 0),
        ValueError,
        r"local_response_norm: size \(=0\)",
    ),
    (
        lambda: handgrad.local_response_norm(IMAGE, k=0.0),
        ValueError,
        r"local_response_norm: k \(=0.0\) must be above 0",
    ),
]

PAIRS = ("l2_loss", "huber_loss", "log_cosh", "cosine_distance", "kl_divergence")
LOSSES = [
    *(
        (
            lambda name=name: getattr(handgrad, name)(LOGITS, LOGITS[0]),
            ValueError,
            rf"{name}: the arguments must have one shape",
        )
        for name in (
            *PAIRS,
            "hinge_loss",
            "sigmoid_focal_loss",
            "poly_loss_cross_entropy",
        )
    ),
    *(
        (
            lambda name=name: getattr(handgrad, name)(LOGITS, LOGITS.astype("float16")),
            TypeError,
            rf"{name}: the arguments must have one dtype",
        )
        for name in PAIRS
    ),
    (
        lambda: handgrad.multiclass_hinge_loss(LOGITS, jnp.zeros(4, int)),
        ValueError,
        r"multiclass_hinge_loss: labels must have shape \(3,\)",
    ),
    (
        lambda: handgrad.multiclass_hinge_loss(LOGITS, LOGITS[:, 0]),
        TypeError,
        r"multiclass_hinge_loss: labels must be integer",
    ),
    (
        lambda: handgrad.multiclass_hinge_loss(jnp.ones((3, 0)), jnp.zeros(3, int)),
        ValueError,
        r"multiclass_hinge_loss: scores must have shape",
    ),
    (
        lambda: handgrad.cosine_distance(LOGITS, LOGITS, axis=2),
        ValueError,
        r"cosine_distance: axis \(=2\)",
    ),
]

OTHERS = [
    (
        lambda: handgrad.dense(jnp.ones((2, 3)), jnp.ones((4, 5))),
        ValueError,
        r"dense: the 3 features of x \(2, 3\) must equal the 4 rows of kernel \(4, 5\)",
    ),
    (
        lambda: handgrad.dense(jnp.ones((2, 3)), jnp.ones(3)),
        ValueError,
        r"dense: x must have shape",
    ),
    (
        lambda: handgrad.dense(jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones(3)),
        ValueError,
        r"dense: bias must have shape \(4,\)",
    ),
    (
        lambda: handgrad.dense(jnp.ones((2, 3)), jnp.ones((3, 4), jnp.float16)),
        TypeError,
        r"dense: .* one dtype, got x float32, kernel float16",
    ),
    (
        lambda: handgrad.add_bias(jnp.ones((2, 3)), jnp.ones(2)),
        ValueError,
        r"add_bias: bias must have shape \(3,\)",
    ),
    (lambda: handgrad.add_bias(1.0, jnp.ones(1)), ValueError, r"add_bias: x must"),
    *(
        (
            lambda name=name: getattr(handgrad, name)(1),
            TypeError,
            rf"{name}: x must be floating, got dtype",
        )
        for name in ELEMENTWISE
        if name != "relu"
    ),
    (lambda: handgrad.tanh(jnp.ones(2, complex)), TypeError, r"tanh: x .* complex64"),
    (
        lambda: handgrad.leaky_relu(LOGITS, jnp.ones(3)),
        ValueError,
        r"leaky_relu: negative_slope must broadcast to .* \(3, 5\), got \(3,",
    ),
    (lambda: handgrad.elu(LOGITS, object()), TypeError, r"elu: alpha must be"),
    (lambda: handgrad.glu(LOGITS), ValueError, r"glu: the 5 entries along axis \(=1\)"),
    (lambda: handgrad.glu(LOGITS, 2), ValueError, r"glu: axis \(=2\)"),
    (
        lambda: handgrad.logsumexp(LOGITS, b=jnp.ones(4)),
        ValueError,
        r"logsumexp: b must broadcast to shape \(3, 5\)",
    ),
    (lambda: handgrad.logsumexp(LOGITS, 2), ValueError, r"logsumexp: axis \(=2\)"),
    (
        lambda: handgrad.dot_general(LOGITS, IMAGE, (((1,), (1,)), ((), ()))),
        ValueError,
        r"dot_general: the contracting axes must have the same sizes, got \(5,\) of",
    ),
    (
        lambda: handgrad.dot_general(LOGITS, LOGITS, (((1,), (1,)), ((1,), (1,)))),
        ValueError,
        r"dot_general: an axis is either contracted or batched",
    ),
    (
        lambda: handgrad.dot_general(LOGITS, LOGITS, (((2,), (1,)), ((), ()))),
        ValueError,
        r"dot_general: axis \(=\(2,\)\)",
    ),
    (
        lambda: handgrad.dropout(jax.random.key(0), LOGITS, 1.0),
        ValueError,
        r"dropout: rate \(=1.0\) must be in \[0, 1\)",
    ),
    (
        lambda: handgrad.dropout(jax.random.key(0), LOGITS, 0.5, broadcast_axes=(2,)),
        ValueError,
        r"dropout: axis \(=\(2,\)\)",
    ),
    (
        lambda: handgrad.dropout(LOGITS, LOGITS, 0.5),
        TypeError,
        r"dropout: key must be a key of jax.random",
    ),
    *NORMS,
    *LOSSES,
    (lambda: handgrad.relu(1j), TypeError, r"relu: x must be real, got dtype complex"),
    (lambda: handgrad.relu(None), TypeError, r"relu: x must be an array"),
    (lambda: handgrad.softmax(LOGITS, axis=2), ValueError, r"softmax: axis \(=2\)"),
    (lambda: handgrad.softmax(LOGITS, axis=(0, 0)), ValueError, r"softmax: axis.*dist"),
    (lambda: handgrad.softmax(LOGITS, axis=0.5), TypeError, r"softmax: axis must be a"),
    (
        lambda: handgrad.log_softmax(LOGITS, where=jnp.ones(5)),
        TypeError,
        r"log_softmax: where must be boolean",
    ),
    (
        lambda: handgrad.log_softmax(LOGITS, where=jnp.ones((1, 4), bool)),
        ValueError,
        r"log_softmax: where must broadcast to shape \(3, 5\)",
    ),
    (
        lambda: handgrad.softmax_cross_entropy(LOGITS, jnp.ones((3, 4))),
        ValueError,
        r"softmax_cross_entropy: .*one shape, got logits \(3, 5\), labels \(3, 4\)",
    ),
    (
        lambda: handgrad.softmax_cross_entropy(jnp.ones((3, 5), int), LOGITS),
        TypeError,
        r"softmax_cross_entropy: logits must be floating",
    ),
    (
        lambda: handgrad.softmax_cross_entropy_with_integer_labels(
            LOGITS, LOGITS[:, 0]
        ),
        TypeError,
        r"softmax_cross_entropy_with_integer_labels: labels must be integer",
    ),
    (
        lambda: handgrad.softmax_cross_entropy_with_integer_labels(
            LOGITS, jnp.zeros(4, int)
        ),
        ValueError,
        r"labels must have shape \(3,\), that of logits \(3, 5\)",
    ),
    (
        lambda: handgrad.sigmoid_binary_cross_entropy(LOGITS, LOGITS[0]),
        ValueError,
        r"sigmoid_binary_cross_entropy: .*one shape",
    ),
    (
        lambda: handgrad.squared_error(LOGITS, LOGITS.astype(jnp.bfloat16)),
        TypeError,
        r"squared_error: .*one dtype",
    ),
    (
        lambda: handgrad.squared_error(jnp.ones(2, int)),
        TypeError,
        r"squared_error: predictions must be floating",
    ),
    (
        lambda: handgrad.im2col(jnp.ones((3, 3, 1)), (4, 4)),
        ValueError,
        r"im2col: window_shape \(=4\).*does not fit an image of 3 pixels",
    ),
    (
        lambda: handgrad.im2col(jnp.ones((3, 1)), (2, 2)),
        ValueError,
        r"im2col: x must have 2 spatial dimensions",
    ),
    (
        lambda: handgrad.col2im(jnp.ones((5, 4)), (3, 3), (2, 2)),
        ValueError,
        r"col2im: columns must have shape \[\.\.\., C·4, 4\].*got shape \(5, 4\)",
    ),
    (
        lambda: handgrad.col2im(jnp.ones((4, 4)), (3,), (2, 2)),
        ValueError,
        r"col2im: image_shape",
    ),
]


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("call", "exception", "message"), [*CONVS, *POOLS, *OTHER_POOLS, *OTHERS]
)
def test_bad_input(call, exception, message, jitted):
    with pytest.raises(exception, match=message):
        (jax.jit(call) if jitted else call)()


@pytest.mark.parametrize("op", ["max_pool", "relu"])
def test_integers_have_a_forward_pass_and_no_gradient(op):
    x = jnp.arange(16).reshape(4, 4, 1)
    options = {"window_shape": (2, 2)} if op == "max_pool" else {}
    function = lambda x: getattr(handgrad, op)(x, **options)
    assert function(x).dtype == x.dtype
    with pytest.raises(TypeError, match="grad requires real- or complex-valued"):
        jax.grad(lambda x: function(x).sum())(x)


def test_integer_convolution_and_dense():
    x, kernel = jnp.arange(16).reshape(1, 4, 4, 1), jnp.ones((3, 3, 1, 2), int)
    for formula in (None, "rot180", "gemm"):
        y = handgrad.conv(x, kernel, padding="VALID", implementation=formula)
        assert y[0, :, :, 0].tolist() == [[45, 54], [81, 90]]
    assert handgrad.dense(jnp.arange(3), jnp.eye(3, dtype=int)).tolist() == [0, 1, 2]
