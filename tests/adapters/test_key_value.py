"""The store of py-key-value: what upstream's suite, see `test_key_value_upstream`, does not look at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from homes import Fresh

import inmem
import inmem.aio

pytest.importorskip("key_value.aio", reason="the extra `key_value` is not installed")

from key_value.aio.adapters.raise_on_missing import RaiseOnMissingAdapter
from key_value.aio.errors import MissingKeyError, StoreSetupError
from key_value.aio.wrappers.prefix_keys import PrefixKeysWrapper
from key_value_workers import KEYS, put_and_look, put_under_destruction, put_what_is_large
from support import Workers, kill_writer, wait_until

from inmem.adapters.key_value import InmemStore

T = TypeVar("T")
LARGE = {"text": "x" * (20 << 20)}
ODD = [
    "a", " ", "a/b", "../..", "é\U0001f600", "x" * 2000, "x" * 257, "a\0b", "=", "#", "e/=a", "日" * 100,
    "=a", "#a",
]


def used(
    place: dict[str, Any], use: Callable[[inmem.aio.AsyncDatabase, InmemStore], Awaitable[T]], **more: Any
) -> T:
    """Use a store in a loop of its own."""

    async def main() -> T:
        async with inmem.aio.open(**place) as db, InmemStore(db, **more) as store:
            return await use(db, store)

    return asyncio.run(main())


async def run_of(db: inmem.aio.AsyncDatabase, collection: str = "default_collection") -> str:
    """The run of a collection."""
    runs = await db.runs.query_runs(tags=["key_value"])
    [run] = [each for each in runs if each.metadata["collection"] == collection]
    return str(run.run_id)


async def parts(db: inmem.aio.AsyncDatabase, run_id: str) -> list[str]:
    """The values that have parts, and whose they are."""
    return sorted({key.split("/")[1] for prefix in ("p/", "l/") for key in await db.kv.list(run_id, prefix)})


def test_names_of_any_kind(fresh: Fresh) -> None:
    async def use(db: inmem.aio.AsyncDatabase, store: InmemStore) -> None:
        other = InmemStore(db, name="another")
        for name in ODD:
            await store.put_many(ODD, [{"key": key} for key in ODD], collection=name)
        assert sorted(await store.collections()) == sorted(ODD)
        for name in ODD:
            assert sorted(await store.keys(name)) == sorted(ODD)
            assert await store.get_many(ODD, collection=name) == [{"key": key} for key in ODD]
            assert await store.delete(name, collection=name)
            assert sorted(await store.keys(name)) == sorted({*ODD} - {name})
        for limit in (0, 1, 3, 100):
            assert await store.keys("a", limit=limit) == (await store.keys("a"))[:limit]
        assert len(await store.collections(limit=2)) == 2
        assert await other.collections() == [] and await other.get(ODD[1], collection="a") is None
        await other.put("k", {"a": 1}, collection="a")
        assert await store.destroy_collection("a") and not await store.destroy_collection("a")
        assert await store.keys("a") == [] and sorted(await store.collections()) == sorted(ODD[1:])
        assert await store.destroy() and await store.collections() == []
        assert await other.get("k", collection="a") == {"a": 1}
        assert len(await db.runs.list_runs()) == 1
        with pytest.raises(inmem.InvalidInputError, match="key has a lone surrogate"):
            await store.put("\ud800", {"a": 1})
        with pytest.raises(StoreSetupError, match="collection has a lone surrogate"):
            await store.put("k", {"a": 1}, collection="\ud800")
        assert await store.collections() == []

    used(fresh(), use)


def test_values_of_any_size(fresh: Fresh) -> None:
    async def use(db: inmem.aio.AsyncDatabase, store: InmemStore) -> None:
        await store.put("small", {"a": 1})
        several = [{"text": letter * (3 << 20)} for letter in "abcd"]
        await store.put("large", LARGE, ttl=500)
        await store.put_many(["a", "b", "c", "d"], several)
        assert await store.get_many(["large", "a", "b", "c", "d"]) == [LARGE, *several]
        value, ttl = await store.ttl("large")
        assert value == LARGE and ttl is not None and 0 < ttl <= 500
        run_id = await run_of(db)
        assert len(await parts(db, run_id)) == 3, "what goes beyond 8 MiB of a commit"
        await store.put("large", {"a": 2})
        await store.put_many(["c", "d", "e"], [{"a": 3}, several[3], {"text": "e" * (9 << 20)}])
        assert await store.get_many(["large", "c", "d"]) == [{"a": 2}, {"a": 3}, several[3]]
        assert len(await parts(db, run_id)) == 1
        await store.cull()
        assert await store.get("e") == {"text": "e" * (9 << 20)}
        assert await store.delete_many(["large", "a", "b", "c", "d", "e", "e"]) == 6
        assert await parts(db, run_id) == [] and await store.keys() == ["small"]

    used(fresh(), use)


def test_calls_of_many_are_one_commit(fresh: Fresh) -> None:
    async def use(db: inmem.aio.AsyncDatabase, store: InmemStore) -> None:
        await store.put_many(["a", "b", "a"], [{"n": 1}, {"n": 2}, {"n": 3}], ttl=100)
        run_id = await run_of(db)
        found = [await db.kv.get_versioned(run_id, key) for key in await db.kv.list(run_id, "e/")]
        assert len({each.version for each in found if each}) == 1 and len(found) == 2
        assert await store.get_many(["a", "none", "b"]) == [{"n": 3}, None, {"n": 2}]
        await store.put_many([], [])
        many = [f"key-{number}" for number in range(10_001)]
        with pytest.raises(inmem.LimitError):
            await store.put_many(many, [{"n": 0}] * len(many))
        assert await store.keys() == ["a", "b"]
        await store.put_many(many[:8000], [{"n": 0}] * 8000)
        assert len(await store.keys()) == 8002
        assert await store.delete_many(many) == 8000

    used(fresh(), use)


def test_expiry_in_the_store_and_in_the_entry(fresh: Fresh) -> None:
    place = fresh()

    async def put(db: inmem.aio.AsyncDatabase, store: InmemStore) -> tuple[str, float]:
        await store.put("for ever", {"a": 1}, ttl=1e9 * 90)
        await store.put_many(["long", "longer"], [{"a": 1}] * 2, ttl=1000)
        before = time.time()
        await store.put("short", {"a": 1}, ttl=1.5)
        run_id = await run_of(db)
        for key, seconds in (("long", 1000.0), ("longer", 1000.0), ("short", 1.5)):
            stored, (_, told) = await db.kv.ttl(run_id, f"e/={key}"), await store.ttl(key)
            assert stored is not None and told is not None
            assert seconds - 1.4 < told <= seconds and abs(stored - told) < 1.0
        assert await db.kv.ttl(run_id, "e/=for ever") is None
        assert "short" in await store.keys()
        return run_id, before + 1.5

    run_id, expires_at = used(place, put)
    if isinstance(place["path"], Path):
        kill_writer(place["path"])

    async def look(db: inmem.aio.AsyncDatabase, store: InmemStore) -> None:
        while (await store.get("short")) is not None:
            assert time.time() < expires_at + 20
            await asyncio.sleep(0.02)
        assert time.time() >= expires_at, "not before its time"
        while await db.kv.exists(run_id, "e/=short"):
            assert time.time() < expires_at + 20
            await asyncio.sleep(0.02)
        assert sorted(await store.keys()) == ["for ever", "long", "longer"]
        assert await store.ttl("short") == (None, None) and not await store.delete("short")
        _, left = await store.ttl("long")
        assert left is not None and 900 < left < 1000, "it counts on, whoever was killed"
        await store.put("short", {"a": 2})
        assert await store.ttl("short") == ({"a": 2}, None)

    used(place, look)


def test_several_programs_and_kills_of_the_writer(fresh: Fresh, workers: Workers) -> None:
    place = fresh()
    local = isinstance(place["path"], Path)
    place["path"] = str(place["path"])
    count = 3
    with inmem.open(**place):
        for index in range(count):
            workers.start(put_and_look, index, place)
        wait_until(lambda: workers.words.total(count) == count, "all are there", 60.0)
        workers.words.open_gate()
        for _ in range(3 if local else 1):
            before = [workers.words[index] for index in range(count)]
            wait_until(
                lambda before=before: all(workers.words[each] > before[each] + 5 for each in range(count)),
                "all go on", 60.0,
            )
            if local:
                kill_writer(Path(place["path"]))
        workers.words.stop()
        results = workers.results()
    assert [each["torn"] for each in results] == [0] * count and all(each["number"] > 5 for each in results)

    async def look(db: inmem.aio.AsyncDatabase, store: InmemStore) -> None:
        seen = await store.get_many([*KEYS, *(f"own-{index}" for index in range(count))], collection="shared")
        assert [each["number"] for each in seen[len(KEYS) :] if each] == [each["number"] for each in results]
        assert seen[0] is not None and seen[0]["number"] <= max(each["number"] for each in results)
        assert await store.collections() == ["shared"] and len(await db.runs.list_runs()) == 1

    used(place, look)


def test_a_collection_is_destroyed_under_its_writers(fresh: Fresh, workers: Workers) -> None:
    place = fresh()
    place["path"] = str(place["path"])
    count, puts = 2, 60

    async def destroy(db: inmem.aio.AsyncDatabase, store: InmemStore) -> None:
        for index in range(count):
            workers.start(put_under_destruction, index, place, puts)
        while workers.words.total(count) < count:
            workers.check()
            await asyncio.sleep(0.01)
        workers.words.open_gate()
        destroyed = 0
        while workers.words.total(count) < 2 * count:
            workers.check()
            destroyed += await store.destroy_collection("short-lived")
            await asyncio.sleep(0.01)
        assert destroyed > 0
        await store.destroy_collection("short-lived")
        workers.words.open_gate(2)
        await asyncio.to_thread(workers.results)
        assert await store.keys("short-lived") == [f"{index}-end" for index in range(count)]
        runs = await db.runs.list_runs(include_uncreated=True)
        assert runs == [await run_of(db, "short-lived")], "nobody wrote where a collection had been"
        assert await db.shared("agent").kv.list("key_value/gone/") == []

    used(place, destroy)


def test_a_program_that_dies_in_the_middle_of_a_long_value(fresh: Fresh, workers: Workers) -> None:
    place = fresh()
    place["path"] = str(place["path"])

    async def kill(db: inmem.aio.AsyncDatabase, store: InmemStore) -> None:
        worker = workers.start(put_what_is_large, 0, place, 200)
        while not workers.words[0]:
            workers.check()
            await asyncio.sleep(0.01)
        workers.words.open_gate()
        while not [key for run in await db.runs.list_runs() for key in await db.kv.list(run, "p/")]:
            workers.check()
            await asyncio.sleep(0.001)
        worker.process.kill()
        worker.process.wait()
        run_id = await run_of(db)
        left = await parts(db, run_id)
        assert len(left) == 1 and await store.get("large") is None and await store.keys() == []
        await store.put("large", LARGE)
        await store.cull()
        assert len(await parts(db, run_id)) == 1 and left != await parts(db, run_id)
        assert await store.get("large") == LARGE

    used(place, kill)


def test_parts_that_are_culled_before_they_are_named(fresh: Fresh) -> None:
    class Interrupted(InmemStore):
        """Another program culls after the second part."""

        done = 0

        async def _do(self, fn: Callable[[Any], T]) -> T:
            found = await super()._do(fn)
            self.done += 1
            if self.done == 2:
                await InmemStore(self._db()).cull()
                assert await parts(self._db(), await run_of(self._db())) == []
            return found

    async def main() -> None:
        async with inmem.aio.open(**fresh()) as db:
            store = Interrupted(db)
            await store.put("large", LARGE)
            assert store.done > 7, "the parts were stored again"
            assert await InmemStore(db).get("large") == LARGE
            assert len(await parts(db, await run_of(db))) == 1

    asyncio.run(main())


def test_a_destroyed_collection_whose_run_was_left(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(db: inmem.aio.AsyncDatabase, store: InmemStore) -> None:
        await store.put("k", {"a": 1})
        run_id = await run_of(db)
        with monkeypatch.context() as patched:
            async def dies(run_ids: list[str]) -> None:
                raise KeyboardInterrupt

            patched.setattr(store, "_remove", dies)
            with pytest.raises(KeyboardInterrupt):
                await store.destroy_collection("default_collection")
        assert await store.get("k") is None and await store.collections() == []
        assert await db.kv.count(run_id) == 1
        await InmemStore(db).cull()
        assert await db.runs.list_runs(include_uncreated=True) == []
        assert await db.shared("agent").kv.list() == []

    used(fresh(), use)


def test_a_run_that_was_deleted_behind_its_back(fresh: Fresh) -> None:
    async def use(db: inmem.aio.AsyncDatabase, store: InmemStore) -> None:
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.put("k", {"a": 2}), lambda: store.put("k", LARGE),
            lambda: store.put_many(["k"], [{}]),
            lambda: store.get("k"), lambda: store.get_many(["k"]), lambda: store.keys(),
            lambda: store.delete("k"), lambda: store.cull(), lambda: store.destroy(),
            lambda: store.destroy_collection("default_collection"),
        ]
        for call in calls:
            await store.put("k", {"a": 1})
            await db.runs.delete_run(await run_of(db))
            assert await call() in (None, [None], [], False, True)
            await store.put("k", {"a": 3})
            assert await store.get("k") == {"a": 3} and await store.keys() == ["k"]
            assert len(await db.runs.list_runs()) == 1
        assert await db.shared("agent").kv.list("key_value/gone/") == []

    used(fresh(), use)


def test_what_is_stored_can_be_read(fresh: Fresh) -> None:
    async def use(db: inmem.aio.AsyncDatabase, store: InmemStore) -> None:
        await store.put("user@example.com/7", {"name": "Ada"}, collection="people of Oslo")
        [run] = await db.runs.query_runs(tags=["key_value"])
        assert run.metadata == {"store": "default", "collection": "people of Oslo"}
        [(key, entry)] = await db.kv.list_with_values(run.run_id)
        assert key == "e/=user@example.com/7" and entry["key"] == "user@example.com/7"
        assert '"value": {"name": "Ada"}' in entry["value"]

    used(fresh(), use)


def test_wrappers_and_seeds(fresh: Fresh) -> None:
    async def use(db: inmem.aio.AsyncDatabase, store: InmemStore) -> None:
        assert await store.get("k", collection="c") == {"seeded": True}
        wrapped = PrefixKeysWrapper(key_value=store, prefix="mine")
        await wrapped.put("k", {"a": 1}, collection="c")
        assert await wrapped.get("k", collection="c") == {"a": 1} and len(await store.keys("c")) == 2
        with pytest.raises(MissingKeyError):
            await RaiseOnMissingAdapter(key_value=store).get("none", collection="c", raise_on_missing=True)

    used(fresh(), use, seed={"c": {"k": {"seeded": True}}}, default_collection="c")


def test_whose_the_handle_is(fresh: Fresh, tmp_path: Path) -> None:
    async def main() -> None:
        async with inmem.aio.open(**fresh()) as db:
            async with InmemStore(db) as store:
                await store.put("k", {"a": 1})
            assert await InmemStore(db).get("k") == {"a": 1}, "a handle that was given stays open"
            tasks = [InmemStore(db).put(f"k{n}", {"n": n}, collection=f"c{n}") for n in range(20)]
            await asyncio.gather(*tasks)
            assert len(await InmemStore(db).collections()) == 21
        async with InmemStore(tmp_path / "own", name="n") as own:
            await own.put("k", {"a": 2})
        with pytest.raises(inmem.ClosedError):
            await own.get("k")
        again = InmemStore(str(tmp_path / "own"), name="n")
        assert await again.get("k") == {"a": 2}, "it opens at its first use"
        await again.close()

    asyncio.run(main())


def test_bad_arguments(tmp_path: Path) -> None:
    with inmem.open(tmp_path / "s") as db:
        for arguments, named in (((None,), "store"), ((db,), "store"), ((7,), "store")):
            with pytest.raises(inmem.InvalidInputError) as caught:
                InmemStore(*arguments)  # type: ignore[arg-type]
            assert caught.value.argument == named and "inmem.aio.open" in str(caught.value.hint)
        for name in ("", None, "\ud800"):
            with pytest.raises(inmem.InvalidInputError) as caught:
                InmemStore(tmp_path, name=name)  # type: ignore[arg-type]
            assert caught.value.argument == "name"

    async def nowhere() -> None:
        store = InmemStore("redis://somewhere")
        with pytest.raises(StoreSetupError):
            await store.get("k")

    asyncio.run(nowhere())
