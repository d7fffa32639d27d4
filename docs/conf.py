"""How Sphinx builds the site: python -m sphinx -W -b html docs build/docs."""

from hauberk import __version__

project = "Hauberk"
author = "the Hauberk developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Hauberk"
html_static_path = ["static"]
html_css_files = ["wide_code.css"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
