"""What is set for a connection: so that nothing that is set for a role ends or weakens a commit."""

from __future__ import annotations

from typing import Final

from inmem.engines.postgres.asking import AskedConnection
from inmem.errors import ConfigMismatchError

_LONGEST: Final = "60s"  # of a transaction, where the server knows such a limit
_IDLE: Final = "5s"  # in a transaction: who stops in the middle of a commit holds others up for so long


def prepare(connection: AskedConnection, schema: str, durability: str) -> None:
    """Settings of a connection: so that what is set for a role cannot end or weaken a commit.

    Behind a proxy that gives each transaction another connection of the server's, which has
    another process id than we were told, nothing can be set: it would be set for others.
    """
    wanted = {
        "search_path": schema,
        "idle_in_transaction_session_timeout": _IDLE,
        "statement_timeout": "0",
        "lock_timeout": "0",
        "default_transaction_isolation": "read committed",
        # A client that is cut off in the middle of what it sends: nothing else ends what that has locked.
        "tcp_keepalives_idle": "2", "tcp_keepalives_interval": "1", "tcp_keepalives_count": "3",
        "tcp_user_timeout": "5s",  # for which what the server sends may go without an answer
        # Statements are few, and each is to go by an index whatever it is given. Left alone, the server plans
        # those with lists and limits anew each time, which takes it longer than what they do. What has to
        # read a whole table is expensive in its eyes then: compiling that would take a second. A plan that
        # is right for a small table, to read all of an index and join that, is kept while the table grows.
        "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_bitmapscan": "off",
        "enable_mergejoin": "off", "enable_hashjoin": "off", "jit": "off",
    }
    if connection.info.server_version >= 170000:
        wanted["transaction_timeout"] = _LONGEST
    if durability != "sync":
        wanted["synchronous_commit"] = "off"
    pid = connection.info.backend_pid
    names, values = [*wanted], [*wanted.values()]
    found = connection.execute(
        "select pg_backend_pid() = %s, current_setting('search_path'),"
        " current_setting('default_transaction_isolation'), current_setting('synchronous_commit')",
        (pid,),
    ).fetchone()
    assert found is not None
    is_direct, path, isolation, waits = found
    is_weak = durability == "sync" and waits == "off"
    if is_weak:
        names, values = [*names, "synchronous_commit"], [*values, "on"]
    if is_direct:
        connection.execute(
            "select set_config(name, value, false) from unnest(%s::text[], %s::text[]) _(name, value)",
            (names, values),
        )
        return
    connection.is_direct = False
    for name, value, right in (
        ("search_path", path.split(",")[0].strip(' "'), schema),
        ("default_transaction_isolation", isolation, "read committed"),
        ("synchronous_commit", waits, "on" if is_weak else waits),
    ):
        if value != right:
            raise ConfigMismatchError(
                f"there is a pooling proxy before the server, and {name} is {value!r}, not {right!r}",
                setting=name, stored=value, requested=right,
                hint=f"alter role ... set {name} = '{right}', and let the proxy connect anew.",
            )
