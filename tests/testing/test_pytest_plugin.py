"""The plug-in in a process of its own, as a project has it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = """
import jax.numpy as jnp, numpy as np, pytest
from handgrad.testing import RuleCase

x = np.linspace(-1, 1, 4, dtype=np.float32)
SOME = ("structure", "cotangents", "kinks", "shard_map")
RULES = [
    RuleCase("sin", jnp.sin, (x,), reference=jnp.sin, checks=SOME),
    RuleCase(
        "wrong", lambda x: 2 * jnp.sin(x), (x,), jnp.sin, ("float32", "bfloat16"),
        ("values",),
    ),
]

@pytest.mark.check_rules(*RULES)
def test_rules(rule_check):
    rule_check()

def test_fixture(check_rule):
    assert check_rule(jnp.sin, (x,), checks=["values"]).passed
"""


def run(folder, *flags):
    environment = os.environ | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
    }
    command = [sys.executable, "-m", "pytest", "-p", "_handgrad_pytest", "-rs", *flags]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def project(tmp_path):
    (tmp_path / "test_rules.py").write_text(PROJECT)
    return tmp_path


def test_one_test_a_rule_check_and_dtype(project):
    found = run(project, "-v", "--strict-markers")
    outcomes = dict(re.findall(r"::(\S+) (PASSED|FAILED|SKIPPED)", found.stdout))
    assert outcomes == {
        "test_rules[sin-structure-float32]": "PASSED",
        "test_rules[sin-cotangents-float32]": "PASSED",
        "test_rules[sin-kinks-float32]": "PASSED",
        "test_rules[sin-shard_map-float32]": "SKIPPED",
        "test_rules[wrong-values-float32]": "FAILED",
        "test_rules[wrong-values-bfloat16]": "FAILED",
        "test_fixture": "PASSED",
    }, found.stdout
    assert "there is one device" in found.stdout
    assert "Hint: it is 2 times the truth" in found.stdout
    assert found.returncode == 1


def test_the_marker_needs_the_fixture(tmp_path):
    text = "import pytest\n@pytest.mark.check_rules()\ndef test_it(): pass\n"
    (tmp_path / "test_it.py").write_text(text)
    found = run(tmp_path)
    assert found.returncode not in (0, 1)
    assert "must take the fixture rule_check" in found.stdout + found.stderr


def test_the_entry_point_is_the_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (module,) = project["entry-points"]["pytest11"].values()
    assert (ROOT / f"{module}.py").exists()
    # Loading it must leave JAX to the project's conftest.py.
    text = f"import {module}, sys; sys.exit('jax' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", text], env=environment, check=True)
