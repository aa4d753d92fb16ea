"""Opening a store on a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from inmem.config import load
from inmem.engines.postgres import address
from inmem.engines.postgres.engine import PostgresEngine
from inmem.engines.postgres.store import MAX_AGE_S, ServerStore


def open_postgres(
    url: str, *, config: Any, arguments: Mapping[str, Any], create: bool = True, known: bytes | None = None,
    default: Callable[[Any], Any] | None = None,
) -> PostgresEngine:
    """The engine for a URL. Raises as `inmem.open` does."""
    configuration = load(config, arguments)
    asked = {name: getattr(configuration.settings, name) for name in ("durability", "chain")}
    asked = {name: value for name, value in asked.items() if configuration.origins[name] != "default"}
    place = address.parse(url)
    store = ServerStore.shared(
        place, configuration.settings.timeout_s, create=create, known=known, asked=asked
    )
    try:
        stored = {"durability": store.durability, "chain": store.chain_name}
        settings = configuration.with_stored(stored).settings
        settings = replace(
            settings, snapshot_max_age_s=min(settings.snapshot_max_age_s, MAX_AGE_S)
        )
        store.connections.session_ttl_s = settings.session_ttl_s
        return PostgresEngine(store, settings, default)
    except BaseException:
        store.let_go()
        raise
