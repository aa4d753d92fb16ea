"""LangGraph's store: items, searches, times to live and vectors, with both kinds of handle."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import pytest
from homes import Fresh
from support import in_threads, wait_until

import inmem

pytest.importorskip("langgraph.store.base", reason="the extra `langgraph` is not installed")

from langgraph.config import get_store
from langgraph.graph import END, START, StateGraph
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore

from inmem.adapters.langgraph import InmemSaver, InmemStore

RUN = "langgraph-store"


@pytest.fixture
def db(fresh: Fresh) -> Iterator[inmem.Database]:
    with inmem.open(**fresh()) as database:
        yield database


@pytest.fixture
def store(db: inmem.Database) -> InmemStore:
    return InmemStore(db)


def letters(texts: list[str]) -> list[list[float]]:
    """How often each letter is in a text."""
    return [[float(text.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]


def keys(found: Any) -> list[str]:
    return [item.key for item in found]


# --- items ------------------------------------------------------------------------------------------

ODD = ["k", "", " ", "a/b", "..", ".x", "x..y", "~", "~~", "\u00e9\U0001f600", "a\x00b", "x" * 2000, "*", "-"]
ODD_LABELS = [name for name in ODD if name and "." not in name and "\0" not in name]


def test_names_of_any_kind(store: InmemStore) -> None:
    namespaces: list[tuple[str, ...]] = [(label,) for label in ODD_LABELS]
    namespaces += [("a", label) for label in ODD_LABELS] + [("y" * 30,) * depth for depth in (4, 5, 9, 40)]
    for namespace in namespaces:
        store.batch([PutOp(namespace, key, {"is": [*namespace, key]}) for key in ODD])
    for namespace in namespaces:
        found = store.batch([GetOp(namespace, key) for key in ODD])
        assert [item.value for item in found] == [{"is": [*namespace, key]} for key in ODD]  # type: ignore[union-attr]
        assert [(item.namespace, item.key) for item in found] == [(namespace, key) for key in ODD]  # type: ignore[union-attr]
    assert set(store.list_namespaces(limit=999)) == set(namespaces)
    for prefix in {namespace[:length] for namespace in namespaces for length in range(len(namespace) + 1)}:
        below = [namespace for namespace in namespaces if namespace[: len(prefix)] == prefix]
        assert len(store.search(prefix, limit=9999)) == len(below) * len(ODD), prefix
        if prefix and "*" not in prefix:
            assert set(store.list_namespaces(prefix=prefix, limit=999)) == set(below)


def test_what_is_stored_can_be_read(store: InmemStore, db: inmem.Database) -> None:
    store.put(("users", "ada"), "food", {"likes": ("figs", "tea")})
    [run] = db.runs.query_runs(tags=["langgraph"])
    assert (run.run_id, run.metadata) == (RUN, {"holds": "items"})
    [(key, item)] = db.kv.list_with_values(RUN)
    assert key == "i/users.ada..food" and item["value"] == {"likes": ["figs", "tea"]}
    before = store.get(("users", "ada"), "food")
    store.put(("users", "ada"), "food", {})
    after = store.get(("users", "ada"), "food")
    assert before and after and before.created_at == after.created_at and before.updated_at < after.updated_at


def test_a_batch_reads_before_it_writes_and_is_one_commit(store: InmemStore, db: inmem.Database) -> None:
    store.put(("a",), "old", {"n": 0})
    found = store.batch([
        PutOp(("a",), "new", {"n": 1}), PutOp(("a",), "old", {"n": 2}), GetOp(("a",), "old"),
        GetOp(("a",), "new"), PutOp(("a",), "new", {"n": 3}), SearchOp(("a",)), ListNamespacesOp(),
        PutOp(("b",), "gone", {"n": 4}), PutOp(("b",), "gone", None),
    ])
    assert [found[2].value, found[3]] == [{"n": 0}, None]  # type: ignore[union-attr]
    assert (keys(found[5]), found[6]) == (["old"], [("a",)])
    assert {item.key: item.value for item in store.search(())} == {"new": {"n": 3}, "old": {"n": 2}}
    stored = [db.kv.get_versioned(RUN, f"i/a..{key}") for key in ("new", "old")]
    assert stored[0] and stored[1] and stored[0].version == stored[1].version


def test_a_batch_that_is_wrong_does_nothing(store: InmemStore) -> None:
    put = PutOp(("a",), "k", {"n": 1})
    wrong: list[tuple[Any, str, type[Exception]]] = [
        (PutOp(("a.b",), "k", {}), "", InvalidNamespaceError),
        (SearchOp(("a", "")), "", InvalidNamespaceError),
        (PutOp(("a",), "k", {"n": 1 << 70}), "value", inmem.InvalidValueError),
        (PutOp(("a",), "k", {"n": {1: 2}}), "value", inmem.InvalidValueError),
        (PutOp(("a",), "k", [1]), "value", inmem.InvalidInputError),  # type: ignore[arg-type]
        (PutOp(("a",), "k", {}, ttl=0), "ttl", inmem.InvalidInputError),
        (PutOp(("a",), 7, {}), "key", inmem.InvalidInputError),  # type: ignore[arg-type]
        (SearchOp((), limit=-1), "limit", inmem.InvalidInputError),
        (SearchOp((), offset=-1), "offset", inmem.InvalidInputError),
        (SearchOp((), filter={"a": {"$in": [1]}}), "filter", inmem.InvalidInputError),
        (SearchOp((), filter={"a": {"b": {"$eq": 1, "c": 2}}}), "filter", inmem.InvalidInputError),
        (SearchOp((), filter=["a"]), "filter", inmem.InvalidInputError),  # type: ignore[arg-type]
        (ListNamespacesOp(max_depth=0), "max_depth", inmem.InvalidInputError),
        (ListNamespacesOp((MatchCondition("infix", ("a",)),)), "match_conditions", inmem.InvalidInputError),  # type: ignore[arg-type]
        ("get", "ops", inmem.InvalidInputError),
    ]
    for op, argument, error in wrong:
        with pytest.raises(error) as caught:
            store.batch([put, op])
        if isinstance(caught.value, inmem.InvalidInputError):
            assert caught.value.argument == argument, op
    assert store.search(()) == []
    with pytest.raises(inmem.InvalidInputError):
        InmemStore(None)  # type: ignore[arg-type]
    with pytest.raises(inmem.LimitError):
        store.put(("a",), "k", {"text": "x" * (17 << 20)})
    store.put(("a",), "k", {"text": "x" * (6 << 20)})
    assert "InmemStore(" in repr(store)


# --- searching, against a model -----------------------------------------------------------------------

VALUES: list[Any] = [
    None, True, False, 0, 1, 1.0, 2.5, "1", "b", [1, 2], [1, 2.0], {"x": 1}, {"x": {"y": "b"}}
]
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda a, b: a > b, "$gte": lambda a, b: a >= b, "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}


def is_same(a: Any, b: Any) -> bool:
    """As in JSON."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b)


def test_filters(store: InmemStore) -> None:
    for number, value in enumerate(VALUES):
        store.put(("f",), f"{number:02}", {"v": value, "in": {"v": value, "a.b": number}})
    store.put(("f",), "absent", {})

    def found(**wanted: Any) -> set[str]:
        return {*keys(store.search(("f",), filter=wanted, limit=99))} - {"absent"}

    for wanted in VALUES:
        if isinstance(wanted, dict):
            continue
        same = {f"{number:02}" for number, value in enumerate(VALUES) if is_same(value, wanted)}
        assert found(v=wanted) == found(**{"in.v": wanted}) == found(v={"$eq": wanted}) == same
        assert found(**{"in": {"v": wanted}}) == same
        assert found(v={"$ne": wanted}) == {f"{n:02}" for n in range(len(VALUES))} - same
        for name, compare in OPERATORS.items():
            right = {
                f"{number:02}" for number, value in enumerate(VALUES)
                if not isinstance(value, bool) and not isinstance(wanted, bool) and (
                    (isinstance(value, int | float) and isinstance(wanted, int | float))
                    or (isinstance(value, str) and isinstance(wanted, str))
                ) and compare(value, wanted)
            }
            assert found(v={name: wanted}) == right, (name, wanted)
    assert found(v={"x": 1}) == {"11"} and found(v={"x": {"y": "b"}}) == found(**{"v.x.y": "b"}) == {"12"}
    assert found(v={"$gt": 0, "$lt": 2}) == {"04", "05"} and found(v=1, other=2) == set()
    assert found(**{"in": {"a.b": 3}}) == {"03"}  # a name with a dot is looked for as it is first
    assert keys(store.search(("f",), filter={"v": None}, limit=99)) == ["00", "absent"]


def test_pages(store: InmemStore) -> None:
    for number in range(300):
        store.put(("p", f"{number % 3}"), f"{number:04}", {"n": number, "even": number % 2 == 0})
    whole = keys(store.search(("p",), limit=999))
    assert len(whole) == 300 and whole == sorted(whole, key=lambda key: (int(key) % 3, key))
    for size in (7, 299):
        pages = [store.search(("p",), limit=size, offset=offset) for offset in range(0, 300, size)]
        assert [item.key for page in pages for item in page] == whole
    for offset in (0, 150, 255, 256, 257):
        assert keys(store.search(("p",), limit=1, offset=offset)) == [whole[offset]]
    even = [key for key in whole if int(key) % 2 == 0]
    assert keys(store.search(("p",), filter={"even": True}, limit=20, offset=40)) == even[40:60]
    assert store.search(("p",), limit=0) == [] and keys(store.search(("p",), offset=299)) == [whole[299]]


def test_namespaces_against_langgraphs_own_store(store: InmemStore) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng, model = random.Random(seed), InMemoryStore()
    for _ in range(60):
        namespace = tuple(rng.choice(["a", "b", "ab", "a-", "\u00e9"]) for _ in range(rng.randint(1, 4)))
        for each in (store, model):
            each.put(namespace, "k", {})
    for _ in range(60):
        asked: dict[str, Any] = {
            name: tuple(rng.choice(["a", "b", "ab", "*", "\u00e9"]) for _ in range(rng.randint(1, 3)))
            for name in ("prefix", "suffix") if rng.random() < 0.5
        }
        asked["max_depth"] = rng.choice([None, 1, 2, 3])
        asked |= {"limit": rng.choice([3, 100]), "offset": rng.choice([0, 2])}
        assert store.list_namespaces(**asked) == model.list_namespaces(**asked), asked
    for namespace in store.list_namespaces():
        store.delete(namespace, "k")
    assert store.list_namespaces() == []  # where LangGraph's own keeps those that are empty


# --- times to live --------------------------------------------------------------------------------------


def test_times_to_live(db: inmem.Database) -> None:
    store = InmemStore(db, ttl={"default_ttl": 1.0, "refresh_on_read": False}, index={"embed": letters})
    store.put(("t",), "default", {"text": "a"})
    store.put(("t",), "own", {"text": "a"}, ttl=60.0)
    store.put(("t",), "none", {"text": "a"}, ttl=None)
    assert {key: db.kv.ttl(RUN, f"i/t..{key}") for key in ("none",)} == {"none": None}

    def gone_at(key: str, clock_after: bool) -> float:
        """When an item and its vector expire, at the latest or at the earliest."""
        before = time.time()
        found = [db.kv.ttl(RUN, f"{kind}/t..{key}") for kind in "iv"]
        each = [ttl + (time.time() if clock_after else before) for ttl in found if ttl is not None]
        assert len(each) == 2
        return max(each) if clock_after else min(each)

    now = time.time()
    assert now + 50 < gone_at("default", False) and gone_at("default", True) < time.time() + 61
    assert now + 3500 < gone_at("own", False) and gone_at("own", True) < time.time() + 3601
    before, version = gone_at("default", True), db.kv.get_versioned(RUN, "i/t..default")
    store.get(("t",), "default")
    store.search(("t",), query="a")
    assert db.kv.get_versioned(RUN, "i/t..default") == version  # not refreshed
    wait_until(lambda: time.time() > before - 59.9, "time passes")
    store.get(("t",), "default", refresh_ttl=True)
    assert gone_at("default", False) > before
    before, updated = gone_at("default", True), store.get(("t",), "default")
    wait_until(lambda: time.time() > before - 59.9, "time passes")
    assert {*keys(store.search(("t",), query="a", refresh_ttl=True))} == {"default", "own", "none"}
    assert gone_at("default", False) > before
    assert store.get(("t",), "default") == updated  # neither value nor times have changed
    store.put(("t",), "default", {"text": "b"}, ttl=None)
    assert db.kv.ttl(RUN, "i/t..default") is db.kv.ttl(RUN, "v/t..default") is None


def test_what_has_expired_is_not_seen(db: inmem.Database) -> None:
    store = InmemStore(db, index={"embed": letters})
    store.put(("t",), "k", {"text": "a"}, ttl=0.3 / 60)
    store.put(("u",), "k", {"text": "a"})
    wait_until(lambda: store.get(("t",), "k", refresh_ttl=False) is None, "it expires")
    assert store.list_namespaces() == [("u",)]
    assert keys(store.search(("t",))) == keys(store.search(("t",), query="a")) == []
    store.put(("t",), "k", {"text": "b"})
    assert keys(store.search(("t",), query="b")) == ["k"]


# --- vectors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_numpy", [True, False])
def test_vectors_against_langgraphs_own_store(
    db: inmem.Database, has_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_numpy:
        pytest.importorskip("numpy", reason="numpy is not installed")
    else:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *of: None if name == "numpy" else find(name, *of)
        )
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    index: Any = {"embed": letters, "dims": 26, "fields": ["text", "parts[*]"]}
    store, model = InmemStore(db, index=index), InMemoryStore(index=index)

    def word() -> str:
        return "".join(rng.choices("abcdefgh", k=rng.randint(1, 6)))

    for number in range(80):
        text, *parts = {word(): None for _ in range(rng.randint(1, 3))}  # the other one wants them to differ
        value = {"text": text, "parts": parts, "n": number}
        of_item: Any = rng.choice([None, None, None, False, ["parts[*]"], ["n"]])
        place = ("v", str(number % 2)), f"{number % 50}"
        model.delete(*place)  # otherwise it keeps vectors of what was there before
        for each in (store, model):
            each.put(*place, value, index=of_item)
    for _ in range(20):
        asked: dict[str, Any] = {"query": word(), "filter": rng.choice([None, {"n": {"$gte": 40}}])}
        prefix = rng.choice([("v",), ("v", "1")])
        found = store.search(prefix, limit=200, **asked)
        wanted = model.search(prefix, limit=200, **asked)
        scores = {(item.namespace, item.key): item.score for item in wanted}
        assert {(item.namespace, item.key) for item in found} == {*scores}
        for item in found:
            score = scores[item.namespace, item.key]
            assert item.score == (None if score is None else pytest.approx(score, abs=1e-5)), item
        ranks = [-2.0 if item.score is None else item.score for item in found]
        assert ranks == sorted(ranks, reverse=True)
        pages = [store.search(prefix, limit=9, offset=offset, **asked) for offset in range(0, len(found), 9)]
        assert [item.key for page in pages for item in page] == keys(found)


def test_vectors_go_with_their_items(db: inmem.Database) -> None:
    asked: list[int] = []

    def embed(texts: list[str]) -> list[list[float]]:
        asked.append(len(texts))
        return letters(texts)

    store = InmemStore(db, index={"embed": embed, "fields": ["text"]})
    store.batch([PutOp(("v",), str(n), {"text": "same" if n < 3 else "other"}) for n in range(5)])
    assert asked == [2]  # each text once, in one call
    store.put(("v",), "0", {"text": "x"}, index=False)
    store.delete(("v",), "1")
    assert db.kv.list(RUN, "v/") == ["v/v..2", "v/v..3", "v/v..4"]
    far = pytest.approx(letters_near("same", "other"))
    assert [item.score for item in store.search(("v",), query="same")] == [pytest.approx(1.0), far, far, None]
    other = InmemStore(db, index={"embed": lambda texts: [[1.0, 2.0]] * len(texts)})
    with pytest.raises(inmem.InvalidInputError, match="26 dimensions, the query with 2"):
        other.search(("v",), query="x")
    for index, problem in (
        ({"embed": letters, "dims": 3}, "26 dimensions; index says 3"), ({"dims": 3}, "no embed function"),
        ({"embed": lambda texts: []}, "0 vectors for 1 texts"),
        ({"embed": letters, "dims": "x"}, "dims must be"),
        ({"embed": lambda texts: [[float("nan")]]}, "not finite"),
    ):
        with pytest.raises(inmem.InvalidInputError, match=problem):
            InmemStore(db, index=index).put(("v",), "9", {"text": "x"})  # type: ignore[arg-type]
    assert store.get(("v",), "9") is None


def letters_near(one: str, other: str) -> float:
    a, b = letters([one, other])
    length = (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / length


# --- many at once, awaited, in graphs -----------------------------------------------------------------


def test_many_at_once(store: InmemStore) -> None:
    """Each batch moves something from an item to the next: searches always see the same sum."""
    store.batch([PutOp(("m",), str(n), {"n": 100}) for n in range(4)])

    def work(index: int) -> None:
        for number in range(20):
            if index == 0:
                assert sum(item.value["n"] for item in store.search(("m",))) == 400
            else:
                amounts = ((number + index) % 4, 90), ((number + index + 1) % 4, 110)
                rest = {str(n): 100 for n in range(4)} | {str(n): amount for n, amount in amounts}
                store.batch([PutOp(("m",), key, {"n": amount}) for key, amount in rest.items()])

    in_threads(3, work)


def test_puts_of_one_item_never_conflict(fresh: Fresh) -> None:
    async def main() -> None:
        async with inmem.aio.open(**fresh()) as db:
            store = InmemStore(db)
            await asyncio.gather(*(store.aput(("a",), "same", {"n": n}) for n in range(200)))
            item = await store.aget(("a",), "same")
            assert item and item.value["n"] in range(200)
            assert (await db.status()).conflicts < 200  # but for the first ones, which create the run

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_awaited(fresh: Fresh, kind: str) -> None:
    async def embed(texts: list[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return letters(texts)

    async def story(db: Any) -> None:
        store = InmemStore(db, index={"embed": embed, "fields": ["text"]}, ttl={"default_ttl": 5})
        await asyncio.gather(*(store.aput(("a",), str(n), {"text": "abc"[n % 3], "n": n}) for n in range(30)))
        assert keys(await store.asearch(("a",), query="b", filter={"n": {"$lt": 6}}, limit=2)) == ["1", "4"]
        item = await store.aget(("a",), "7")
        assert item and item.value["n"] == 7
        assert await store.alist_namespaces() == [("a",)]
        await store.adelete(("a",), "7")
        assert await store.aget(("a",), "7") is None
        in_thread = InmemStore(db)
        assert await asyncio.to_thread(lambda: len(in_thread.search(("a",), limit=99))) == 29
        if kind == "loop":
            with pytest.raises(inmem.InvariantError, match="awaited"):
                in_thread.get(("a",), "1")

    async def main() -> None:
        if kind == "thread":
            with inmem.open(**fresh()) as db:
                await story(db)
        else:
            async with inmem.aio.open(**fresh()) as db:
                await story(db)

    asyncio.run(main())


class Meeting(TypedDict, total=False):
    user: str
    greeting: str


def test_a_graph_remembers(db: inmem.Database) -> None:
    def meet(state: dict[str, Any]) -> dict[str, Any]:
        store = get_store()
        known = store.search(("users", state["user"]), filter={"met": True})
        store.put(("users", state["user"]), "note", {"met": True})
        return {"greeting": "again" if known else "first"}

    graph: Any = StateGraph(Meeting)
    graph.add_node("meet", meet)
    graph.add_edge(START, "meet")
    graph.add_edge("meet", END)
    compiled = graph.compile(checkpointer=InmemSaver(db), store=InmemStore(db))
    told = [
        compiled.invoke({"user": user}, {"configurable": {"thread_id": thread}})["greeting"]
        for user, thread in (("ada", "1"), ("ada", "2"), ("bob", "3"))
    ]
    assert told == ["first", "again", "first"]
