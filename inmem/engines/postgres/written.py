"""What decided commits are to a server: rows and statements."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

import msgpack

from inmem.changes import DELETE_RANGE, Table
from inmem.client.applied import Applied
from inmem.config import ENTRY_BYTES, MAX_COMMIT_BYTES
from inmem.engines.postgres.asking import Ask
from inmem.engines.postgres.buckets import buckets_of_range, row_of
from inmem.engines.postgres.known import Noted
from inmem.engines.postgres.statements import WRITE_IF_SAME, WRITE_IF_SO, WRITE_ONE_IF_SO
from inmem.engines.postgres.stored import Changes
from inmem.errors import InmemError
from inmem.keys import TypeTag
from inmem.wire import from_wire, to_wire
from inmem.writeset import OP_CALL, OP_PUT, WriteSet

_KV: Final = int(TypeTag.KV)
_DATA: Final = int(Table.DATA)
_MOST_SAME: Final = 1024  # bytes of records that are compared


def rows_of_ops(ops: Iterable[Any]) -> set[bytes]:
    """The rows of the buckets that operations write in."""
    found: set[bytes] = set()
    for op in ops:
        if op[1] == _DATA:
            found.update(buckets_of_range(op[2], op[3]) if op[0] == DELETE_RANGE else (row_of(op[2]),))
    return found


def blind_writes(
    request: WriteSet,
) -> tuple[list[bytes], list[bytes], list[int], list[bytes]] | None:
    """Keys, payloads and ends of what a commit puts, and keys that it deletes.

    None if it looks at anything, or is not of KV entries alone: those need no procedure.
    """
    if request.reads or request.ranges or request.expiry_us:
        return None
    put: dict[bytes, tuple[bytes, int]] = {}
    deleted: dict[bytes, None] = {}
    weight = ENTRY_BYTES * len(request.ops)
    for op in request.ops:
        kind, key = op[0], op[1]
        if kind == OP_CALL or key[key.index(0) + 1] != _KV:
            return None
        weight += len(key)
        if kind == OP_PUT:
            put[key] = op[2], op[3]
            deleted.pop(key, None)
            weight += len(op[2])
        else:
            deleted[key] = None
            put.pop(key, None)
    if weight > MAX_COMMIT_BYTES:
        return None  # which refuses it
    return (
        [*put], [payload for payload, _ in put.values()],
        [expires for _, expires in put.values()], [*deleted],
    )


def written_if(
    who: tuple[Any, ...], changes: Changes, rows: list[bytes], versions: dict[bytes, int], noted: Noted | None
) -> Ask | None:
    """The statement that writes if what was known is so. None: there is none."""
    written = {*map(row_of, changes.put), *map(row_of, changes.deleted)}
    if noted is not None:
        same = noted.looked_at
        if written != {*rows} or len(same) not in WRITE_IF_SAME or sum(map(len, same.values())) > _MOST_SAME:
            return None
        return WRITE_IF_SAME[len(same)].asked((*who, rows[0], *chain.from_iterable(same.items())), changes)
    if written == {*rows} and len(rows) == 1 and rows[0] in versions:
        return WRITE_ONE_IF_SO.asked((*who, rows[0], versions[rows[0]]), changes)
    rows = sorted({*rows, *written})
    return WRITE_IF_SO.asked((*who, sorted(written), rows, [versions.get(row, -1) for row in rows]), changes)


def packed(outcomes: list[Applied | InmemError]) -> bytes:
    """The results of a group of commits, as its session has them."""
    packed: bytes = msgpack.packb([
        [each.version, each.results] if isinstance(each, Applied) else [0, to_wire(each)] for each in outcomes
    ])
    return packed


def unpacked(found: list[Any]) -> Applied | InmemError:
    """One of them."""
    version, result = found
    return Applied(version, result) if version else from_wire(result)
