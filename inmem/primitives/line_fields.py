"""Checks of the fields of an exported line.

What a field may hold is what the store could hold. The first field that is
wrong is reported to `fail`, which raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

from inmem import values
from inmem.errors import InmemError
from inmem.keys import MAX_NAME_BYTES, check_tag_count, encode_label, encode_name

_MAX: Final = (1 << 63) - 1


class LineFields:
    """Takes fields out of lines; `fail` is told what is wrong with the line that was read last.

    `of_run` is for what the lines of one kind must know of those of another, in the same run.
    """

    def __init__(self, fail: Callable[[str], NoReturn]) -> None:
        self.fail = fail
        self.of_run: dict[str, Any] = {}

    def checked(self, check: Callable[[], Any]) -> Any:
        """What a check of the store returns; what it refuses is wrong with the line."""
        try:
            return check()
        except (InmemError, ValueError, TypeError, OverflowError) as error:
            self.fail(str(error)[:500])

    def exactly(self, document: dict[str, Any], *names: str) -> None:
        """Refuse a line that has other fields than these."""
        if document.keys() != set(names):
            wrong = sorted(document.keys() ^ set(names))
            self.fail(f"the fields are not {', '.join(names)}: see {wrong[0]!r:.40}")

    def integer(self, document: dict[str, Any], name: str, lowest: int = 1) -> int:
        """An integer of 63 bits."""
        value = document[name]
        if type(value) is not int or not lowest <= value <= _MAX:
            self.fail(f"{name} is not an integer from {lowest} to 2**63-1")
        return value

    def labels(self, tags: Any) -> list[str]:
        """Distinct tags."""
        if type(tags) is not list:
            self.fail("tags is no array")
        self.checked(lambda: [encode_label(tag, "tags") for tag in tags])
        self.checked(lambda: check_tag_count(len(tags)))
        if len(set(tags)) != len(tags):
            self.fail("a tag is there twice")
        return tags

    def mapping(self, value: Any, name: str) -> bytes:
        """An object; encoded."""
        if type(value) is not dict:
            self.fail(f"{name} is no object")
        return self.encoded(value, name)

    def text(self, value: Any, name: str) -> str:
        """A text that the store could hold."""
        if type(value) is not str:
            self.fail(f"{name} is no text")
        self.encoded(value, name)
        return value

    def encoded(self, value: Any, name: str) -> bytes:
        """Any value; encoded."""
        try:
            return values.encode(value, name)
        except InmemError as error:
            self.fail(error.message[:500])

    def name_after(self, last: bytes, name: Any) -> bytes:
        """A name that comes after the last one, as bytes."""
        data: bytes = self.checked(lambda: encode_name(name, "the name", MAX_NAME_BYTES))
        if data <= last:
            self.fail(f"{name!r:.80} does not come after the name before it")
        return data
