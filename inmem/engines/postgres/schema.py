"""The tables of a store in a PostgreSQL database, and how they are made.

Invariant: a bucket is a run (or a namespace) and a primitive with its indices.
Whoever commits locks the rows of all buckets that he reads or writes, in their
order, and then reads: so what he decides is still so when he commits.

    records   key, record as in the image of the local engine, and when it expires
    buckets   key (prefix, NUL, low half of the tag, of KV entries and jobs a stripe), version of the last
              commit, whether it is open: 0, or closed by a fence; until when somebody waits
    fences    digest of a run that was deleted, or is being imported; what it is
    sessions  session, last sequence, digest and outcome of that commit
    meta      database id, format, chain: one row

A key begins with the prefix of its run, so that what a run has lies together.
Rows of `buckets` are updated all the time, and never deleted: there is room in
their pages for the next version of each row.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from inmem.errors import FormatVersionError, InvalidInputError, PermissionDeniedError

FORMAT: Final = 3
NAMES: Final = ("records", "buckets", "fences", "sessions")
_SCHEMA: Final = """trim(split_part(current_setting('search_path'), ',', 1), ' "')"""  # the first one
_LOCK: Final = 0x696E6D656D  # of who makes the tables

_TABLES: Final[tuple[LiteralString, ...]] = (
    """create table if not exists {schema}.meta (
        id bytea not null, format integer not null, chain smallint not null, durability text not null,
        only_one boolean primary key default true check (only_one))""",
    """create table if not exists {schema}.records (
        key bytea primary key, record bytea not null, expires bigint,
        check (case when length(record) >= 16 then length(record) >= 16 + 8 * (get_byte(record, 0) >> 7)
            else false end)) with (fillfactor = 70)""",
    """create index if not exists records_expiring on {schema}.records (expires) where expires is not null""",
    """create table if not exists {schema}.buckets (
        bucket bytea primary key, version bigint not null, state bigint not null default 0,
        waiting bigint not null default 0)
        with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000)""",
    """create table if not exists {schema}.fences (digest bytea primary key, fence bytea not null)""",
    """create table if not exists {schema}.sessions (
        session bytea primary key, sequence bigint not null, digest bigint not null, version bigint not null,
        status smallint not null, result bytea not null, active timestamptz not null default now())
        with (fillfactor = 50)""",
)


def create(connection: Any, schema: str, database_id: bytes, chain: int, durability: str) -> None:
    """Make what is missing. Of many who do so at once one is first, and the others wait for it."""
    name = sql.Identifier(schema)
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
        there = "select from pg_namespace where nspname = %s"  # who owns a schema may make none
        if connection.execute(there, (schema,)).fetchone() is None:
            connection.execute(sql.SQL("create schema {}").format(name))
        if meta(connection) is None:
            _check_unused(connection, schema)
        for statement in _TABLES:
            connection.execute(sql.SQL(statement).format(schema=name))
        connection.execute(
            sql.SQL(
                "insert into {}.meta (id, format, chain, durability) values (%s, %s, %s, %s)"
                " on conflict do nothing"
            ).format(name),
            (database_id, FORMAT, chain, durability),
        )


def _check_unused(connection: Any, schema: str) -> None:
    """Refuse to mix the store's tables with those of another program.

    Raises:
        InvalidInputError: there are some of the same names.
    """
    found = connection.execute(
        "select relname from pg_class where relnamespace = to_regnamespace(%s) and relname = any(%s)",
        (f'"{schema}"', [*NAMES]),
    ).fetchall()
    if found:
        raise foreign(schema, sorted(name for name, in found))


def foreign(schema: str, names: list[str]) -> InvalidInputError:
    """Tables of the same names are there, and not a store's."""
    return InvalidInputError(
        f"schema {schema} has tables of another program: {', '.join(names)}", argument="path",
        hint="Name another one: postgresql://…?schema=NAME",
    )


def check_format(place: str, version: int) -> None:
    """Refuse a store of another release: its tables mean something else.

    Raises:
        FormatVersionError: it says what to do.
    """
    if version == FORMAT:
        return
    hint = f"It was made by a newer inmem: use that one, or one that knows format {version}."
    if version < FORMAT:
        hint = (
            "Export its runs with the older inmem that made it (inmem export -o FILE -d URL), and import them"
            " with this one into another schema (inmem import FILE -d URL?schema=NAME)."
        )
    raise FormatVersionError(
        f"{place} is of format {version}, this inmem knows {FORMAT}", found=version, supported=FORMAT,
        hint=hint,
    )


def meta(connection: Any) -> tuple[bytes, int, int, str] | None:
    """Id, format, chain and durability of the store; None if there is none.

    Raises:
        PermissionDeniedError: the user may not look into the schema, where nothing is seen then.
    """
    name, may_use, there, user = connection.execute(
        f"select {_SCHEMA}, (select has_schema_privilege(oid, 'usage') from pg_namespace where nspname ="
        f" {_SCHEMA}), to_regclass('meta'), current_user::text"
    ).fetchone()
    if may_use is False:
        raise PermissionDeniedError(
            f"the user {user} has no right to usage on schema {name}",
            hint=f"grant usage on schema {name} to {user}, and what else docs/guide/more-than-one-machine.md"
            " names.",
        )
    if there is None:
        return None
    try:
        found: tuple[bytes, int, int, str] | None = connection.execute(
            "select id, format, chain, durability from meta"
        ).fetchone()
    except psycopg.errors.UndefinedColumn:
        raise foreign(str(name), ["meta"]) from None
    return found
