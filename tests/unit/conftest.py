"""Fixtures of the tests of commits, the commit layer without its process, and of those of checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from checking import killed
from committing import Bench, Client

__all__ = ["bench", "client", "killed"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A store and its committer; in the end the log says what the image holds."""
    some = Bench(tmp_path / "image")
    yield some
    some.assert_log_is_image()
    some.close()


@pytest.fixture
def client(bench: Bench) -> Client:
    """A client of it."""
    return bench.client()
