"""Settings of Sphinx, which builds these pages and the reference (`make docs`)."""

project = "LABN"
author = "the LABN contributors"
extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "furo"
myst_heading_anchors = 3
apidoc_modules = [
    {
        "path": "../labn",
        "destination": "reference",
        "separate_modules": True,
        "module_first": True,
        # Signatures and docstrings of what other modules may use; commands document themselves.
        "exclude_patterns": [
            "../labn/cli/*",
            "../labn/__main__.py",
            "../labn/tracking/labn_served.py",
        ],
    }
]
# Types that a package exports stand in the reference twice, in the package and in their module.
suppress_warnings = ["ref.python"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}
