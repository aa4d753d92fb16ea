"""The statements of commits."""

from __future__ import annotations

from itertools import chain
from typing import Any, Final

from inmem.commit.footprint import NAME_BYTES
from inmem.engines.postgres.asking import Ask, Statement
from inmem.engines.postgres.connections import CLOCK
from inmem.engines.postgres.moment import SMALL_PAGE
from inmem.engines.postgres.stored import Changes
from inmem.record import expires_at

LOCKED: Final = Statement(
    f"select bucket, version, state, {CLOCK}, waiting from buckets where bucket = any($1)"
    " order by bucket for update", "B", "biiii",
)
LOCKED_BETWEEN: Final = Statement(
    f"select bucket, version, state, {CLOCK}, waiting from buckets"
    " where bucket in (select unnest($1) union select bucket from buckets where bucket >= $2 and bucket < $3)"
    " order by bucket for update",
    "Bbb", "biiii",
)
SESSION: Final = Statement(
    "select sequence, digest, version, result from sessions where session = $1 for update", "b", "iiib"
)
ADD_SESSION: Final = Statement(  # not of another store, that was made in the place of this one
    "insert into sessions (session, sequence, digest, version, status, result)"
    " select $1, 0, 0, 0, 0, '' from meta where id = $2 on conflict do nothing", "bb",
)
DROP_SESSION: Final = Statement("delete from sessions where session = $1", "b")
LAST: Final = Statement(
    "select (select sequence from sessions where session = $1), (select id from meta)", "b", "ib"
)
USED: Final = Statement("update sessions set active = now() where session = $1", "b")
RECORDS: Final = Statement("select key, record from records where key = any($1)", "B", "bb")
NAMED: Final = Statement(
    f"select r.key, r.record from (select key from records where key >= $1 and key < $2 order by key"
    f" limit {SMALL_PAGE}) i join records r on r.key = $3 || substr(i.key, length(i.key) - {NAME_BYTES - 1})",
    "bbb", "bb",
)
FENCES: Final = Statement("select digest, fence from fences where digest = any($1)", "B", "bb")
SOON_OVER: Final = Statement("set local idle_in_transaction_session_timeout = '1s'")
SYNC_ON: Final = Statement("set local synchronous_commit = on")

# Rows of buckets are made in a transaction of their own, after the registries of their namespaces changed.
REGISTRIES: Final = Statement(
    "select bucket, version from buckets where bucket = any($1) order by bucket for update", "B", "bi"
)
CHANGE_REGISTRIES: Final = Statement(
    f"insert into buckets as b (bucket, version) select each, {CLOCK} from unnest($1::bytea[]) each"
    f" order by each on conflict (bucket) do update set version = greatest(b.version + 1, {CLOCK})"
    " returning bucket, version", "B", "bi",
)
ADD_BUCKETS: Final = Statement(
    "insert into buckets (bucket, version) select each, 0 from unnest($1::bytea[]) each"
    " order by each on conflict do nothing", "B",
)

# The session's row is written last of those that are locked; who has not got it writes no record.
_OUTCOME: Final = "update sessions set sequence = $1, digest = $2, version = {}, result = {}, active = now()"
_OURS: Final = "where session = $3 and sequence = $1 - 1 returning sessions.version"
_OVERWRITE: Final = "on conflict (key) do update set record = excluded.record, expires = excluded.expires"
_NOTHING: Final = r"'\x90'"  # no results, as MessagePack


def _hex(number: str) -> str:
    return f"lpad(to_hex({number}), 16, '0')"


_END: Final = "(case when e < 0 then version - 1 - e else e end)"
_RECORD: Final = f"decode({_hex('version')} || {_hex('version - 1')}, 'hex')"
_EXPIRING: Final = (
    f"decode({_hex('(version | (-9223372036854775808))')} || {_hex('version - 1')} || {_hex(_END)}, 'hex')"
)

# Writes that look at nothing, decided by the server itself: what `decide` makes of plain operations.
PUT: Final = Statement(
    f"with b as (update buckets set version = greatest(version, {CLOCK}) + 1"
    " where bucket = $4 and state = 0 returning version, waiting),"
    f" s as ({_OUTCOME.format('b.version', _NOTHING)} from b {_OURS}),"
    f" p as (insert into records (key, record, expires) select $5, {_RECORD} || $6, null from s {_OVERWRITE})"
    " select s.version, b.waiting from s, b", "iibbbb", "ii",
)
WRITE_BLIND: Final = Statement(
    "with l as (select version, waiting from buckets where bucket = any($4) and state = 0"
    " order by bucket for update),"
    f" v as (select greatest(max(version), {CLOCK}) + 1 as version from l"
    " having count(*) = array_length($4, 1)),"
    " b as (update buckets set version = v.version from v where bucket = any($4)),"
    f" s as ({_OUTCOME.format('v.version', _NOTHING)} from v {_OURS}),"
    " p as (insert into records (key, record, expires)"
    f" select k, case when e = 0 then {_RECORD} else {_EXPIRING} end || p,"
    f" case when e = 0 then null else {_END} end"
    f" from s, unnest($5::bytea[], $6::bytea[], $7::bigint[]) x(k, p, e) {_OVERWRITE}),"
    " d as (delete from records where key = any($8) and exists (select from s))"
    " select version, (select max(waiting) from l) from s", "iibBBBIB", "ii",
)

# What was decided here.
_FEW: Final = 4  # records that a statement takes one by one: as lists they cost both sides more


class WriteStatement:
    """Statements that write records, of which each number of a few has one: what is not done costs too.

    They give the version, and until when somebody waits for one of the buckets.
    """

    def __init__(self, head: str, takes: str, waiting: str) -> None:
        """`head` are its first tables, whose values have the types `takes`; `s` is a row if it may write."""
        self._head = head
        self._takes = takes
        self._waiting = waiting
        self._of: dict[tuple[int, int], Statement] = {}

    def asked(self, values: tuple[Any, ...], changes: Changes) -> Ask:
        """The statement for some changes, after the values of its head."""
        put, deleted = changes.put, changes.deleted
        ends = [expires_at(record) or None for record in put.values()]
        are_few = len(put) <= _FEW and not any(ends)
        shape = len(put) if are_few else -1, len(deleted) if len(deleted) <= _FEW else -1
        statement = self._of.get(shape)
        if statement is None:
            statement = self._of[shape] = self._made(*shape)
        if not are_few:
            values = *values, [*put], [*put.values()], ends
        elif put:
            values = *values, *chain.from_iterable(put.items())
        if len(deleted) > _FEW:
            values = *values, deleted
        elif deleted:
            values = *values, *deleted
        return statement, values

    def _made(self, puts: int, deletes: int) -> Statement:
        tables, takes = self._head, self._takes
        at = len(takes) + 1
        insert = "insert into records (key, record, expires) select"
        if puts > 0:
            pairs = ", ".join(f"(${n}, ${n + 1})" for n in range(at, at + 2 * puts, 2))
            tables += f", p as ({insert} k, r, null from s, (values {pairs}) x(k, r) {_OVERWRITE})"
            takes += "bb" * puts
        elif puts:
            lists = f"${at}::bytea[], ${at + 1}::bytea[], ${at + 2}::bigint[]"
            tables += f", p as ({insert} k, r, e from s, unnest({lists}) x(k, r, e) {_OVERWRITE})"
            takes += "BBI"
        at = len(takes) + 1
        if deletes:
            few = ", ".join(f"${n}" for n in range(at, at + deletes))
            some = f"in ({few})" if few else f"= any(${at})"
            tables += f", d as (delete from records where key {some} and exists (select from s))"
            takes += "b" * deletes if deletes > 0 else "B"
        return Statement(f"with {tables} select version, {self._waiting} from s", takes, "ii")


WRITE: Final = WriteStatement(
    f"s as ({_OUTCOME.format('$4', '$5')} {_OURS}),"
    " b as (update buckets set version = $4 where bucket = any($6) and exists (select from s))",
    "iibibB", "0::bigint",
)
WRITE_LOCKED: Final = WriteStatement(  # in one row, which is locked
    f"s as ({_OUTCOME.format('$4', '$5')} {_OURS}),"
    " b as (update buckets set version = $4 from s where bucket = $6)", "iibibb", "0::bigint",
)
WRITE_IF_SO: Final = WriteStatement(
    "l as (select b.bucket, b.waiting from buckets b, unnest($7::bytea[], $8::bigint[]) e(bucket, version)"
    " where b.bucket = e.bucket and b.state = 0 and b.version < $4"
    " and (b.version = e.version or e.version < 0) order by b.bucket for update of b),"
    " o as (select from l having count(*) = array_length($7, 1)),"
    f" s as ({_OUTCOME.format('$4', '$5')} from o {_OURS}),"
    " b as (update buckets set version = $4 where bucket = any($6) and exists (select from s))",
    "iibibBBI", "(select max(waiting) from l)",
)
WRITE_ONE_IF_SO: Final = WriteStatement(
    "b as (update buckets set version = $4 where bucket = $6 and version = $7 and version < $4"
    " and state = 0 returning version, waiting),"
    f" s as ({_OUTCOME.format('b.version', '$5')} from b {_OURS})", "iibibbi", "(select waiting from b)",
)
# What was decided on records that were there is so if they are the same, whatever else has changed. Their
# rows are locked too: so they are compared as they are now, not as they were when the statement began.
_SAME: Final = (7, 9)  # the first of each pair of values
WRITE_IF_SAME: Final = {
    count: WriteStatement(
        "b as (update buckets set version = $4 where bucket = $6 and version < $4 and state = 0"
        " returning version, waiting),"
        f" c as (select from records r, b where r.key in ({', '.join(f'${n}' for n in _SAME[:count])})"
        f" and (r.key, r.record) in ({', '.join(f'(${n}, ${n + 1})' for n in _SAME[:count])})"
        " for update of r),"
        f" o as (select version from b where (select count(*) from c) = {count}),"
        f" s as ({_OUTCOME.format('o.version', '$5')} from o {_OURS})",
        "iibibb" + "bb" * count, "(select waiting from b)",
    ) for count in (1, 2)
}
DELETE_RANGE: Final = Statement("delete from records where key >= $1 and key < $2", "bb")
OPEN: Final = Statement("delete from fences where digest = $1", "b")
CLOSE: Final = Statement(
    "insert into fences values ($1, $2) on conflict (digest) do update set fence = excluded.fence", "bb"
)
STATE: Final = Statement("update buckets set state = $2 where bucket = any($1)", "Bi")
