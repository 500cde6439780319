"""The explained choice, and the measured one: what is followed, what is ignored."""

import json
import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import handgrad
from handgrad import ConvFormulas
from handgrad.convolution import choose, rule, tuned, tuning
from handgrad.convolution.geometry import Geometry

NHWC = ("NHWC", "HWIO", "NHWC")
DIRECTIONS = ("forward", "input_gradient", "kernel_gradient")
# lhs, rhs, options of conv_general_dilated
GEOMETRIES = {
    "3x3": ((2, 6, 6, 16), (3, 3, 16, 16), {}),
    "1x1": ((2, 6, 6, 16), (1, 1, 16, 8), {"window_strides": (2, 2)}),
    "stem": ((2, 8, 8, 3), (7, 7, 3, 8), {"window_strides": (2, 2)}),
    "one channel": ((2, 8, 8, 1), (5, 5, 1, 6), {"padding": "VALID"}),
    "grouped": ((2, 6, 6, 8), (3, 3, 4, 8), {"feature_group_count": 2}),
    "depthwise": ((2, 6, 6, 4), (3, 3, 1, 4), {"feature_group_count": 4}),
    "batch groups": ((4, 6, 6, 3), (3, 3, 3, 4), {"batch_group_count": 2}),
    "transposed": (
        (2, 4, 4, 3),
        (4, 4, 3, 2),
        {"lhs_dilation": (2, 2), "padding": [(2, 2), (2, 2)]},
    ),
    "channels first": (
        (2, 4, 6, 6),
        (4, 1, 3, 3),
        {"feature_group_count": 4, "dimension_numbers": None},
    ),
}
every_geometry = pytest.mark.parametrize(
    ("lhs", "rhs", "options"),
    [
        pytest.param(
            lhs,
            rhs,
            {
                "window_strides": (1, 1),
                "padding": "SAME",
                "dimension_numbers": NHWC,
                **options,
            },
            id=name,
        )
        for name, (lhs, rhs, options) in GEOMETRIES.items()
    ],
)


@pytest.fixture(autouse=True)
def nothing_tuned(monkeypatch):
    monkeypatch.delenv(tuned.ENVIRONMENT, raising=False)
    handgrad.load_tuned(None)
    yield
    handgrad.load_tuned(None)


class Marked:
    """A formula whose directions can be told in lowered code."""

    def __init__(self, name, formula):
        self.name, self.formula = name, formula

    def __getattr__(self, direction):
        compute = getattr(self.formula, direction)

        def marked(a, b, spec):
            with jax.named_scope(f"<{direction}:{self.name}>"):
                return compute(a, b, spec)

        return marked


@pytest.fixture
def run(monkeypatch):
    """Returns the formulas in the code that is lowered for a platform."""
    marked = {name: Marked(name, formula) for name, formula in rule.FORMULAS.items()}
    monkeypatch.setattr(rule, "FORMULAS", marked)

    def formulas(function, *arrays, platform="cpu"):
        loss = lambda *arrays: jnp.sum(jnp.sin(function(*arrays)))
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(*arrays)
        lowered = traced.lower(lowering_platforms=(platform,))
        text = lowered.as_text(debug_info=True)
        # The outermost: a formula may be made of others.
        first = re.findall(r'"[^"<]*<(\w+):(\w+)>', text)
        found = {d: {name for at, name in first if at == d} for d in DIRECTIONS}
        assert all(len(names) == 1 for names in found.values()), found
        return ConvFormulas(**{d: name for d, (name,) in found.items()})

    return formulas


@every_geometry
def test_explains_what_runs(run, lhs, rhs, options):
    conv = lambda lhs, rhs: handgrad.conv_general_dilated(lhs, rhs, **options)
    for ours, lowering in (("cpu", "cpu"), ("gpu", "cuda"), ("tpu", "tpu")):
        choice = handgrad.explain_choice(lhs, rhs, **options, platform=ours)
        assert choice.platform == ours
        assert choice.formulas == run(
            conv, jnp.ones(lhs), jnp.ones(rhs), platform=lowering
        )


def test_explains_conv_and_conv_transpose(run):
    x, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((4, 4, 3, 2))
    conv = lambda x, k: handgrad.conv(x, k, strides=2)
    choice = handgrad.explain_choice(
        x.shape, kernel.shape, (2, 2), "SAME", dimension_numbers=NHWC
    )
    assert choice.formulas == run(conv, x, kernel)
    transposed = lambda x, k: handgrad.conv_transpose(x, k, (2, 2), "SAME")
    choice = handgrad.explain_choice(
        x.shape, kernel.shape, (1, 1), [(2, 2)] * 2, (2, 2), dimension_numbers=NHWC
    )
    assert choice.formulas == run(transposed, x, kernel)


def test_choice_is_a_table():
    choice = handgrad.explain_choice(
        (1, 8, 9, 9), (8, 1, 3, 3), (1, 1), "SAME", None, None, None, 8
    )
    assert choice.platform == jax.default_backend()
    rows = [line.split(maxsplit=2) for line in str(choice).splitlines()]
    assert [row[0] for row in rows] == list(DIRECTIONS)
    for direction, name, because in rows:
        assert getattr(choice, direction) == name
        assert choice.reasons[direction] == because


@pytest.mark.parametrize(
    ("arguments", "options", "exception", "message"),
    [
        (
            ((2, 6, 6, 4), (3, 3, 3, 8), (1, 1), "SAME"),
            {"dimension_numbers": NHWC},
            ValueError,
            r"conv_general_dilated: kernel .* 4 input channels",
        ),
        (
            ((2, 4, 6, 6), (8, 4, 3, 3), (1, 1), "same-ish"),
            {},
            ValueError,
            r"conv_general_dilated: padding \(='same-ish'\)",
        ),
        (
            ((2, 4, 6, 6), (8, 4, 3, 3), (1, 1), "SAME"),
            {"dtype": "complex64"},
            TypeError,
            r"conv_general_dilated: lhs must be real",
        ),
        (
            ((2, 4, 6, 6), (8, 4, 3, 3), (1, 1), "SAME"),
            {"platform": "CPU"},
            ValueError,
            r"explain_choice: platform \(='CPU'\) must be one of 'cpu', 'gpu'",
        ),
        (
            ((2, 4, 6, -6), (8, 4, 3, 3), (1, 1), "SAME"),
            {},
            ValueError,
            r"explain_choice: lhs_shape \(=-6\)",
        ),
        (
            ((2, 4, 6, 6), (8, 4, 7, 7), (1, 1), "VALID"),
            {},
            ValueError,
            r"explain_choice: the kernel .* must fit .*: the result is empty",
        ),
    ],
)
def test_explain_choice_refuses(arguments, options, exception, message):
    with pytest.raises(exception, match=message):
        handgrad.explain_choice(*arguments, **options)


# A file by hand ----------------------------------------------------------------------

X, KERNEL = (2, 6, 6, 4), (3, 3, 4, 24)
OTHERS = ConvFormulas("taps", "gemm", "phases")  # never handgrad's own choice here


def entry(**changes):
    return {
        "x": X,
        "kernel": KERNEL,
        "dtype": "float32",
        "strides": [1, 1],
        "padding": [[1, 1], [1, 1]],
        "input_dilation": [1, 1],
        "kernel_dilation": [1, 1],
        "feature_group_count": 1,
        "precision": None,
        "preferred_element_type": None,
        "formulas": vars(OTHERS),
        "seconds": {"forward": {"rot180": 3e-3, "taps": 2e-3}},
        **changes,
    }


def content(*entries, **changes):
    entries = entries or (entry(),)
    return {**tuned.environment(), "convolutions": entries, **changes}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tuned.json"


def ones(dtype="float32"):
    return jnp.ones(X, dtype), jnp.ones(KERNEL, dtype)


def explained(**options):
    return handgrad.explain_choice(
        X, KERNEL, (1, 1), "SAME", dimension_numbers=NHWC, **options
    )


def test_default_follows_the_file(run, path):
    default = run(handgrad.conv, *ones())
    path.write_text(json.dumps(content()))
    assert handgrad.load_tuned(path) == 1
    assert run(handgrad.conv, *ones()) == OTHERS == explained().formulas
    assert explained().reasons == {
        "forward": "tuned: measured on this machine, 1.5 times faster than rot180",
        "input_gradient": "tuned: measured on this machine",
        "kernel_gradient": "tuned: measured on this machine",
    }
    assert handgrad.load_tuned(None) == 0
    assert run(handgrad.conv, *ones()) == default


def test_a_followed_file_computes_the_same(path):
    grad = lambda how: jax.grad(
        lambda x, k: jnp.sum(jnp.sin(handgrad.conv(x, k, implementation=how))), (0, 1)
    )
    random = np.random.default_rng(0)
    arrays = [jnp.asarray(random.standard_normal(s, np.float32)) for s in (X, KERNEL)]
    path.write_text(json.dumps(content()))
    handgrad.load_tuned(path)
    for a, b in zip(grad(None)(*arrays), grad("autodiff")(*arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_only_the_very_convolution_follows(run, path):
    default = all_by("rot180")
    strided = run(lambda x, k: handgrad.conv(x, k, strides=2), *ones())
    path.write_text(json.dumps(content()))
    handgrad.load_tuned(path)
    assert run(handgrad.conv, jnp.ones((3, *X[1:])), jnp.ones(KERNEL)) == default
    for dtype, options, follows in (
        ("bfloat16", {}, False),
        ("float32", {"strides": 2}, False),
        ("float32", {"padding": "VALID"}, False),
        ("float32", {"precision": "highest"}, False),
        ("float32", {"preferred_element_type": "float32"}, True),
        ("bfloat16", {"preferred_element_type": "float32"}, False),
    ):
        conv = lambda x, k, options=options: handgrad.conv(x, k, **options)
        other = strided if options == {"strides": 2} else default
        assert run(conv, *ones(dtype)) == (OTHERS if follows else other), options
    assert explained(precision="highest").formulas == default
    assert explained(dtype="bfloat16").formulas == default


def test_precision_has_one_name_in_the_file(run, path):
    path.write_text(json.dumps(content(entry(precision=["highest", "highest"]))))
    handgrad.load_tuned(path)
    highest = jax.lax.Precision.HIGHEST
    for precision in ("highest", highest, (highest, highest)):
        conv = lambda x, k, p=precision: handgrad.conv(x, k, precision=p)
        assert run(conv, *ones()) == OTHERS


def test_compiled_functions_follow(path):
    x, kernel = ones()
    conv = jax.jit(handgrad.conv)
    met = []
    with choose.recording() as asked:
        conv(x, kernel)
        met.append(len(asked))
        conv(x, kernel)
        met.append(len(asked))
        path.write_text(json.dumps(content()))
        handgrad.load_tuned(path)
        conv(x, kernel)
        met.append(len(asked))
        handgrad.load_tuned(path)  # nothing changes
        conv(x, kernel)
        met.append(len(asked))
    assert met == [1, 1, 2, 2]


def test_a_gpu_follows_its_own_file(run, path, monkeypatch):
    here = tuned.environment() | {"platform": "gpu", "device_kind": "NVIDIA H200"}
    monkeypatch.setattr(tuned, "environment", lambda: here)
    path.write_text(json.dumps(content()))
    cpu, tpu = (run(handgrad.conv, *ones(), platform=p) for p in ("cpu", "tpu"))
    assert handgrad.load_tuned(path) == 1
    for platform in ("cuda", "rocm"):
        assert run(handgrad.conv, *ones(), platform=platform) == OTHERS
        assert explained(platform=platform).formulas == OTHERS
    assert explained(platform="gpu").formulas == OTHERS
    assert run(handgrad.conv, *ones(), platform="cpu") == cpu
    assert run(handgrad.conv, *ones(), platform="tpu") == tpu
    conv = jax.jit(handgrad.conv)
    jax.export.export(conv, platforms=["cpu", "cuda", "tpu"])(*ones())


def test_an_explicit_mesh_may_be_beyond_it(path):
    """phases does no input channels that a mesh splits: the default does them."""
    path.write_text(json.dumps(content(entry(formulas=vars(all_by("phases"))))))
    handgrad.load_tuned(path)
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Explicit,))
    put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
    x, kernel = ones()
    by_example, by_channel = put(x, "i"), put(x, None, None, None, "i")
    chosen = lambda x: choose.explain(
        Geometry(x.shape, KERNEL, spec_of(x, kernel)), "cpu"
    )
    assert chosen(by_example)["kernel_gradient"][0] == "phases"
    assert chosen(by_channel)["kernel_gradient"][0] != "phases"
    with jax.set_mesh(mesh):
        grad = jax.grad(lambda k: jnp.sum(handgrad.conv(by_example, k)))
        dkernel = grad(put(kernel))
    expected = jax.grad(lambda k: jnp.sum(handgrad.conv(x, k)))(kernel)
    np.testing.assert_allclose(dkernel, expected, rtol=1e-5)


def all_by(name):
    return ConvFormulas(name, name, name)


def spec_of(x, kernel):
    return rule.describe(
        "conv",
        x,
        kernel,
        1,
        "SAME",
        1,
        1,
        groups=1,
        precision=None,
        preferred_element_type=None,
        y_sharding=None,
    )


DAMAGED = {
    "not JSON": ("{", r"not a file of handgrad\.tune's \(JSONDecodeError"),
    "not UTF-8": (b"\xff\xfe{}", r"UnicodeDecodeError"),
    "nested too deep": ("[" * 100_000, r"RecursionError"),
    "a list": ([], r"not a file of handgrad\.tune's \(TypeError"),
    "another JSON file": ({"lr": 0.1}, r"not a file of handgrad\.tune's .*'format'"),
    "format": ({"format": 2}, r"measured with format 2, this is 1"),
    "jax": ({"jax": "0.4.0"}, r"measured with jax '0\.4\.0', this is"),
    "handgrad": ({"handgrad": "9"}, r"measured with handgrad '9'"),
    "platform": ({"platform": "tpu"}, r"measured with platform 'tpu', this is 'cpu'"),
    "device": ({"device_kind": "TPU v9"}, r"measured with device_kind 'TPU v9'"),
    "no list": ({"convolutions": None}, r"TypeError"),
    "missing field": ({"convolutions": [{"x": [1]}]}, r"KeyError: 'kernel'"),
    "formula": (entry(formulas=vars(all_by("fft"))), r"KeyError: 'fft'"),
    "no formula": (entry(formulas=vars(all_by("autodiff"))), r"KeyError: 'autodiff'"),
    "unhashable": (entry(formulas=vars(all_by([]))), r"TypeError"),
    "direction": (entry(formulas={"forward": "taps"}), r"TypeError: .*missing"),
    "unsuitable": (
        entry(formulas=vars(all_by("grouped"))),
        r"'grouped' does several groups",
    ),
    "text for number": (entry(strides=["1", "1"]), r"TypeError"),
    "fraction": (entry(strides=[1.5, 1]), r"TypeError"),
    "lengths": (entry(strides=[1]), r"ValueError"),
    "padding": (entry(padding=[[1], [1]]), r"ValueError"),
    "dtype": (entry(dtype="float31"), r"TypeError: .*float31"),
    "seconds": (entry(seconds={"forward": {"taps": 0}}), r"must be positive"),
}


def write_damaged(path, damaged):
    if isinstance(damaged, dict) and "x" in damaged:
        damaged = content(damaged)
    elif isinstance(damaged, dict) and damaged != {"lr": 0.1}:
        damaged = content(**damaged)
    if isinstance(damaged, bytes):
        path.write_bytes(damaged)
    else:
        path.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))


@pytest.mark.parametrize(("damaged", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_reported_and_ignored(path, damaged, reason, monkeypatch):
    write_damaged(path, damaged)
    default = explained()
    message = rf"handgrad: .*tuned\.json: .*{reason}.*; it is ignored"
    with pytest.warns(UserWarning, match=message) as warned:
        assert handgrad.load_tuned(path) == 0
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert explained() == default

    # The same from the environment, at the first choice and never again.
    monkeypatch.setenv(tuned.ENVIRONMENT, str(path))
    monkeypatch.setattr(tuned, "_current", None)
    with pytest.warns(UserWarning, match=message):
        assert handgrad.conv(*ones()).shape == (2, 6, 6, 24)
    assert explained() == default


def test_a_missing_file_is_reported_and_ignored(path):
    for where in (path, path.parent):
        with pytest.warns(UserWarning, match=rf"{where}: cannot be read .*; it is ign"):
            assert handgrad.load_tuned(where) == 0


def test_the_environment_names_the_file(path, monkeypatch, run):
    path.write_text(json.dumps(content()))
    monkeypatch.setenv(tuned.ENVIRONMENT, str(path))
    monkeypatch.setattr(tuned, "_current", None)  # as in a new process
    assert run(handgrad.conv, *ones()) == OTHERS
    path.unlink()  # it is read once
    assert run(handgrad.conv, *ones()) == OTHERS
    monkeypatch.setenv(tuned.ENVIRONMENT, "")
    monkeypatch.setattr(tuned, "_current", None)
    assert explained().reasons["forward"][:5] != "tuned"


def test_a_new_process_follows_the_environment(path):
    path.write_text(json.dumps(content()))
    code = f"""
import sys, handgrad
from handgrad.convolution import tuned
assert tuned._current is None  # nothing is read at import
assert "handgrad.cases" not in sys.modules
print(handgrad.explain_choice({X}, {KERNEL}, (1, 1), "SAME", dimension_numbers={NHWC}))
"""
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {tuned.ENVIRONMENT: str(path), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line.split()[1] for line in out.splitlines()] == ["taps", "gemm", "phases"]


# tune --------------------------------------------------------------------------------


def test_tune_measures_saves_and_follows(path, run):
    """Everything as it is, with little time for each formula."""
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    loss = lambda kernel: jnp.sum(handgrad.conv(x, kernel) ** 2)
    report = handgrad.tune(jax.grad(loss), kernel, path=path, seconds=1e-3)
    (convolution,) = report.convolutions
    for direction in DIRECTIONS:
        seconds = convolution.measured.seconds[direction]
        assert set(seconds) == set(rule.FORMULAS) - {
            "transposed",
            "block_diagonal",
            "grouped",
            "winograd",
        }
        chosen = getattr(convolution.measured.formulas, direction)
        assert seconds[chosen] < 1.03 * min(seconds.values())
    assert str(path) in str(report)
    assert "kernel [3, 3, 2, 2]" in str(report)
    assert run(handgrad.conv, x, kernel) == convolution.measured.formulas
    assert handgrad.load_tuned(path) == 1
    assert len(path.read_text().splitlines()) < 12
    assert [p.name for p in path.parent.iterdir()] == ["tuned.json"]


@pytest.fixture
def clock(monkeypatch):
    """What each formula is said to take: nothing is compiled."""
    seconds = {**dict.fromkeys(rule.FORMULAS, 9.0), "rot180": 1.0}
    monkeypatch.setattr(
        tuning,
        "_times",
        lambda direction, geometry, names, _: ({n: seconds[n] for n in names}, {}),
    )
    return seconds


def names(report):
    return [convolution.measured.formulas for convolution in report.convolutions]


def test_the_default_stays_unless_another_is_clearly_faster(path, clock):
    x, kernel = jnp.ones(X), jnp.ones((5, 5, 4, 8))
    tune = lambda: names(handgrad.tune(handgrad.conv, x, kernel, path=path))
    explained = lambda: handgrad.explain_choice(
        x.shape, kernel.shape, (1, 1), "SAME", dimension_numbers=NHWC
    )
    default = explained().formulas
    assert default == ConvFormulas("rot180", "mec", "rot180")
    clock.update(rot180=1.0, mec=1.0, gemm=0.98)
    assert tune() == [default]
    clock.update(gemm=0.96)
    assert tune() == [all_by("gemm")]
    assert explained().reasons["forward"].endswith(", 1.04 times faster than rot180")


def test_formulas_that_round_more_are_asked_for(path, clock):
    tune = lambda **options: names(
        handgrad.tune(handgrad.conv, *ones(), path=path, **options)
    )
    clock.update(winograd=0.1, gemm=0.2)
    assert tune() == [all_by("gemm")]
    assert tune(rounding=4.0) == [all_by("winograd")]


def test_a_formula_that_fails_is_left_out(path, monkeypatch):
    def too_large(*arrays):
        raise MemoryError("too large\nby far")

    gemm = types.SimpleNamespace(**dict.fromkeys(DIRECTIONS, too_large))
    monkeypatch.setitem(rule.FORMULAS, "gemm", gemm)
    x, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((2, 2, 1, 24))
    report = handgrad.tune(handgrad.conv, x, kernel, path=path, seconds=1e-3)
    (convolution,) = report.convolutions
    why = {"gemm": "MemoryError: too large"}
    assert convolution.failed == dict.fromkeys(DIRECTIONS, why)
    assert all("gemm" not in s for s in convolution.measured.seconds.values())
    assert "gemm failed: MemoryError: too large\n" in str(report)


def test_nothing_that_works_leaves_the_default(path, monkeypatch):
    failed = lambda direction, geometry, names, seconds: ({}, dict.fromkeys(names, "?"))
    monkeypatch.setattr(tuning, "_times", failed)
    default = explained().formulas
    assert names(handgrad.tune(handgrad.conv, *ones(), path=path)) == [default]


def test_convolutions_as_they_are_met(path, clock):
    """One entry a geometry; vmap's are of one example; named formulas are not met."""
    x, kernel = jnp.ones((2, 1, 6, 6, 4)), jnp.ones(KERNEL)

    def model(x, kernel):
        y = jax.vmap(handgrad.conv, (0, None))(x, kernel)
        y = handgrad.conv(x[0], kernel) + handgrad.conv(x[1], kernel, strides=1) + y[0]
        y = handgrad.conv(y, jnp.ones((1, 1, 24, 2)), implementation="gemm")
        return handgrad.conv_transpose(y, jnp.ones((2, 2, 2, 3)), (2, 2), "SAME")

    report = handgrad.tune(model, x, kernel, path=path)
    assert [c.geometry["x"] for c in report.convolutions] == [
        [1, 6, 6, 4],
        [1, 6, 6, 2],
    ]
    assert [c.geometry["input_dilation"] for c in report.convolutions][1] == [2, 2]


def test_a_function_that_was_called_before_is_met_again(path, clock):
    """JAX would remember its trace."""
    conv = jax.jit(handgrad.conv)
    conv(*ones())
    assert len(handgrad.tune(conv, *ones(), path=path).convolutions) == 1


def test_tune_takes_shapes(path, clock):
    shapes = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in (X, KERNEL)]
    report = handgrad.tune(handgrad.conv, *shapes, path=path)
    assert report.convolutions[0].geometry["dtype"] == "bfloat16"


def test_tune_adds_to_its_file(path, clock):
    x, kernel = ones()
    handgrad.tune(handgrad.conv, x, kernel, path=path)
    handgrad.tune(handgrad.conv, x[:1], kernel, path=path)
    clock.update(gemm=0.1)
    handgrad.tune(handgrad.conv, x[:1], kernel, path=path)
    entries = json.loads(path.read_text())["convolutions"]
    assert [e["x"][0] for e in entries] == [2, 1]
    assert entries[1]["formulas"]["forward"] == "gemm" != entries[0]["formulas"]


@pytest.mark.parametrize("before", ["{", json.dumps({"format": 0})])
def test_tune_replaces_any_other_file(path, clock, before):
    path.write_text(before)
    handgrad.tune(handgrad.conv, *ones(), path=path)
    assert handgrad.load_tuned(path) == 1


def test_a_failing_write_leaves_the_old_file(path, clock, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    x, kernel = ones()
    handgrad.tune(handgrad.conv, x, kernel, path=path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        handgrad.tune(handgrad.conv, x[:1], kernel, path=path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["tuned.json"]


@pytest.mark.parametrize("how", ["gemm", "autodiff"])
def test_nothing_to_tune(path, how):
    conv = lambda x, k: handgrad.conv(x, k, implementation=how)
    with pytest.raises(ValueError, match=r"tune: function must compute a convolution"):
        handgrad.tune(conv, *ones(), path=path)
    assert not path.exists()
