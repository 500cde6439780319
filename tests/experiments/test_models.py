import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import MODELS, bind, offers

SHAPES = [(28, 28, 1), (32, 32, 3)]


@pytest.mark.parametrize("image_shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_agree_with_autodiff(name, image_shape):
    model = MODELS[name]
    keys = jax.random.split(jax.random.key(0), 3)
    params = model.init(keys[0], image_shape, 7)
    images = jax.random.normal(keys[1], (3, *image_shape))
    cotangent = jax.random.normal(keys[2], (3, 7))

    def gradients(implementation):
        def loss(params):
            logits = model.apply(params, images, implementation)
            assert logits.shape == (3, 7)
            return jnp.vdot(logits, cotangent)

        return jax.jit(jax.grad(loss))(params)

    for hand, autodiff in zip(
        jax.tree.leaves(gradients(None)),
        jax.tree.leaves(gradients("autodiff")),
        strict=True,
    ):
        scale = float(jnp.abs(autodiff).max())
        np.testing.assert_allclose(hand, autodiff, rtol=1e-5, atol=1e-5 * scale)


def test_initial_values_are_a_function_of_the_key():
    init = MODELS["lenet5"].init
    one, same = (init(jax.random.key(0), (28, 28, 1), 10) for _ in range(2))
    other = init(jax.random.key(1), (28, 28, 1), 10)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), one, same))
    assert not (one["conv1"]["kernel"] == other["conv1"]["kernel"]).any()


def test_an_implementation_applies_where_it_is_offered():
    assert offers("conv", "gemm")
    assert not offers("dense", "gemm")
    assert all(offers(op, "autodiff") for op in ("conv", "dense", "avg_pool"))
    assert bind("conv", "gemm").keywords == {"implementation": "gemm"}
    assert bind("dense", "gemm").keywords == {"implementation": None}
    assert bind("dense", "autodiff").keywords == {"implementation": "autodiff"}


@pytest.mark.parametrize(
    ("name", "shape"),
    [("lenet5", (6, 5, 5, 3)), ("lenet5-max", (6, 5, 5, 3)), ("mlp", (256, 32, 32, 3))],
)
def test_first_kernels_are_images(name, shape):
    model = MODELS[name]
    params = model.init(jax.random.key(0), (32, 32, 3), 10)
    assert model.first_kernels(params, (32, 32, 3)).shape == shape
