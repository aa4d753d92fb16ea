"""What a server says of a store on it; of what only a writer of this library has, nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import psycopg

from inmem.engines.postgres.connections import CLOCK
from inmem.errors import InvalidInputError
from inmem.wire import CHECKPOINT, SET_BACK

# What is 0 here: there is no writer, image or log of ours, and who was refused has left no trace.
_NONE: Final = dict.fromkeys((
    "writer_pid", "epoch", "generation", "quota_bytes", "wal_bytes", "memory_free_bytes", "conflicts",
    "failures", "batches", "repeated", "expired",
), 0)  # fmt: skip
# Of the last commit: rows of registries change beside commits, see `buckets`.
_VERSION: Final = """select coalesce(max(version), 0) from buckets
    where substr(bucket, length(bucket)) <> '\\xff'::bytea"""
_STATUS: Final = f"""
    select ({_VERSION}), {CLOCK}, (select count(*) from sessions),
        (select coalesce(sum(n_tup_upd), 0)::bigint from pg_stat_user_tables
            where schemaname = current_schema() and relname = 'sessions'),
        (select count(distinct application_name) from pg_stat_activity
            where datname = current_database() and starts_with(application_name, %s)),
        (select extract(epoch from clock_timestamp() - min(xact_start))::float8 from pg_stat_activity
            where datname = current_database() and backend_xmin is not null and pid <> pg_backend_pid()),
        coalesce(sum(pg_table_size(c.oid)), 0)::bigint,
        coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
    from pg_class c where c.relkind = 'r' and c.relnamespace = (
        select oid from pg_namespace where nspname = current_schema())
"""
_NOT_HERE: Final = {
    CHECKPOINT: ("a server writes its checkpoints itself", "There is nothing to do."),
    SET_BACK: ("store time is the clock of the server", "Correct that clock."),
}


def status(connection: psycopg.Connection[Any], programs: str, durability: str) -> Mapping[str, Any]:
    """The fields of a status; `programs` is how the names of a store's begin."""
    found = connection.execute(_STATUS, (programs,)).fetchone()
    assert found is not None
    version, clock_us, sessions, commits, clients, age_s, table_bytes, all_bytes = found
    return {
        **_NONE, "version": version, "durable_version": version if durability == "sync" else 0,
        "durability": durability, "image_bytes": table_bytes, "image_file_bytes": all_bytes,
        "clients": clients, "sessions": sessions, "commits": commits, "oldest_snapshot_age_s": age_s,
        "clock_ahead_s": max(0, version - clock_us) / 1e6,
    }


def sync(connection: psycopg.Connection[Any], durability: str) -> int:
    """Make every commit so far durable; the newest version."""
    found = connection.execute(_VERSION).fetchone()
    version: int = found[0] if found else 0
    if durability == "buffered":  # a commit that waits for the log waits for all that is in it before
        with connection.transaction():
            connection.execute("set local synchronous_commit = on")
            connection.execute(
                "insert into sessions (session, sequence, digest, version, status, result)"
                " values (%s, 0, 0, 0, 0, '') on conflict (session) do update set active = now()", (b"sync",),
            )
    return version


def refused(kind: int) -> InvalidInputError:
    """Why a server is not asked this."""
    problem, hint = _NOT_HERE.get(kind, ("a server is not asked this", ""))
    return InvalidInputError(problem, argument="database", hint=hint)
