"""What the procedures of imports share: each primitive has one that takes its records into a run.

Each call names the token of its import. If a later import has begun anew,
what the earlier one still sends is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inmem.commit.arguments import check_prefix, check_time, check_type
from inmem.commit.workspace import Workspace
from inmem.config import MAX_TRANSACTION_OPS
from inmem.errors import BusyError, InvalidInputError, InvariantError, LimitError
from inmem.primitives import import_mark
from inmem.primitives.counts import add
from inmem.primitives.import_mark import TOKEN_BYTES, Mark


@contextmanager
def importing_records(
    workspace: Workspace, prefix: bytes, token: bytes, counted: str, items: object
) -> Iterator[Mark]:
    """Inside, the run takes the writes of this import; afterwards the items are counted. Yields its mark."""
    check_prefix(prefix)
    check_token(token)
    check_type("items", items, list)
    assert isinstance(items, list)
    if len(items) > MAX_TRANSACTION_OPS:
        raise LimitError(
            f"{len(items)} records of one call, the limit is {MAX_TRANSACTION_OPS}",
            what="records of one call", size=len(items), limit=MAX_TRANSACTION_OPS,
        )
    mark = mark_of(workspace, prefix, token)
    with workspace.admitted(prefix):
        yield mark
    set_mark(workspace, mark._replace(counts=add(mark.counts, counted, len(items))))


def mark_of(workspace: Workspace, prefix: bytes, token: bytes) -> Mark:
    """The mark of a run that this import has begun."""
    run_id = prefix.decode().rpartition("/")[2]
    stored = workspace.mark(prefix)
    if stored is None:
        raise InvariantError(
            f"run {run_id} is not being imported: it was given up meanwhile", hint="Import the file again."
        )
    mark = import_mark.unpack(stored)
    if mark.token != token:
        raise BusyError(
            f"run {run_id} is being imported by another program, which began later", what=f"run {run_id}",
            hint="Wait for that import.",
        )
    return mark


def set_mark(workspace: Workspace, mark: Mark) -> None:
    """Write the mark of a run."""
    workspace.set_mark(mark.prefix, import_mark.pack(workspace.version, mark))


def check_token(token: object) -> None:
    """Refuse what cannot be the token of an import."""
    check_type("token", token, bytes)
    assert isinstance(token, bytes)
    if len(token) != TOKEN_BYTES:
        raise InvalidInputError(f"token must be {TOKEN_BYTES} bytes", argument="token")


def parts(item: Any, count: int) -> list[Any]:
    """A record as it is sent: an array of so many parts."""
    check_type("items", item, list)
    if len(item) != count:
        raise InvalidInputError(f"a record must be an array of {count}", argument="items")
    return item  # type: ignore[no-any-return]


def past(timestamp: object) -> int:
    """The time at which something was written elsewhere; 0 would stand for now."""
    if check_time(timestamp) == 0:
        raise InvalidInputError("timestamp must be above 0", argument="timestamp")
    assert isinstance(timestamp, int)
    return timestamp
