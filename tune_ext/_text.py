"""Text that others wrote, such that it is text wherever it is shown: terminals, Markdown, files."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["file_name", "markdown", "one_line", "plain_words", "visible", "visible_values"]

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, such as those that begin a terminal's commands
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"  # other directions, other lines
    "\ud800-\udfff]"  # halves of characters, which no file can hold
)

_LONGEST_NAME = 80


def visible(text: str) -> str:
    r"""The text with what would be obeyed, and not shown, written out; tabs and new lines stay.

    >>> visible("a\x1b[2Jb"), visible("\u202edrow"), visible("two\nlines")
    ('a\\x1b[2Jb', '\\u202edrow', 'two\nlines')
    """
    return _OBEYED.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def visible_values(value: Any) -> Any:
    """`visible` for all text in lists and dictionaries, their keys as well."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible_values(k): visible_values(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(visible_values(item) for item in value)
    return value


def one_line(text: str) -> str:
    r"""`visible`, in one line.

    >>> one_line("two\nlines\x07")
    'two lines\\x07'
    """
    return visible(" ".join(text.split()))


def markdown(text: str, *, cell: bool = False) -> str:
    r"""Text in one line of Markdown: no tags, links, pictures, headings, or cells of a table.

    Emphasis and code are left as they are: they harm nobody.

    Args:
        text: Any.
        cell: Whether it stands in a table.

    >>> print(markdown("<b> ![x](//y) a|b"), markdown("a|b", cell=True))
    &lt;b> ![x]\(//y) a|b a\|b
    """
    line = one_line(text.replace("\\", "\\\\"))
    line = line.replace("<", "&lt;").replace("](", "]\\(").replace("]:", "]\\:")
    line = f"\\{line}" if line.startswith("#") else line
    return line.replace("|", "\\|") if cell else line


def plain_words(text: str) -> str:
    r"""`one_line`, not too long, without what ends a text within an expression, as Vega writes one.

    >>> print(plain_words('error" + (x)\\'))
    error” + (x)/
    """
    return one_line(text)[:_LONGEST_NAME].translate({0x22: "”", 0x27: "’", 0x5C: "/"})


def file_name(text: str) -> str:
    """A part of a file's name: letters, digits, - and _, and not too many.

    >>> file_name("../a b/c"), len(file_name("x" * 1000))
    ('---a-b-c', 80)
    """
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)[:_LONGEST_NAME]
