"""Rows as they are found: for people, fitted to their terminal; for programs, a document a line.

Invariant: a row is printed before the next one is looked for, and whatever is
shortened or left out is said at the end, on standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from inmem.cli.common import console
from inmem.cli.text import ELLIPSIS, fitted, one_line, padded

_PIPED: Final = 1000  # characters of a line that no terminal bounds
_LEAST: Final = 16  # characters of a value, however narrow the terminal
_LEAST_WORDS: Final = 6  # for fewer it is not worth to begin


class Listing:
    """Standard output, row by row. Use it as a context manager."""

    def __init__(self, *, as_json: bool, full: bool = False, limit: int | None = None) -> None:
        self.as_json = as_json
        self.limit = limit
        self.rows = 0
        self.shortened = 0
        self._columns: dict[tuple[int, int], int] = {}
        self._console = console()
        self._is_terminal = self._console.is_terminal
        self.width: int | None = None if full else self._console.width if self._is_terminal else _PIPED

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout.flush()
        if self.shortened:
            note(f"{self.shortened:,} shortened: --full shows all of them")

    @property
    def is_full(self) -> bool:
        """Whether as many rows are out as were wanted."""
        return self.limit is not None and self.rows >= self.limit

    def document(self, document: Mapping[str, Any]) -> None:
        """A row for programs."""
        self.rows += 1
        sys.stdout.write(json.dumps(document) + "\n")

    def row(self, *parts: tuple[str, str], value: Any = None, has_value: bool = False) -> None:
        """A row for people: texts with their styles, in the end a value; cut where the line ends."""
        self.rows += 1
        if has_value:
            used = sum(cell_len(text) for text, _ in parts)
            room = None if self.width is None else max(_LEAST, self.width - used)
            text, cut = one_line(value, room)
            if room is not None and (cut or cell_len(text) > room):
                text = fitted(text + ELLIPSIS, room)
                self.shortened += 1
            parts = (*parts, (text, ""))
        self.line(*parts)

    def words(self, *parts: tuple[str, str], rest: str, style: str = "") -> None:
        """A row for people that ends in a text; cut where the line ends."""
        self.rows += 1
        if self.width is not None and rest:
            room = self.width - sum(cell_len(text) for text, _ in parts)
            shown = fitted(rest, room) if room >= _LEAST_WORDS else ""
            self.shortened += shown is not rest
            rest = shown
        if not rest:  # blanks at the end could begin another line
            *parts_before, (text, text_style) = parts
            parts = (*parts_before, (text.rstrip(), text_style))
        self.line(*parts, (rest, style))

    def column(self, text: str, cells: tuple[int, int]) -> str:
        """A text in a column that grows with what it has to hold: from so many cells, to so many.

        It is never cut: names are what other commands take. What comes after a longer one begins later.
        """
        length = cell_len(text)
        width = max(self._columns.get(cells, cells[0]), min(cells[1], length))
        self._columns[cells] = width
        return padded(text, max(width, length))

    def line(self, *parts: tuple[str, str]) -> None:
        """A line of texts with their styles, which is none of the rows."""
        write(self._console if self._is_terminal else None, parts)

    def flush(self) -> None:
        """Let whoever reads see all that was printed."""
        sys.stdout.flush()


def write(out: Console | None, parts: tuple[tuple[str, str], ...]) -> None:
    """A line on a terminal, or as it is."""
    if out is None:
        sys.stdout.write("".join(text for text, _ in parts).rstrip() + "\n")
    else:
        out.print(Text.assemble(*parts), soft_wrap=True)


def note(text: str) -> None:
    """A line beside the output: on standard error."""
    sys.stdout.flush()
    errors = Console(stderr=True, highlight=False, markup=False)
    errors.print(Text(text, style="dim"), soft_wrap=True)
