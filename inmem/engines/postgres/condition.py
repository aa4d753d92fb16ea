"""Is a server, and the store on it, in good condition? Cheap looks of one connection, which change nothing.

`inmem check` reads everything; this asks for settings, rights and counts.
"""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg
import psycopg.pq

from inmem.engines.postgres import schema
from inmem.engines.postgres.address import Address, parse
from inmem.engines.postgres.connections import AT_ONCE, CLOCK, KEPT
from inmem.engines.postgres.failures import as_ours
from inmem.errors import InvalidInputError, PermissionDeniedError
from inmem.maintenance.diagnosis import Diagnosis

_OLDEST: Final = 150_000  # of a server that this was tested with, as it numbers itself
_FAR_S: Final = 60.0  # between two clocks
_OLD_S: Final = 60.0  # of a transaction that keeps the server from cleaning up
_SETTINGS: Final = (
    "server_version", "fsync", "full_page_writes", "data_checksums", "synchronous_commit",
    "synchronous_standby_names", "statement_timeout", "lock_timeout",
    "idle_in_transaction_session_timeout", "default_transaction_isolation", "default_transaction_read_only",
    "max_connections", "superuser_reserved_connections", "autovacuum", "search_path",
)  # fmt: skip
_BEHIND_A_PROXY: Final = {
    "idle_in_transaction_session_timeout": "5s", "statement_timeout": "0", "lock_timeout": "0",
    "default_transaction_isolation": "read committed",
}
_RIGHTS: Final = ("select", "insert", "update", "delete")
_SERVER: Final = f"""
    select pg_backend_pid(), pg_is_in_recovery(), {CLOCK}, current_user::text,
        (select count(*) from pg_stat_activity where backend_type = 'client backend'),
        (select rolconnlimit from pg_roles where rolname = current_user),
        (select datconnlimit from pg_database where datname = current_database()),
        has_database_privilege(current_database(), 'create'),
        (select count(*) from pg_stat_replication where sync_state in ('sync', 'quorum')),
        (select extract(epoch from clock_timestamp() - min(xact_start))::float8 from pg_stat_activity
            where datname = current_database() and backend_xmin is not null and pid <> pg_backend_pid())
"""


def look_at_server(diagnosis: Diagnosis, url: str, timeout_s: float) -> dict[str, Any] | None:
    """What a server says of itself and of a store on it, for programs; None if it cannot be asked."""
    with diagnosis.looking_at("server"):
        address = parse(url)
        try:
            connection = psycopg.connect(
                address.conninfo, autocommit=True, connect_timeout=max(1, round(timeout_s)),
                fallback_application_name=address.program(),
                prepare_threshold=None,  # a proxy gives each transaction another connection
            )
        except psycopg.Error as error:
            raise as_ours(error) from None
        with connection:
            try:
                return _Look(diagnosis, address, connection).found()
            except psycopg.Error as error:
                raise as_ours(error) from None
    return None


class _Look:
    """One look, by one connection."""

    def __init__(self, diagnosis: Diagnosis, address: Address, connection: psycopg.Connection[Any]) -> None:
        self._diagnosis = diagnosis
        self._address = address
        self._connection = connection

    def found(self) -> dict[str, Any]:
        """All that it finds."""
        settings = self._settings()
        began = time.time()
        row = self._row(_SERVER)
        pid, is_standby, clock_us, user, used, of_role, of_database, may_create, standbys, age_s = row
        ahead_s = clock_us / 1e6 - (began + time.time()) / 2
        is_direct = pid == self._connection.info.backend_pid
        found: dict[str, Any] = {
            "url": self._address.shown, "version": settings["server_version"], "user": user,
            "libpq": psycopg.pq.version(), "is_standby": is_standby, "is_behind_proxy": not is_direct,
            "clock_ahead_s": round(ahead_s, 3), "connections": used, "synchronous_standbys": standbys,
            "settings": settings, "store": None,
        }
        self._judge_server(settings, is_standby=is_standby, is_direct=is_direct)
        self._judge_room(settings, used, [limit for limit in (of_role, of_database) if limit >= 0])
        self._judge_times(ahead_s, age_s)
        with self._diagnosis.looking_at("store"), self._connection.transaction():
            found["store"] = self._store(settings, standbys, may_create=may_create)
        return found

    def _row(self, query: str, *values: Any) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
        assert row is not None
        return row

    def _settings(self) -> dict[str, str | None]:
        asked = "select name, current_setting(name, true) from unnest(%s::text[]) name"
        return dict(self._connection.execute(asked, ([*_SETTINGS],)).fetchall())

    def _judge_server(self, settings: dict[str, Any], *, is_standby: bool, is_direct: bool) -> None:
        problem, note = self._diagnosis.problem, self._diagnosis.note
        if self._connection.info.server_version < _OLDEST:
            note(
                "server", f"it is PostgreSQL {settings['server_version']}, and inmem is tested with 15",
                "Take a newer one.",
            )
        if is_standby:
            problem(
                "server", "it is a standby, which takes no writes",
                "Name all nodes, and target_session_attrs=read-write.",
            )
        elif settings["default_transaction_read_only"] == "on":
            problem(
                "server", "transactions of this user only read",
                self._set("default_transaction_read_only = off"),
            )
        if settings["autovacuum"] == "off":
            problem(
                "server", "autovacuum is off: rows that are written often grow slower and slower",
                "Set autovacuum = on, and reload.",
            )
        if is_direct:
            return
        note(
            "proxy", "there is a pooling proxy before the server: inmem sets nothing for connections there",
            "Set for the role what it needs; see docs/guide/failover.md.",
        )
        for name, right in _BEHIND_A_PROXY.items():
            value = settings[name]
            if value == "0" if name.startswith("idle") else value != right:
                problem(
                    "proxy", f"{name} is {value}, and inmem cannot set it here",
                    self._set(f"{name} = '{right}'"),
                )

    def _set(self, what: str) -> str:
        return f"alter role {self._connection.info.user} set {what}, and connect anew."

    def _judge_room(self, settings: dict[str, Any], used: int, limits: list[int]) -> None:
        most = int(settings["max_connections"]) - int(settings["superuser_reserved_connections"])
        free = min([most - used, *limits])
        if free < 1:
            self._diagnosis.problem(
                "connections", f"all {most} connections are in use",
                "Raise max_connections, or use PgBouncer.",
            )
        elif free < AT_ONCE + KEPT:
            self._diagnosis.note(
                "connections", f"{free} of {most} are left; threads of one process use {AT_ONCE} at once",
                "Raise max_connections, say connections=N in the URL, or use PgBouncer.",
            )

    def _judge_times(self, ahead_s: float, age_s: float | None) -> None:
        if abs(ahead_s) > _FAR_S:
            side = "ahead of" if ahead_s > 0 else "behind"
            self._diagnosis.note(
                "clock", f"the server's clock is {abs(ahead_s):,.0f} s {side} that of this machine",
                "Let both follow a time server. All times in the store are the server's.",
            )
        if age_s is not None and age_s > _OLD_S:
            self._diagnosis.note(
                "server", f"a transaction is open for {age_s:,.0f} s: rows that are written often get slow",
                "See who it is: select * from pg_stat_activity where backend_xmin is not null.",
            )

    # --- the store --------------------------------------------------------------------------------

    def _store(self, settings: dict[str, Any], standbys: int, *, may_create: bool) -> dict[str, Any] | None:
        name = self._address.schema
        found = self._connection.execute(
            "select relname::text from pg_class where relnamespace = to_regnamespace(%s) and relkind = 'r'",
            (name,),
        ).fetchall()
        tables = {table for table, in found} & {*schema.NAMES, "meta"}
        if not tables:
            who = "This user may make one" if may_create else "Somebody who may create tables makes one"
            raise InvalidInputError(
                f"{self._address.shown} holds no inmem database", argument="path",
                hint=f"{who}: inmem init -d URL.",
            )
        [[may_use]] = self._connection.execute(
            "select has_schema_privilege(%s, 'usage')", (name,)
        ).fetchall()
        if not may_use:
            raise self._no_right(f"usage on schema {name}")
        missing = self._missing_rights(tables)
        if any("select" in rights for rights in missing.values()):
            raise self._no_right("select on all its tables")
        if missing:
            said = ", ".join(f"{'/'.join(rights)} on {table}" for table, rights in sorted(missing.items()))
            self._diagnosis.note(
                "rights", f"this user can read the store, and not write: no right to {said}",
                self._grant("select, insert, update, delete"),
            )
        self._connection.execute("select set_config('search_path', %s, true)", (name,))
        stored = schema.meta(self._connection)
        if stored is None or tables != {*schema.NAMES, "meta"}:
            raise schema.foreign(name, sorted(tables))
        database_id, version, _, durability = stored
        schema.check_format("the store", version)
        self._judge_durability(settings, durability, standbys)
        newest, clock_us = self._row(f"select coalesce(max(version), 0), {CLOCK} from buckets")
        ahead_s = (newest - clock_us) / 1e6
        if ahead_s > _FAR_S:
            self._diagnosis.problem(
                "clock", f"the store has times {ahead_s:,.0f} s ahead of the server's clock, set back since",
                "Correct the clock. Until it is there times of commits stand still, in the order of commits.",
            )
        return {
            "database_id": database_id.hex(), "format": version, "durability": durability,
            "may_write": not missing,
        }

    def _missing_rights(self, tables: set[str]) -> dict[str, list[str]]:
        name = self._address.schema
        missing: dict[str, list[str]] = {}
        for table in tables:
            for right in _RIGHTS if table != "meta" else _RIGHTS[:1]:
                if self._row("select has_table_privilege(%s, %s)", f"{name}.{table}", right) != (True,):
                    missing.setdefault(table, []).append(right)
        return missing

    def _grant(self, rights: str) -> str:
        name, user = self._address.schema, self._connection.info.user
        return f"grant {rights} on all tables in schema {name} to {user};"

    def _no_right(self, what: str) -> PermissionDeniedError:
        name, user = self._address.schema, self._connection.info.user
        return PermissionDeniedError(
            f"this user has no right to {what}",
            hint=f"grant usage on schema {name} to {user}; {self._grant('select, insert, update, delete')}",
        )

    def _judge_durability(self, settings: dict[str, Any], durability: str, standbys: int) -> None:
        problem, note = self._diagnosis.problem, self._diagnosis.note
        if durability != "memory" and settings["fsync"] == "off":
            problem(
                "durability", f"the store's durability is {durability}, and the server has fsync off",
                "Set fsync = on, and reload: until then nobody can open it.",
            )
        if durability != "memory" and settings["full_page_writes"] == "off":
            problem(
                "durability", "full_page_writes is off: a power cut can damage pages",
                "Set full_page_writes = on, and reload.",
            )
        if durability == "sync" and settings["synchronous_commit"] == "local":
            note(
                "durability", "synchronous_commit is local: commits do not wait for standbys",
                self._set("synchronous_commit = on"),
            )
        if durability == "sync" and settings["synchronous_standby_names"] and not standbys:
            problem(
                "durability", "commits wait for a synchronous standby, and none is connected",
                "Start one, or let synchronous_standby_names be empty.",
            )
        elif durability == "sync" and not settings["synchronous_standby_names"]:
            note(
                "durability", "no standby is synchronous: what is lost with the server's disk is lost",
                "See docs/guide/failover.md.",
            )
        if settings["data_checksums"] == "off":
            note(
                "durability", "data_checksums is off: damaged pages are not noticed",
                "pg_checksums --enable, while the server is stopped.",
            )
