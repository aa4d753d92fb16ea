"""What changes among entries, by comparing what is there with what was there before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from inmem.engines.base import Item
from inmem.primitives.kv.versioned import Versioned, versioned
from inmem.record import version_of
from inmem.values import text_of


@dataclass(frozen=True, slots=True)
class Change:
    """An entry that was put, or with None one that is not there any more.

    Give `version` to `kv.watch` as `since`, to go on from here. For the last
    entry of a commit it is the commit's version, for the others the one below:
    if you stop in the middle of a commit, you get all of it again.
    """

    key: str
    versioned: Versioned | None
    version: int


class Seen:
    """What one iterator has seen of some entries. `skip` is how much of a key comes before the name."""

    def __init__(self, skip: int, floor: int) -> None:
        self._skip = skip
        self._floor = floor  # what was put up to here is known
        self._seen: dict[bytes, int] = {}

    def changes(self, items: Iterable[Item], version: int) -> list[Change]:
        """What is new in all the entries there are, at a version: in commit order, deletions last."""
        seen, there = self._seen, {}
        put: list[tuple[int, bytes, bytes]] = []
        for key, record in items:
            there[key] = of = version_of(record)
            if of > self._floor and seen.get(key) != of:
                put.append((of, key, record))
        gone = seen.keys() - there.keys()
        self._seen = there
        changes = []
        for of, group in groupby(sorted(put), key=lambda each: each[0]):
            *before, last = [(self._name(key), versioned(record)) for _, key, record in group]
            changes += [Change(name, entry, of - 1) for name, entry in before]
            changes.append(Change(*last, of))
        return changes + [Change(self._name(key), None, version) for key in sorted(gone)]

    def _name(self, key: bytes) -> str:
        return text_of(key[self._skip :])
