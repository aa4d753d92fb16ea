"""Index repair: the entries of a prefix become what its records say.

Who asks for it looks for what is missing or wrong, in a snapshot of its own,
and has the writer mend that in slices: so nobody waits for the walk. What was
written since that snapshot is right, as each commit writes its own entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby, islice
from typing import Any, Final

from inmem.commit.arguments import check_prefix, check_type
from inmem.commit.workspace import Workspace
from inmem.config import REPAIR_LIMIT
from inmem.engines.base import View
from inmem.errors import CorruptionError, InvalidInputError, RunDeletedError
from inmem.keys import Key, successor
from inmem.primitives import record_table
from inmem.record import payload_of, version_of

# The version of these entries, records of which entries are missing, and entries that are wrong.
Slice = tuple[int, list[bytes], list[bytes]]

_PAGE_RECORDS: Final = 1024
_PAGE_BYTES: Final = 4 * 1024 * 1024


def differences(view: View, prefix: bytes) -> list[Slice]:
    """What is to be mended, in slices of `REPAIR_LIMIT` entries.

    Versions order what is written in one bucket, and not more with every
    engine. So the wrong entries of a slice are of one, and it names the
    newest version that they were seen in: whoever writes one anew has a later one.

    Raises:
        RunDeletedError: the run was deleted.
        CorruptionError: a record does not decode.
        SnapshotTooOldError: the prefix has too much for one snapshot.
    """
    missing: dict[bytes, bytes] = {}  # entry: its record
    wrong: dict[bytes, int] = {}  # entry: its version
    start, end = prefix + b"\0", successor(prefix + b"\0")
    with view.moment() as moment:
        if moment.is_deleted(prefix):
            raise _deleted(prefix)
        while page := moment.scan(start, end, limit=_PAGE_RECORDS, max_bytes=_PAGE_BYTES):
            start = page[-1][0] + b"\0"
            for key, record in page:
                _, tag, rest = Key(key).split_key()
                if tag not in record_table.INDEX_TAGS:
                    missing.update(dict.fromkeys(_entries(prefix, tag, rest, key, payload_of(record)), key))
                elif missing.pop(key, None) is None:
                    wrong[key] = version_of(record)
    # An entry may come before the record that it is of.
    wrong = {key: version for key, version in wrong.items() if missing.pop(key, None) is None}
    return [*_slices(missing, wrong)]


def _slices(missing: Mapping[bytes, bytes], wrong: Mapping[bytes, int]) -> Iterator[Slice]:
    records: dict[bytes, None] = {}
    size = 0
    for record in missing.values():
        records[record] = None
        size += 1
        if size >= REPAIR_LIMIT:
            yield 0, [*records], []
            records, size = {}, 0
    if records:
        yield 0, [*records], []
    for _, entries in groupby(sorted(wrong, key=_primitive_of), key=_primitive_of):
        while some := [*islice(entries, REPAIR_LIMIT)]:
            yield max(wrong[key] for key in some), [], some


def _primitive_of(key: bytes) -> int:
    return Key(key).split_key()[1] & 0x0F  # an index shares the low half of its tag with what it is of


def _entries(prefix: bytes, tag: int, rest: bytes, key: bytes, payload: bytes) -> list[bytes]:
    try:
        return record_table.entries_of(prefix, tag, rest, payload)
    except ValueError as error:
        raise CorruptionError(f"{Key(key)!r} does not say what its indices are: {error}") from None


def _deleted(prefix: bytes) -> RunDeletedError:
    run_id = prefix.decode().rpartition("/")[2]
    return RunDeletedError(f"run {run_id} was deleted: it has no indices", run_id=run_id)


def mend(
    workspace: Workspace, prefix: bytes, version: int, records: list[bytes], entries: list[bytes]
) -> list[int]:
    """Add the entries of these records that are missing; remove these entries, which were wrong at a version.

    The result is `[entries added, entries removed]`.
    """
    if workspace.is_fenced(check_prefix(prefix)):
        raise _deleted(prefix)
    check_type("version", version, int)
    check_type("records", records, list)
    check_type("entries", entries, list)
    places = [_place(prefix, key, "records") for key in records]
    if any(_place(prefix, key, "entries")[0] not in record_table.INDEX_TAGS for key in entries):
        raise InvalidInputError("entries must be of indices", argument="entries")
    added = removed = 0
    for key, (tag, rest) in zip(records, places, strict=True):
        payload = workspace.get(key)
        for entry in () if payload is None else _entries(prefix, tag, rest, key, payload):
            if workspace.get(entry) is None:
                workspace.put(entry, b"")
                added += 1
    for key in entries:
        record = workspace.record(key)
        if record is not None and version_of(record) <= version:  # else somebody has put it there since
            workspace.delete(key)
            removed += 1
    return [added, removed]


def _place(prefix: bytes, key: Any, argument: str) -> tuple[int, bytes]:
    """The type tag and the rest of a key under a prefix."""
    if not isinstance(key, bytes) or not key.startswith(prefix + b"\0") or len(key) < len(prefix) + 2:
        raise InvalidInputError(f"{argument} must be keys of the prefix", argument=argument)
    return key[len(prefix) + 1], key[len(prefix) + 2 :]


def repair_indices(workspace: Workspace, prefix: bytes) -> list[int]:
    """Make the indices of a prefix (a run's, or a namespace's own) what its records say, in one walk.

    For what is too much for a snapshot: all others wait for it. The result is
    `[entries added, entries removed]`. One call changes `REPAIR_LIMIT` of
    them at most: as many as that say that there may be more.
    """
    if workspace.is_fenced(check_prefix(prefix)):
        raise _deleted(prefix)
    expected: set[bytes] = set()
    stored: set[bytes] = set()
    for key, payload in workspace.scan(prefix + b"\0", successor(prefix + b"\0")):
        _, tag, rest = Key(key).split_key()
        if tag in record_table.INDEX_TAGS:
            stored.add(key)
        else:
            expected.update(_entries(prefix, tag, rest, key, payload))
    missing = sorted(expected - stored)[:REPAIR_LIMIT]
    wrong = sorted(stored - expected)[: REPAIR_LIMIT - len(missing)]
    for key in missing:
        workspace.put(key, b"")
    for key in wrong:
        workspace.delete(key)
    return [len(missing), len(wrong)]


PROCEDURES: Final[Mapping[str, Callable[..., Any]]] = {"index.mend": mend, "index.repair": repair_indices}
