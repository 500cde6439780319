"""The article's worked examples, with their numbers and shapes written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad
from handgrad import explain

IMAGE = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
KERNEL = [[1, 2, 0], [0, 1, -1], [-1, 0, 2]]
ERROR = [[1, 2], [3, 4]]

# What each step of an example shows, in order, before autodiff has its say.
EXPECTED = {
    "conv": {
        "x": IMAGE,
        "k": KERNEL,
        "b": 1,
        "u": [[18, 22], [34, 38]],
        "δ": ERROR,
        "∂L/∂k": [[44, 54, 64], [84, 94, 104], [124, 134, 144]],
        "∂L/∂b": 10,
        "pad(δ)": [
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 1, 2, 0, 0],
            [0, 0, 3, 4, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ],
        "rot180(k)": [[2, 0, -1], [-1, 1, 0], [0, 2, 1]],
        "∂L/∂x": [[1, 4, 4, 0], [3, 11, 9, -2], [-1, 1, 3, 0], [-3, -4, 6, 8]],
    },
    "max_pool": {
        "x": [[1, 3, 2, 0], [4, 2, 1, 5], [7, 0, 3, 8], [1, 6, 4, 2]],
        "u": [[4, 5], [7, 8]],
        "t": [[2, 3], [0, 1]],
        "δ": ERROR,
        "∂L/∂x": [[0, 0, 0, 0], [1, 0, 0, 2], [3, 0, 0, 4], [0, 0, 0, 0]],
    },
    "avg_pool": {
        "x": [[1, 3, 2, 0], [4, 4, 1, 5], [7, 0, 3, 8], [1, 4, 7, 2]],
        "u": [[3, 2], [3, 5]],
        "δ": [[4, 8], [12, 16]],
        "up(δ)": [[4, 4, 8, 8], [4, 4, 8, 8], [12, 12, 16, 16], [12, 12, 16, 16]],
        "∂L/∂x": [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]],
    },
    "im2col": {
        "x": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        "k": [[1, 2], [3, -1]],
        "X": [[1, 2, 4, 5], [2, 3, 5, 6], [4, 5, 7, 8], [5, 6, 8, 9]],
        "K": [[1, 2, 3, -1]],
        "Y": [[12, 17, 27, 32]],
        "u": [[12, 17], [27, 32]],
        "δ": ERROR,
        "dY": [[1, 2, 3, 4]],
        "dK": [[37, 47, 67, 77]],
        "dX": [[1, 2, 3, 4], [2, 4, 6, 8], [3, 6, 9, 12], [-1, -2, -3, -4]],
        "∂L/∂x": [[1, 4, 4], [6, 15, 6], [9, 9, -4]],
    },
    "dense": {
        "x": [[1, 2, 3], [4, 0, -1]],
        "W": [[1, 0], [2, -1], [0, 3]],
        "b": [1, -2],
        "u": [[6, 5], [5, -5]],
        "δ": [[1, 2], [3, -1]],
        "∂L/∂W": [[13, -2], [2, 4], [0, 7]],
        "∂L/∂b": [4, 1],
        "∂L/∂x": [[1, 0, 6], [3, 7, -3]],
    },
    "softmax_cross_entropy": {
        "x": [[2, 1, 0], [0, 3, 1]],
        "p": [
            [0.66524096, 0.24472847, 0.09003057],
            [0.04201007, 0.84379473, 0.1141952],
        ],
        "y": [[1, 0, 0], [0, 0, 1]],
        "ℓ": [[0.40760596], [2.16984602]],
        "g": [[0.5], [0.5]],
        "∂L/∂x": [
            [-0.16737952, 0.12236424, 0.04501529],
            [0.02100503, 0.42189737, -0.4429024],
        ],
    },
}


def matrix(values):
    return jnp.array(values, jnp.float32)


def image(values):
    """One image with one channel, [H, W, 1]."""
    return jnp.expand_dims(matrix(values), -1)


def same(actual, expected):
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("example", EXPECTED)
def test_steps(example):
    steps = [step for step in explain.EXAMPLES[example]() if step.matrix is not None]
    expected = EXPECTED[example]
    own, autodiff = steps[: len(expected)], steps[len(expected) :]
    assert [step.name for step in own] == list(expected)
    assert all(step.sentence for step in own)
    for step in own:
        assert step.matrix.dtype == (jnp.int32 if step.name == "t" else jnp.float32)
        same(step.matrix, expected[step.name])
    assert "∂L/∂x" in {step.name for step in autodiff}
    for step in autodiff:
        name = step.name if step.name in expected else "dK"  # as a row
        same(jnp.ravel(step.matrix), np.ravel(expected[name]))


def test_every_example_is_here():
    assert list(explain.EXAMPLES) == list(EXPECTED)


@pytest.mark.parametrize("implementation", [None, "rot180", "gemm", "autodiff"])
@pytest.mark.parametrize("example", ["conv", "im2col"])
def test_conv(example, implementation):
    expected = EXPECTED[example]

    def conv(x, k, b):
        return handgrad.conv(
            x, k, b, padding="VALID", implementation=implementation
        ).squeeze(-1)

    kernel = jnp.expand_dims(matrix(expected["k"]), (2, 3))
    b = matrix([expected.get("b", 0)])
    u, vjp = jax.vjp(conv, image(expected["x"]), kernel, b)
    same(u, expected["u"])
    dx, dk, db = vjp(matrix(ERROR))
    same(dx.squeeze(-1), expected["∂L/∂x"])
    same(dk.ravel(), np.ravel(expected.get("∂L/∂k", expected.get("dK"))))
    same(db, [10])


def test_conv_kernel_gradient_is_the_error_sliding_over_the_image():
    dk = [
        [
            sum(ERROR[i][j] * IMAGE[i + p][j + q] for i in range(2) for j in range(2))
            for q in range(3)
        ]
        for p in range(3)
    ]
    assert dk == EXPECTED["conv"]["∂L/∂k"]


def test_conv_input_gradient_is_a_full_convolution_with_the_turned_kernel():
    expected = EXPECTED["conv"]
    padded = image(expected["pad(δ)"])
    rotated = jnp.expand_dims(matrix(expected["rot180(k)"]), (2, 3))
    assert padded.shape == (6, 6, 1)
    dx = handgrad.conv(padded, rotated, padding="VALID")
    assert dx.shape == (4, 4, 1)
    same(dx.squeeze(-1), expected["∂L/∂x"])


@pytest.mark.parametrize("implementation", [None, "hand", "autodiff"])
@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_pools(op, implementation):
    expected = EXPECTED[op]

    def pool(x):
        return getattr(handgrad, op)(x, (2, 2), (2, 2), implementation=implementation)

    u, vjp = jax.vjp(pool, image(expected["x"]))
    same(u.squeeze(-1), expected["u"])
    (dx,) = vjp(image(expected["δ"]))
    same(dx.squeeze(-1), expected["∂L/∂x"])


def test_im2col_and_its_transpose():
    expected = EXPECTED["im2col"]
    columns, vjp = jax.vjp(lambda x: handgrad.im2col(x, (2, 2)), image(expected["x"]))
    assert columns.shape == (4, 4)
    same(columns, expected["X"])
    dcolumns = matrix(expected["dX"])
    same(vjp(dcolumns)[0].squeeze(-1), expected["∂L/∂x"])
    back = handgrad.col2im(dcolumns, (3, 3), (2, 2))
    same(back.squeeze(-1), expected["∂L/∂x"])


@pytest.mark.parametrize("implementation", [None, "autodiff"])
def test_dense(implementation):
    expected = EXPECTED["dense"]
    inputs = [matrix(expected[name]) for name in ("x", "W", "b")]
    u, vjp = jax.vjp(
        lambda *a: handgrad.dense(*a, implementation=implementation), *inputs
    )
    same(u, expected["u"])
    for gradient, name in zip(vjp(matrix(expected["δ"])), "xWb", strict=True):
        same(gradient, expected[f"∂L/∂{name}"])


@pytest.mark.parametrize("implementation", [None, "autodiff"])
def test_softmax_cross_entropy(implementation):
    expected = EXPECTED["softmax_cross_entropy"]

    def loss(logits):
        losses = handgrad.softmax_cross_entropy(
            logits, matrix(expected["y"]), implementation=implementation
        )
        return losses.mean()

    mean, dx = jax.value_and_grad(loss)(matrix(expected["x"]))
    same(mean, np.mean(expected["ℓ"]))
    same(dx, expected["∂L/∂x"])


def test_render():
    x = np.array([[1, -2, 0.5, 0], [0, 10, -0.0, 0]])
    steps = [
        explain.Step("TITLE"),
        explain.Step("The image:\nx = x.", x, "x", block=(2, 2)),
        explain.Step("word " * 30, np.ones((1, 2)), "long"),
        explain.Step("Again.", np.vstack([x, x]), "y", block=(2, 2)),
        explain.Step("", np.full((), 3), "b"),
    ]
    assert explain.render(steps).splitlines() == [
        "TITLE",
        "",
        "1. The image:",
        "   x = x.",
        "",
        "       x = ⎡  1.0  -2.0     0.5   0.0 ⎤",
        "           ⎣  0.0  10.0     0.0   0.0 ⎦",
        "",
        "2. " + "word " * 14 + "word",
        "   " + "word " * 14 + "word",
        "",
        "    long = [ 1  1 ]",
        "",
        "3. Again.",
        "",
        "           ⎡  1.0  -2.0     0.5   0.0 ⎤",
        "           ⎢  0.0  10.0     0.0   0.0 ⎥",
        "       y = ⎢                          ⎥",
        "           ⎢  1.0  -2.0     0.5   0.0 ⎥",
        "           ⎣  0.0  10.0     0.0   0.0 ⎦",
        "",
        "       b = 3",
    ]
