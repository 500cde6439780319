import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given

import handgrad
from handgrad.testing import strategies


@given(strategies.arrays(strategies.shapes(sides=(1, 3)), "bfloat16"))
def test_arrays(x):
    assert x.dtype == jnp.bfloat16
    assert x.ndim <= 4
    assert np.isfinite(x.astype(np.float32)).all()


@given(strategies.windows(fits=False))
def test_windows(window):
    assert window.size >= 1
    assert window.output >= 0


@given(strategies.convolutions(dimensions=(1, 3)))
def test_convolutions_are_calls_of_conv(geometry):
    x, kernel, options = geometry
    shapes = (jax.ShapeDtypeStruct(s, np.float32) for s in (x, kernel))
    y = jax.eval_shape(lambda x, k: handgrad.conv(x, k, **options), *shapes)
    assert min(y.shape) >= 1
