"""Programs that use one store of py-key-value at once."""

from __future__ import annotations

import asyncio
from typing import Any

import inmem.aio
from inmem.adapters.key_value import InmemStore

KEYS = [f"key-{number}" for number in range(20)]


def put_and_look(words: Any, index: int, place: dict[str, Any]) -> dict[str, int]:
    """Put all keys at once, over and over, and look at them in between; how often, and what was seen torn."""
    return asyncio.run(_put_and_look(words, index, place))


async def _put_and_look(words: Any, index: int, place: dict[str, Any]) -> dict[str, int]:
    number = torn = 0
    async with inmem.aio.open(**place, timeout_s=60.0) as db, InmemStore(db) as store:
        words[index] = 1
        words.pass_gate()
        while not words.stopping():
            number += 1
            await store.put_many(KEYS, [{"by": index, "number": number}] * len(KEYS), collection="shared")
            await store.put(f"own-{index}", {"number": number}, collection="shared")
            seen = await store.get_many(KEYS, collection="shared")
            torn += any(each != seen[0] for each in seen)
            words[index] = number + 1
    return {"number": number, "torn": torn}


def put_under_destruction(words: Any, index: int, place: dict[str, Any], count: int) -> int:
    """Put entries into a collection that is destroyed meanwhile; the last one stays for good."""
    return asyncio.run(_put_under_destruction(words, index, place, count))


async def _put_under_destruction(words: Any, index: int, place: dict[str, Any], count: int) -> int:
    async with inmem.aio.open(**place, timeout_s=60.0) as db, InmemStore(db) as store:
        words[index] = 1
        words.pass_gate()
        for number in range(count):
            await store.put(f"{index}-{number}", {"number": number}, collection="short-lived")
        words[index] = 2
        words.pass_gate(2)
        await store.put(f"{index}-end", {"number": count}, collection="short-lived")
    return count


def put_what_is_large(words: Any, index: int, place: dict[str, Any], mib: int) -> None:
    """Put one value of so many MiB; killed in the middle of it."""
    asyncio.run(_put_what_is_large(words, index, place, mib))


async def _put_what_is_large(words: Any, index: int, place: dict[str, Any], mib: int) -> None:
    async with inmem.aio.open(**place, timeout_s=60.0) as db, InmemStore(db) as store:
        value = {"text": "x" * (mib << 20)}
        words[index] = 1
        words.pass_gate()
        await store.put("large", value)
