"""py-key-value on inmem: a store for FastMCP and others. Extra `key_value`."""

from inmem.adapters.key_value.store import InmemStore as InmemStore

__all__ = ["InmemStore"]
