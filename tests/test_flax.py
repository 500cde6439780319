"""`handgrad.linen` and `handgrad.nnx` next to Flax's own modules.

Every layer is built with a product of its constructor's arguments by both, from the same
key: the parameters must be the same to the bit; value, running statistics and every
gradient no further from Flax's in float64 than Flax's in the layer's own dtype, up to
rounding.
"""

import functools
import types

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import handgrad.linen
import handgrad.nnx
from handgrad import measure

LINEN = types.SimpleNamespace(name="linen", stock=flax.linen, ours=handgrad.linen)
NNX = types.SimpleNamespace(name="nnx", stock=flax.nnx, ours=handgrad.nnx)
BOTH = pytest.mark.parametrize("api", [LINEN, NNX], ids=lambda api: api.name)
BF16, F32 = jnp.bfloat16, jnp.float32


@pytest.fixture(autouse=True)
def promotion():
    """Flax itself promotes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def draw(count, fits=lambda options: True, **choices):
    """`count` members of a product, in which each choice comes as often as another."""
    random = np.random.default_rng(count)
    columns = {}
    for name, values in choices.items():
        repeated = [values[i % len(values)] for i in range(count)]
        columns[name] = [repeated[i] for i in random.permutation(count)]
    members = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values())]
    return [member for member in members if fits(member)]


def lower(shape):
    """A mask of about half of a kernel's entries."""
    return np.tril(np.ones(shape, np.float32), 1)


def mask(shape):
    return np.random.default_rng(0).random(shape) < 0.7


def conv_fits(options):
    # Both refuse these: what is circular or reflected is "VALID" afterwards.
    return options["input_dilation"] == 1 or not isinstance(options["padding"], str)


COMMON = {
    "use_bias": [True, True, False],
    "dtype": [None, None, BF16],
    "precision": [None, None, "highest"],
}
NORM = {"use_scale": [True, True, False], "dtype": [None, None, BF16]}
IMAGE, SEQUENCE = (2, 6, 5, 4), (2, 7, 4)
# Layer, shape of x, and the constructor's keyword arguments. "call" are the call's;
# "features", "kernel_size" come first; "hand" says whether ours has a formula for it.
CASES = {
    "Conv": [
        *(
            ("Conv", IMAGE, {"features": 6, "kernel_size": (3, 2), **options})
            for options in draw(
                10,
                conv_fits,
                strides=[1, 2, (2, 1), None],
                padding=["SAME", "VALID", "CIRCULAR", "REFLECT", 1, ((1, 0), (0, 2))],
                input_dilation=[1, 1, (2, 1)],
                kernel_dilation=[1, 2],
                feature_group_count=[1, 2],
                **COMMON,
            )
        ),
        *(
            ("Conv", SEQUENCE, {"features": 4, "kernel_size": size, **options})
            for size in (3, (2,))
            for options in draw(
                2,
                padding=["CAUSAL", [1]],
                kernel_dilation=[1, 2],
                feature_group_count=[1, 4],
                **COMMON,
            )
        ),
        ("Conv", (2, 2, 6, 5, 4), {"features": 3, "kernel_size": (3, 3)}),
        ("Conv", (6, 5, 4), {"features": 3, "kernel_size": (3, 3), "strides": 2}),
        ("Conv", (1, 4, 4, 4, 2), {"features": 3, "kernel_size": (2, 3, 2)}),
        (
            "Conv",
            IMAGE,
            {"features": 3, "kernel_size": (3, 3), "mask": lower((3, 3, 4, 3))},
        ),
        (
            "Conv",
            IMAGE,
            {
                "features": 3,
                "kernel_size": (3, 3),
                "param_dtype": BF16,
                "kernel_init": jax.nn.initializers.glorot_uniform(),
                "bias_init": jax.nn.initializers.normal(),
            },
        ),
    ],
    "ConvTranspose": [
        *(
            ("ConvTranspose", IMAGE, {"features": 3, "kernel_size": (3, 2), **options})
            for options in draw(
                7,
                strides=[None, (2, 2), (3, 1)],
                padding=["SAME", "VALID", "CIRCULAR", 1, ((1, 0), (0, 2))],
                kernel_dilation=[None, (2, 1)],
                transpose_kernel=[False, True],
                **COMMON,
            )
        ),
        ("ConvTranspose", SEQUENCE, {"features": 3, "kernel_size": (4,)}),
        (
            "ConvTranspose",
            (6, 5, 4),
            {"features": 3, "kernel_size": (3, 3), "mask": lower((3, 3, 4, 3))},
        ),
    ],
    "ConvLocal": [
        *(
            ("ConvLocal", IMAGE, {"features": 3, "kernel_size": (3, 2), **options})
            for options in draw(
                5,
                strides=[1, 2],
                padding=["SAME", "VALID", "CIRCULAR", ((1, 0), (0, 2))],
                kernel_dilation=[1, 2],
                **COMMON,
            )
        ),
        (
            "ConvLocal",
            IMAGE,
            {
                "features": 3,
                "kernel_size": (2, 2),
                "input_dilation": 2,
                "padding": 1,
                "hand": False,
            },
        ),
    ],
    "Dense": [
        *(("Dense", IMAGE, {"features": 3, **options}) for options in draw(3, **COMMON)),
        ("Dense", (4,), {"features": 2, "param_dtype": BF16}),
    ],
    "BatchNorm": [
        *(
            ("BatchNorm", IMAGE, options)
            for options in draw(
                10,
                use_running_average=[False, False, False, True],
                axis=[-1, -1, 1],
                momentum=[0.99, 0.9],
                epsilon=[1e-5, 1e-2],
                use_bias=[True, True, False],
                call=[{}, {"mask": mask((2, 6, 5, 1))}, {"mask": mask((2, 1, 5, 4))}],
                **NORM,
            )
        ),
        (
            "BatchNorm",
            (5, 4),
            {"use_running_average": False, "param_dtype": BF16},
        ),
        ("BatchNorm", IMAGE, {"call": {"use_running_average": False}}),
        (
            "BatchNorm",
            IMAGE,
            {"use_running_average": False, "use_fast_variance": False},
        ),
    ],
    "LayerNorm": [
        *(
            ("LayerNorm", IMAGE, options)
            for options in draw(
                6,
                epsilon=[1e-6, 1e-2],
                use_bias=[True, True, False],
                call=[{}, {"mask": mask(IMAGE)}, {"mask": mask((4,))}],
                **NORM,
            )
        ),
        ("LayerNorm", IMAGE, {"reduction_axes": 1, "feature_axes": (1,)}),
        ("LayerNorm", IMAGE, {"reduction_axes": (1, 2, 3), "hand": False}),
    ],
    "RMSNorm": [
        *(
            ("RMSNorm", IMAGE, options)
            for options in draw(
                4,
                epsilon=[1e-6, 1e-2],
                call=[{}, {"mask": mask(IMAGE)}],
                **NORM,
            )
        ),
        ("RMSNorm", IMAGE, {"reduction_axes": (1, 3), "hand": False}),
    ],
    "GroupNorm": [
        *(
            ("GroupNorm", IMAGE, options)
            for options in draw(
                6,
                num_groups=[1, 2, 4],
                epsilon=[1e-6, 1e-2],
                use_bias=[True, True, False],
                call=[{}, {"mask": mask(IMAGE)}],
                **NORM,
            )
        ),
        ("GroupNorm", SEQUENCE, {"num_groups": None, "group_size": 2}),
        ("GroupNorm", (3, 8), {"num_groups": 2, "reduction_axes": (-1,)}),
    ],
    "InstanceNorm": [
        *(
            ("InstanceNorm", IMAGE, options)
            for options in draw(
                4,
                epsilon=[1e-6, 1e-2],
                use_bias=[True, True, False],
                call=[{}, {"mask": mask(IMAGE)}],
                **NORM,
            )
        ),
        ("InstanceNorm", SEQUENCE, {}),
        ("InstanceNorm", IMAGE, {"feature_axes": 1, "hand": False}),
    ],
}
ONLY_LINEN = ("ConvLocal",)


def a_key():
    """A key whose bits the backend makes: threefry takes seconds to compile."""
    return jax.random.key(3, impl="unsafe_rbg")



def build(api, namespace, case, dtype=None):
    """init(x) -> variables, apply(variables, x) -> (y, new statistics)."""
    layer, shape, options = case
    options = {n: v for n, v in options.items() if n != "hand"}
    call = options.pop("call", {})
    features, size = options.pop("features", None), options.pop("kernel_size", None)
    first = [a for a in (features, size) if a is not None]
    if dtype is not None:
        options["dtype"] = dtype
    if api is LINEN:
        module = getattr(namespace, layer)(*first, **options)

        def apply(variables, x):
            y, state = module.apply(variables, x, mutable=["batch_stats"], **call)
            return y, state.get("batch_stats", {})

        return functools.partial(module.init, a_key(), **call), apply
    layer = {"Dense": "Linear"}.get(layer, layer)
    axis = options.get("axis", options.get("reduction_axes", -1))
    channels = shape[axis if isinstance(axis, int) else -1]

    def module():
        rngs = flax.nnx.Rngs(a_key())
        return getattr(namespace, layer)(channels, *first, **options, rngs=rngs)

    def apply(variables, x):
        layer = module()
        flax.nnx.update(layer, variables)
        y = layer(x, **call)
        return y, flax.nnx.to_pure_dict(flax.nnx.state(layer, flax.nnx.BatchStat))

    return lambda x: flax.nnx.to_pure_dict(flax.nnx.state(module())), apply


def numbers(seed, shape, dtype):
    """Random numbers that bfloat16 holds exactly; their mean is one of their size."""
    random = np.random.default_rng(seed)
    return (1 + random.standard_normal(shape)).astype(BF16).astype(dtype)


def initial(api, namespace, case):
    """A case's variables, as they are made."""
    init, _ = build(api, namespace, case)
    return jax.device_get(jax.jit(init)(numbers(0, case[1], F32)))


def run(api, namespace, case, variables, dtype=None):
    """Value, statistics and gradients, in float64 if it is the `dtype`."""
    _, apply = build(api, namespace, case, dtype)
    x = numbers(0, case[1], dtype or F32)
    y, _ = jax.eval_shape(apply, variables, x)

    @jax.jit
    def both(variables, x, dy):
        y, vjp, statistics = jax.vjp(apply, variables, x, has_aux=True)
        return y, statistics, vjp(dy)

    return jax.device_get(both(variables, x, numbers(1, y.shape, y.dtype)))


def judge(ours, stock, truth, dtype):
    """No further from the truth than Flax, up to rounding."""
    eps = float(jnp.finfo(dtype or F32).eps)
    assert jax.tree.structure(ours) == jax.tree.structure(stock)
    for path, array in jax.tree.leaves_with_path(ours):
        mine, theirs, true = (
            dict(jax.tree.leaves_with_path(tree))[path]
            for tree in (ours, stock, truth)
        )
        del array
        assert mine.dtype == theirs.dtype, path
        error, worst = measure.elementwise_error(mine, true)
        stocks, _ = measure.elementwise_error(theirs, true)
        # Flax's one-pass variance is inexact where the mean is large; here it is not.
        assert error <= 2 * min(stocks, eps**0.5) + 4 * eps, (path, worst)


@BOTH
@pytest.mark.parametrize("family", CASES)
def test_equals_flax(api, family):
    if api is NNX and family in ONLY_LINEN:
        assert not hasattr(flax.nnx, family)
        return
    cases = [case for case in CASES[family] if api is LINEN or in_nnx(case)]
    assert len(cases) >= 4
    # By the same hooks of nnx: every other one.
    for case in cases[:: 2 if api is NNX else 1]:
        equals_flax(api, case)


def equals_flax(api, case):
    mine, theirs = (initial(api, each, case) for each in (api.ours, api.stock))
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    variables = jax.tree.map(lambda a: a.astype(BF16).astype(a.dtype), theirs)
    ours, stock = (run(api, each, case, variables) for each in (api.ours, api.stock))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(np.float64), variables)
        truth = run(api, api.stock, case, wide, jnp.float64)
    narrow = BF16 in (case[2].get("dtype"), case[2].get("param_dtype"))
    judge(ours, stock, truth, BF16 if narrow else F32)


def in_nnx(case):
    """Whether nnx has such a constructor, and its layer takes such a call."""
    layer, shape, options = case
    if layer == "LayerNorm" and isinstance(options.get("reduction_axes"), tuple):
        return False
    if layer == "RMSNorm" and "reduction_axes" in options:
        return False
    return not (layer == "InstanceNorm" and "feature_axes" in options)


@BOTH
@pytest.mark.parametrize("family", CASES)
def test_computes_by_hand_wherever_it_can(api, family):
    """What silently went to Flax's own op would be as right, and slow."""
    if api is NNX and family in ONLY_LINEN:
        return
    for case in CASES[family]:
        if api is NNX and not in_nnx(case):
            continue
        init, apply = build(api, api.ours, case)
        x = jax.ShapeDtypeStruct(case[1], F32)
        variables = jax.eval_shape(init, x)
        text = str(jax.make_jaxpr(apply)(variables, x))
        assert ("custom_vjp" in text) == case[2].get("hand", True), case


POOLS = [
    (name, shape, arguments)
    for name, extra in (
        ("max_pool", {}),
        ("min_pool", {}),
        ("avg_pool", {}),
        ("avg_pool", {"count_include_pad": False}),
    )
    for shape, arguments in (
        ((2, 6, 6, 3), {"window_shape": (2, 2), "strides": (2, 2), **extra}),
        (
            (2, 2, 5, 6, 2),
            {"window_shape": (3, 2), "padding": "SAME", **extra},
        ),
        (
            (5, 6, 2),
            {"window_shape": (3, 2), "padding": ((1, 1), (0, 1)), **extra},
        ),
        ((7, 2), {"window_shape": (3,), "strides": (2,), "padding": "SAME", **extra}),
    )
]


def test_pools():
    stock = {
        "max_pool": flax.linen.pooling.max_pool,
        "min_pool": flax.linen.pooling.min_pool,
        "avg_pool": flax.linen.pooling.avg_pool,
    }

    @jax.jit
    def run(inputs):
        outcomes = []
        for (name, _, options), x in zip(POOLS, inputs, strict=True):
            for pool in (getattr(handgrad.linen, name), stock[name]):
                y, vjp = jax.vjp(functools.partial(pool, **options), x)
                outcomes.append((y, vjp(jnp.arange(y.size, dtype=F32).reshape(y.shape))))
        return outcomes

    inputs = [numbers(i, shape, F32) for i, (_, shape, _) in enumerate(POOLS)]
    outcomes = run(inputs)
    for case, ours, theirs in zip(POOLS, outcomes[::2], outcomes[1::2], strict=True):
        for mine, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, err_msg=str(case))
    for (name, _, options), x in zip(POOLS, inputs, strict=True):
        pool = functools.partial(getattr(handgrad.nnx, name), **options)
        assert "custom_vjp" in str(jax.make_jaxpr(pool)(x))
    # Flax's own for what ours refuses.
    complexes = jnp.ones((1, 4, 4, 2), jnp.complex64)
    assert handgrad.linen.avg_pool(complexes, (2, 2)).dtype == jnp.complex64


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
@BOTH
def test_dropout(api, rate):
    """The same mask for the same key, to the bit."""
    x, key = numbers(0, (6, 5, 4), F32), jax.random.key(7)
    results = []
    for namespace in (api.ours, api.stock):

        def layer(x, namespace=namespace):
            if api is NNX:
                first = namespace.Dropout(rate, rngs=flax.nnx.Rngs(5))
                second = namespace.Dropout(rate, broadcast_dims=(1,))
                return second(first(x), rngs=flax.nnx.Rngs(dropout=key))
            first = namespace.Dropout(rate, deterministic=False)
            second = namespace.Dropout(rate, broadcast_dims=(-1,))
            y = first.apply({}, x, rngs={"dropout": key})
            return second.apply({}, y, deterministic=False, rng=key)

        def both(x, layer=layer):
            y, vjp = jax.vjp(layer, x)
            return y, *vjp(x)

        results.append(jax.jit(both)(x))
    for ours, stock in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, stock)
    with jax.enable_x64(True):  # where Flax draws other numbers
        results = [
            namespace.Dropout(0.5, deterministic=False).apply(
                {}, x, rngs={"dropout": key}
            )
            for namespace in (handgrad.linen, flax.linen)
        ]
        np.testing.assert_array_equal(*results)


def linen_error(layer, *arguments, x=(2, 4, 4, 4), call=(), **options):
    def run(namespace):
        module = getattr(namespace, layer)(*arguments, **options)
        module.init(jax.random.key(0), jnp.ones(x), *call)

    return run, LINEN


def nnx_error(layer, *arguments, x=(2, 4, 4, 4), call=(), **options):
    def run(namespace):
        module = getattr(namespace, layer)(
            *arguments, **options, rngs=flax.nnx.Rngs(a_key())
        )
        module(jnp.ones(x), *call)

    return run, NNX


def pool_error(*arguments, **options):
    return lambda namespace: namespace.max_pool(*arguments, **options), NNX


@pytest.mark.parametrize(
    ("run", "api"),
    [
        linen_error("Conv", 3, (2, 2), padding="CAUSAL"),
        linen_error("Conv", 3, (2, 2), padding="NONSENSE"),
        linen_error("Conv", 3, (2, 2), padding=((1, 2, 3),)),
        linen_error("Conv", 3, (2, 2), padding="SAME", input_dilation=2),
        linen_error("Conv", 3, (2, 2), strides=(1, 1, 1)),
        linen_error("Conv", 3, (2, 2), feature_group_count=3),
        linen_error("Conv", 3, (2, 2), feature_group_count=4),
        linen_error("Conv", 3, (2, 2), mask=np.ones((2, 2))),
        linen_error("Conv", 3, (2, 2), dtype=jnp.int32),
        linen_error("ConvLocal", 3, (2, 2), feature_group_count=2),
        linen_error("ConvTranspose", 3, (2, 2), mask=np.ones((2, 2))),
        linen_error("ConvTranspose", 3, (2, 2), padding="NONSENSE"),
        linen_error("BatchNorm"),
        linen_error("BatchNorm", use_running_average=True, call=(True,)),
        linen_error("BatchNorm", use_running_average=True, axis=7),
        linen_error("LayerNorm", dtype=jnp.int32),
        linen_error("LayerNorm", reduction_axes=9),
        linen_error("GroupNorm", num_groups=3),
        linen_error("GroupNorm", num_groups=None),
        linen_error("GroupNorm", num_groups=2, group_size=2),
        linen_error("GroupNorm", num_groups=2, reduction_axes=(1, 2)),
        linen_error("InstanceNorm", feature_axes=0),
        linen_error("Dropout", 0.5),
        linen_error("Dropout", 0.5, deterministic=False, call=(True,)),
        nnx_error("Conv", 4, 3, (2, 2), padding="CAUSAL"),
        nnx_error("Conv", 5, 3, (2, 2)),
        nnx_error("Conv", 4, 3, (2, 2), mask=np.ones((2, 2))),
        nnx_error("Conv", 4, 3, (2, 2), kernel_sizes=1),
        nnx_error("ConvTranspose", 5, 3, (2, 2)),
        nnx_error("Linear", 5, 3),
        nnx_error("BatchNorm", 5),
        nnx_error("BatchNorm", 4, use_running_average=None),
        nnx_error("LayerNorm", 5),
        nnx_error("GroupNorm", 4, num_groups=3),
        nnx_error("GroupNorm", 4, num_groups=None),
        nnx_error("GroupNorm", 6, num_groups=2),
        nnx_error("InstanceNorm", 4, feature_axes=0),
        nnx_error("InstanceNorm", 5),
        nnx_error("Dropout", 0.5, deterministic=None),
        pool_error(np.ones((1, 4, 4, 1), np.float32), (2, 2), (1,)),
        pool_error(np.ones((1, 4, 4, 1), np.float32), (2, 2), padding=((1, 1),)),
        pool_error(np.ones((1, 4, 4, 1), np.float32), (2, 2), padding="NONSENSE"),
        pool_error(np.ones((4, 1), np.float32), (2, 2)),
    ],
)
def test_errors_are_flax_own(run, api):
    with pytest.raises(Exception) as theirs:  # noqa: PT011: whatever Flax raises
        run(api.stock)
    with pytest.raises(type(theirs.value)) as ours:
        run(api.ours)
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)
    assert ours.value.__context__ is None or theirs.value.__context__ is not None


def test_a_missing_parameter_is_flax_own_error():
    x = jnp.ones((2, 3, 4))
    for layer in ("LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm"):
        messages = []
        for namespace in (flax.linen, handgrad.linen):
            options = {"num_groups": 2} if layer == "GroupNorm" else {}
            with pytest.raises(flax.errors.FlaxError) as error:
                getattr(namespace, layer)(**options).apply({"params": {}}, x)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


def test_what_ours_refuses_is_computed_as_by_flax():
    for x in (jnp.ones((2, 5, 5, 3), jnp.complex64), jnp.ones((2, 5, 5, 3), int)):
        for layer, arguments in (
            ("Conv", (4, (3, 3))),
            ("ConvTranspose", (4, (3, 3))),
            ("Dense", (4,)),
            ("BatchNorm", (False,)),
            ("LayerNorm", ()),
        ):
            ours, stock = (
                getattr(each, layer)(*arguments).init_with_output(a_key(), x)
                for each in (handgrad.linen, flax.linen)
            )
            jax.tree.map(np.testing.assert_array_equal, ours, stock)


def linen_network(nn):
    """Layers in a scan, computed again in the backward pass."""

    class Block(nn.Module):
        axis: str | None = None

        @nn.compact
        def __call__(self, x, train):
            y = nn.Conv(4, (3, 3), padding="CIRCULAR", use_bias=False)(x)
            y = nn.BatchNorm(not train, axis_name=self.axis)(y)
            return x + nn.relu(y), None

    class Network(nn.Module):
        axis: str | None = None
        dtype: type | None = None

        @nn.compact
        def __call__(self, x, train=True):
            x = nn.Conv(4, (3, 3), dtype=self.dtype)(x)
            blocks = nn.scan(
                nn.remat(Block, static_argnums=(2,)),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=2,
            )
            x, _ = blocks(self.axis)(x, train)
            x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.GroupNorm(2)(nn.ConvTranspose(4, (2, 2), (2, 2))(x))
            x = nn.Dropout(0.3, deterministic=not train)(x)
            x = nn.avg_pool(x, x.shape[1:3])
            return nn.Dense(3, dtype=self.dtype)(nn.LayerNorm()(x).reshape(-1, 4))

    return Network


IMAGES = numbers(4, (8, 8, 6, 3), F32)


def step(network, variables, x):
    """The gradients of a loss, and the new statistics."""

    def loss(params):
        y, state = network.apply(
            {**variables, "params": params},
            x,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return jnp.mean(jnp.square(y - 1)), state

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


@pytest.fixture(scope="module")
def networks():
    """Our network, the variables of both, and what a step of Flax's gives."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ours, stock = (linen_network(each)() for each in (handgrad.linen, flax.linen))
        variables = jax.jit(functools.partial(stock.init, train=False))(
            a_key(), IMAGES
        )
        mine = jax.jit(functools.partial(ours.init, train=False))(a_key(), IMAGES)
        jax.tree.map(np.testing.assert_array_equal, mine, variables)
        expected = jax.jit(functools.partial(step, stock))(variables, IMAGES)
        return ours, variables, expected


def close(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, mine), other in zip(
        jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        scale = float(np.max(np.abs(other)))
        np.testing.assert_allclose(
            mine, other, atol=2e-5 * scale, rtol=1e-4, err_msg=str(path)
        )


def test_scan_over_layers_and_remat(networks):
    ours, variables, expected = networks
    run = functools.partial(step, ours)
    close(jax.jit(run)(variables, IMAGES), expected)
    text = str(jax.make_jaxpr(run)(variables, IMAGES))
    assert "remat" in text
    assert "scan" in text


@pytest.mark.parametrize("spec", [P("i"), P(None, "i"), P("i", "j"), P(None, "j", "i")])
def test_sharded_over_examples_and_pixels(networks, spec):
    ours, variables, expected = networks
    shape = (8,) if "j" not in spec else (4, 2)
    if spec == P(None, "j", "i"):
        shape = (2, 4)
    mesh = jax.make_mesh(
        shape, ("i", "j")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape)
    )
    x = jax.device_put(IMAGES, NamedSharding(mesh, spec))
    variables = jax.device_put(variables, NamedSharding(mesh, P()))
    close(jax.jit(functools.partial(step, ours))(variables, x), expected)


def test_statistics_of_all_devices():
    """Batch norm's `axis_name`, inside `shard_map`."""
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    results = []
    for nn in (handgrad.linen, flax.linen):
        norm = nn.BatchNorm(False, axis_name="i")
        variables = jax.tree.map(jnp.asarray, norm.init(a_key(), IMAGES))

        @jax.jit
        @functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(P(), P("i")), out_specs=(P("i"), P())
        )
        def run(variables, x, norm=norm):
            y, vjp, state = jax.vjp(
                lambda v, x: norm.apply(v, x, mutable=["batch_stats"]),
                variables,
                x,
                has_aux=True,
            )
            dvariables, dx = vjp(jnp.square(y))
            return (y, dx), (state, dvariables)

        results.append(run(variables, IMAGES))
    close(*results)


def test_explicit_mesh():
    """nnx says where each result lives; its parameters were made before the mesh."""
    spec = P("i")
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Explicit,))
    results = []
    for nn in (handgrad.nnx, flax.nnx):
        conv = nn.Conv(3, 8, (3, 3), rngs=flax.nnx.Rngs(a_key()))
        norm = nn.BatchNorm(8, rngs=flax.nnx.Rngs(a_key()))
        graph, state = flax.nnx.split((conv, norm), ...)

        def loss(state, x, graph=graph):
            conv, norm = flax.nnx.merge(graph, state)
            return jnp.sum(jnp.sin(norm(conv(x))))

        with jax.set_mesh(mesh):
            x = jax.device_put(IMAGES, NamedSharding(mesh, spec))
            results.append(jax.jit(jax.value_and_grad(loss, (0, 1)))(state, x))
            assert jax.typeof(results[-1][1][1]).sharding.spec[: len(spec)] == spec
    flat = [jax.tree.leaves(result) for result in results]
    close(*flat)


def nnx_network(nn):
    class Block(nn.Module):
        def __init__(self, rngs):
            self.conv = nn.Conv(4, 4, (3, 3), use_bias=False, rngs=rngs)
            self.norm = nn.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return x + nn.relu(self.norm(self.conv(x)))

    class Network(nn.Module):
        def __init__(self, rngs):
            self.stem = nn.Conv(3, 4, (3, 3), strides=2, rngs=rngs)

            @nn.split_rngs(splits=2)
            @nn.vmap(in_axes=(0,), out_axes=0)
            def blocks(rngs):
                return Block(rngs)

            self.blocks = blocks(rngs)
            self.up = nn.ConvTranspose(4, 4, (2, 2), (2, 2), rngs=rngs)
            self.norms = nn.List(
                [
                    nn.InstanceNorm(4, rngs=rngs),
                    nn.GroupNorm(4, num_groups=2, rngs=rngs),
                    nn.RMSNorm(4, rngs=rngs),
                    nn.LayerNorm(4, rngs=rngs),
                ]
            )
            self.dropout = nn.Dropout(0.3, rngs=rngs)
            self.head = nn.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            @nn.scan(in_axes=(0, nn.Carry), out_axes=nn.Carry)
            @nn.remat
            def forward(block, x):
                return block(x)

            x = self.up(forward(self.blocks, self.stem(x)))
            for norm in self.norms:
                x = norm(x)
            x = self.dropout(nn.max_pool(x, (2, 2), (2, 2)))
            return self.head(nn.avg_pool(x, x.shape[1:3]).reshape(-1, 4))

    return Network


def test_nnx_jit_scan_remat_and_split():
    results, states = [], []
    for nn in (handgrad.nnx, flax.nnx):
        network = nnx_network(nn)(nn.Rngs(a_key()))
        states.append(flax.nnx.to_pure_dict(flax.nnx.state(network, flax.nnx.Param)))

        @nn.jit
        def run(network, x, nn=nn):
            return nn.value_and_grad(lambda n: jnp.mean(jnp.square(n(x) - 1)))(network)

        loss, gradients = run(network, IMAGES)
        run(network, IMAGES)  # with the statistics and the keys of the first call
        after = flax.nnx.state(network, flax.nnx.BatchStat)
        trees = [flax.nnx.to_pure_dict(tree) for tree in (gradients, after)]
        results.append((loss, *trees))
        network.eval()
        graph, state = nn.split(network)
        results[-1] += (nn.merge(graph, state)(IMAGES),)
    jax.tree.map(np.testing.assert_array_equal, *states)
    close(*results)


def test_checkpoints_go_both_ways(tmp_path, networks):
    """Orbax: written by either, restored by the other, to the bit."""
    _, variables, _ = networks
    modules = [nnx_network(nn)(nn.Rngs(a_key())) for nn in (flax.nnx, handgrad.nnx)]
    params = [flax.nnx.state(m, (flax.nnx.Param, flax.nnx.BatchStat)) for m in modules]
    linen = [
        jax.eval_shape(
            functools.partial(linen_network(nn)().init, train=False), a_key(), IMAGES
        )
        for nn in (flax.linen, handgrad.linen)
    ]
    stock = {"linen": variables, "nnx": flax.nnx.to_pure_dict(params[0])}
    changed = jax.tree.map(lambda a: a + 1, stock)
    target = {"linen": linen[1], "nnx": flax.nnx.to_pure_dict(params[1])}
    back = {"linen": linen[0], "nnx": flax.nnx.to_pure_dict(params[0])}
    for name, tree, into in (("there", stock, target), ("back", changed, back)):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / name, tree)
            checkpointer.wait_until_finished()
            into = jax.tree.map(ocp.utils.to_shape_dtype_struct, into)
            restored = checkpointer.restore(tmp_path / name, into)
        assert jax.tree.structure(restored) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, restored, tree)
    flax.nnx.update(modules[1], flax.nnx.State(stock["nnx"]))  # what a user does next


def test_the_modules_look_as_before():
    """Partitioning metadata, intermediates, tables: what is recorded of a call."""
    views = []
    for nn in (flax.linen, handgrad.linen):
        split = nn.with_partitioning(jax.nn.initializers.lecun_normal(), (None, "model"))
        layers = [
            nn.Dense(4, kernel_init=split),
            nn.LayerNorm(scale_init=nn.with_partitioning(jax.nn.initializers.ones, ("a",))),
            nn.GroupNorm(2),
            nn.BatchNorm(True),
            nn.LayerNorm(reduction_axes=(0, 1), feature_axes=-1),
            nn.Dropout(0.5, deterministic=True),
        ]
        model = nn.Sequential(layers)
        x = jnp.ones((2, 3))
        variables = model.init(a_key(), x)
        y, state = model.apply(variables, x, capture_intermediates=True)
        table = model.tabulate(a_key(), x, console_kwargs={"width": 200})
        views.append((nn.get_partition_spec(variables), variables, y, state, table))
    (specs, *stock, table), (our_specs, *ours, our_table) = views
    assert our_specs == specs
    assert jax.tree.structure(stock) == jax.tree.structure(ours)
    for mine, theirs in zip(*map(jax.tree.leaves, (ours, stock)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert our_table == table
    for ours, stock in ((handgrad.linen, flax.linen), (handgrad.nnx, flax.nnx)):
        public = [name for name in vars(stock) if not name.startswith("_")]
        assert [name for name in public if not hasattr(ours, name)] == []
    conv = handgrad.nnx.Conv(4, 2, (1, 1), rngs=flax.nnx.Rngs(a_key()))
    assert isinstance(conv, flax.nnx.Conv)
    assert repr(handgrad.linen.Conv(4, (1, 1))).startswith("Conv(")
