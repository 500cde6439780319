import io
import re
import sys

import jax
import pytest

from handgrad import __main__, cases, explain
from handgrad.rules import RULES

FEW = ("article 4x4 with 3x3", "lenet5 loss", "empty batch")


@pytest.fixture
def few_cases(monkeypatch):
    """A few quick cases, and a moment to measure each."""
    few = tuple(
        case
        for case in cases.CASES
        if case.name in FEW and case.rule in ("conv", "softmax_cross_entropy")
    )
    assert len(few) == 3
    monkeypatch.setattr(cases, "CASES", few)
    monkeypatch.setattr(__main__, "SECONDS", 0.001)


@pytest.mark.parametrize("example", explain.EXAMPLES)
def test_explain(example, capsys):
    assert __main__.main(["explain", example]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].split(":")[0].isupper()
    assert max(map(len, lines)) <= 78
    assert lines[2].startswith("1. The ")
    differences = re.search(
        r"autodiff: (\S+) in the steps,\s(\S+) in handgrad's\srule\.$", out
    )
    assert differences
    assert all(float(number) <= 1e-6 for number in differences.groups())


def test_explain_conv_writes_the_sums_out(capsys):
    __main__.main(["explain", "conv"])
    out = capsys.readouterr().out
    assert "\n        ∂L/∂k = ⎢  84   94  104 ⎥\n" in out
    assert "= 1·1 + 2·2 + 3·5 + 4·6 = 44.\n" in out  # ∂L/∂k₁₁
    assert "∂L/∂b = Σδ = 1 + 2 + 3 + 4 = 10.\n" in out
    assert "= 1·1 + 2·0 + 3·2 + 4·1 = 11.\n" in out  # ∂L/∂x₂₂


@pytest.mark.parametrize("words", [["relu"], []])
def test_explain_what_is_not_there(words, capsys):
    assert __main__.main(["explain", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert all(name in err for name in explain.EXAMPLES)


@pytest.mark.parametrize("words", [["tables"], ["--fast"], ["explain", "conv", "me"]])
def test_unknown_words(words, capsys):
    with pytest.raises(SystemExit) as error:
        __main__.main(words)
    assert error.value.code == 2
    assert "usage: python -m handgrad" in capsys.readouterr().err


def test_table(few_cases, capsys):
    assert __main__.main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar without a terminal
    assert "…" not in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert set(RULES) <= set(rows)
    for name, rule in RULES.items():  # a long list is folded over several lines
        block = re.search(rf"^ {name} .*\n(?:  .*\n)*", out, re.MULTILINE)
        assert block
        words = block[0].replace(",", " ").split()
        assert set(rule.formulas) <= set(words)
    for error in rows["conv"][-3:-1] + rows["softmax_cross_entropy"][-3:-1]:
        assert 0 <= float(error) < 1e-5
    assert rows["conv"][-1] == "–"  # no layer of a network among its few cases
    assert float(rows["softmax_cross_entropy"][-1].removesuffix("×")) > 0
    assert rows["relu"][-3:] == ["–", "–", "–"]  # no case at all
    assert rows["measured"][3] == jax.__version__
    assert jax.default_backend() in rows["measured"]


def test_table_without_rich(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)  # an import of it fails
    assert __main__.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "rich" in err
    assert "pip install" in err


def test_a_narrow_encoding_is_no_error(monkeypatch):
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding="ascii") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert __main__.main(["explain", "dense"]) == 0
        stdout.flush()
        assert b"?L/?b = [ 4  1 ]" in written.getvalue()
