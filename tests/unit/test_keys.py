"""Keys: order, uniqueness, size, and what is refused.

The three promises of `inmem.keys`: byte order is name order, different names
never meet, and every key fits the engine's limit at the largest sizes.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import re
import string
import uuid
from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from inmem import keys
from inmem.errors import InvalidInputError, InvalidKeyError, InvalidRunIdError
from inmem.keys import (
    MAX_COMPONENT_CHARS,
    MAX_KEY_BYTES,
    MAX_LABEL_BYTES,
    MAX_NAME_BYTES,
    MAX_RUN_CHARS,
    Key,
    Namespace,
    RunId,
    TypeTag,
    bucket_of,
    encode_id,
    encode_label,
    encode_name,
    encode_prefix,
    encode_sequence,
    owner_of,
    range_of,
    successor,
)

check = settings(derandomize=True, deadline=None, max_examples=200)

ALPHABET = string.ascii_letters + string.digits + "._:-"
NS = Namespace()
HUGE = pytest.param(10**5000, id="huge")  # Python refuses to print it

names = st.text(
    st.characters(min_codepoint=1, exclude_categories=("Cs",)), min_size=1, max_size=80
).filter(lambda text: len(text.encode()) <= MAX_NAME_BYTES)
components = st.text(ALPHABET, min_size=1, max_size=MAX_COMPONENT_CHARS)
run_ids = st.text(ALPHABET, min_size=1, max_size=MAX_RUN_CHARS)
namespaces = st.builds(Namespace, components, components, components)
sequences = st.integers(0, (1 << 63) - 1)

# Small alphabets make near misses likely: prefixes of each other, separators in odd places.
near_components = st.text("a.-:", min_size=1, max_size=3)
near_namespaces = st.builds(Namespace, near_components, near_components, near_components)
near_names = st.text("a/@\x01\x02\xff", min_size=1, max_size=4)

primary = st.one_of(
    st.tuples(st.just("kv"), near_namespaces, near_components, near_names),
    st.tuples(st.just("state"), near_namespaces, near_components, near_names),
    st.tuples(st.just("trace"), near_namespaces, near_components, near_components),
    st.tuples(st.just("event"), near_namespaces, near_components, st.integers(0, 3)),
    st.tuples(st.just("run"), near_namespaces, near_components),
)


def build(parts: tuple[Any, ...]) -> Key:
    made: Key = getattr(Key, parts[0])(*parts[1:])
    return made


class TestOrder:
    @check
    @given(names, names)
    @example("a", "a\x01")
    @example("\uffff", "\U00010000")  # UTF-16 would put these the other way round
    @example("z", "é")
    def test_byte_order_is_name_order(self, one: str, two: str) -> None:
        first, second = Key.kv(NS, "r", one), Key.kv(NS, "r", two)
        assert (first < second) == (one < two)
        assert (first == second) == (one == two)

    @check
    @given(st.lists(names, unique=True, max_size=20))
    def test_sorting_keys_sorts_names(self, many: list[str]) -> None:
        stored = sorted(Key.kv(NS, "r", name) for name in many)
        assert [key.split_key()[2].decode() for key in stored] == sorted(many)

    @check
    @given(sequences, sequences)
    @example(255, 256)
    @example(0, (1 << 63) - 1)
    def test_event_order_is_sequence_order(self, one: int, two: int) -> None:
        assert (Key.event(NS, "r", one) < Key.event(NS, "r", two)) == (one < two)

    @check
    @given(near_namespaces, near_components, near_components, near_names, near_names)
    def test_the_keys_of_one_run_and_type_are_contiguous(
        self, namespace: Namespace, mine: str, other: str, one: str, two: str
    ) -> None:
        start, end = range_of(namespace.run_prefix(mine), TypeTag.KV)
        assert start <= Key.kv(namespace, mine, one) < end
        assert start <= Key.kv(namespace, other, two) < end or mine != other
        for stranger in (
            Key.state(namespace, mine, one),
            Key.event(namespace, mine, 0),
            Key.run(namespace, mine),
        ):
            assert not start <= stranger < end


class TestUniqueness:
    @check
    @given(primary, primary)
    @example(("kv", Namespace("a", "a", "a"), "a", "a"), ("state", Namespace("a", "a", "a"), "a", "a"))
    def test_no_two_names_give_one_key(self, one: tuple[Any, ...], two: tuple[Any, ...]) -> None:
        assert (build(one) == build(two)) == (one == two)

    @check
    @given(near_namespaces, near_namespaces, near_components)
    def test_shared_scopes_meet_neither_runs_nor_each_other(
        self, one: Namespace, two: Namespace, run_id: str
    ) -> None:
        for level in ("agent", "app", "tenant"):
            assert one.shared_prefix(level) != two.run_prefix(run_id)
            assert one.shared_prefix(level) != two.prefix()
        assert len({one.shared_prefix(level) for level in ("agent", "app", "tenant")}) == 3

    def test_shared_scopes_are_shared_by_exactly_their_level(self) -> None:
        here, sibling = Namespace("t", "a", "g1"), Namespace("t", "a", "g2")
        other_app, other_tenant = Namespace("t", "b", "g1"), Namespace("u", "a", "g1")
        assert here.shared_prefix("agent") != sibling.shared_prefix("agent")
        assert here.shared_prefix("app") == sibling.shared_prefix("app")
        assert here.shared_prefix("app") != other_app.shared_prefix("app")
        assert here.shared_prefix("tenant") == other_app.shared_prefix("tenant")
        assert here.shared_prefix("tenant") != other_tenant.shared_prefix("tenant")

    @pytest.mark.parametrize("level", ["run", "", None, "Agent", ["agent"], {}])
    def test_an_unknown_level_is_refused(self, level: Any) -> None:
        with pytest.raises(InvalidInputError, match="level") as caught:
            NS.shared_prefix(level)
        assert caught.value.argument == "level"


class TestSize:
    """Prefix, tag and the longest `rest` of every table stay within 511 bytes."""

    namespace = Namespace(*["c" * MAX_COMPONENT_CHARS] * 3)
    run_id = "r" * MAX_RUN_CHARS
    name = "é" * (MAX_NAME_BYTES // 2)
    label = b"l" * MAX_LABEL_BYTES
    time = (1 << 63).to_bytes(8, "big")

    def test_primary_keys(self) -> None:
        for key in (
            Key.kv(self.namespace, self.run_id, self.name),
            Key.state(self.namespace, self.run_id, self.name),
            Key.event(self.namespace, self.run_id, (1 << 63) - 1),
            Key.trace(self.namespace, self.run_id, self.run_id),
            Key.run(self.namespace, self.run_id),
        ):
            assert len(key) <= MAX_KEY_BYTES

    @pytest.mark.parametrize("tag", [tag for tag in TypeTag if tag >= 0x10], ids=lambda tag: tag.name)
    def test_index_keys(self, tag: TypeTag) -> None:
        longest = self.label + b"\0" + self.time + self.run_id.encode()
        assert len(longest) == 128 + 1 + 8 + 64
        assert len(Key.of(self.namespace.run_prefix(self.run_id), tag, longest)) <= MAX_KEY_BYTES
        # A cell's version mark carries the cell's name; an index of it may add a time.
        with_name = self.name.encode() + b"\0" + self.time
        assert len(Key.of(self.namespace.run_prefix(self.run_id), tag, with_name)) <= MAX_KEY_BYTES

    def test_the_limit_leaves_no_room_for_a_longer_name_plus_suffix(self) -> None:
        prefix = self.namespace.run_prefix(self.run_id)
        assert len(prefix) == 3 * 32 + 3 + 64
        assert MAX_KEY_BYTES - len(prefix) - 2 - MAX_NAME_BYTES == 26


class TestTags:
    def test_values_are_fixed(self) -> None:
        assert {tag.name: int(tag) for tag in TypeTag} == {
            "KV": 0x01,
            "EVENT": 0x02,
            "STATE": 0x03,
            "TRACE": 0x04,
            "RUN": 0x05,
            "LEASE": 0x06,
            "JOB": 0x07,
            "EVENT_BY_TYPE": 0x12,
            "STATE_MARK": 0x13,
            "TRACE_BY_TYPE": 0x14,
            "RUN_BY_STATUS": 0x15,
            "LEASE_WAITER": 0x16,
            "JOB_STATE": 0x17,
            "TRACE_BY_TAG": 0x24,
            "RUN_BY_TAG": 0x25,
            "JOB_READY": 0x27,
            "TRACE_BY_PARENT": 0x34,
            "RUN_BY_PARENT": 0x35,
            "JOB_DUE": 0x37,
            "TRACE_BY_TIME": 0x44,
            "JOB_DEAD": 0x47,
            "JOB_BY_KEY": 0x57,
            "JOB_QUEUE": 0x67,
            "JOB_CLAIMED": 0x77,
        }

    def test_an_index_names_its_owner_in_the_low_half(self) -> None:
        owners = {"EVENT": 2, "STATE": 3, "TRACE": 4, "RUN": 5, "LEASE": 6, "JOB": 7}
        for tag in TypeTag:
            if tag >= 0x10:
                assert tag & 0x0F == owners[tag.name.split("_")[0]]


class TestBuckets:
    @check
    @given(namespaces, run_ids, names)
    def test_bucket_is_prefix_and_tag(self, namespace: Namespace, run_id: str, name: str) -> None:
        prefix = namespace.run_prefix(run_id)
        assert bucket_of(Key.kv(namespace, run_id, name)) == prefix + b"\0\x01"
        assert bucket_of(Key.run(namespace, run_id)) == namespace.prefix() + b"\0\x05"

    @pytest.mark.parametrize(
        "data",
        [b"", b"\0", b"\0\x01", b"abc", b"abc\0", b"a\0\x01" + b"x" * (MAX_KEY_BYTES - 2)],
        ids=["empty", "nul", "no prefix", "no nul", "no tag", "too long"],
    )
    def test_what_is_no_key_is_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError):
            bucket_of(data)

    def test_the_longest_key_is_one(self) -> None:
        assert bucket_of(b"a\0\x01" + b"x" * (MAX_KEY_BYTES - 3)) == b"a\0\x01"

    @check
    @given(namespaces, run_ids, names, sequences)
    def test_all_of_a_run_has_one_owner(
        self, namespace: Namespace, run_id: str, name: str, sequence: int
    ) -> None:
        owners = {
            owner_of(key)
            for key in (
                Key.kv(namespace, run_id, name),
                Key.state(namespace, run_id, name),
                Key.event(namespace, run_id, sequence),
                Key.trace(namespace, run_id, run_id),
                Key.run(namespace, run_id),
            )
        }
        assert owners == {namespace.run_prefix(run_id)}

    @check
    @given(near_namespaces, near_components, near_namespaces, near_components, near_names)
    def test_owners_differ_between_runs(
        self, one: Namespace, run_one: str, two: Namespace, run_two: str, name: str
    ) -> None:
        assume((one, run_one) != (two, run_two))
        assert owner_of(Key.run(one, run_one)) != owner_of(Key.kv(two, run_two, name))

    @pytest.mark.parametrize("level", ["agent", "app", "tenant"])
    def test_a_shared_scope_owns_its_keys(self, level: str) -> None:
        prefix = NS.shared_prefix(level)
        assert owner_of(Key.of(prefix, TypeTag.KV, b"k")) == prefix


class TestRanges:
    @check
    @given(st.binary(min_size=1, max_size=6), st.binary(max_size=6))
    @example(b"a\xff", b"\xff\xff")
    @example(b"\xfe\xff\xff", b"")
    def test_successor_ends_what_starts_with_the_prefix(self, prefix: bytes, other: bytes) -> None:
        assume(prefix.strip(b"\xff"))
        end = successor(prefix)
        assert prefix + other < end
        assert (prefix <= other < end) == other.startswith(prefix)

    @check
    @given(st.lists(near_names, unique=True, max_size=12), near_names)
    def test_range_of_holds_exactly_the_keys_with_the_prefix(self, many: list[str], start: str) -> None:
        stored = sorted(Key.kv(NS, "r", name) for name in many)
        low, high = range_of(NS.run_prefix("r"), TypeTag.KV, encode_prefix(start))
        found = stored[bisect_left(stored, low) : bisect_left(stored, high)]
        assert [key.split_key()[2].decode() for key in found] == sorted(
            name for name in many if name.startswith(start)
        )

    def test_range_of_a_sequence_ending_in_ff(self) -> None:
        low, high = range_of(NS.run_prefix("r"), TypeTag.EVENT, encode_sequence(0xFF))
        assert low == Key.event(NS, "r", 0xFF)
        assert high <= Key.event(NS, "r", 0x100)

    def test_all_ff_has_no_successor(self) -> None:
        with pytest.raises(IndexError):
            successor(b"\xff\xff")


class TestRunId:
    @check
    @given(run_ids)
    def test_valid(self, text: str) -> None:
        assert RunId(text) == text
        assert repr(RunId(text)) == f"RunId({text!r})"
        assert hash(RunId(text)) == hash(text)

    @pytest.mark.parametrize(
        "bad",
        ["", "a" * 65, "a/b", "a b", "a\n", "a\0", "@", "é", "a@b", b"a", 7, None, ["a"], "٣"],
        ids=repr,
    )
    def test_invalid(self, bad: Any) -> None:
        with pytest.raises(InvalidRunIdError, match="run_id") as caught:
            RunId(bad)
        assert caught.value.argument == "run_id"
        with pytest.raises(InvalidRunIdError):
            Key.kv(NS, bad, "k")
        with pytest.raises(InvalidRunIdError):
            Key.run(NS, bad)

    def test_the_message_names_the_limit_and_stays_short(self) -> None:
        with pytest.raises(InvalidRunIdError, match="1-64 characters") as caught:
            RunId("x" * 100_000)
        assert len(str(caught.value)) < 300

    def test_new_is_a_version_7_uuid(self) -> None:
        made = RunId.new()
        assert type(made) is RunId
        assert RunId(made) == made
        parsed = uuid.UUID(made)
        assert str(parsed) == made
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)

    def test_new_carries_the_time_and_orders_by_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = [0, 1, 999, 1_000, 1_700_000_000_000, 1_700_000_000_001, (1 << 48) - 1]
        made = []
        for milliseconds in times:
            monkeypatch.setattr(keys.time, "time_ns", lambda ms=milliseconds: ms * 1_000_000 + 999_999)
            made.append(RunId.new())
        assert made == sorted(made)
        assert [uuid.UUID(one).int >> 80 for one in made] == times

    @pytest.mark.parametrize("byte", [b"\x00", b"\xff", b"\xa5"])
    def test_version_and_variant_survive_any_random_bits(
        self, monkeypatch: pytest.MonkeyPatch, byte: bytes
    ) -> None:
        monkeypatch.setattr(keys.os, "urandom", lambda count: byte * count)
        parsed = uuid.UUID(RunId.new())
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)

    def test_new_ones_differ(self) -> None:
        assert len({RunId.new() for _ in range(2_000)}) == 2_000

    def test_pickles_and_copies(self) -> None:
        made = RunId.new()
        for again in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):  # noqa: S301
            assert again == made and type(again) is RunId


class TestNames:
    @check
    @given(names)
    def test_round_trip(self, name: str) -> None:
        assert encode_name(name).decode() == name

    @pytest.mark.parametrize(
        ("bad", "problem"),
        [
            ("", "empty"),
            ("a\0b", "NUL"),
            ("\0", "NUL"),
            ("\ud800", "surrogate at character 0"),
            ("ab\udfff", "surrogate at character 2"),
            ("a" * 321, "321 bytes of UTF-8, the limit is 320"),
            ("é" * 161, "322 bytes of UTF-8, the limit is 320"),
            (b"a", "must be a str, not bytes"),
            (None, "must be a str, not NoneType"),
            (1, "must be a str, not int"),
            (("a",), "must be a str, not tuple"),
        ],
        ids=lambda value: repr(value)[:20],
    )
    def test_refused_with_the_reason(self, bad: Any, problem: str) -> None:
        with pytest.raises(InvalidKeyError, match=re.escape(problem)) as caught:
            encode_name(bad, "key")
        assert caught.value.argument == "key"
        assert str(caught.value).startswith("key ")

    @pytest.mark.parametrize("good", ["a" * 320, "é" * 160, "😀" * 80, "/", "@", "\x01", "\U0010ffff", " "])
    def test_accepted_at_the_limit(self, good: str) -> None:
        assert encode_name(good) == good.encode()

    def test_labels_have_a_limit_of_their_own(self) -> None:
        assert len(encode_label("l" * 128, "tag")) == 128
        with pytest.raises(InvalidKeyError, match="tag is 129 bytes of UTF-8, the limit is 128"):
            encode_label("l" * 129, "tag")

    @pytest.mark.parametrize("everything", ["", None])
    def test_an_empty_prefix_is_everything(self, everything: Any) -> None:
        assert encode_prefix(everything) == b""

    @pytest.mark.parametrize("bad", [0, False, b"", [], "\0", "p" * 321])
    def test_a_bad_prefix_is_refused(self, bad: Any) -> None:
        with pytest.raises(InvalidKeyError, match="prefix"):
            encode_prefix(bad)

    @pytest.mark.parametrize("bad", ["", "a/b", "i" * 65, None, b"a", "a\n", HUGE])
    def test_a_bad_trace_id_is_refused(self, bad: Any) -> None:
        with pytest.raises(InvalidKeyError, match="trace_id"):
            encode_id(bad, "trace_id")
        with pytest.raises(InvalidKeyError, match="trace_id"):
            Key.trace(NS, "r", bad)

    @pytest.mark.parametrize("bad", [-1, 1 << 63, True, 1.0, "1", None, HUGE])
    def test_a_bad_sequence_is_refused(self, bad: Any) -> None:
        with pytest.raises(InvalidInputError, match="sequence"):
            Key.event(NS, "r", bad)

    @check
    @given(sequences)
    def test_a_sequence_is_eight_bytes(self, sequence: int) -> None:
        assert int.from_bytes(encode_sequence(sequence), "big") == sequence
        assert len(encode_sequence(sequence)) == 8


class TestNamespace:
    @check
    @given(namespaces, run_ids)
    def test_prefixes_are_readable(self, namespace: Namespace, run_id: str) -> None:
        assert namespace.run_prefix(run_id).decode().split("/") == [
            namespace.tenant,
            namespace.app,
            namespace.agent,
            run_id,
        ]
        assert namespace.prefix().decode() == str(namespace)

    @pytest.mark.parametrize(
        ("field", "bad"),
        list(
            itertools.product(
                ("tenant", "app", "agent"), ["", "a" * 33, "a/b", "@", "a\0", "é", "a\n", None, 1, b"a"]
            )
        ),
    )
    def test_a_bad_component_is_refused_by_name(self, field: str, bad: Any) -> None:
        with pytest.raises(InvalidInputError, match=f"^{field} .*1-32 characters") as caught:
            Namespace(**{field: bad})
        assert caught.value.argument == field

    def test_is_frozen_hashable_and_pickles(self) -> None:
        one = Namespace("a", "b", "c")
        with pytest.raises(AttributeError):
            one.tenant = "x"  # type: ignore[misc]
        assert {one: 1}[Namespace("a", "b", "c")] == 1
        assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301


class TestKey:
    @check
    @given(namespaces, run_ids, names)
    def test_split_is_the_inverse_of_of(self, namespace: Namespace, run_id: str, name: str) -> None:
        key = Key.kv(namespace, run_id, name)
        prefix, tag, rest = key.split_key()
        assert (prefix, tag, rest) == (namespace.run_prefix(run_id), TypeTag.KV, name.encode())
        assert Key.of(prefix, tag, rest) == key

    def test_repr_is_readable_and_never_fails(self) -> None:
        assert repr(Key.event(NS, "r1", 1)) == (
            "Key(default/default/default/r1 EVENT b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x01')"
        )
        for data in (b"", b"abc", b"abc\0", b"abc\0\xee"):
            assert repr(Key(data)) == f"Key({data!r})"

    def test_pickles(self) -> None:
        key = Key.kv(NS, "r", "k")
        again = pickle.loads(pickle.dumps(key))  # noqa: S301
        assert again == key and type(again) is Key
