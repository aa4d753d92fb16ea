"""Docstrings on the site: an example with prompts is shown as code."""

from __future__ import annotations

from typing import Any

import griffe


def fenced(text: str) -> str:
    """The text with each run of lines from a prompt to the next empty line between fences.

    >>> print(fenced("It adds.\\n\\n>>> 1 + 1\\n2\\n\\nDone."))
    It adds.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    <BLANKLINE>
    Done.
    """
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if not inside and line.startswith(">>> "):
            lines.append("```pycon")
            inside = True
        elif inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line)
    return "\n".join([*lines, "```"] if inside else lines)


class Examples(griffe.Extension):
    """Applied to every object that has a docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once an object and its members are known."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
