"""What commits most likely look at, which is read in the same round trip as they are locked."""

from __future__ import annotations

from inmem.commit.footprint import Range
from inmem.engines.postgres.asking import Ask, Row
from inmem.engines.postgres.buckets import looks_of
from inmem.engines.postgres.connections import ServerConnection
from inmem.engines.postgres.known import Window
from inmem.engines.postgres.moment import SMALL_PAGE, page_asked
from inmem.engines.postgres.statements import NAMED, RECORDS
from inmem.engines.postgres.stored import LockedState
from inmem.writeset import OP_CALL, WriteSet


class Ahead:
    """What commits most likely look at, which is read in the same round trip as they are locked."""

    def __init__(self, requests: list[WriteSet]) -> None:
        keys: dict[bytes, None] = {}
        starts: dict[Range, None] = {}
        ends: dict[Range, None] = {}
        named: dict[tuple[Range, bytes], None] = {}
        for request in requests:
            keys.update(dict.fromkeys(request.reads))
            for op in request.ops:
                if op[0] == OP_CALL:
                    looks = looks_of(op[1], op[2])
                    keys.update(dict.fromkeys(looks.keys))
                    starts.update(dict.fromkeys(looks.starts))
                    ends.update(dict.fromkeys(looks.ends))
                    named.update(dict.fromkeys(looks.named))
        self._keys = [*keys]
        self._ranges = [(each, False, SMALL_PAGE) for each in starts] + [(each, True, 1) for each in ends]
        self._named = [*named]

    def asked(self) -> list[Ask]:
        """The statements."""
        asked: list[Ask] = [(RECORDS, (self._keys,))] if self._keys else []
        asked += [page_asked(*place, limit, reverse) for place, reverse, limit in self._ranges]
        asked += [(NAMED, (*place, head)) for place, head in self._named]
        return asked

    def state(self, connection: ServerConnection, answers: list[list[Row]]) -> LockedState:
        """What they found."""
        known: dict[bytes, bytes | None] = dict.fromkeys(self._keys)
        at = 0
        if self._keys:
            known.update(answers[0])
            at = 1
        windows = []
        for place, reverse, limit in self._ranges:
            window = Window(*place, reverse)
            window.add(answers[at], limit)
            windows.append(window)
            at += 1
        for found in answers[at : at + len(self._named)]:
            known.update(found)
        return LockedState(connection, known, windows)
