"""`python -m handgrad check`: what it prints, and its exit status."""

import json

import pytest

from handgrad.__main__ import main

QUICK = ["--checks", "structure,values,cotangents"]


def check(*words):
    return main(["check", *words])


def test_a_right_rule(capsys, tmp_path):
    path = tmp_path / "report.json"
    words = ["--shape", "2,6", "--shape", "6,3", "--json", str(path)]
    reference = ["--option", "implementation=hand", *QUICK]
    assert check("handgrad:dense", *words, *reference) == 0
    assert "3 of 3 checks passed" in capsys.readouterr().out
    assert json.loads(path.read_text())["passed"]


def test_a_wrong_rule(capsys, tmp_path):
    reference = ["--reference", "jax.numpy:cos", "--plot", str(tmp_path / "maps.png")]
    assert check("jax.numpy:sin", "--shape", "4", *reference, *QUICK) == 1
    assert "FAILED" in capsys.readouterr().out
    assert (tmp_path / "maps.png").exists()


def test_dtypes_and_checks_left_out(capsys):
    words = ["--shape", "3,4:bfloat16", "--shape", "3:int32", "--without", "export"]
    f = "handgrad:softmax_cross_entropy_with_integer_labels"
    assert check(f, *words, "--checks", "structure,export") == 0
    out = capsys.readouterr().out
    assert "structure" in out
    assert "export" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jax.numpy", "--shape", "3"], "must be package.module:function"),
        (["no.such.module:f"], "No module named 'no'"),
        (["jax.numpy:nothing"], "nothing"),
        (["jax.numpy:sin"], "args hold no floating-point array"),
        (["jax.numpy:sin", "--shape", "3,x"], "must be numbers with commas"),
        (["jax.numpy:sin", "--shape", "-3"], "must not be negative"),
        (["jax.numpy:sin", "--shape", "3:float8"], "'float8' is none of float32"),
        (["jax.numpy:sin", "--shape", "3", "--option", "x"], "NAME=VALUE"),
        (["jax.numpy:sin", "--shape", "3", "--checks", "fast"], "must be among"),
        (["jax.numpy:sin", "--shape", "3", "--without", "fast"], "'fast' is none of"),
        (["jax.numpy:dot", "--shape", "3", "--shape", "4"], "TypeError"),
    ],
)
def test_a_bad_call(capsys, words, message):
    words = [f"--shape={w}" if w == "-3" else w for w in words]
    words = [w for w in words if w != "--shape" or "--shape=-3" not in words]
    assert check(*words) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert not out
