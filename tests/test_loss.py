"""Losses: optax's values and gradients, and better behaviour at extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import handgrad

RANDOM = np.random.default_rng(0)
LOGITS = jnp.asarray(RANDOM.standard_normal((4, 6)) * 3, jnp.float32)
LABELS = jnp.asarray(RANDOM.dirichlet(np.ones(6), 4), jnp.float32)
INTEGERS = jnp.array([0, 5, -1, 2])
MASK = jnp.asarray(RANDOM.uniform(size=(4, 6)) < 0.7).at[:, [0, 2, 5]].set(True)


def compare(name, *args, argnums=(0,), **options):
    def outcome(f):
        loss = lambda *a: jnp.sum(jnp.sin(f(*a, **options)))
        return jax.jit(lambda *a: (f(*a, **options), jax.grad(loss, argnums)(*a)))

    ours, gradients = outcome(getattr(handgrad, name))(*args)
    theirs, their_gradients = outcome(getattr(optax.losses, name))(*args)
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)
    for a, b in zip(gradients, their_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


def test_equals_optax():
    compare("softmax_cross_entropy", LOGITS, LABELS, argnums=(0, 1))
    compare("softmax_cross_entropy", LOGITS, LABELS, axis=0)
    compare("softmax_cross_entropy", LOGITS, LABELS, where=MASK)
    compare("softmax_cross_entropy_with_integer_labels", LOGITS, INTEGERS)
    compare("softmax_cross_entropy_with_integer_labels", LOGITS.T, INTEGERS, axis=0)
    compare("softmax_cross_entropy_with_integer_labels", LOGITS, INTEGERS, where=MASK)
    compare(
        "softmax_cross_entropy_with_integer_labels",
        LOGITS.reshape(2, 2, 6),
        jnp.array([3, 11]),
        axis=(0, 2),
    )
    compare("sigmoid_binary_cross_entropy", LOGITS, LABELS, argnums=(0, 1))
    compare("squared_error", LOGITS, LABELS, argnums=(0, 1))
    compare("squared_error", LOGITS)
    compare("l2_loss", LOGITS, LABELS, argnums=(0, 1))
    compare("huber_loss", LOGITS, LABELS, argnums=(0, 1), delta=0.8)
    compare("log_cosh", LOGITS, LABELS, argnums=(0, 1))
    compare("hinge_loss", LOGITS, LABELS, argnums=(0, 1))
    compare("multiclass_hinge_loss", LOGITS, jnp.array([0, 5, 3, 2]))
    compare("cosine_distance", LOGITS, LABELS, argnums=(0, 1))
    compare("cosine_distance", LOGITS, LABELS, where=MASK, epsilon=1e-3)
    compare("kl_divergence", LOGITS, LABELS, argnums=(0, 1))
    compare("kl_divergence", LOGITS, LABELS, axis=0, where=MASK)
    compare("poly_loss_cross_entropy", LOGITS, LABELS, argnums=(0, 1))
    compare("poly_loss_cross_entropy", LOGITS, LABELS, where=MASK, epsilon=-1.0)
    compare("sigmoid_focal_loss", LOGITS, LABELS, argnums=(0, 1))
    compare("sigmoid_focal_loss", LOGITS, LABELS, alpha=0.3, gamma=1.0)


def test_label_smoothing_through_optax():
    smooth = optax.losses.smooth_labels(jnp.eye(6)[jnp.array([0, 5, 1, 2])], 0.1)
    compare("softmax_cross_entropy", LOGITS, smooth)


def test_masked_labels_and_examples_are_as_optax_has_them():
    """A label's own logit counts, masked or not; no class at all: no loss."""
    mask = MASK.at[0, 0].set(False).at[1].set(False)
    name = "softmax_cross_entropy_with_integer_labels"
    compare(name, LOGITS, INTEGERS, where=mask)
    examples = jnp.array([True, False, True, True])
    for where in (examples, examples[:, None]):
        compare(name, LOGITS, INTEGERS, where=where)
        loss = handgrad.softmax_cross_entropy(LOGITS, LABELS, where=where)
        dlogits = jax.grad(
            lambda x, w=where: handgrad.softmax_cross_entropy(x, LABELS, where=w).sum()
        )(LOGITS)
        assert float(loss[1]) == 0
        assert (dlogits[1] == 0).all()
        assert np.isfinite(dlogits).all()


def test_axes_count_the_classes_in_the_order_they_are_named():
    for axis in [(0, 2), (2, 0)]:
        compare(
            "softmax_cross_entropy_with_integer_labels",
            jnp.asarray(RANDOM.standard_normal((3, 2, 4)), jnp.float32),
            jnp.array([7, 10]),
            axis=axis,
        )


def test_labels_out_of_range_are_nan_and_loud():
    loss = handgrad.softmax_cross_entropy_with_integer_labels
    assert np.isnan(loss(LOGITS, jnp.array([6, 0, -7, 1]))).tolist() == [1, 0, 1, 0]


def test_extremes_are_finite():
    cross_entropy = handgrad.softmax_cross_entropy
    logits = jnp.array([-jnp.inf, 0.0, 1e30])
    labels = jnp.array([0.0, 0.0, 1.0])
    assert float(cross_entropy(logits, labels)) == 0.0
    assert jax.grad(cross_entropy)(logits, labels).tolist() == [0, 0, 0]
    with_integers = handgrad.softmax_cross_entropy_with_integer_labels
    assert float(with_integers(logits, 2)) == 0.0
    assert jax.grad(with_integers)(logits, 2).tolist() == [0, 0, 0]
    binary = handgrad.sigmoid_binary_cross_entropy
    assert float(binary(1e30, 1.0)) == 0.0
    assert float(jax.grad(binary)(1e30, 0.0)) == 1.0


def test_more_extremes_are_finite():
    focal = handgrad.sigmoid_focal_loss
    for x in (-1e30, -200.0, 200.0, 1e30):
        for label in (0.0, 1.0, 0.3):
            assert np.isfinite(jax.grad(focal)(x, label))
    assert float(jax.grad(focal)(-200.0, 1.0)) == -1.0
    assert float(jax.grad(focal)(200.0, 1.0)) == 0.0
    kl = handgrad.kl_divergence
    x, t = jnp.array([-jnp.inf, 0.0]), jnp.array([0.0, 1.0])
    assert float(kl(x, t)) == 0.0
    assert jax.grad(kl)(x, t).tolist() == [0, -1]
    assert np.isfinite(jax.grad(kl, 1)(jnp.zeros(2), t)).all()
    huber, log_cosh = handgrad.huber_loss, handgrad.log_cosh
    for loss in (huber, log_cosh):
        assert float(loss(jnp.inf)) == np.inf
        assert float(jax.grad(loss)(-jnp.inf)) == -1.0
    assert float(log_cosh(1e-4)) == pytest.approx(5e-9, rel=1e-5)  # optax: 0
    assert np.isnan(handgrad.cosine_distance(jnp.zeros(2), jnp.ones(2)))
    held = handgrad.cosine_distance(jnp.zeros(2), jnp.ones(2), epsilon=1e-8)
    assert float(held) == 1.0


@pytest.mark.parametrize("shape", [(4, 6), (64, 1000)])
def test_a_nan_among_the_scores_is_not_lost(shape):
    """XLA on a CPU loses it where it reduces an array that lies in memory."""
    scores = jnp.zeros(shape).at[1, 2].set(np.nan)
    labels = jnp.zeros(shape[0], int)
    for name in ("multiclass_hinge_loss", "softmax_cross_entropy_with_integer_labels"):
        loss = jax.jit(getattr(handgrad, name))
        assert np.flatnonzero(np.isnan(loss(scores, labels))).tolist() == [1]
    dx = jax.grad(lambda s: handgrad.multiclass_hinge_loss(s, labels)[1])(scores)
    np.testing.assert_array_equal(jnp.nonzero(dx[1])[0], [0, 2])


def test_margins():
    hinge, multiclass = handgrad.hinge_loss, handgrad.multiclass_hinge_loss
    assert float(jax.grad(hinge)(1.0, 1.0)) == 0.0  # on the margin
    tied = jax.grad(multiclass)(jnp.array([1.0, 2.0, 2.0]), 0)
    assert tied.tolist() == [-1, 0.5, 0.5]
    scores = jnp.array([1.0, 3.0])
    assert float(multiclass(scores, 7)) == float(multiclass(scores, -1)) == 4.0


def test_no_classes():
    x = jnp.ones((2, 0))
    assert handgrad.softmax_cross_entropy(x, x).tolist() == [0, 0]


def test_few_bits_count_many_classes():
    """Labels of 8 bits among 300 classes: the index itself needs more."""
    loss = handgrad.softmax_cross_entropy_with_integer_labels
    dlogits = jax.grad(loss)(jnp.zeros(300), jnp.uint8(44))
    assert (dlogits < 0).nonzero()[0].tolist() == [44]


def test_binary_gradient_of_a_right_prediction_does_not_cancel():
    """σ(30) rounds to 1 in float32, yet the gradient is −σ(−30), not 0."""
    dlogits = float(jax.grad(handgrad.sigmoid_binary_cross_entropy)(30.0, 1.0))
    assert dlogits == pytest.approx(-np.exp(-30) / (1 + np.exp(-30)), rel=1e-6)


def test_no_one_hot_array_and_no_scatter():
    loss = lambda x: jnp.sum(
        handgrad.softmax_cross_entropy_with_integer_labels(x, INTEGERS)
    )
    assert "scatter" not in jax.jit(jax.grad(loss)).lower(LOGITS).as_text()
    _, vjp = jax.vjp(loss, LOGITS)
    kept = [leaf.shape for leaf in jax.tree.leaves(vjp) if leaf.size >= LOGITS.size]
    assert kept == [LOGITS.shape]  # the logits themselves
