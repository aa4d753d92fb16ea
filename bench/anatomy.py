"""Where does the time of one operation go? `python -m bench.anatomy [put|append|cas|trace|step ...]`

A client calls, a writer decides; both are the real ones, with timers around
the functions of their stages. The clock is that of the whole machine, and an
operation has one number in both processes, so its stages lie on one line: each
moment from the call to its return belongs to one of them. What the timers cost
themselves is measured and taken off. The same operations run without timers
too, in turn, on a store of their own: the last lines compare.

With `--busy N`, other processes compute without end meanwhile.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import gc
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import inmem
from bench import timers, workloads
from bench.busy import busy
from bench.measuring import Work
from bench.peers.ours import CONFIG, OurClient, Ours
from bench.timers import CLOCK, Cost, Span, Target, Timers
from inmem.host import interrupts

OPERATIONS: dict[str, Callable[..., Work]] = {
    "put": workloads.put, "append": workloads.append, "cas": workloads.cas, "trace": workloads.trace,
    "step": workloads.step,
}  # fmt: skip
_COUNT, _BLOCK, _WARM = 2_000, 50, 100  # operations: of each kind; between two changes of store; before
_START_S = 30.0

# --- what is timed ---------------------------------------------------------------------------------

Number = tuple[str, int]  # of a commit: its session and its sequence, the same in client and writer

# In the client. These are where its stages end, so it cannot do without.
_CALLS = "inmem.client.session:Session.commit"
_NUMBERS = "inmem.client.protocol:SessionProtocol.submit"
_WAITS = "inmem.client.link:Link.wait"
CLIENT = (
    Target(_CALLS),
    Target(_NUMBERS, lambda arguments, result: (arguments[0].session_id.hex(), result[0])),
    Target(_WAITS),
)

# In the writer, the same.
_TAKES = "inmem.writer.mailbox:Mailbox.take"
_COMMITS = "inmem.writer.committer:Committer.commit"
_LOOKS = ("inmem.host.board:Board.posted", "zmq:Socket.recv")
_ANSWERS = ("inmem.host.board:Board.post", "inmem.writer.mailbox:Mailbox.answer")
_ANCHORS = (
    Target(_TAKES, lambda _, messages: len(messages) or None),
    Target(_COMMITS, lambda arguments, _: _numbers(arguments[1])),
    *(Target(name, lambda _, found: len(found) or None) for name in _LOOKS),
    *(Target(name) for name in _ANSWERS),
)


def _numbers(requests: Sequence[Any]) -> list[Number] | None:
    return [(request.session.hex(), request.sequence) for request in requests] or None


# The stages, in the order of the path. Of those inside the commit, the functions that are their work.
ENCODES, SENDS, NOTICES, TAKES = "client encodes", "client sends", "writer notices", "writer takes"
DECODES, DECIDES, APPLIES = "writer decodes", "writer decides", "writer applies to the store"
LOGS, PUBLISHES, SESSION = "writer appends to the log", "writer publishes", "writer records the session"
REST, ANSWERS = "writer, the rest of the commit", "writer answers"
SEES, RETURNS = "client notices", "client returns"
_APPLY = "inmem.storage.store:StoreTransaction.apply"
_SESSION_CHANGES = "inmem.writer.outcomes:Sessions.changes"
INSIDE: dict[str, tuple[str, ...]] = {
    DECODES: ("inmem.writeset:decode",),
    DECIDES: ("inmem.commit.decide:decide",),
    APPLIES: ("inmem.storage.store:Store.begin", _APPLY),
    SESSION: (
        "inmem.writer.outcomes:Sessions.find", "inmem.writer.outcomes:Sessions.record", _SESSION_CHANGES,
        "inmem.writer.outcomes:Sessions.written",
    ),
    LOGS: ("inmem.storage.wal.log:Wal.append",),
    PUBLISHES: ("inmem.storage.store:StoreTransaction.publish",),
}  # fmt: skip
STAGES = (ENCODES, SENDS, NOTICES, TAKES, *INSIDE, REST, ANSWERS, SEES, RETURNS)
WRITER = (*_ANCHORS, *(Target(name) for names in INSIDE.values() for name in names))
_NEEDED = ({_CALLS}, {_NUMBERS}, {_WAITS}, {_TAKES}, {_COMMITS}, {*_LOOKS}, {*_ANSWERS})  # one of each


def refuse(missing: Sequence[str]) -> None:
    """End the program if a function is not there without which no stage can be told from the next."""
    for group in _NEEDED:
        if group <= {*missing}:
            raise SystemExit(f"no anatomy without {' or '.join(sorted(group))}, which is not there any more")


# --- from spans to stages --------------------------------------------------------------------------


class Call(NamedTuple):
    """One operation as the client made it."""

    called_ns: int
    returned_ns: int
    spans: list[Span]

    @property
    def whole_ns(self) -> int:
        """How long it took."""
        return self.returned_ns - self.called_ns


class Handled(NamedTuple):
    """What the writer did for one commit. `spans` are all calls for it, `commit` the one that decided it."""

    noticed_ns: int
    answered_ns: int
    commit: Span
    spans: list[Span]


def handled(spans: Sequence[Span]) -> dict[Number, Handled]:
    """The commits that a writer handled alone, by number; groups of several are no serial operations."""
    found: dict[Number, Handled] = {}
    noticed_ns, commit = 0, None
    looks: list[Span] = []
    ours: list[Span] = []
    for span in spans:
        if span.target in _LOOKS:
            looks.append(span)
        elif span.target == _TAKES:
            # What was seen before it began belongs to an earlier one, which took nothing.
            ours = [look for look in looks if look.begin_ns >= span.begin_ns]
            noticed_ns, commit = min((look.end_ns for look in ours), default=0), None
            looks = []
            ours.append(span)
        else:
            ours.append(span)
            if span.target == _COMMITS:
                commit = span
            elif span.target in _ANSWERS:
                if commit is not None and noticed_ns and len(commit.note) == 1:
                    session, sequence = commit.note[0]
                    found[session, sequence] = Handled(noticed_ns, span.end_ns, commit, ours)
                commit = None
    return found


Line = list[tuple[int, str]]  # when each part of an operation ended, and its stage; without gaps

_STAGE_OF = {name: stage for stage, names in INSIDE.items() for name in names}


def _decided(commit: Span, spans: Sequence[Span]) -> Line:
    """The parts of a commit in the writer: of calls within others the inner ones count."""
    parts: Line = []
    within = [(commit.end_ns, REST)]
    is_session = False  # what is applied after the sessions' changes were made is their records
    inner = [s for s in spans if s.target in _STAGE_OF and commit.begin_ns <= s.begin_ns < commit.end_ns]
    for span in sorted(inner, key=lambda s: (s.begin_ns, -s.end_ns)):
        while within[-1][0] <= span.begin_ns:
            parts.append(within.pop())
        parts.append((span.begin_ns, within[-1][1]))
        is_session |= span.target == _SESSION_CHANGES
        stage = SESSION if is_session and span.target == _APPLY else _STAGE_OF[span.target]
        within.append((span.end_ns, stage))
    return parts + within[::-1]


def line(call: Call, numbers: Mapping[Number, Handled]) -> tuple[Line, Handled] | None:
    """An operation as one line through both processes; None if it was not one commit, sent once."""
    of = {name: [span for span in call.spans if span.target == name] for name in (_CALLS, _NUMBERS, _WAITS)}
    if not len(of[_CALLS]) == len(of[_NUMBERS]) == 1 or not of[_WAITS]:
        return None
    made = numbers.get(of[_NUMBERS][0].note)
    if made is None:
        return None
    sees_ns = of[_WAITS][-1].end_ns
    found: Line = [
        (of[_CALLS][0].begin_ns, ENCODES),
        # The other side may be faster than a function returns: then it goes on there.
        (min(of[_WAITS][0].begin_ns, made.noticed_ns), SENDS),
        (made.noticed_ns, NOTICES), (made.commit.begin_ns, TAKES),
        *_decided(made.commit, made.spans),
        (min(made.answered_ns, sees_ns), ANSWERS), (sees_ns, SEES), (call.returned_ns, RETURNS),
    ]
    ends = [call.called_ns, *(end for end, _ in found)]
    return (found, made) if ends == sorted(ends) else None


def _lengths(begin_ns: int, parts: Line) -> dict[str, float]:
    """How long each stage took; 0 for those that did not happen."""
    found = dict.fromkeys(STAGES, 0.0)
    for end_ns, stage in parts:
        found[stage] += end_ns - begin_ns
        begin_ns = end_ns
    return found


def _charges(call: Call, made: Handled, parts: Line, client: Cost, writer: Cost) -> dict[str, float]:
    """What the timers took of each stage: those of the process that the stage is in."""
    found = dict.fromkeys(STAGES, 0.0)
    ends = [end for end, _ in parts]
    for side, cost, spans in (("client", client, call.spans), ("writer", writer, made.spans)):
        for span in spans:
            for at, part in (
                (span.begin_ns - 1, cost.around), (span.begin_ns, cost.inside),
                (span.end_ns - 1, cost.inside), (span.end_ns, cost.around),
            ):  # fmt: skip
                if call.called_ns <= at < call.returned_ns:
                    stage = parts[bisect.bisect_right(ends, at)][1]
                    if stage.startswith(side):
                        found[stage] += part / 2
    return found


@dataclass
class Anatomy:
    """What was found out about one kind of operation. Nanoseconds; the timers' own cost is taken off."""

    operation: str
    stages: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    called: Counter[str] = field(default_factory=Counter)  # operations in which a stage was seen
    timed: list[float] = field(default_factory=list)  # durations, timers and all
    timers: list[float] = field(default_factory=list)  # what these took of each
    untimed: list[float] = field(default_factory=list)
    left_out: int = 0  # operations that were no single commit, or whose number the writer does not know

    @property
    def count(self) -> int:
        """Operations that were taken apart."""
        return len(self.timed)

    def add(self, call: Call, numbers: Mapping[Number, Handled], client: Cost, writer: Cost) -> None:
        """Take one operation apart."""
        found = line(call, numbers)
        if found is None:
            self.left_out += 1
            return
        parts, made = found
        lengths, charges = _lengths(call.called_ns, parts), _charges(call, made, parts, client, writer)
        self.called.update({stage for _, stage in parts})
        self.timed.append(call.whole_ns)
        self.timers.append(sum(charges.values()))
        for stage in STAGES:
            self.stages[stage].append(lengths[stage] - charges[stage])


# --- the two processes -----------------------------------------------------------------------------


@contextlib.contextmanager
def timed_writer(path: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A writer with timers that serves a store; when the block ends it leaves, and `output` is there."""
    with open(output.with_suffix(".log"), "wb") as log, subprocess.Popen(
        [sys.executable, "-m", "bench.timed_writer", str(path), str(output)],
        stdin=subprocess.PIPE, stdout=log, stderr=log,
        start_new_session=True,  # as any writer: see `bench.measuring`
    ) as process:
        try:
            deadline = time.monotonic() + _START_S
            while not _serves(path, process.pid):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the writer does not serve:\n{output.with_suffix('.log').read_text()}")
                time.sleep(0.02)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_START_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _serves(path: Path, pid: int) -> bool:
    try:
        with inmem.open(path, config=CONFIG, autostart=False) as db:
            return db.status().writer_pid == pid
    except inmem.WriterUnavailableError:
        return False


@dataclass
class _Side:
    """A client of one of the two stores, and where it is with its operations."""

    client: OurClient
    timers: Timers
    calls: dict[str, list[Call]] = field(default_factory=dict)
    work: Work | None = None
    stream: Iterator[Any] = field(default_factory=lambda: iter(()))

    def begin(self, operation: str) -> None:
        """Go on to another kind of operation."""
        self.work = OPERATIONS[operation](self.client, 0)
        self.stream = itertools.cycle(self.work.items)
        self.calls[operation] = []
        self.run(_WARM)

    def run(self, count: int) -> list[Call]:
        """Make some calls."""
        assert self.work is not None
        operation, timers = self.work.operation, self.timers
        made: list[tuple[int, int, int]] = []  # no more than this is done between two operations
        timers.put_on()
        gc.disable()
        try:
            for item in itertools.islice(self.stream, count):
                called_ns = CLOCK()
                operation(item)
                made.append((called_ns, CLOCK(), timers.kept()))
        finally:
            gc.enable()
            timers.take_off()
        spans, calls, first = timers.spans(), [], 0
        for called_ns, returned_ns, last in made:
            calls.append(Call(called_ns, returned_ns, spans[first:last]))
            first = last
        return calls


@dataclass
class Found:
    """All that a run has found; `missing` are functions that are not there any more."""

    anatomies: list[Anatomy]
    missing: list[str]
    busy: int


def measure(operations: Sequence[str], count: int = _COUNT, busy_count: int = 0, seed: int = 1) -> Found:
    """Take `count` of each kind of operation apart, beside some busy processes."""
    chosen = random.Random(seed)
    scratch = Path(tempfile.mkdtemp(prefix="inmem-bench-"))
    plain, output = Ours("buffered"), scratch / "spans.json"
    # Where an exception passes our timers, it is still inmem's own.
    interrupts.OURS.add(timers.__name__.partition(".")[0])
    client_timers = Timers(CLIENT, "inmem")
    refuse(client_timers.missing)
    try:
        for name in ("plain", "timed"):
            (scratch / name).mkdir()
        prepared = Ours("buffered")
        prepared.start(scratch / "timed")
        prepared.stop()
        plain.start(scratch / "plain")
        with timed_writer(prepared.path, output), busy(busy_count), contextlib.ExitStack() as clients:
            sides = []
            for store, around in ((plain, Timers((), "")), (prepared, client_timers)):
                client = OurClient(str(store.path), str(CONFIG))
                clients.callback(client.close)
                sides.append(_Side(client, around))
            for operation in operations:
                for side in sides:
                    side.begin(operation)
                for start in range(0, count, _BLOCK):
                    for side in chosen.sample(sides, len(sides)):
                        side.calls[operation] += side.run(min(_BLOCK, count - start))
            client_cost = timers.cost()
        told = json.loads(output.read_text())
    finally:
        plain.stop()
        shutil.rmtree(scratch, ignore_errors=True)
    numbers, writer_cost = handled([Span(*span) for span in told["spans"]]), Cost(*told["cost"])
    anatomies = []
    for operation in operations:
        made = Anatomy(operation, untimed=[call.whole_ns for call in sides[0].calls[operation]])
        for call in sides[1].calls[operation]:
            made.add(call, numbers, client_cost, writer_cost)
        anatomies.append(made)
    return Found(anatomies, [*client_timers.missing, *told["missing"]], busy_count)


# --- what is told ----------------------------------------------------------------------------------


def told(anatomy: Anatomy, missing: Sequence[str]) -> str:
    """The stages of one kind of operation, as lines of text."""
    if not anatomy.count:
        return f"{anatomy.operation}: no operation could be taken apart, {anatomy.left_out} were left out"
    medians = {stage: statistics.median(anatomy.stages[stage]) / 1000 for stage in STAGES}
    total = sum(medians.values())
    lines = [f"{anatomy.operation}: {anatomy.count:,} operations, medians in µs"]
    for stage in STAGES:
        names = INSIDE.get(stage, ())
        if names and {*names} <= {*missing}:
            lines.append(f"  {stage:<38} not there any more: {', '.join(names)}")
        elif not anatomy.called[stage]:
            lines.append(f"  {stage:<38} not called: {', '.join(names)}")
        else:
            seen = anatomy.called[stage]
            few = "" if seen == anatomy.count else f"  in {seen:,} of {anatomy.count:,} operations"
            lines.append(f"  {stage:<38} {medians[stage]:8.1f} {medians[stage] / total:6.1%}{few}")
    lost = [name for stage, names in INSIDE.items() for name in names if name in missing]
    if lost:
        lines.append(f"  in '{REST}' is the time of what is not there any more: {', '.join(lost)}")
    timed, timers_own = (statistics.median(values) / 1000 for values in (anatomy.timed, anatomy.timers))
    untimed = statistics.median(anatomy.untimed) / 1000
    lines += [
        f"  {'the stages together':<38} {total:8.1f} {1:6.1%}",
        f"  {'one operation, timers and all':<38} {timed:8.1f}",
        f"  {'of that the timers, taken off above':<38} {timers_own:8.1f}",
        f"  {'the same operation without timers':<38} {untimed:8.1f}        "
        f"the stages together are {total / untimed:.2f} of it",
    ]
    if anatomy.left_out:
        lines.append(f"  left out, as they were not one commit that was sent once: {anatomy.left_out:,}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.anatomy", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("operation", nargs="*", help=f"of {', '.join(OPERATIONS)}; all by default")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute beside it")
    parser.add_argument("--operations", type=int, default=_COUNT, help="of each kind")
    options = parser.parse_args(arguments)
    if unknown := {*options.operation} - {*OPERATIONS}:
        parser.error(f"no such operation: {', '.join(sorted(unknown))}")
    found = measure(options.operation or [*OPERATIONS], options.operations, options.busy)
    beside = f"beside {found.busy} processes that compute" if found.busy else "nothing of ours beside it"
    print(f"One client, one writer, `buffered`, {beside}; load average {os.getloadavg()[0]:.1f}.\n")
    print("\n\n".join(told(anatomy, found.missing) for anatomy in found.anatomies))
    return 0


if __name__ == "__main__":
    sys.exit(main())
