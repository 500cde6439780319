"""Hypothesis strategies: shapes, arrays, windows and convolutions to try a rule on."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from handgrad.windows import Window


def shapes(
    *, dimensions: tuple[int, int] = (0, 4), sides: tuple[int, int] = (0, 5)
) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of arrays, empty ones among them.

    Args:
      dimensions: fewest and most axes.
      sides: shortest and longest axis.

    Example:
      >>> from hypothesis import given
      >>> from handgrad.testing import strategies
      >>> @given(strategies.shapes(dimensions=(1, 2), sides=(1, 3)))
      ... def test(shape):
      ...     assert 1 <= len(shape) <= 2
      >>> test()
    """
    axes = st.integers(*sides)
    fewest, most = dimensions
    return st.lists(axes, min_size=fewest, max_size=most).map(tuple)


@st.composite
def arrays(
    draw: Any,
    shape: Sequence[int] | st.SearchStrategy[tuple[int, ...]],
    dtype: Any = "float32",
) -> np.ndarray:
    """Arrays of normal numbers, or of few whole ones: then there are ties and zeros.

    Args:
      draw: given by hypothesis.
      shape: the shape, or a strategy of shapes.
      dtype: a floating-point or integer dtype.
    """
    size = draw(shape) if isinstance(shape, st.SearchStrategy) else tuple(shape)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    whole = draw(st.booleans()) or not jnp.issubdtype(dtype, np.floating)
    numbers = random.integers(-2, 3, size) if whole else random.standard_normal(size)
    return np.asarray(numbers).astype(jnp.dtype(dtype))


@st.composite
def windows(draw: Any, *, input_dilation: bool = True, fits: bool = True) -> Window:
    """Sliding windows with any stride, dilation and (also negative) padding.

    Args:
      draw: given by hypothesis.
      input_dilation: whether the image may be dilated.
      fits: whether only windows that fit the image are drawn.
    """
    window = Window(
        input=draw(st.integers(1, 7)),
        size=draw(st.integers(1, 4)),
        stride=draw(st.integers(1, 4)),
        low=draw(st.integers(-2, 4)),
        high=draw(st.integers(-2, 4)),
        dilation=draw(st.integers(1, 3)),
        input_dilation=draw(st.integers(1, 3)) if input_dilation else 1,
    )
    assume(not fits or window.dilated + window.low + window.high >= window.extent)
    return window


@st.composite
def convolutions(
    draw: Any, *, dimensions: tuple[int, int] = (1, 2), groups: bool = True
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Geometries of `handgrad.conv`: the shapes of x and kernel, and the options.

    Args:
      draw: given by hypothesis.
      dimensions: fewest and most spatial dimensions.
      groups: whether the channels may come in groups.

    Example:
      >>> import jax, handgrad
      >>> from hypothesis import given
      >>> from handgrad.testing import strategies
      >>> @given(strategies.convolutions())
      ... def test(geometry):
      ...     x, kernel, options = geometry
      ...     shapes = jax.ShapeDtypeStruct(x, "f4"), jax.ShapeDtypeStruct(kernel, "f4")
      ...     jax.eval_shape(lambda *a: handgrad.conv(*a, **options), *shapes)
      >>> test()
    """
    count = draw(st.integers(*dimensions))
    described = [draw(windows()) for _ in range(count)]
    group_count = draw(st.integers(1, 3)) if groups else 1
    inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    x = (draw(st.integers(1, 2)), *(w.input for w in described), inputs * group_count)
    kernel = (*(w.size for w in described), inputs, outputs * group_count)
    options = {
        "strides": tuple(w.stride for w in described),
        "padding": tuple((w.low, w.high) for w in described),
        "input_dilation": tuple(w.input_dilation for w in described),
        "kernel_dilation": tuple(w.dilation for w in described),
        "feature_group_count": group_count,
    }
    return x, kernel, options
