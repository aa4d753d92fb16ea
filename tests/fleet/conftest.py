"""Fixtures of the tests of programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from commands import LINGER_S, Site


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a store are an agreement: this process asks for what the commands ask for."""
    monkeypatch.setenv("INMEM_LINGER_S", LINGER_S)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A place for the programs of one test."""
    with closing(Site(tmp_path / "tmp")) as site:
        yield site
