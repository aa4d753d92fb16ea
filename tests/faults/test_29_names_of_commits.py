"""What the control page says of the commit that is being decided, and what the next writer makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from committing import SECOND, Bench, Client, body, call, error_of, key, put

from inmem.config import MAX_WRITER_DEATHS
from inmem.host.control import SUSPECTS
from inmem.wire import APPLIED, FAILED
from inmem.writer.committer import Request
from inmem.writer.suspects import CAREFUL_US, NAME, NAME_AT, NAMED, PUBLISHING, Suspects


class Killed(BaseException):
    """Stands for the end of the process: the page stays as it is at this moment."""


class Ends:
    """The procedure `end`: does what it is told, and keeps the page as a killed writer leaves it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.left = b""
        self.calls = 0
        self.error: type[BaseException] | None = Killed

        def procedure(workspace: Any, key: bytes) -> None:
            self.calls += 1
            workspace.put(key, b"\xc0")
            self.die()

        bench.procedures["end"] = procedure
        bench.restart()

    def die(self) -> None:
        self.left = bytes(self.bench.page)
        if self.error is not None:
            raise self.error("planted")

    def next_writer(self) -> None:
        self.bench.page[:] = self.left
        self.bench.restart()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(Bench(tmp_path / "image"))
    yield made
    made.bench.close()


def end(client: Client) -> Request:
    return client.request(body(call("end", key("k"))))


def killed_with(ends: Ends, *requests: Request) -> None:
    with pytest.raises(Killed):
        ends.bench.commit(*requests)
    ends.next_writer()


def test_the_page_names_the_commit_until_it_is_logged(ends: Ends) -> None:
    bench = ends.bench
    client = bench.client()
    request = end(client)
    ends.error = None
    logging, logged = [], []
    append = bench.log.append

    def noted(*args: Any, **position: Any) -> Any:
        logging.append(NAME.unpack_from(bench.page, NAME_AT)[:2])
        return append(*args, **position)

    bench.log.append = noted
    bench.reached = lambda step: logged.append(bench.suspects.words[NAMED])
    assert bench.commit(request)[0].status == APPLIED
    session, sequence, _ = NAME.unpack_from(ends.left, NAME_AT)
    assert (session, sequence) == (client.session, 1)
    assert logging == [(client.session, 1)]
    assert logged == [0, 0, 0], "the wait for the disk is nobody's"
    assert bench.suspects.words[NAMED] == bench.suspects.words[PUBLISHING] == 0
    # The same for one that is refused, and for one that changes nothing.
    assert client.send(call("nothing")).status == FAILED
    assert bench.suspects.words[NAMED] == 0


def test_it_is_refused_after_so_many_deaths_and_for_good(ends: Ends) -> None:
    bench = ends.bench
    guilty, other = bench.client("g"), bench.client("o")
    request = end(guilty)
    for _ in range(MAX_WRITER_DEATHS):
        killed_with(ends, request)
    first, last = (other.request(body(put(key(name), 1))) for name in "ab")
    answers = bench.commit(first, request, last)
    assert [answer.status for answer in answers] == [APPLIED, FAILED, APPLIED]
    error = error_of(answers[1])
    assert (error.code, error.retryable, error.fields) == (
        "commit_refused", False, {"writers": MAX_WRITER_DEATHS},
    )
    assert bench.commit(request)[0] == answers[1]
    bench.restart()
    assert bench.commit(request)[0] == answers[1], "it is stored"
    assert ends.calls == MAX_WRITER_DEATHS
    assert guilty.send(put(key("c"), 3)).status == APPLIED, "its session goes on"
    assert bench.suspects.found == {}
    bench.assert_log_is_image()


def test_one_death_is_no_reason(ends: Ends) -> None:
    """A kill from outside: the next writer decides it like any other, and forgets."""
    bench = ends.bench
    request = end(bench.client())
    killed_with(ends, request)
    assert len(bench.suspects.found) == 1
    ends.error = None
    assert bench.commit(request)[0].status == APPLIED
    assert bench.suspects.found == {}
    bench.restart()
    assert bench.suspects.found == {}


def test_deaths_of_others_in_between_do_not_clear_it(ends: Ends) -> None:
    bench = ends.bench
    first, second = end(bench.client("a")), end(bench.client("b"))
    for request in (first, second, first, second, first):
        killed_with(ends, request)
    assert bench.commit(first)[0].status == FAILED
    killed_with(ends, second)
    assert bench.commit(second)[0].status == FAILED


def test_an_exception_is_enough_once(ends: Ends) -> None:
    bench = ends.bench
    guilty, other = bench.client("g"), bench.client("o")
    request, beside = end(guilty), other.request(body(put(key("a"), 1)))
    ends.error = RuntimeError
    with pytest.raises(RuntimeError):
        bench.commit(beside, request)  # the neighbour is published first, alone
    bench.restart()
    answers = bench.commit(beside, request)
    assert [answer.status for answer in answers] == [APPLIED, FAILED]
    assert error_of(answers[1]).fields == {"writers": 1}
    assert bench.value(key("a")) == 1
    assert ends.calls == 2, "with its neighbour, and alone"
    bench.assert_log_is_image()


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_want_of_memory_ends_no_writer(ends: Ends, error: type[Exception]) -> None:
    bench = ends.bench
    guilty, other = bench.client("g"), bench.client("o")
    request = end(guilty)
    ends.error = error
    answers = bench.commit(request, other.request(body(put(key("a"), 1))))
    assert [answer.status for answer in answers] == [FAILED, APPLIED]
    assert error_of(answers[0]).code == "commit_refused"
    ends.error = None
    assert bench.commit(request)[0] == answers[0]
    bench.assert_log_is_image()


@pytest.mark.parametrize("step", ["logged", "synced"])
def test_an_exception_while_publishing_leaves_nothing(ends: Ends, step: str) -> None:
    """A group whose publishing fails is cut from the log, and its commits are published one by one."""
    bench = ends.bench
    client = bench.client()
    bench.commit()
    requests = [client.request(body(put(key(f"k{n}"), n))) for n in range(3)]
    failures = [step]

    def reached(name: str) -> None:
        if failures and name == failures[0]:
            failures.clear()
            raise RuntimeError("planted")

    bench.reached = reached
    assert [answer.status for answer in bench.commit(*requests)] == [APPLIED] * 3
    bench.assert_log_is_image()
    assert bench.suspects.words[NAMED] == bench.suspects.words[PUBLISHING] == 0


def test_a_death_while_several_are_logged_is_nobodys(ends: Ends) -> None:
    """The next writer publishes one at a time for a while, so that a second death has a name."""
    bench = ends.bench
    client = bench.client()
    requests = [client.request(body(put(key(f"k{n}"), n))) for n in range(3)]

    append = bench.log.append
    bench.log.append = lambda *args, **position: ends.die()
    with pytest.raises(Killed):
        bench.commit(*requests)
    bench.log.append = append
    ends.next_writer()
    assert bench.suspects.is_careful and bench.suspects.found == {}
    bench.committer.begin_epoch(7, bench.now)
    before = len(bench.log.records)
    assert [answer.status for answer in bench.commit(*requests)] == [APPLIED] * 3
    assert len(bench.log.records) == before + 3
    bench.now += CAREFUL_US + SECOND
    before = len(bench.log.records)
    bench.commit(*[client.request(body(put(key(f"l{n}"), n))) for n in range(3)])
    assert len(bench.log.records) == before + 1


def test_what_another_boot_or_release_left_does_not_count(ends: Ends) -> None:
    bench = ends.bench
    request = end(bench.client())
    killed_with(ends, request)
    with pytest.raises(Killed):
        bench.commit(request)
    last = bench.writers
    for epoch, same_boot, counted in ((last, True, 2), (9, True, 1), (last, False, 0)):
        page = memoryview(bytearray(ends.left))
        suspects = Suspects(page)
        suspects.take_over(epoch, same_boot=same_boot)
        assert sum(suspects.words[_deaths_at(slot)] for slot in suspects.found.values()) == counted
        assert suspects.words[NAMED] == 0
        assert bytes(page[: 8 * SUSPECTS]) == ends.left[: 8 * SUSPECTS], "the rest is not touched"


def _deaths_at(slot: int) -> int:
    return 80 + 5 * slot + 4


def test_more_suspects_than_there_is_room_for() -> None:
    """The least suspect makes room; one that has ended a writer by an exception stays."""
    suspects = Suspects()
    suspects.begin(1)
    suspects.convict(b"g" * 16, 1, 1)
    for number in range(100):
        NAME.pack_into(suspects.page, NAME_AT, b"s" * 16, number + 1, 7)
        suspects = Suspects(suspects.page)
        suspects.take_over(1, same_boot=True)
        assert suspects.refusal(b"s" * 16, number + 1, 7) is None
    assert len(suspects.found) == 16
    assert suspects.refusal(b"g" * 16, 1, 1) is not None
    assert suspects.refusal(b"g" * 16, 1, 2) is None, "the digest tells contents apart"
