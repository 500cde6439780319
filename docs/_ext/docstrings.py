"""Our docstrings as reStructuredText: equations keep their lines and their signs.

A docstring's equations are paragraphs of their own, before its sections; they are
written plainly, so that `help()` shows them well. Here they become literal blocks.
"""

import re

from sphinx.application import Sphinx

SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Example|Yields):$")
# A line of mathematics: a short left side, `=`, and a right side.
EQUATION = re.compile(r"^\S.{0,40}? = ")
INDENTED = re.compile(r"^ {4,}\S")


def paragraphs(lines: list[str]) -> list[list[str]]:
    """The lines, parted at blank ones."""
    parts: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def rewrite(lines: list[str]) -> list[str]:
    """The docstring with its equations as literal blocks."""
    end = next((i for i, line in enumerate(lines) if SECTION.match(line)), len(lines))
    written: list[str] = []
    for number, part in enumerate(paragraphs(lines[:end])):
        if number and (EQUATION.match(part[0]) or INDENTED.match(part[0])):
            least = min(len(line) - len(line.lstrip()) for line in part)
            written += ["::", "", *("    " + line[least:] for line in part), ""]
        else:
            written += [*map(escaped, part), ""]
    return [*written, *map(escaped, lines[end:])]


def escaped(line: str) -> str:
    """|x| is an absolute value, not a substitution; a doctest stays as it is."""
    code = line.lstrip().startswith((">>>", "..."))
    if code:
        return line
    line = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", line)  # `array`s
    return line if "`" in line else line.replace("|", r"\|")


def process(app, what, name, obj, options, lines: list[str]) -> None:
    """Before napoleon reads the sections."""
    del app, what, name, obj, options
    lines[:] = rewrite(lines)


def setup(app: Sphinx) -> dict:
    """Runs before napoleon."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
