"""What a KVStore promises, through every form to write and every form to read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from forms import IDS, PAIRS, READERS, WITHIN, WRITERS, Form, Within, new_run, pair

import inmem


@pytest.fixture(params=[*PAIRS, WITHIN], ids=IDS)
def store(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Iterator[Any]:
    some = pair(shared_db, request.param, "kv")
    yield some
    some.close()


@pytest.fixture(params=WRITERS, ids=lambda form: form.name)
def writer(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Form:
    form: Form = request.param(shared_db, new_run(), "kv")
    return form


@pytest.fixture(params=READERS, ids=lambda form: form.name)
def reader(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Form:
    form: Form = request.param(shared_db, new_run(), "kv")
    return form


VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    (1 << 63) - 1,
    -(1 << 63),
    0.0,
    -0.0,
    1.0,
    math.inf,
    "",
    "text",
    "\U0001f600\n",
    b"",
    b"\x00\xff",
    [],
    [1, [2, [3]]],
    {},
    {"k": {"n": None}},
    [True, 1, 1.0, "1", b"1"],
    "x" * 70_000,
]


def test_values_come_back_with_their_type(store: Any) -> None:
    for i, value in enumerate(VALUES):
        store.write(lambda kv, i=i, value=value: kv.put(f"k{i}", value))
        found = store.read(lambda kv, i=i: kv.get(f"k{i}", "missing"))
        assert repr(found) == repr(value)
        assert type(found) is type(value)
    nan = store.write(lambda kv: kv.put("nan", math.nan)) or store.read(lambda kv: kv.get("nan"))
    assert store.read(lambda kv: math.isnan(kv.get("nan"))), nan


def test_what_is_absent(store: Any) -> None:
    assert store.read(lambda kv: kv.get("k")) is None
    assert store.read(lambda kv: kv.get("k", 7)) == 7
    assert store.read(lambda kv: kv.get_versioned("k")) is None
    assert store.read(lambda kv: kv.exists("k")) is False
    assert store.read(lambda kv: kv.ttl("k")) is None
    assert store.read(lambda kv: kv.list()) == []
    assert store.read(lambda kv: kv.list_with_values()) == []
    assert store.read(lambda kv: kv.count()) == 0
    assert store.read(lambda kv: kv.get_many(["k", "l"])) == {}


def test_none_is_a_value_and_not_absence(store: Any) -> None:
    store.write(lambda kv: kv.put("k", None))
    assert store.read(lambda kv: kv.get("k", "default")) is None
    assert store.read(lambda kv: kv.exists("k")) is True


def test_overwriting(store: Any) -> None:
    for value in ("first", 2, None, ["last"]):
        store.write(lambda kv, value=value: kv.put("k", value))
        assert store.read(lambda kv: kv.get("k")) == value
    assert store.read(lambda kv: kv.count()) == 1


def test_removing(store: Any) -> None:
    store.write(lambda kv: kv.put_many({"a": 1, "b": 2}))
    store.write(lambda kv: kv.delete("a"))
    store.write(lambda kv: kv.delete("never"))
    assert store.read(lambda kv: (kv.get("a"), kv.exists("a"), kv.list())) == (None, False, ["b"])
    store.write(lambda kv: kv.put("a", 3))
    assert store.read(lambda kv: kv.list_with_values()) == [("a", 3), ("b", 2)]
    versioned = store.read(lambda kv: kv.list_versioned())
    assert [(key, found.value) for key, found in versioned] == [("a", 3), ("b", 2)]
    both = store.read(lambda kv: [kv.get_versioned("a"), kv.get_versioned("b")])
    assert [found for _, found in versioned] == both
    assert store.read(lambda kv: kv.list_versioned("a", limit=1)) == versioned[:1]
    assert store.read(lambda kv: kv.list_versioned(start_after="b", reverse=True)) == versioned[:1]


KEYS = ["!", "a", "a/", "a/b", "aa", "b", "\u00e9", "\u00e9/x", "\uffee", "\U0001f600"]


@pytest.fixture
def filled(store: Any) -> Any:
    store.write(lambda kv: kv.put_many({key: key.upper() for key in reversed(KEYS)}))
    return store


def test_listing_is_in_order(filled: Any) -> None:
    assert sorted(KEYS) == KEYS
    assert filled.read(lambda kv: kv.list()) == KEYS
    assert filled.read(lambda kv: kv.list(reverse=True)) == KEYS[::-1]
    assert filled.read(lambda kv: kv.list_with_values()) == [(k, k.upper()) for k in KEYS]
    assert filled.read(lambda kv: kv.count()) == len(KEYS)


@pytest.mark.parametrize("prefix", [None, "", "a", "a/", "aa", "\u00e9", "q", "\U0001f600"])
def test_listing_by_prefix(filled: Any, prefix: str | None) -> None:
    expected = [k for k in KEYS if k.startswith(prefix or "")]
    assert filled.read(lambda kv: kv.list(prefix)) == expected
    assert filled.read(lambda kv: kv.list(prefix, reverse=True)) == expected[::-1]
    assert filled.read(lambda kv: kv.count(prefix)) == len(expected)


@pytest.mark.parametrize("prefix", [None, "", "a", "a/", "\u00e9", "q", "\U0001f600"])
def test_clearing_by_prefix(filled: Any, prefix: str | None) -> None:
    gone = [k for k in KEYS if k.startswith(prefix or "")]
    filled.write(lambda kv: kv.clear(prefix))
    assert filled.read(lambda kv: kv.list()) == [k for k in KEYS if k not in gone]
    filled.write(lambda kv: kv.put("a/b", 1))
    assert filled.read(lambda kv: kv.get("a/b")) == 1


def test_pages(filled: Any) -> None:
    for reverse in (False, True):
        ordered = KEYS[::-1] if reverse else KEYS
        for size in (1, 2, 3, len(KEYS), len(KEYS) + 1):
            pages: list[list[str]] = []
            after = None
            while page := filled.read(
                lambda kv, size=size, after=after, reverse=reverse: kv.list(
                    limit=size, start_after=after, reverse=reverse
                )
            ):
                pages.append(page)
                after = page[-1]
            assert [k for page in pages for k in page] == ordered
            assert all(len(page) == size for page in pages[:-1])
    assert filled.read(lambda kv: kv.list(limit=0)) == []


@pytest.mark.parametrize("after", ["!", "0", "a", "a/", "a/zz", "zzz", "\U0001f601"])
def test_start_after_need_not_exist_nor_match(filled: Any, after: str) -> None:
    for prefix in (None, "a", "\u00e9"):
        matching = [k for k in KEYS if k.startswith(prefix or "")]
        assert filled.read(lambda kv, p=prefix: kv.list(p, start_after=after)) == [
            k for k in matching if k > after
        ]
        assert filled.read(lambda kv, p=prefix: kv.list(p, start_after=after, reverse=True)) == [
            k for k in matching if k < after
        ][::-1]


def test_many_at_once(filled: Any) -> None:
    found = filled.read(lambda kv: kv.get_many([KEYS[3], "absent", KEYS[0], KEYS[3]]))
    assert found == {KEYS[3]: KEYS[3].upper(), KEYS[0]: KEYS[0].upper()}
    assert filled.read(lambda kv: kv.get_many(iter(KEYS))) == {k: k.upper() for k in KEYS}
    assert filled.read(lambda kv: kv.get_many([])) == {}


def test_an_expiry_is_seen(store: Any) -> None:
    store.write(lambda kv: kv.put("a", 1, ttl=100))
    store.write(lambda kv: kv.put_with_ttl("b", 1, timedelta(seconds=200)))
    store.write(lambda kv: kv.put_many({"c": 1}, ttl=300.5))
    store.write(lambda kv: kv.put("d", 1))
    for key, seconds in (("a", 100), ("b", 200), ("c", 300.5)):
        left = store.read(lambda kv, key=key: kv.ttl(key))
        assert seconds - 60 < left <= seconds
    assert store.read(lambda kv: kv.ttl("d")) is None


def test_a_write_without_a_ttl_clears_an_earlier_one(store: Any) -> None:
    for again in (lambda kv: kv.put("a", 2), lambda kv: kv.put_many({"a": 2})):
        store.write(lambda kv: kv.put("a", 1, ttl=100))
        store.write(again)
        assert store.read(lambda kv: kv.ttl("a")) is None


def test_adding_keeps_an_expiry(store: Any) -> None:
    store.write(lambda kv: kv.put("a", 1, ttl=100))
    store.write(lambda kv: kv.add("a", 1))
    assert store.read(lambda kv: kv.get("a")) == 2
    assert 40 < store.read(lambda kv: kv.ttl("a")) <= 100


def test_adding(store: Any) -> None:
    store.write(lambda kv: kv.add("n"))
    store.write(lambda kv: kv.add("n", 41))
    assert store.read(lambda kv: kv.get("n")) == 42
    store.write(lambda kv: kv.add("n", -0.5))
    assert store.read(lambda kv: kv.get("n")) == 41.5
    store.write(lambda kv: kv.add("m", 5, initial=100))
    store.write(lambda kv: kv.add("m", 5, initial=100))
    assert store.read(lambda kv: kv.get("m")) == 110


def test_merging(store: Any) -> None:
    store.write(lambda kv: kv.merge("d", {"a": 1}))
    assert store.read(lambda kv: kv.get("d")) == {"a": 1}
    store.write(lambda kv: kv.merge("d", {"b": [1.0, None], "a": b"2"}))
    store.write(lambda kv: kv.merge("d", {}))
    store.write(lambda kv: kv.merge("d", {"c": {"deep": True}}))
    store.write(lambda kv: kv.merge("d", {"c": {"other": 1}}))
    found = store.read(lambda kv: kv.get("d"))
    assert found == {"a": b"2", "b": [1.0, None], "c": {"other": 1}}, "one level, as dict.update"
    assert list(found) == ["a", "b", "c"] and type(found["b"][0]) is float
    store.write(lambda kv: kv.put("d", {"z": 0}))
    store.write(lambda kv: kv.merge("d", {"a": 1}))
    assert store.read(lambda kv: kv.get("d")) == {"z": 0, "a": 1}
    store.write(lambda kv: kv.delete("d"))
    store.write(lambda kv: kv.merge("d", {"n": 1}))
    assert store.read(lambda kv: kv.get("d")) == {"n": 1}


def test_merging_keeps_an_expiry(store: Any) -> None:
    store.write(lambda kv: kv.put("a", {"x": 1}, ttl=100))
    store.write(lambda kv: kv.merge("a", {"y": 2}))
    assert store.read(lambda kv: kv.get("a")) == {"x": 1, "y": 2}
    assert 40 < store.read(lambda kv: kv.ttl("a")) <= 100


class TestWriters:
    def test_many_writes_of_one_program_happen_in_order(self, writer: Form) -> None:
        def program(kv: Any) -> None:
            for i in range(300):
                kv.put(f"k{i % 7}", i)
                kv.put("last", i)
                if i % 3 == 0:
                    kv.delete(f"k{i % 7}")

        writer(program)
        kv = writer.db.run(writer.run_id).kv
        expected = {f"k{i % 7}": i for i in range(300)}
        expected = {k: v for k, v in expected.items() if v % 3}
        assert dict(kv.list_with_values()) == expected | {"last": 299}

    def test_the_number_after_adding(self, writer: Form) -> None:
        results = writer(lambda kv: [kv.add("n", 2, initial=10), kv.add("n", 1), kv.add("n", 0.5)])
        found = [r.value for r in results] if writer.waits else results
        assert found == [12, 13, 13.5]
        assert [type(n) for n in found] == [int, int, float]

    def test_a_put_gives_its_version_if_it_can(self, writer: Form) -> None:
        version = writer(lambda kv: kv.put("k", 1))
        stored = writer.db.kv.get_versioned(writer.run_id, "k")
        assert stored is not None
        assert version == (None if writer.waits else stored.version)

    def test_whether_something_was_removed(self, writer: Form) -> None:
        writer(lambda kv: kv.put("k", 1))
        found = writer(lambda kv: [kv.delete("k"), kv.delete("k")])
        if writer.name == "pipeline":  # only the commits know it
            found = [pending.value for pending in found]
        assert found == [True, False]

    @pytest.mark.parametrize("stored", ["text", True, None, [1], b"1"], ids=repr)
    def test_adding_to_what_is_no_number(self, writer: Form, stored: Any) -> None:
        writer(lambda kv: kv.put("k", stored))
        with pytest.raises(inmem.InvalidValueError, match=r"an int or a float"):
            writer(lambda kv: kv.add("k"))
        assert writer.db.kv.get(writer.run_id, "k") == stored

    def test_a_sum_beyond_64_bits(self, writer: Form) -> None:
        writer(lambda kv: kv.put("k", (1 << 63) - 1))
        with pytest.raises(inmem.InvalidValueError, match="64-bit"):
            writer(lambda kv: kv.add("k"))
        assert writer.db.kv.get(writer.run_id, "k") == (1 << 63) - 1

    @pytest.mark.parametrize("stored", ["text", 1, None, [["a", 1]], b"\x80"], ids=repr)
    def test_merging_into_what_is_no_dict(self, writer: Form, stored: Any) -> None:
        writer(lambda kv: kv.put("k", stored))
        with pytest.raises(inmem.InvalidValueError, match=r"must be a dict, not"):
            writer(lambda kv: kv.merge("k", {"a": 1}))
        assert writer.db.kv.get(writer.run_id, "k") == stored

    def test_a_merge_that_grows_too_large(self, writer: Form) -> None:
        half = {"first": "x" * (9 << 20)}
        writer(lambda kv: kv.put("k", half))
        with pytest.raises(inmem.LimitError):
            writer(lambda kv: kv.merge("k", {"second": "y" * (9 << 20)}))
        assert writer.db.kv.get(writer.run_id, "k") == half

    def test_the_version_of_a_merge(self, writer: Form) -> None:
        version = writer(lambda kv: kv.merge("k", {"a": 1}))
        stored = writer.db.kv.get_versioned(writer.run_id, "k")
        assert stored is not None
        assert version == (None if writer.waits else stored.version)

    def test_longest_names_and_large_values(self, writer: Form) -> None:
        long, large = "\u00e9" * 160, "x" * (5 << 20)
        writer(lambda kv: kv.put(long, large, ttl=1000))
        assert writer.db.kv.get(writer.run_id, long) == large

    def test_runs_are_apart(self, writer: Form) -> None:
        other = new_run()
        writer(lambda kv: kv.put("k", 1))
        assert writer.db.kv.get(other, "k") is None
        assert writer.db.kv.count(other) == 0


class TestReaders:
    def test_version_and_time_of_an_entry(self, reader: Form) -> None:
        version = reader.db.kv.put(reader.run_id, "k", "v")
        first = reader(lambda kv: kv.get_versioned("k"))
        assert (first.value, first.version) == ("v", version)
        reader.db.kv.put(reader.run_id, "k", "w")
        second = reader(lambda kv: kv.get_versioned("k"))
        assert second.version > first.version
        assert second.timestamp >= first.timestamp > 1_600_000_000_000_000

    def test_reading_changes_nothing(self, reader: Form) -> None:
        reader.db.kv.put(reader.run_id, "k", 1)
        before = reader.db.status().version
        reader(
            lambda kv: [kv.get("k"), kv.list(), kv.count(), kv.ttl("k"), kv.get_many(["k"]), kv.exists("k")]
        )
        assert reader.db.status().version == before

    def test_what_is_returned_is_the_readers_own(self, reader: Form) -> None:
        reader.db.kv.put(reader.run_id, "k", [1])
        reader(lambda kv: kv.get("k")).append(2)
        assert reader(lambda kv: kv.get("k")) == [1]


def test_in_a_transaction_own_writes_have_no_version_yet(shared_db: inmem.Database) -> None:
    some = Within(shared_db, "kv")
    some.write(lambda kv: kv.put("k", 1))
    own = some.read(lambda kv: kv.get_versioned("k"))
    assert (own.value, own.version) == (1, 0)
    some.close()
    stored = shared_db.kv.get_versioned(some.run_id, "k")
    assert stored is not None
    assert stored.version > 0


def test_transaction_of_the_store_retries(shared_db: inmem.Database) -> None:
    run, tries = new_run(), []

    def step(txn: inmem.Transaction) -> int:
        tries.append(txn.kv.get("n", 0))
        if len(tries) == 1:
            shared_db.kv.put(run, "n", 10)
        txn.kv.put("n", tries[-1] + 1)
        return len(tries)

    assert shared_db.kv.transaction(run, step) == 2
    assert tries == [0, 10]
    assert shared_db.run(run).kv.transaction(lambda txn: txn.kv.get("n")) == 11
