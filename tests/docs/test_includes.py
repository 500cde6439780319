"""What the pages show of the code is there: a moved function fails here already."""

import ast
import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"
INCLUDE = re.compile(r"^```\{literalinclude\} (\S+)\n((?::.*\n)*)", re.MULTILINE)
INCLUDES = [
    (page.relative_to(DOCS), page.parent / path, dict(re.findall(r":(\S+): (.*)", how)))
    for page in sorted(DOCS.rglob("*.md"))
    for path, how in INCLUDE.findall(page.read_text())
]


def missing(code: str, options: dict[str, str]) -> str | None:
    """What an include names and the code lacks."""
    if name := options.get("pyobject"):
        defined = (getattr(node, "name", None) for node in ast.parse(code).body)
        return None if name.split(".")[0] in defined else name
    start, end = (
        re.sub(r"""^(["'])(.*)\1$""", r"\2", options.get(name, ""))
        for name in ("start-at", "end-before")
    )
    if start not in code:
        return start
    return None if end in code.partition(start)[2] else end


@pytest.mark.parametrize(("page", "path", "options"), INCLUDES, ids=str)
def test_what_a_page_includes_is_there(page, path, options):
    absent = missing(path.read_text(), options)
    assert absent is None, f"{page} shows {absent!r}, which is not in {path.name}"


def test_includes_are_found():
    assert len(INCLUDES) > 20


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pyobject": "f"}, None),
        ({"pyobject": "g"}, "g"),
        ({"start-at": '"def f"', "end-before": '"x = 1"'}, None),
        ({"start-at": '"def g"'}, "def g"),
        ({"start-at": '"x = 1"', "end-before": '"def f"'}, "def f"),
    ],
)
def test_what_is_missing_is_told(options, expected):
    assert missing("def f():\n    pass\n\n\nx = 1\n", options) == expected
