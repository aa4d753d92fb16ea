"""Listings that can be gone on with: a place to start after, and streams that read page by page.

Invariant: a stream keeps no snapshot between its pages, holds one page in
memory, and does not end as if it were whole when its run is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from inmem.engines.base import Item, View
from inmem.errors import RunDeletedError

CHUNK: Final = 512  # records of one page: bounds memory and the age of its snapshot
CHUNK_BYTES: Final = 4 * 1024 * 1024  # as well: records may be large
_AT_ONCE: Final = 64  # records that are read by their keys together, once some were not large


def past(start: bytes, end: bytes, place: bytes | None, reverse: bool) -> tuple[bytes, bytes]:
    """What is left of a range behind a key; before it, if it is read in reverse."""
    if place is not None and reverse:
        end = min(end, place)
    elif place is not None:
        start = max(start, place + b"\0")
    return start, max(start, end)


def stream(
    view: View, prefix: bytes, start: bytes, end: bytes, *, reverse: bool = False,
    record_key: Callable[[bytes], bytes] | None = None,
) -> Iterator[Item]:
    """Keys and records of a range of one run, each page of the newest version at that time.

    `record_key` tells where the record is that an entry of an index names.

    Raises:
        RunDeletedError: the run was deleted in the middle of it.
    """
    count = 0
    while True:
        with view.moment() as moment:
            page = moment.scan(start, end, limit=CHUNK, reverse=reverse, max_bytes=CHUNK_BYTES)
            if not page:
                if count and moment.is_deleted(prefix):
                    run_id = prefix.decode().rpartition("/")[2]
                    raise RunDeletedError(
                        f"run {run_id} was deleted while it was read: {count} records came before that",
                        run_id=run_id,
                    )
                return
            is_cut = len(page) == CHUNK or sum(len(record) for _, record in page) >= CHUNK_BYTES
            last = page[-1][0]
            if record_key is not None:
                entries, page, size = page, [], 0
                at, count_at_once = 0, 1
                while at < len(entries):
                    keys = [record_key(last) for last, _ in entries[at : at + count_at_once]]
                    for key, record in zip(keys, moment.read_many(keys), strict=True):
                        if record is not None:
                            page.append((key, record))
                            size += len(record)
                    at += len(keys)
                    last = entries[at - 1][0]
                    count_at_once = min(2 * count_at_once, _AT_ONCE)
                    if size >= CHUNK_BYTES:
                        is_cut = True
                        break
        count += len(page)
        yield from page
        if not is_cut:
            return
        start, end = past(start, end, last, reverse)

