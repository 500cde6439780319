"""The same code of six libraries, as it is and rewritten."""

import importlib.util
import os

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


@jax.numpy_dtype_promotion("standard")
@jax.numpy_rank_promotion("allow")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_batch_norms_are_known():
    x = jnp.ones((2, 3, 3, 4))

    def batch_norms(fn, *args):
        rows = handgrad.rewrite.report(fn, *args).rows
        return [row.primitive for row in rows if not row.left_because]

    hk = pytest.importorskip("haiku", reason="haiku comes with the extra `compare`")
    norm = hk.transform_with_state(
        lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True)
    )
    variables = norm.init(jax.random.key(0), x)
    apply = lambda variables, x: norm.apply(*variables, None, x)
    assert batch_norms(apply, variables, x) == ["batch_norm"] * 2

    os.environ["KERAS_BACKEND"] = "jax"
    keras = pytest.importorskip("keras", reason="keras comes with the extra `compare`")
    layer = keras.layers.BatchNormalization()
    layer.build(x.shape)
    values = [
        [variable.value for variable in some]
        for some in (layer.trainable_variables, layer.non_trainable_variables)
    ]
    call = lambda values, x: layer.stateless_call(*values, x, training=True)
    # Its variance is of the differences: a pass of its own.
    assert batch_norms(call, values, x) == ["batch_norm"]


def test_command(capsys):
    arguments = ["jax.lax", "--batch", "2", "--pixels", "8", "--width", "4"]
    assert libraries.main([*arguments, "--seconds", "0.001"]) == 0
    out = capsys.readouterr().out
    assert "jax.lax" in out
    assert out.count("times") >= 2
    with pytest.raises(SystemExit):
        libraries.main(["jax.numpy"])
    assert "jax.numpy: must be of flax.linen, flax.nnx" in capsys.readouterr().err
