"""Docstrings cross-refer as Sphinx does, ``:func:`~package.name` ``; pages show the name as code."""

import re
from typing import Any

ROLE = re.compile(r":(?:func|class|mod|data|meth|attr|obj):<code>~?([\w.]+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Show each cross-reference of a docstring by the last part of its name."""
    return ROLE.sub(lambda found: f"<code>{found[1].rpartition('.')[2]}</code>", html)
