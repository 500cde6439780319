"""PyTorch's pools, written apart from JAX's: values, indices and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import handgrad

torch = pytest.importorskip("torch", reason="PyTorch comes with the extra `compare`")


@st.composite
def drawn_pool(draw):
    """An image's shape, channels first, and a pool over it in PyTorch's words."""
    n = draw(st.integers(1, 3))
    each = lambda least, most: draw(
        st.lists(st.integers(least, most), min_size=n, max_size=n)
    )
    size, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    padding = [draw(st.integers(0, k // 2)) for k in size]
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, size, strict=True)]
    # An image as wide as the gaps: no window sees nothing but padding.
    image = [
        max(h, k - 2 * p, d)
        for h, k, p, d in zip(each(1, 6), extents, padding, dilation, strict=True)
    ]
    options = {
        "kernel_size": size,
        "stride": stride,
        "padding": padding,
        "ceil_mode": draw(st.booleans()),
    }
    return (2, 2, *image), options, dilation


def ours(options, dilation=None):
    """The same in our words."""
    return {
        "window_shape": options["kernel_size"],
        "strides": options["stride"],
        "padding": [(p, p) for p in options["padding"]],
        "ceil_mode": options["ceil_mode"],
        "window_dilation": dilation,
    }


def last(x):
    return jnp.moveaxis(x, 1, -1)


def first(x):
    return jnp.moveaxis(x, -1, 1)


def assert_agrees(theirs, mine, x):
    """Value, integer outputs and gradient for a random cotangent, in float64."""
    leaf = torch.tensor(x, requires_grad=True)
    value, *indices = theirs(leaf)
    dy = np.random.default_rng(1).standard_normal(tuple(value.shape))
    value.backward(torch.tensor(dy))

    @jax.jit
    def run(x, dy):
        outputs, vjp = jax.vjp(lambda x: mine(x)[0], x)
        return outputs, vjp(dy)[0], mine(x)[1:]

    with jax.enable_x64(True):
        y, dx, found = run(x, dy)
    np.testing.assert_allclose(y, value.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dx, leaf.grad.numpy(), rtol=1e-10, atol=1e-12)
    for a, b in zip(found, indices, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def image(shape):
    """Few whole numbers, so that most windows hold their maximum twice."""
    return np.random.default_rng(0).integers(-2, 3, shape).astype(np.float64)


@given(drawn_pool())
def test_max_pool_and_its_indices(drawn):
    shape, options, dilation = drawn
    pool = getattr(torch.nn.functional, f"max_pool{len(dilation)}d")
    theirs = lambda x: pool(x, **options, dilation=dilation, return_indices=True)
    mine = lambda x: [
        first(each)
        for each in handgrad.max_pool_with_argmax(last(x), **ours(options, dilation))
    ]
    assert_agrees(theirs, mine, image(shape))


@given(drawn_pool(), st.booleans())
def test_avg_pool(drawn, count_include_pad):
    shape, options, dilation = drawn
    pool = getattr(torch.nn.functional, f"avg_pool{len(dilation)}d")
    h = [max(h, k) for h, k in zip(shape[2:], options["kernel_size"], strict=True)]
    how = {"count_include_pad": count_include_pad}
    theirs = lambda x: [pool(x, **options, **how)]
    mine = lambda x: [first(handgrad.avg_pool(last(x), **ours(options), **how))]
    assert_agrees(theirs, mine, image((*shape[:2], *h)))


@pytest.mark.parametrize("norm", [1, 2, 3])
def test_lp_pool(norm):
    """PyTorch raises x, not |x|, to the power: the same for positive numbers."""
    pool = torch.nn.functional.lp_pool2d
    theirs = lambda x: [pool(x, norm, (3, 2), (2, 1))]
    mine = lambda x: [first(handgrad.lp_pool(last(x), (3, 2), (2, 1), norm=norm))]
    assert_agrees(theirs, mine, 3 + image((2, 3, 7, 6)))


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=3),
    st.sampled_from(["avg", "max"]),
)
def test_adaptive_pools(sizes, kind):
    pixels, outputs = zip(*sizes, strict=True)
    pool = getattr(torch.nn.functional, f"adaptive_{kind}_pool{len(sizes)}d")
    op = getattr(handgrad, f"adaptive_{kind}_pool")
    theirs = lambda x: [pool(x, outputs)]
    mine = lambda x: [first(op(last(x), outputs))]
    assert_agrees(theirs, mine, image((2, 2, *pixels)))


@given(drawn_pool())
def test_max_unpool(drawn):
    """Indices from the pool itself; two windows may name one pixel."""
    shape, options, _ = drawn
    options["ceil_mode"] = False
    n = len(shape) - 2
    x = image(shape)
    pool = getattr(torch.nn.functional, f"max_pool{n}d")
    unpool = getattr(torch.nn.functional, f"max_unpool{n}d")
    y, indices = pool(torch.tensor(x), **options, return_indices=True)
    plain = {name: options[name] for name in ("kernel_size", "stride", "padding")}
    theirs = lambda y: [unpool(y, indices, **plain, output_size=shape[2:])]
    described = ours(options)
    del described["ceil_mode"]
    mine = lambda y: [
        first(
            handgrad.max_unpool(
                last(y), last(indices.numpy()), **described, image_shape=shape[2:]
            )
        )
    ]
    assert_agrees(theirs, mine, y.numpy())
