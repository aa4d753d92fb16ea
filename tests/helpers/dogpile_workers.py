"""Programs that share a region of dogpile.cache."""

from __future__ import annotations

import os
import time
from typing import Any

from dogpile.cache import make_region

import inmem
from inmem.adapters.dogpile import InmemBackend

MADE = "made"  # the run whose events tell who made what


def region_of(db: inmem.Database, **arguments: Any) -> Any:
    """A region whose values are old after 0.2 s."""
    assert InmemBackend
    return make_region().configure("inmem", expiration_time=0.2, arguments={"store": db, **arguments})


def make_values(words: Any, index: int, place: dict[str, Any], rounds: int, key: str) -> list[int]:
    """Ask for one value over and over, and make it where it is old; the numbers that were seen."""
    with inmem.open(**place, timeout_s=60.0) as db:
        region = region_of(db)

        def make() -> int:
            number = db.events.append(MADE, "begun", {"by": os.getpid()}).sequence
            time.sleep(0.02)
            db.events.append(MADE, "done", {"by": os.getpid()})
            return number

        words[index] = 1
        words.pass_gate()
        seen = []
        for _ in range(rounds):
            seen.append(region.get_or_create(key, make))
            time.sleep(0.01)
        return seen


def make_for_ever(words: Any, index: int, place: dict[str, Any], lock_ttl_s: float) -> None:
    """Begin to make a value, and never end."""
    with inmem.open(**place, timeout_s=60.0) as db:

        def make() -> None:
            words[index] = 1
            words.pass_gate()

        region_of(db, lock_ttl_s=lock_ttl_s).get_or_create("slow", make)
