"""Configure Sphinx, which renders outputs and runs nothing; ``python -m course build`` runs the cells before."""

project = "Image classifiers into production with ONNX"
author = "the course's contributors"
copyright = author  # Sphinx's own name for it

extensions = ["myst_nb"]
exclude_patterns = ["**.ipynb_checkpoints"]
language = "en"

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {
    "use_download_button": True,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "search_bar_text": "Search the course",
    "navbar_persistent": [],  # one search box is enough
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's system
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_show_search_summary = False  # summaries are fetched, which a page opened from disk may not do
html_copy_source = True  # the download button hands out the notebook itself
html_show_sourcelink = False

nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "warn"  # a cell that writes on stderr is a defect
myst_heading_anchors = 3


def _name_pictures(app, doctree):
    """Name the section as the alternative text of pictures whose cells give none (metadata ``mystnb.image.alt``)."""
    from docutils import nodes

    for image in doctree.findall(nodes.image):
        parent = image.parent
        while parent is not None and not isinstance(parent, nodes.section):
            parent = parent.parent
        if not image.get("alt") and parent is not None:
            image["alt"] = f"Picture drawn by the cell above, in section “{parent.next_node(nodes.title).astext()}”"


def setup(app):
    """Let Sphinx call what is defined here."""
    app.connect("doctree-read", _name_pictures)
