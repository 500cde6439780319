"""The site: Sphinx with MyST-NB, which executes every page's code while it builds.

Sphinx, because it is the one tool that reads docstrings, checks every cross-reference
(`nitpicky`) and includes source from its file; MyST-NB, because pages and notebooks are
then one kind of text file, in jupytext's format, executed in the build. Nothing is
fetched: equations are MathML, fonts the system's.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE), str(HERE.parent)]
# The kernels of the pages inherit these.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
).rstrip(os.pathsep)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "svg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import handgrad  # noqa: E402

project = "handgrad"
author = "the authors of handgrad"
copyright = "the authors of handgrad, Apache-2.0"  # noqa: A001
release = version = handgrad.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "docstrings",
    "mathml",
    "picture",
]
exclude_patterns = ["_build", "_figures", "data"]
source_suffix = {".md": "myst-nb"}
root_doc = "index"

nitpicky = True
# Other projects' names, as annotations have them: their inventories would have to be
# fetched.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(jax|jnp|numpy|np|collections|typing|types|pathlib|os|Path|flax)(\..*)?",
    ),
    (r"py:.*", r"handgrad\._\w+\.\w+\._\w+"),  # what a public name's type is within
    (r"py:.*", r"(Any|Callable|Mapping|Sequence|Iterator|NamedTuple|ModuleType)"),
    (r"py:.*", r"(handgrad\.)?arguments\.Padding|Padding"),
]

nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"
rst_prolog = ".. role:: code(literal)"
python_maximum_signature_line_length = 70

html_theme = "furo"
html_title = "handgrad"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#00588c",
        "color-brand-content": "#00588c",
        "font-stack": "system-ui, 'DejaVu Sans', sans-serif",
        "font-stack--monospace": "ui-monospace, 'DejaVu Sans Mono', monospace",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cc4f0",
        "color-brand-content": "#7cc4f0",
    },
}


def prepare(app) -> None:
    """Draws the figures, in a process of their own."""
    del app
    command = [sys.executable, str(HERE / "figures"), str(HERE / "_figures")]
    subprocess.run(command, check=True)


def explorer(app, exception) -> None:
    """The page that `python -m handgrad explain --html` writes, with the article's."""
    if exception is None and app.builder.format == "html":
        from handgrad.explain import explorer

        Path(app.outdir, "explorer.html").write_text(explorer.page(), encoding="utf-8")


def setup(app) -> None:
    """Hooks."""
    app.connect("builder-inited", prepare)
    app.connect("build-finished", explorer)
