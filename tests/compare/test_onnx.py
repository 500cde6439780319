"""ONNX's published cases of Conv and ConvTranspose, and their gradients."""

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
LEAST = {"Conv": 33, "ConvTranspose": 14}


def node_cases():
    """Cases that are made by code, as (name, model, [(inputs, outputs)])."""
    from onnx.backend.test.case import node

    for module in ("conv", "convtranspose"):
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
    """Each case whose only node is one of the two ops: op, options, arrays, y."""
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
        for inputs, (y,) in sets:
            values = weights | dict(zip(free, inputs, strict=True))
            arrays = [values[each] for each in node.input]
            yield pytest.param(node.op_type, options, arrays, y, id=name)


CASES = list(cases())


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
        assert sum(case.values[0] == op for case in CASES) >= least


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
