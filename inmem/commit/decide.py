"""The decision on one commit: what it changes, or the error that refuses it.

Invariant: `decide` is a pure function of a request and of what it is given: the
state, the fences, the recent writes, a version and a time. It changes none of
them, so every engine that can offer them can run it, in any process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from inmem.changes import PUT
from inmem.commit.validation import Recent, validate
from inmem.commit.workspace import DATA, BaseState, Workspace
from inmem.config import ENTRY_BYTES, MAX_COMMIT_BYTES
from inmem.errors import InmemError, InvalidInputError, InvariantError
from inmem.keys import Key, TypeTag, bucket_of, shorten
from inmem.record import end_of, pack
from inmem.writeset import OP_CALL, OP_PUT, WriteSet, check_weight

Procedures = Mapping[str, Callable[..., Any]]

_KV: Final = int(TypeTag.KV)
_NOTHING: Final[Mapping[bytes, bytes | None]] = {}
NO_RESULTS: Final = msgpack.packb([])
_tuple: Final = tuple.__new__  # that of a NamedTuple is a function of Python, twice as slow


class Effects(NamedTuple):
    """What a commit does: `wal_format.Op`s, and all that follows from them."""

    ops: Sequence[tuple[Any, ...]]
    results: bytes  # of its procedure calls, in order; MessagePack
    buckets: Collection[bytes]  # in which it writes
    fences: Sequence[bytes]  # digests of runs that it deletes
    marks: Mapping[bytes, bytes | None]  # of imports, by digest; None: taken away


def decide(
    request: WriteSet, state: BaseState, recent: Recent, procedures: Procedures, *, version: int,
    now_us: int, fences: Collection[bytes], marks: Mapping[bytes, bytes], chain: int,
) -> Effects:
    """Validate a request and run its operations on the state; the commit would be `version`.

    Raises:
        ConflictError: something that it read has changed.
        InmemError: whatever a procedure refuses.
    """
    if request.reads or request.ranges or request.expiry_us:
        validate(request, state, recent, now_us)
    if not fences and not marks:
        plain = _plain(request.ops, version, now_us)
        if plain is not None:
            return plain
    workspace = Workspace(
        state, fences, version=version, now_us=now_us, chain=chain, marks=marks, recent=recent
    )
    results = []
    for op in request.ops:
        if op[0] == OP_CALL:
            workspace.stamp_us = op[3] if len(op) == 4 else now_us
            results.append(_call(procedures, workspace, op[1], op[2]))
            workspace.stamp_us = now_us
        else:
            _check_plain(op[1])
            if op[0] == OP_PUT:
                workspace.put(op[1], op[2], end_of(op[3], now_us))
            else:
                workspace.delete(op[1])
    packed = msgpack.packb(results) if results else NO_RESULTS
    return Effects(workspace.ops, packed, workspace.buckets, workspace.new_fences, workspace.new_marks)


def _plain(requested: list[Any], version: int, now_us: int) -> Effects | None:
    """What puts alone do, the commonest commits: without a workspace. None if there are other operations."""
    ops: list[tuple[Any, ...]] = []
    buckets: list[bytes] = []
    weight = ENTRY_BYTES * len(requested)
    head = pack(version, now_us, 0, b"")  # of a record that does not expire
    for op in requested:
        if op[0] != OP_PUT:
            return None
        _, key, payload, expires = op
        bucket = key[: key.index(0) + 2]  # that it is a key was checked when it was decoded
        if bucket[-1] != _KV:
            _check_plain(key)
        if not buckets or bucket != buckets[-1]:
            buckets.append(bucket)
        weight += len(key) + len(payload)
        record = pack(version, now_us, end_of(expires, now_us), payload) if expires else head + payload
        ops.append((PUT, DATA, key, record))
    if weight > MAX_COMMIT_BYTES:
        check_weight(weight)
    return _tuple(Effects, (ops, NO_RESULTS, buckets, (), _NOTHING))


def _check_plain(key: bytes) -> bytes:
    """The bucket of a key that needs no procedure: procedures keep the rules that plain writes break."""
    bucket = bucket_of(key)
    if bucket[-1] != _KV:
        raise InvariantError(f"{Key(key)!r} is written by procedures only")
    return bucket


def _call(procedures: Procedures, workspace: Workspace, name: str, arguments: list[Any]) -> Any:
    procedure = procedures.get(name)
    if procedure is None:
        raise InvalidInputError(f"no commit procedure {shorten(name)}", argument="procedure")
    if len(arguments) != procedure.__code__.co_argcount - 1:
        raise InvalidInputError(f"{name} got {len(arguments)} arguments", argument="procedure")
    try:
        return procedure(workspace, *arguments)
    except InmemError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # A request that its procedure chokes on must not end the writer: it would be sent to the next one.
        raise InvalidInputError(
            f"{name} failed: {type(error).__name__}: {error!s:.200}", argument="procedure"
        ) from error
