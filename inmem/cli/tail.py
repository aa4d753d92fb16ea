"""`inmem tail`: what happens in a run, of all primitives, in the order in which it was committed.

Invariant: each record is printed once for each look that finds it changed, and
none is passed over: the version under which each was seen is kept, as versions
of a store on a server do not tell which of two commits came first.
What was overwritten between two looks, and what was removed, is not seen.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, NamedTuple

import typer

from inmem import values
from inmem.cli.common import Full, Limit, RunName, Where, command, described
from inmem.cli.listing import Listing
from inmem.cli.text import clock, plain
from inmem.errors import RunDeletedError, SnapshotTooOldError, WriterUnavailableError
from inmem.jsonvalues import to_json
from inmem.keys import TypeTag, range_of
from inmem.primitives.cells import rules as cell_rules
from inmem.primitives.events import rules as event_rules
from inmem.primitives.leases import rules as lease_rules
from inmem.primitives.queues import rules as job_rules
from inmem.primitives.queues.job import STATES, JobId
from inmem.primitives.runs import rules as run_rules
from inmem.primitives.traces import rules as trace_rules
from inmem.reading.moment import Moment, readable
from inmem.reading.named_source import NamedSource
from inmem.reading.run import StoredRun
from inmem.reading.runs import is_deleted
from inmem.record import payload_of, timestamp_of, version_of

_BEFORE: Final = 10  # lines of what was there already
_BETWEEN_S: Final = 0.02
_SHARE: Final = 10  # times as long as a look took: the rest, so that a large run costs a tenth of a core
_MOST_S: Final = 2.0
_COLUMN: Final = (10, 32)


class Happened(NamedTuple):
    """One record as it was found."""

    version: int
    time: int
    kind: str
    name: str
    what: str  # in words, before the value
    value: Any
    has_value: bool


_Told = tuple[str, str, Any, bool]  # its name, what it is in words, and its value, if it has one


class _Kind(NamedTuple):
    tag: TypeTag
    told: Callable[[bytes, bytes], _Told]  # of the name in its key, and its payload


def _event(name: bytes, payload: bytes) -> tuple[str, str, Any, bool]:
    event = event_rules.unpack(int.from_bytes(name, "big"), payload).to_event()
    return str(event.sequence), event.event_type, event.payload, True


def _trace(name: bytes, payload: bytes) -> tuple[str, str, Any, bool]:
    trace = trace_rules.unpack(name.decode(), payload)
    fields = {each: getattr(trace.body, each) for each in trace.body.__slots__}
    return trace.id, trace.type_name, {n: v for n, v in fields.items() if v is not None}, True


def _entry(name: bytes, payload: bytes) -> tuple[str, str, Any, bool]:
    return name.decode("utf-8", "backslashreplace"), "", values.decode(payload), True


def _cell(name: bytes, payload: bytes) -> tuple[str, str, Any, bool]:
    version = cell_rules.version_in(payload)
    value = values.decode(cell_rules.value_in(payload))
    return name.decode("utf-8", "backslashreplace"), f"version {version}", value, True


def _lease(name: bytes, payload: bytes) -> tuple[str, str, Any, bool]:
    lease = lease_rules.unpack(payload)
    holder = lease.holder.decode("utf-8", "backslashreplace")
    words = f"held by {holder}, token {lease.token}" if holder else "released"
    return name.decode("utf-8", "backslashreplace"), words, None, False


def _job(name: bytes, payload: bytes) -> tuple[str, str, Any, bool]:
    state = job_rules.unpack(payload)
    queue, number = name[:-9].decode("utf-8", "backslashreplace"), int.from_bytes(name[-8:], "big")
    words = STATES[state.state]
    if state.worker:
        words += f" by {state.worker}, attempt {state.attempt} of {state.max_attempts}"
    words += f": {state.errors[-1]}" if state.errors else ""
    return str(JobId.of(queue, number)), words, None, False


KINDS: Final = {
    "event": _Kind(TypeTag.EVENT, _event), "trace": _Kind(TypeTag.TRACE, _trace),
    "kv": _Kind(TypeTag.KV, _entry), "cell": _Kind(TypeTag.STATE, _cell),
    "lease": _Kind(TypeTag.LEASE, _lease), "job": _Kind(TypeTag.JOB_STATE, _job),
}


@command(about_runs=True, reads=True)
def tail(
    where: Where,
    run: RunName,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help=f"Only some: {', '.join(KINDS)}, run. May be repeated."),
    ] = None,
    last: Annotated[
        int, typer.Option(metavar="N", min=0, help="Begin with so many of what was there.")
    ] = _BEFORE,
    limit: Limit = None,
    full: Full = False,
) -> None:
    """Follow all that happens in a run: events, traces, keys, cells, leases, jobs.

    It comes in the order of its commits. Of a key or cell that is written
    often, the newest value is shown at each look; removals are not shown. It
    starts no writer and keeps none. A look costs about 1 us for each record of
    the run, and a tenth of a core at most; 100 bytes of memory for each are
    kept. Ends with Ctrl-C.

    Example: inmem tail trip-to-oslo -d ./data
    """
    wanted = set(kind or [*KINDS, "run"])
    if unknown := wanted - {*KINDS, "run"}:
        raise typer.BadParameter(f"there is no kind {min(unknown)}", param_hint="--kind")
    with (
        where.reading(follows=True) as source,
        Listing(as_json=where.as_json, full=full, limit=limit) as listing,
    ):
        described(source, source.run(run))
        _Tail(source, run, wanted, listing).follow(last)


class _SeenRecord(NamedTuple):
    """A record that is new; what it says is read when it is printed."""

    version: int
    kind: str
    name: bytes
    record: bytes


class _Tail:
    """Prints what has come since it looked last."""

    def __init__(self, source: NamedSource, name: str, kinds: set[str], listing: Listing) -> None:
        self._source = source
        self._name = name
        self._run = source.run(name)
        self._kinds = {each: KINDS[each] for each in KINDS if each in kinds}
        self._wants_run = "run" in kinds and not name.startswith("@")
        self._listing = listing
        self._versions: dict[str, dict[bytes, int]] = {kind: {} for kind in (*self._kinds, "run")}
        self._next = 0  # event

    def follow(self, last: int) -> None:
        """Print the last of what is there, then what comes, until interrupted or enough.

        Raises:
            RunDeletedError: the run was deleted.
        """
        starts = [range_of(self._run.prefix, each.tag)[0] for each in self._kinds.values()]
        if self._wants_run:
            starts.append(run_rules.run_key(self._run.namespace.prefix(), self._name))
        is_first = True
        while True:
            armed = self._source.arm(*starts)
            self._source.follow()
            began = time.monotonic()
            try:
                found = self._new(last if is_first else None)
            except (SnapshotTooOldError, WriterUnavailableError):
                time.sleep(_BETWEEN_S)  # between two images: the next look is at the new one
                continue
            for each in found:
                if self._listing.is_full:
                    break
                self._print(self._happened(each))
            self._listing.flush()
            if self._listing.is_full:
                return
            is_first = False
            took_s = time.monotonic() - began
            if not found:
                self._source.sleep(armed)
            time.sleep(min(_MOST_S, _SHARE * took_s))

    def _new(self, most: int | None) -> list[_SeenRecord]:
        """What has changed since the last whole look, in the order of commits; the last `most` of it."""
        with self._source.moment() as moment:
            store = StoredRun(moment, self._run.namespace, self._name)
            if store.is_empty() and is_deleted(moment, store):
                raise RunDeletedError(f"run {self._name} was deleted: nothing will follow", run_id=self._name)
            # A look that fails in the middle leaves what is known as it was: nothing is passed over.
            length, versions = store.length(), {kind: dict[bytes, int]() for kind in self._versions}
            changed = self._changed(store, moment, length, versions)
            if most is None:
                found = sorted(changed, key=lambda each: each.version)
            else:  # of a large run only what is shown is kept
                numbered = ((each.version, number, each) for number, each in enumerate(changed))
                found = [each for _, _, each in reversed(heapq.nlargest(most, numbered))]
        self._versions, self._next = versions, length
        return found

    def _changed(
        self, store: StoredRun, moment: Moment, length: int, versions: dict[str, dict[bytes, int]]
    ) -> Iterator[_SeenRecord]:
        """Records that are new. `versions` gets those of all that is there: what was removed is left out."""
        for kind, (tag, _) in self._kinds.items():
            if tag == TypeTag.EVENT:
                for name, record in self._events(store, length):
                    yield _SeenRecord(version_of(record), kind, name, record)
                continue
            known, seen = self._versions[kind], versions[kind]
            for name, record in store.records(tag):
                version = seen[name] = version_of(record)
                if known.get(name) != version:
                    yield _SeenRecord(version, kind, name, record)
        if self._wants_run:
            found = moment.read(run_rules.run_key(self._run.namespace.prefix(), self._name))
            if found is not None:
                version = versions["run"][b""] = version_of(found)
                if self._versions["run"].get(b"") != version:
                    yield _SeenRecord(version, "run", b"", found)

    def _events(self, store: StoredRun, length: int) -> Iterator[tuple[bytes, bytes]]:
        """Those from the next one on; all of them if the log is shorter than it was."""
        first = self._next if self._next <= length else 0
        return store.records(TypeTag.EVENT, start_after=(first - 1).to_bytes(8, "big") if first else None)

    def _happened(self, found: _SeenRecord) -> Happened:
        version, kind, name, record = found
        if kind == "run":
            run = run_rules.unpack(self._name, payload_of(record))
            words = run.status.value + (f": {run.error}" if run.error else "")
            return Happened(version, timestamp_of(record), kind, self._name, words, None, False)
        with readable(f"{kind} {name!r} of {self._name}"):
            what = KINDS[kind].told(name, payload_of(record))
        return Happened(version, timestamp_of(record), kind, *what)

    def _print(self, happened: Happened) -> None:
        listing = self._listing
        if listing.as_json:
            document = happened._asdict() | {"value": to_json(happened.value)}
            del document["has_value"]
            listing.document(document)
            return
        name, words = plain(happened.name), plain(happened.what)
        if happened.kind == "trace":  # its id says nothing to people
            name, words = words, ""
        head = (
            (clock(happened.time) + "  ", "cyan"), (f"{happened.kind:<6}", "dim"),
            (listing.column(name, _COLUMN) + "  ", "bold"),
        )
        if happened.has_value:
            listing.row(*head, (words + "  " if words else "", ""), value=happened.value, has_value=True)
        else:
            listing.words(*head, rest=words)
