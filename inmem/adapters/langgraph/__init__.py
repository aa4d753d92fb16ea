"""LangGraph on inmem: a saver of checkpoints. Extra `langgraph`."""

from inmem.adapters.langgraph.saver import InmemSaver as InmemSaver

__all__ = ["InmemSaver"]
