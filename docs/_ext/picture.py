"""The directive `picture`: a figure of docs/figures in both its colourings.

    ```{picture} turned
    :alt: what one sees
    A caption.
    ```

shows `_figures/turned-light.svg` or `_figures/turned-dark.svg`, as fits the page.
"""

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Picture(SphinxDirective):
    """A figure with a caption, in light and dark."""

    required_arguments = 1
    has_content = True
    option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Returns one figure with two images, of which the theme shows one."""
        if "alt" not in self.options:
            raise self.error("a picture needs its :alt:")
        figure = nodes.figure(classes=["picture"])
        for scheme in ("light", "dark"):
            uri = f"/_figures/{self.arguments[0]}-{scheme}.svg"
            figure += nodes.image(
                uri=uri, alt=self.options["alt"], classes=[f"only-{scheme}"]
            )
        caption = nodes.caption()
        texts, messages = self.state.inline_text(" ".join(self.content), self.lineno)
        caption += texts
        figure += caption
        return [figure, *messages]


def setup(app: Sphinx) -> dict:
    """Makes it known."""
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
