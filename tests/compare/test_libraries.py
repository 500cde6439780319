"""The same code of six libraries, as it is and rewritten."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad
from experiments import libraries

SIZES = {"batch": 3, "pixels": 8, "width": 4}
CONVS_AND_POOLS = 5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", libraries.LIBRARIES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gradients_are_the_librarys(name, dtype):
    package = name.split(".")[0]
    if not importlib.util.find_spec(package):  # Keras is not imported without a backend
        pytest.skip(f"{package} comes with the extra `compare`")
    with (  # as their users have it
        jax.enable_x64(dtype == "float64"),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        loss, *given = libraries.drawn(name, dtype=dtype, **SIZES)
        rows = handgrad.rewrite.report(loss, *given).rows
        assert sum(len(row.places) for row in rows) == CONVS_AND_POOLS
        assert not [row.left_because for row in rows if row.left_because]
        step = libraries.step(loss)
        steps = step, libraries.step(handgrad.rewrite(loss)), handgrad.rewrite(step)
        theirs, *ours = jax.jit(lambda *given: [step(*given) for step in steps])(*given)
        leaves = jax.tree.leaves(theirs)
        assert {leaf.dtype for leaf in leaves} == {np.dtype(dtype)}
        for found in ours:
            assert jax.tree.structure(found) == jax.tree.structure(theirs)
            epsilon = float(jnp.finfo(dtype).eps)
            assert libraries.difference(found, theirs) < 30 * epsilon


def test_command(capsys):
    arguments = ["jax.lax", "--batch", "2", "--pixels", "8", "--width", "4"]
    assert libraries.main([*arguments, "--seconds", "0.001"]) == 0
    out = capsys.readouterr().out
    assert "jax.lax" in out
    assert out.count("times") >= 2
    with pytest.raises(SystemExit):
        libraries.main(["jax.numpy"])
    assert "jax.numpy: must be of flax.linen, flax.nnx" in capsys.readouterr().err
