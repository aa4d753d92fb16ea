"""The committer when publishing, the log or the memory fails: nothing that was not stored is answered."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from committing import (
    Bench,
    RecordingLog,
    append,
    body,
    call,
    delete,
    error_of,
    key,
    put,
    refusal,
    results_of,
)

from inmem.commit.decide import decide
from inmem.errors import StoreFullError
from inmem.storage import environment
from inmem.storage.store import PublishError
from inmem.storage.wal.log import Wal, WalBrokenError
from inmem.storage.wal.scan import scan
from inmem.wire import APPLIED, FAILED
from inmem.writer.committer import NoLog, Request


class TestPublishFails:
    def test_the_group_is_cut_and_tried_one_by_one(self, bench: Bench) -> None:
        client = bench.client()
        before = bench.committer.version
        bench.store.plan = [True]
        answers = bench.commit(*[client.request(body(call("kv.add", key("n"), 1, 0))) for _ in range(3)])
        assert [results_of(a) for a in answers] == [[1], [2], [3]]
        assert [a.version for a in answers] == [before + 1, before + 2, before + 3]
        assert bench.log.cuts == 1
        assert [version for version, _ in bench.log.records[-3:]] == [before + 1, before + 2, before + 3]
        assert bench.committer.counters.commits == 3

    @pytest.mark.parametrize("bad", [0, 1, 2])
    def test_the_one_that_does_not_fit_fails_alone(self, bench: Bench, bad: int) -> None:
        client = bench.client()
        plan: list[bool | None] = [None] * 3
        plan[bad] = True
        bench.store.plan = [True, *plan]
        answers = bench.commit(*[client.request(body(put(key(f"k{i}"), i))) for i in range(3)])
        assert [a.status for a in answers] == [FAILED if i == bad else APPLIED for i in range(3)]
        assert isinstance(error_of(answers[bad]), StoreFullError)
        assert set(bench.live()) == {key(f"k{i}") for i in range(3) if i != bad}
        bench.store.plan = []
        assert client.send(put(key(f"k{bad}"), 1)).status == APPLIED

    def test_a_failure_is_kept_for_duplicates(self, bench: Bench) -> None:
        client = bench.client()
        bench.store.plan = [True]
        request = client.request(body(put(key("a"), 1)))
        [first] = bench.commit(request)
        assert bench.commit(request) == [first]
        assert bench.live() == {}

    def test_another_error_of_the_image_ends_the_writer(self, bench: Bench) -> None:
        client = bench.client()
        bench.store.plan = [False]
        request = client.request(body(put(key("a"), 1)))
        version = bench.committer.version
        with pytest.raises(PublishError):
            bench.commit(request)
        assert bench.committer.version == version
        assert bench.commit(request)[0].status == APPLIED, "and left nothing half done"

    def test_counters_and_outcomes_are_as_before(self, bench: Bench) -> None:
        client = bench.client()
        bench.store.plan = [False]
        with pytest.raises(PublishError):
            bench.commit(client.request(body(put(key("a"), 1))))
        assert bench.committer.counters.commits == 0
        assert bench.sessions.last_sequence(client.session) == 0

    def test_fences_are_as_before(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """A deletion that was not published must not close the run."""
        client = bench.client()
        bench.store.plan = [False]
        monkeypatch.setattr(
            "inmem.writer.committer.decide",
            lambda *args, **kwargs: decide(*args, **kwargs)._replace(fences=[b"fence"]),
        )
        with pytest.raises(PublishError):
            bench.commit(client.request(body(put(key("a"), 1))))
        assert bench.committer._fences == set()
        bench.commit(client.request(body(put(key("a"), 1)))._replace(sequence=1))
        assert bench.committer._fences == {b"fence"}

    def test_a_registration_that_was_not_published_is_stored_later(self, bench: Bench) -> None:
        bench.client()
        bench.sessions.register(b"n" * 16, bench.now)
        bench.store.plan = [True]
        assert bench.commit() == []
        assert b"n" * 16 in bench.sessions and not bench.sessions.is_stored(b"n" * 16)
        assert bench.commit() == []
        assert bench.sessions.is_stored(b"n" * 16)

    def test_a_memory_that_is_really_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment, "MAP_BYTES", 1 << 20)
        bench = Bench(tmp_path / "tiny", quota=1 << 40)
        client = bench.client()
        giant = "g" * (2 << 20)
        answers = bench.commit(
            client.request(body(put(key("a"), 1))), client.request(body(put(key("b"), giant))),
            client.request(body(put(key("c"), 1))),
        )
        assert [a.status for a in answers] == [APPLIED, FAILED, APPLIED]
        assert isinstance(error_of(answers[1]), StoreFullError)
        assert set(bench.live()) == {key("a"), key("c")}
        client.answered_below = client.next
        filled = 0
        while client.send(put(key(f"f{filled}"), "x" * 30_000)).status == APPLIED:
            filled += 1
        assert filled > 5
        assert client.send(delete(key("f0"))).status == APPLIED
        bench.assert_log_is_image()
        bench.close()


class TestQuota:
    def test_beyond_the_quota_writes_fail_and_deletes_work(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "small", quota=4 << 20)
        client = bench.client()
        done = 0
        while (answer := client.send(put(key(f"k{done:04}"), "x" * 60_000))).status == APPLIED:
            done += 1
        error = error_of(answer)
        assert isinstance(error, StoreFullError)
        assert error.quota_bytes == 4 << 20
        assert error.used_bytes is not None
        assert 20 < done < 70
        version = bench.committer.version
        assert isinstance(error_of(client.send(put(key("k0000"), "x" * 60_000))), StoreFullError)
        assert bench.committer.version == version
        for i in range(10):
            assert client.send(delete(key(f"k{i:04}"))).status == APPLIED
            assert results_of(client.send(call("kv.delete", key(f"k{10 + i:04}")))) == [True]
        assert client.send(put(key("again"), "x" * 60_000)).status == APPLIED
        bench.close()


class TestLogFails:
    def test_a_full_disk_fails_the_group_and_is_survived(self, bench: Bench) -> None:
        client = bench.client()
        bench.log.failures = [OSError(errno.ENOSPC, "planned")]
        requests = [client.request(body(put(key(f"k{i}"), i))) for i in range(3)]
        answers = bench.commit(*requests)
        assert [type(error_of(a)) for a in answers] == [StoreFullError] * 3
        assert bench.live() == {}
        assert bench.commit(*requests) == answers
        client.answered_below = client.next
        assert client.send(put(key("a"), 1)).status == APPLIED

    def test_duplicates_in_a_failed_group_get_their_answers(self, bench: Bench) -> None:
        client = bench.client()
        known = client.request(body(put(key("a"), 1)))
        [first] = bench.commit(known)
        bench.log.failures = [OSError(errno.EIO, "planned")]
        new = client.request(body(put(key("b"), 1)))
        answers = bench.commit(known, new, Request(b"?" * 16, 1, 1, b""), new)
        assert answers[0] == first
        assert isinstance(error_of(answers[1]), StoreFullError)
        assert refusal(answers[2]) == "session_unknown"
        assert answers[3] == answers[1]

    def test_a_broken_log_answers_nothing(self, bench: Bench) -> None:
        client = bench.client()
        bench.log.failures = [WalBrokenError(errno.EIO, "planned")]
        version = bench.committer.version
        with pytest.raises(WalBrokenError):
            bench.commit(client.request(body(put(key("a"), 1))))
        assert bench.live() == {}
        assert bench.committer.version == version
        assert bench.sessions.last_sequence(client.session) == 0

    def test_a_failed_sync_publishes_nothing(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "sync", always_sync=True)
        client = bench.client()
        bench.log.sync_failures = [WalBrokenError(errno.EIO, "planned")]
        with pytest.raises(WalBrokenError):
            bench.commit(client.request(body(put(key("a"), 1))))
        assert bench.live() == {}
        assert "published" not in bench.steps[-1:]
        bench.close()

    def test_a_cut_that_fails_ends_the_writer(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        client = bench.client()
        bench.store.plan = [True]

        def broken(mark: Any) -> None:
            raise WalBrokenError(errno.EIO, "planned")

        monkeypatch.setattr(bench.log, "cut", broken)
        with pytest.raises(WalBrokenError):
            bench.commit(client.request(body(put(key("a"), 1))), client.request(body(put(key("b"), 1))))
        assert bench.live() == {}
        del bench.log.records[1:]  # what the cut would have done


class TestDurability:
    @pytest.mark.parametrize("always", [False, True])
    @pytest.mark.parametrize("asked", [False, True])
    def test_synced_before_it_is_published_if_asked(self, tmp_path: Path, always: bool, asked: bool) -> None:
        bench = Bench(tmp_path / "image", always_sync=always)
        client = bench.client()
        synced = bench.log.syncs
        seen: list[tuple[str, int]] = []
        bench.committer._reached = lambda step: seen.append((step, bench.log.durable))
        version = client.send(put(key("a"), 1), sync=asked).version
        assert bench.log.syncs - synced == (always or asked)
        assert (dict(seen)["synced"] == version) == (always or asked)
        assert dict(seen)["logged"] < version
        bench.close()

    def test_one_that_asks_makes_its_group_durable(self, bench: Bench) -> None:
        client = bench.client()
        bench.commit(
            client.request(body(put(key("a"), 1))), client.request(body(put(key("b"), 1)), sync=True)
        )
        assert bench.log.durable == bench.committer.version

    def test_the_answer_of_a_repeated_sync_commit_is_durable(self, bench: Bench) -> None:
        client = bench.client()
        request = client.request(body(put(key("a"), 1)))
        bench.commit(request)
        assert bench.log.durable < bench.committer.version
        bench.commit(request._replace(sync=True))
        assert bench.log.durable == bench.committer.version

    def test_no_log_keeps_nothing(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "memory", log=NoLog(), always_sync=True)
        assert bench.client().send(put(key("a"), 1), sync=True).status == APPLIED
        assert (bench.log.bytes, bench.log.durable_version) == (0, 0)
        bench.close()

    def test_a_real_log_holds_what_the_image_holds(self, tmp_path: Path) -> None:
        database = bytes(range(16))
        wal = Wal.create(tmp_path / "wal", database, segment_bytes=2048)
        bench = Bench(tmp_path / "image", log=wal)
        client = bench.client()
        replay = RecordingLog()
        for i in range(40):
            if i % 7 == 3:
                bench.store.plan = [True, None, True]
            group = [
                client.request(body(put(key(f"k{i}"), i))),
                client.request(body(call("kv.add", key("n"), 1, 0))),
                client.request(body(append("r", ("x", i)))),
            ]
            assert any(answer.status == APPLIED for answer in bench.commit(*group))
            client.answered_below = client.next
            bench.store.plan = []
        wal.sync()
        wal.close()
        result = scan(tmp_path / "wal", database)
        assert len(result.segments) > 2
        replay.records = [(record.version, list(record.ops)) for record in result.iter_records()]
        bench.log = replay
        bench.assert_log_is_image()
        bench.close()
