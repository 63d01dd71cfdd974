"""Sphinx' settings for the site; `python -m docs.builder` calls it on the pages that it has gathered."""

project = "ResNets in JAX"
html_title = "ResNets in JAX"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
# So that [words](page.md#heading) is checked, down to the headings of a class's methods.
myst_heading_anchors = 4
# `--flag` stays `--flag`.
smartquotes = False
nitpicky = True
# A console's or an output's words are no program that a lexer must understand.
suppress_warnings = ["misc.highlighting_failure"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
