"""The site's reference is whole: every public name is there, and every page is reached.

What only the build can tell, broken references and code that fails, the build tells:
`python docs` takes every warning as an error.
"""

import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path

import pytest

import handgrad

DOCS = Path(__file__).parents[2] / "docs"
PUBLIC = ["handgrad", "handgrad.testing", "handgrad.explain"]


def documented():
    """The names that the reference documents by directive."""
    text = "\n".join(p.read_text() for p in (DOCS / "reference").glob("*.md"))
    directive = r"^\.\. (?:auto\w+|py:\w+):: (\S+)$"
    return set(re.findall(directive, text, re.MULTILINE))


def swapped(module):
    """The Flax classes that are ours."""
    classes = vars(importlib.import_module(module)).items()
    return [n for n, c in classes if getattr(c, "__module__", "") == module]


@pytest.mark.parametrize("module", ["handgrad.linen", "handgrad.nnx"])
def test_every_flax_layer_is_documented(module):
    names = {n for n in swapped(module) if not n.startswith("_")}
    assert names
    assert {f"{module}.{name}" for name in names} - documented() == set()


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_documented(module):
    names = importlib.import_module(module).__all__
    constants = {"WIDTH", "EXAMPLES"}  # of the worked examples
    missing = {f"{module}.{name}" for name in names if name not in constants}
    assert missing - documented() == set()


def test_nothing_is_documented_that_is_not_there():
    for name in documented():
        value = pkgutil.resolve_name(name)
        if callable(value):
            assert inspect.getdoc(value), name


def test_every_rule_has_a_line_in_the_readme():
    text = (DOCS.parent / "README.md").read_text()
    own = [name for name in handgrad.RULES if name not in text]
    assert own == []


def test_every_page_is_in_the_contents():
    index = (DOCS / "index.md").read_text()
    pages = {
        str(path.relative_to(DOCS).with_suffix(""))
        for folder in ("derivations", "tutorials", "reference")
        for path in (DOCS / folder).glob("*.md")
    }
    assert pages == {line for line in index.splitlines() if line in pages}


def test_the_committed_benchmark_names_its_machine():
    report = json.loads((DOCS / "data" / "benchmark.json").read_text())
    assert report["finished"]
    assert report["rows"]
    assert {"device", "threads", "versions", "dtype"} <= set(report)


@pytest.mark.parametrize("path", sorted((DOCS / "tutorials").glob("*.md")), ids=str)
def test_a_tutorial_is_a_notebook_of_jupytext(path):
    jupytext = pytest.importorskip(
        "jupytext", reason="jupytext is not installed: pip install -e '.[docs]'"
    )
    notebook = jupytext.read(path)
    assert any(cell.cell_type == "code" for cell in notebook.cells)
    assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_no_page_fetches_anything():
    for path in DOCS.rglob("*.*"):
        if {"_build", "_figures"} & set(path.parts) or path.suffix not in (
            ".md",
            ".css",
            ".py",
        ):
            continue
        assert not re.search(r"(src|url\()\s*=?\s*[\"'(]?https?:", path.read_text()), (
            path
        )
