"""Adapters are tested on each engine. With INMEM_ADAPTER_TABLE=1 a run is recorded: see `table`."""

from __future__ import annotations

import os

import pytest
from homes import fresh, home
from recorded_runs import Recording

__all__ = ["fresh", "home"]


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("INMEM_ADAPTER_TABLE") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recording(), "inmem-adapter-table")
