"""ONNX's published cases of convolution and pooling, and their gradients."""

import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import handgrad

onnx = pytest.importorskip("onnx", reason="onnx comes with the extra `compare`")

# How many the package holds at least: a test that finds none would pass.
LEAST = {
    "Conv": 33,
    "ConvTranspose": 14,
    "MaxPool": 20,
    "AveragePool": 20,
    "LpPool": 8,
    "MaxUnpool": 2,
    "GlobalMaxPool": 2,
    "GlobalAveragePool": 2,
}


def node_cases():
    """Cases that are made by code, as (name, model, [(inputs, outputs)])."""
    from onnx.backend.test.case import node

    modules = ("conv", "convtranspose", "maxpool", "averagepool", "lppool")
    modules += ("maxunpool", "globalmaxpool", "globalaveragepool")
    for module in modules:
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    for case in node._NodeTestCases:
        yield case.name, case.model, case.data_sets


def stored_cases():
    """Cases that lie in the package as files."""
    from onnx.backend.test import loader

    def arrays(folder, model, kind):
        values = getattr(model.graph, kind)
        initialized = {each.name for each in model.graph.initializer}
        count = sum(each.name not in initialized for each in values)
        for i in range(count):
            tensor = onnx.TensorProto()
            tensor.ParseFromString((folder / f"{kind}_{i}.pb").read_bytes())
            yield onnx.numpy_helper.to_array(tensor)

    for kind in ("pytorch-converted", "pytorch-operator"):
        for folder in sorted(pathlib.Path(loader.DATA_DIR, kind).glob("test_*")):
            model = onnx.load(folder / "model.onnx")
            sets = [
                tuple(list(arrays(each, model, kind)) for kind in ("input", "output"))
                for each in sorted(folder.glob("test_data_set_*"))
            ]
            yield folder.name, model, sets


def cases():
    """Each case whose only node is one of the ops: op, options, arrays, y."""
    for name, model, sets in [*node_cases(), *stored_cases()]:
        nodes = model.graph.node
        if len(nodes) != 1 or nodes[0].op_type not in LEAST:
            continue
        (node,) = nodes
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        weights = {
            each.name: onnx.numpy_helper.to_array(each)
            for each in model.graph.initializer
        }
        free = [each.name for each in model.graph.input if each.name not in weights]
        for inputs, (y, *rest) in sets:
            values = weights | dict(zip(free, inputs, strict=True))
            arrays = [values[each] for each in node.input]
            if "ool" in node.op_type:
                yield pytest.param(node.op_type, options, arrays, [y, *rest], id=name)
            else:
                yield pytest.param(node.op_type, options, arrays, y, id=name)


EVERY = list(cases())
CASES = [case for case in EVERY if "Conv" in case.values[0]]
POOLS = [case for case in EVERY if "Conv" not in case.values[0]]


def paddings(op, options, x, y, extents, strides):
    """The zeros around the (dilated) image, from the several ways to say them.

    ConvTranspose's zeros are those that give y's size. Of an odd number the greater
    half is cut before y, with SAME_UPPER after it.
    """
    n = len(extents)
    auto = options.get("auto_pad", b"NOTSET").decode()
    flat = options.get("pads", [0] * (2 * n))
    pairs = list(zip(flat[:n], flat[n:], strict=True))
    if op == "Conv":
        names = {"NOTSET": pairs, "SAME_UPPER": "SAME"}
        return names.get(auto, auto)
    extra = options.get("output_padding", [0] * n)
    if auto != "NOTSET" or "output_shape" in options:
        sizes = options.get("output_shape", y.shape[2:])
        if auto.startswith("SAME") and "output_shape" not in options:
            sizes = [s * h for s, h in zip(strides, x.shape[2:], strict=True)]
        totals = [
            s * (h - 1) + o + k - size
            for s, h, o, k, size in zip(
                strides, x.shape[2:], extra, extents, sizes, strict=True
            )
        ]
        less = [total // 2 for total in totals]
        more = [total - low for total, low in zip(totals, less, strict=True)]
        upper = auto == "SAME_UPPER"
        pairs = list(zip(less, more) if upper else zip(more, less))  # noqa: B905
    return [
        (k - 1 - low, k - 1 - high + o)
        for k, (low, high), o in zip(extents, pairs, extra, strict=True)
    ]


def run(implementation, op, options, arrays, y):
    """The op by `conv_general_dilated`, channels first."""
    x, kernel, *bias = arrays
    n, groups = x.ndim - 2, options.get("group", 1)
    strides = options.get("strides", [1] * n)
    dilations = options.get("dilations", [1] * n)
    extents = [
        d * (k - 1) + 1 for d, k in zip(dilations, kernel.shape[2:], strict=True)
    ]
    padding = paddings(op, options, x, y, extents, strides)
    if op == "Conv":
        window_strides, lhs_dilation = strides, None
    else:
        window_strides, lhs_dilation = [1] * n, strides
        # [c o/g k l] -> [o c/g k l], turned by 180°.
        kernel = lax.rev(kernel, range(2, n + 2))
        kernel = kernel.reshape(groups, -1, *kernel.shape[1:]).swapaxes(1, 2)
        kernel = kernel.reshape(-1, *kernel.shape[2:])
    result = handgrad.conv_general_dilated(
        x,
        kernel,
        window_strides,
        padding,
        lhs_dilation,
        dilations,
        feature_group_count=groups,
        implementation=implementation,
    )
    for b in bias:
        result = handgrad.add_bias(result.swapaxes(1, -1), b).swapaxes(1, -1)
    return result


def test_all_cases_are_found():
    for op, least in LEAST.items():
        assert sum(case.values[0] == op for case in EVERY) >= least


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("op", "options", "arrays", "y"), CASES)
def test_case(op, options, arrays, y, dtype):
    """The published value; autodiff's gradients for a random cotangent."""
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(dtype)

    def outcome(implementation, dy, arrays):
        value, vjp = jax.vjp(
            functools.partial(run, implementation, op, options, y=y), arrays
        )
        return value, vjp(dy)[0]

    with jax.enable_x64(dtype == "float64"):
        arrays = [jnp.asarray(a, dtype) for a in arrays]
        (value, hand), (_, auto) = (
            jax.jit(functools.partial(outcome, how))(dy, arrays)
            for how in (None, "autodiff")
        )
    assert value.shape == y.shape
    np.testing.assert_allclose(value, y, rtol=1e-3, atol=1e-5)  # y is float32
    tolerance = 1e-4 if dtype == "float32" else 1e-11
    for a, b in zip(hand, auto, strict=True):
        scale = np.max(np.abs(b), initial=0)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def geometry(options):
    """ONNX's words in ours: the arguments that all pools share."""
    n = len(options["kernel_shape"])
    auto = options.get("auto_pad", b"NOTSET").decode()
    pads = options.get("pads", [0] * (2 * n))
    named = {"SAME_UPPER": "SAME", "SAME_LOWER": "SAME_LOWER", "VALID": "VALID"}
    return {
        "window_shape": options["kernel_shape"],
        "strides": options.get("strides"),
        "padding": named.get(auto, list(zip(pads[:n], pads[n:], strict=True))),
        "window_dilation": options.get("dilations"),
    }


def pool(op, options, implementation, x, *others):
    """The op of a channels-first image: its value, and indices if it has them."""
    x, *others = (jnp.moveaxis(a, 1, -1) for a in (x, *others))
    how = {"implementation": implementation}
    ceil = {"ceil_mode": bool(options.get("ceil_mode", 0))}
    if op == "MaxPool":
        found = handgrad.max_pool_with_argmax(x, **geometry(options), **ceil, **how)
    elif op == "AveragePool":
        included = bool(options.get("count_include_pad", 0))
        described = geometry(options) | ceil | {"count_include_pad": included}
        found = [handgrad.avg_pool(x, **described, **how)]
    elif op == "LpPool":
        norm = options.get("p", 2)
        found = [handgrad.lp_pool(x, norm=norm, **geometry(options), **ceil, **how)]
    elif op == "GlobalMaxPool":
        found = [handgrad.max_pool(x, None, **how)]
    elif op == "GlobalAveragePool":
        found = [handgrad.avg_pool(x, None, **how)]
    else:
        described = geometry(options)
        found = [handgrad.max_unpool(x, *others, **described, **how)]
    return [jnp.moveaxis(a, -1, 1) for a in found]


def with_channels(index, x, shape):
    """ONNX's index into the whole tensor, from ours into the image of a channel."""
    pixels = np.prod(shape[2:])
    images = np.arange(shape[0] * shape[1]).reshape(*shape[:2], *[1] * (x.ndim - 2))
    return index + images * pixels


@pytest.mark.parametrize(("op", "options", "arrays", "outputs"), POOLS)
def test_pool(op, options, arrays, outputs):
    """The published values and indices; autodiff's gradient in float64."""
    y, *indices = outputs
    x, *others = arrays
    if op == "MaxUnpool":
        # ONNX counts over the whole tensor, and may ask for more pixels at the end.
        whole, *asked = others
        others = [whole - with_channels(np.zeros_like(whole), x, unpooled(x, options))]
        if asked:
            assert asked[0].tolist() == list(y.shape)
            y = y[tuple(map(slice, unpooled(x, options)))]
    run = functools.partial(pool, op, options)
    value, *found = jax.jit(functools.partial(run, None))(x, *others)
    np.testing.assert_allclose(value, y, rtol=1e-3, atol=1e-6)  # one has four digits
    if indices and not options.get("storage_order", 0):
        np.testing.assert_array_equal(
            with_channels(np.asarray(found[0]), x, x.shape), indices[0]
        )
    dilated = op == "MaxPool" and max(options.get("dilations", [1])) > 1
    if x.dtype == np.uint8 or dilated:  # no gradient; JAX has none
        return
    with jax.enable_x64(True):
        dy = np.random.default_rng(0).standard_normal(y.shape)

        def gradient(implementation, dy, x):
            _, vjp = jax.vjp(lambda x: run(implementation, x, *others)[0], x)
            return vjp(dy)[0]

        x = x.astype(np.float64)
        hand, auto = (
            jax.jit(functools.partial(gradient, how))(dy, x)
            for how in (None, "autodiff")
        )
    np.testing.assert_allclose(hand, auto, rtol=1e-10, atol=1e-10)


def unpooled(x, options):
    """The fewest pixels that have so many windows: the shape ONNX's indices are of."""
    n = len(options["kernel_shape"])
    pads = options.get("pads", [0] * (2 * n))
    strides = options.get("strides", [1] * n)
    sizes = [
        s * (p - 1) + k - low - high
        for s, p, k, low, high in zip(
            strides,
            x.shape[2:],
            options["kernel_shape"],
            pads[:n],
            pads[n:],
            strict=True,
        )
    ]
    return (*x.shape[:2], *sizes)
