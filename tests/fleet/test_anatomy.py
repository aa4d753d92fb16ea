"""The anatomy of an operation: each stage is there, and all together are the whole."""

from __future__ import annotations

import statistics

import pytest

from bench import anatomy, timers
from bench.timers import Cost, Span, Target, Timers
from inmem import writeset
from inmem.writer import committer


@pytest.mark.timeout(60)
def test_every_operation_has_every_stage_and_these_are_the_whole() -> None:
    count = 60
    found = anatomy.measure([*anatomy.OPERATIONS], count)
    assert found.missing == []
    assert [one.operation for one in found.anatomies] == ["put", "append", "cas", "trace", "step"]
    for one in found.anatomies:
        # A group with a message of another kind may cost one its number, on a machine with others.
        assert one.count + one.left_out == count and one.left_out <= 2
        assert len(one.untimed) == count
        for stage in anatomy.STAGES:
            assert one.called[stage] == len(one.stages[stage]) == one.count, (one.operation, stage)
        for number in range(one.count):
            together = sum(one.stages[stage][number] for stage in anatomy.STAGES)
            assert together + one.timers[number] == pytest.approx(one.timed[number])
            assert 0 < one.timers[number] < one.timed[number]
        for stage in (anatomy.ENCODES, anatomy.DECODES, anatomy.DECIDES, anatomy.LOGS, anatomy.PUBLISHES):
            assert statistics.median(one.stages[stage]) > 0, (one.operation, stage)
        text = anatomy.told(one, found.missing)
        assert all(f"  {stage} " in text for stage in anatomy.STAGES)
        assert "not there" not in text and "not called" not in text and "without timers" in text


def test_moments_of_client_and_writer_lie_on_one_line() -> None:
    number = ("5e", 7)
    applied, changed = "inmem.storage.store:StoreTransaction.apply", "inmem.writer.outcomes:Sessions.changes"
    writer = [
        Span("zmq:Socket.recv", 90, 95, 1),  # of a message before
        Span("inmem.host.board:Board.posted", 125, 130, 1),
        Span("inmem.writer.mailbox:Mailbox.take", 96, 135, 1),
        Span("inmem.writeset:decode", 145, 150, True),
        Span("inmem.storage.store:Store.begin", 156, 158, True),  # within the next
        Span("inmem.commit.decide:decide", 155, 165, True),
        Span(applied, 165, 170, True), Span(changed, 171, 173, True), Span(applied, 174, 178, True),
        Span("inmem.writer.committer:Committer.commit", 140, 180, [number]),
        Span("inmem.host.board:Board.post", 182, 190, True),
        Span("inmem.writer.mailbox:Mailbox.answer", 191, 192, True),
    ]
    client = [
        Span("inmem.client.protocol:SessionProtocol.submit", 112, 114, number),
        Span("inmem.client.link:Link.wait", 132, 188, True),  # begins when the writer has it, ends before it
        Span("inmem.client.session:Session.commit", 110, 190, True),
    ]
    call = anatomy.Call(100, 200, client)
    made = anatomy.Anatomy("put", untimed=[100.0])
    made.add(call, anatomy.handled(writer), Cost(0, 0), Cost(0, 0))
    assert {stage: values[0] for stage, values in made.stages.items()} == {
        anatomy.ENCODES: 10, anatomy.SENDS: 20, anatomy.NOTICES: 0, anatomy.TAKES: 10, anatomy.DECODES: 5,
        anatomy.DECIDES: 8, anatomy.APPLIES: 7, anatomy.SESSION: 6, anatomy.LOGS: 0, anatomy.PUBLISHES: 0,
        anatomy.REST: 14, anatomy.ANSWERS: 8, anatomy.SEES: 0, anatomy.RETURNS: 12,
    }  # fmt: skip
    text = anatomy.told(made, [*anatomy.INSIDE[anatomy.LOGS]])
    assert "not there any more: inmem.storage.wal.log:Wal.append" in text
    assert "not called: inmem.storage.store:StoreTransaction.publish" in text

    # A timer that takes 4 ns: half of it inside, and what is outside of the line counts nowhere.
    charged = anatomy.Anatomy("put")
    charged.add(call, anatomy.handled(writer), Cost(2, 2), Cost(2, 2))
    assert charged.stages[anatomy.DECODES] == [3] and charged.stages[anatomy.ENCODES] == [9]
    assert sum(values[0] for values in charged.stages.values()) + charged.timers[0] == 100

    for other in (
        anatomy.Call(100, 200, [*client, client[0]]),  # sent twice
        anatomy.Call(100, 200, [client[0]._replace(note=("5e", 8)), *client[1:]]),  # not known to the writer
        anatomy.Call(100, 185, client),  # not of this time
    ):
        made.add(other, anatomy.handled(writer), Cost(0, 0), Cost(0, 0))
    assert made.count == 1 and made.left_out == 3
    assert "could be taken apart" in anatomy.told(anatomy.Anatomy("put", left_out=3), [])


def test_what_is_not_there_any_more_is_said_by_name() -> None:
    bogus = ("inmem.storage.wal.log:Wal.no_such", "inmem.no_such:decide")
    around = Timers([Target("inmem.writeset:decode"), *map(Target, bogus)], "inmem")
    assert around.missing == [*bogus]
    anatomy.refuse(around.missing)
    anatomy.refuse(["zmq:Socket.recv"])  # there is another way to see a message
    with pytest.raises(SystemExit, match=r"committer:Committer\.commit, which is not there any more"):
        anatomy.refuse(["inmem.writer.committer:Committer.commit"])


def test_timers_go_on_and_off() -> None:
    function, method = committer.decode, writeset.WriteSet.encode
    around = Timers(
        [Target("inmem.writeset:decode", lambda _, found: len(found.ops)),
         Target("inmem.writeset:WriteSet.encode", lambda _, body: body or None)], "inmem",
    )  # fmt: skip
    around.put_on()
    try:
        assert committer.decode is writeset.decode is not function  # who has imported it by name, too
        body = writeset.WriteSet(ops=[]).encode()
        assert committer.decode(body) == writeset.WriteSet(ops=[])
    finally:
        around.take_off()
    assert committer.decode is writeset.decode is function and writeset.WriteSet.encode is method
    writeset.WriteSet(ops=[]).encode()
    spans = around.spans()
    assert [(span.target, span.note) for span in spans] == [
        ("inmem.writeset:WriteSet.encode", body), ("inmem.writeset:decode", 0)
    ]
    assert all(span.begin_ns <= span.end_ns for span in spans) and around.spans() == []
    cost = timers.cost()
    assert cost.inside >= 0 and 0 < cost.inside + cost.around < 100_000


# --- arithmetic --------------------------------------------------------------------------------------
