"""Slots of the board: requests put into them by hand, and who adds through them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from crash_workers import RUN

import inmem
from inmem import wire
from inmem.client.link import Link
from inmem.host.board import Board

SEED = int(os.environ.get("INMEM_TEST_SEED", "20261122"))
DEADLINE_S = 20.0


def frame_of(session: bytes, sequence: int = 1, body: bytes = b"body") -> bytes:
    return wire.COMMIT_HEADER.pack(wire.COMMIT, 0, session, sequence, sequence) + body


def session_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture
def board(scratch: Path) -> Any:
    made = Board(scratch / "board", create=True)
    yield made
    made.close()


def link_of(db: inmem.Database) -> Link | None:
    """What this thread's last call used."""
    return db.engine.attachment.session()._free[-1]._link


def adds(words: Any, index: int, path: str, key: str) -> int:
    """Add 1 until told to stop; how often."""
    with inmem.open(path) as db:
        done = 0
        while not words.stopping():
            done += 1
            assert db.kv.add(RUN, key) == done
            words[index] = done
        return done
