"""What the pages get beside their text: the version, and cross-references of docstrings as code."""

import re
import tomllib
from pathlib import Path
from typing import Any

ROLE = re.compile(r":(?:func|class|mod|data|meth|attr|obj):<code>~?([\w.]+)</code>")


def on_config(config: Any, **_: Any) -> Any:
    """Let every page's head say which version it is of."""
    project = Path(config.config_file_path).with_name("pyproject.toml")
    version = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    config.site_name = f"{config.site_name} {version}"
    return config


def on_page_content(html: str, **_: Any) -> str:
    """Show each cross-reference of a docstring, ``:func:`~package.name` ``, by the last part of its name."""
    return ROLE.sub(lambda found: f"<code>{found[1].rpartition('.')[2]}</code>", html)
