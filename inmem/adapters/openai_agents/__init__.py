"""The OpenAI Agents SDK on inmem: its sessions. Extra `openai_agents`."""

from inmem.adapters.openai_agents.session import InmemSession as InmemSession

__all__ = ["InmemSession"]
