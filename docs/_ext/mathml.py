"""Mathematics as MathML, written while the site is built.

Every browser shows MathML by itself, so a page needs no script, no font and no network
for its equations. latex2mathml translates; what it does not know is an error.
"""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def _mathml(translator, node: nodes.Element, display: str) -> str:
    latex = node.astext()
    try:
        return convert(latex, display=display)
    except Exception as error:  # whatever the translator stumbles over
        logger.warning("mathematics %r: %r", latex, error, location=node)
        return f"<code>{translator.encode(latex)}</code>"


def visit_math(translator, node: nodes.math) -> None:
    """An equation within a sentence."""
    translator.body.append(_mathml(translator, node, "inline"))
    raise nodes.SkipNode


def visit_math_block(translator, node: nodes.math_block) -> None:
    """An equation on lines of its own: one for each line that a blank line ends."""
    parts = [part for part in node.astext().split("\n\n") if part.strip()]
    equations = (
        _mathml(translator, nodes.math(text=part.strip()), "block") for part in parts
    )
    translator.body.append(f'<div class="math">{"".join(equations)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    """Makes it the renderer of HTML."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
