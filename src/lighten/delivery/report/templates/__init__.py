"""The templates of report page and model card."""

import re
from typing import TYPE_CHECKING, Any

_CONTROL = "[\x00-\x1f\x7f-\x9f\u2028\u2029]+"

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(*, autoescape: bool) -> "Environment":
    """Return Jinja's environment over this folder; a name that a template asks for in vain is an error.

    Args:
        autoescape: for HTML; else what is put in is one line of Markdown and opens no HTML of its own.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("lighten.delivery.report"),
        autoescape=autoescape,
        finalize=None if autoescape else _as_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _as_markdown(value: Any) -> Any:
    return re.sub(_CONTROL, " ", value).replace("<", "&lt;") if isinstance(value, str) else value
