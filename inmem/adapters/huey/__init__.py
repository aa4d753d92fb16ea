"""Huey's tasks in a store of inmem: `InmemHuey` and `InmemStorage`. See `layout` for what is stored."""

from inmem.adapters.huey.api import InmemHuey
from inmem.adapters.huey.storage import InmemStorage

__all__ = ["InmemHuey", "InmemStorage"]
