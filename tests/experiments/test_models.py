import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import MODELS, bind, convnext, mobilenet, offers, resnet, small

# The smallest that LeNet-5 can take, and one that is not square.
SHAPES = [(12, 12, 1), (14, 17, 3)]

# Compilation is most of these tests; the sums are the same without LLVM's work on them.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


@pytest.mark.parametrize("image_shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", small.MODELS)
def test_gradients_agree_with_autodiff(name, image_shape):
    model = MODELS[name]
    keys = jax.random.split(jax.random.key(0), 3)
    init = quick_jit(model.init, static_argnums=(1, 2))
    params = init(keys[0], image_shape, 7)
    images = jax.random.normal(keys[1], (3, *image_shape))
    cotangent = jax.random.normal(keys[2], (3, 7))

    def gradients(implementation):
        def loss(params):
            logits = model.apply(params, images, implementation)
            assert logits.shape == (3, 7)
            return jnp.vdot(logits, cotangent)

        return quick_jit(jax.grad(loss))(params)

    for hand, autodiff in zip(
        jax.tree.leaves(gradients(None)),
        jax.tree.leaves(gradients("autodiff")),
        strict=True,
    ):
        scale = float(jnp.abs(autodiff).max())
        np.testing.assert_allclose(hand, autodiff, rtol=1e-5, atol=1e-5 * scale)


# The same networks with fewer channels and blocks: a step of each compiles in seconds.
TINY = {
    "resnet": resnet.model((3, 5), (1, 1)),
    "mobilenet": mobilenet.model(((1, 3, 1, 1), (2, 4, 2, 2)), 4, 6),
    "convnext": convnext.model((3, 5), (1, 1)),
}


@pytest.mark.parametrize("name", TINY)
def test_a_step_agrees_with_autodiff(name):
    """In float64: relu's kinks and the norms would magnify float32's rounding."""
    model, random = TINY[name], np.random.default_rng(0)
    init = quick_jit(model.init, static_argnums=(1, 2))
    params = init(jax.random.key(0), (8, 8, 1), 4)
    with jax.enable_x64(True):
        # No parameter at its initial value, a scale of 0 say, which hides errors.
        params = jax.tree.map(
            lambda p: np.asarray(p) + 0.3 * random.standard_normal(p.shape), params
        )
        images, labels = random.standard_normal((5, 8, 8, 1)), np.arange(5) % 4

        def step(implementation):
            cross_entropy = bind(
                "softmax_cross_entropy_with_integer_labels", implementation
            )

            def loss(params):
                logits = model.apply(params, images, implementation)
                return jnp.mean(cross_entropy(logits, labels))

            return quick_jit(jax.value_and_grad(loss))(params)

        (loss, hand), (autodiff_loss, autodiff) = step(None), step("autodiff")
    np.testing.assert_allclose(loss, autodiff_loss, rtol=1e-10)
    for a, e in zip(jax.tree.leaves(hand), jax.tree.leaves(autodiff), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("mobilenetv2", 3_504_872),
        ("convnext-tiny", 28_589_128),
    ],
)
def test_sizes_are_those_of_the_papers(name, count):
    """As many parameters as torchvision's, for 1000 classes; small images, too."""
    model = MODELS[name]
    for image_shape, classes in (((224, 224, 3), 1000), ((28, 28, 1), 10)):
        init = lambda key, s=image_shape, c=classes: model.init(key, s, c)
        params = jax.eval_shape(init, jax.random.key(0))
        images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
        assert jax.eval_shape(model.apply, params, images).shape == (2, classes)
        if classes == 1000:
            assert sum(p.size for p in jax.tree.leaves(params)) == count


def test_initial_values_are_a_function_of_the_key():
    init = quick_jit(MODELS["lenet5"].init, static_argnums=(1, 2))
    one, same = (init(jax.random.key(0), (12, 12, 1), 10) for _ in range(2))
    other = init(jax.random.key(1), (12, 12, 1), 10)
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
    init = quick_jit(model.init, static_argnums=(1, 2))
    params = init(jax.random.key(0), (32, 32, 3), 10)
    assert model.first_kernels(params, (32, 32, 3)).shape == shape
