import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad
from experiments import compare_gradients
from experiments.compare_gradients import main
from handgrad import cases, measure
from handgrad.rules import RULES, Formula

KEYS = {"rule", "formula", "case", "dtype", "cotangent", "error", "autodiff_error"}
KEYS |= {"ratio", "passed"}


def refuse(token):
    raise AssertionError(f"{token} is not JSON")


def report_in(workdir):
    text = (workdir / "report.json").read_text()
    return json.loads(text, parse_constant=refuse)


def compare(workdir, rule, *flags):
    """The exit status and the report."""
    status = main(["--rule", rule, "--workdir", str(workdir), *flags])
    return status, report_in(workdir)


@pytest.fixture
def keep_cases(monkeypatch):
    """Leaves only the cases of these names."""

    def keep(*names):
        kept = tuple(case for case in cases.CASES if case.name in names)
        monkeypatch.setattr(cases, "CASES", kept)

    return keep


@pytest.fixture
def replace_tanh(monkeypatch, keep_cases):
    """Puts another core, or formulas, in the place of tanh's."""
    keep_cases("wide range")

    def replace(core, **options):
        formulas = {"hand": Formula(lambda x, parameters: core(x), **options)}
        rule = dataclasses.replace(RULES["tanh"], formulas=formulas)
        monkeypatch.setitem(RULES, "tanh", rule)

    return replace


def tanh_with(backward):
    core = jax.custom_vjp(jnp.tanh)
    core.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), backward)
    return core


def test_a_right_rule_passes(tmp_path, capsys):
    status, report = compare(tmp_path / "new" / "directory", "relu")
    assert status == 0
    assert report["passed"] is True
    assert report["versions"]["jax"] == jax.__version__
    assert report["device"]["platform"] == jax.devices()[0].platform
    rows = report["rules"]
    assert all(set(row) == KEYS for row in rows)
    assert all(row["passed"] is True for row in rows)
    assert {(row["dtype"], row["cotangent"]) for row in rows} == {
        ("float32", "value"),
        ("float32", "x"),
        ("bfloat16", "value"),
        ("bfloat16", "x"),
        ("float64", "difference quotient"),
    }
    assert {row["case"] for row in rows} == {case.name for case in cases.of("relu")}
    (skipped,) = report["skipped"]
    assert skipped["case"] == "at the kink"
    assert "kinks" in skipped["reason"]
    output = capsys.readouterr()
    assert "relu" in output.out
    assert f"{len(rows)} of {len(rows)} comparisons passed" in output.out
    assert output.err == ""
    names = {file.name for file in (tmp_path / "new" / "directory").iterdir()}
    assert names == {"report.json", "error_maps.png"}


def test_one_dtype_and_every_formula(tmp_path, keep_cases):
    keep_cases("article 4x4 with 3x3")
    status, report = compare(tmp_path, "conv", "--dtype", "bfloat16")
    assert status == 0
    assert {row["dtype"] for row in report["rules"]} == {"bfloat16", "float64"}
    formulas = {row["formula"] for row in report["rules"]}
    case = next(case for case in cases.of("conv") if "article" in case.name)
    names = handgrad.RULES["conv"].formulas
    assert formulas == {name for name in names if measure.suitable(name, case)}
    assert {row["cotangent"] for row in report["rules"]} == {
        "value",
        "x",
        "kernel",
        "difference quotient",
    }


def test_a_second_run_replaces_the_report(tmp_path, keep_cases):
    keep_cases("wide range")
    compare(tmp_path, "tanh", "--dtype", "float32")
    _, report = compare(tmp_path, "sigmoid", "--dtype", "float32")
    assert {row["rule"] for row in report["rules"]} == {"sigmoid"}


def test_a_wrong_gradient_fails(tmp_path, replace_tanh, capsys):
    def one_wrong_entry(y, dy):
        return ((dy * (1 - y * y)).at[1, 3].multiply(1.001),)

    replace_tanh(tanh_with(one_wrong_entry))
    status, report = compare(tmp_path, "tanh", "--dtype", "float32")
    assert status == 1
    assert report["passed"] is False
    passed = {row["cotangent"]: row["passed"] for row in report["rules"]}
    assert passed == {"value": True, "x": False, "difference quotient": False}
    output = capsys.readouterr().out
    assert "FAILED" in output
    assert "1 of 3 comparisons passed" in output


def test_a_kernel_that_is_not_turned_fails(tmp_path, keep_cases, monkeypatch):
    keep_cases("article 4x4 with 3x3")

    convolve = RULES["conv"].autodiff

    def forward(x, kernel, spec):
        return convolve(x, kernel, spec), (x, kernel)

    def backward(spec, residuals, dy):
        _, vjp = jax.vjp(lambda x, k: convolve(x, k[::-1, ::-1], spec), *residuals)
        return vjp(dy)

    core = jax.custom_vjp(convolve, nondiff_argnums=(2,))
    core.defvjp(forward, backward)
    rule = dataclasses.replace(RULES["conv"], formulas={"rot180": Formula(core)})
    monkeypatch.setitem(RULES, "conv", rule)
    status, report = compare(tmp_path, "conv", "--dtype", "float32")
    assert status == 1
    passed = {row["cotangent"]: row["passed"] for row in report["rules"]}
    assert passed == {
        "value": True,
        "x": False,
        "kernel": False,
        "difference quotient": False,
    }


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_fails(tmp_path, replace_tanh, value):
    replace_tanh(tanh_with(lambda y, dy: (jnp.full_like(y, value),)))
    status, report = compare(tmp_path, "tanh", "--dtype", "float32")
    assert status == 1
    value, cotangent, quotient = report["rules"]
    assert value["passed"] is True
    assert cotangent["passed"] is False
    assert cotangent["error"] is None or cotangent["error"] > 1e300
    assert quotient["passed"] is False
    assert quotient["error"] is None


def test_a_formula_that_raises_fails(tmp_path, replace_tanh):
    def broken(x):
        raise RuntimeError("no such luck\nnor more")

    (tmp_path / "error_maps.png").write_text("of an earlier run")
    replace_tanh(broken)
    status, report = compare(tmp_path, "tanh")
    assert status == 1
    assert [row["dtype"] for row in report["rules"]] == [
        "float32",
        "bfloat16",
        "float64",
    ]
    assert {row["cotangent"] for row in report["rules"]} == {"none"}
    assert not (tmp_path / "error_maps.png").exists()
    assert report["notes"][0].endswith(", float32: RuntimeError: no such luck")


def test_a_formula_that_is_not_for_a_case_is_skipped(tmp_path, replace_tanh):
    replace_tanh(jnp.tanh, unsuitable=lambda spec: "not for vectors")
    status, report = compare(tmp_path, "tanh")
    assert status == 1  # nothing was compared
    assert report["rules"] == []
    assert len(report["skipped"]) == 3
    assert "not for vectors" in report["skipped"][0]["reason"]


def test_a_rule_without_cases_fails(tmp_path, keep_cases):
    keep_cases()
    status, report = compare(tmp_path, "tanh")
    assert status == 1
    assert "no case" in report["notes"][0]


def fails_with(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("experiments.compare_gradients: ")
    assert output.err.count("\n") == 1
    return output.err


def test_bad_flags(capsys, tmp_path):
    error = fails_with(capsys, "--rule", "conf")
    assert "--rule conf" in error
    assert all(name in error for name in RULES)
    error = fails_with(capsys, "--dtype", "float8")
    assert "--dtype" in error
    assert "bfloat16" in error
    assert "--rules" in fails_with(capsys, "--rules", "conv")


def test_a_work_directory_that_is_a_file(capsys, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    for workdir in (path, path / "below"):
        error = fails_with(capsys, "--rule", "relu", "--workdir", workdir)
        assert str(workdir) in error
        assert "name a directory" in error
    assert path.read_text() == "mine"


def test_a_work_directory_that_takes_no_files(capsys, tmp_path, monkeypatch):
    def denied(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(compare_gradients.tempfile, "TemporaryFile", denied)
    error = fails_with(capsys, "--rule", "relu", "--workdir", tmp_path)
    assert f"--workdir {tmp_path}" in error
    assert "Permission denied" in error


def test_a_report_that_cannot_be_written(capsys, tmp_path, keep_cases):
    keep_cases("wide range")
    (tmp_path / "report.json").mkdir()
    assert main(["--rule", "relu", "--workdir", str(tmp_path)]) == 2
    assert "cannot be made or written" in capsys.readouterr().err
