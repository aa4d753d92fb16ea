"""What the tests of this folder share: what lies beside them, and fixtures."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from damaged_store import bench

sys.path.insert(0, str(Path(__file__).parent))

__all__ = ["bench", "dropped_sockets_may_be_seen"]


@pytest.fixture
def dropped_sockets_may_be_seen() -> Iterator[None]:
    """What an interrupted call had open is closed when it is dropped, of which Python warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
