"""Write HTML pages from Jinja2 templates.

The templates, styles and scripts of a package are in its folder `templates`. Values are escaped;
styles and scripts are inlined, so that a page is a single file that opens without a network.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(package: str, template: str, **values: Any) -> str:
    """The page of a template in `templates` of a package.

    In the template, `inline("file.css")` inserts a file beside it unchanged.
    """
    return _environment(package).get_template(template).render(values)


def read_template_file(package: str, name: str) -> str:
    """A file in `templates` of a package, unchanged."""
    environment = _environment(package)
    assert isinstance(environment.loader, BaseLoader)
    return environment.loader.get_source(environment, name)[0]


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    # Inlined files are not templates: braces in styles and scripts have no meaning to Jinja2.
    environment.globals["inline"] = lambda name: Markup(read_template_file(package, name))
    return environment
