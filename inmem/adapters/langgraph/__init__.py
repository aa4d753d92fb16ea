"""LangGraph on inmem: a saver of checkpoints, and a store of items. Extra `langgraph`."""

from inmem.adapters.langgraph.saver import InmemSaver as InmemSaver
from inmem.adapters.langgraph.store import InmemStore as InmemStore

__all__ = ["InmemSaver", "InmemStore"]
