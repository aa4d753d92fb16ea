"""What a facade needs of an engine: a View to read through and a Sink to write to.

A read goes facade, View, storage. A write goes facade, Sink, engine. What a
Sink returns decides what its facade returns: outside a transaction the value;
inside one a `Pending` of the value where only the commit knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from inmem.changes import Table
from inmem.config import Settings
from inmem.pending import Pending

if TYPE_CHECKING:  # a writer has no use for them, and each costs it memory
    from inmem.reports import BackupReport, CheckReport
    from inmem.stepping import Leaves, Steps

T = TypeVar("T")
Item = tuple[bytes, bytes]

WHOLE_RUN_S: Final = 3600.0  # of a version that is read whole: bounds what it pins


class View(Protocol):
    """Live records, in key order."""

    def read(self, key: bytes) -> bytes | None:
        """The record under a key."""

    def read_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records under some keys, all of one version."""

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False,
        max_bytes: int | None = None,
    ) -> list[Item]:
        """Keys and records of a range, all of one version; not more than `limit`.

        It ends with the record that makes `max_bytes` or more: what streams
        asks again from there.
        """

    def count(self, start: bytes, end: bytes) -> int:
        """How many records a range has."""

    def is_deleted(self, prefix: bytes) -> bool:
        """Whether the run with this prefix was deleted."""

    def moment(self) -> AbstractContextManager[VersionView]:
        """A view for several reads of one version."""

    def now_us(self) -> int:
        """Store time."""

    def for_one(self, name: bytes, starts: Collection[bytes]) -> None:
        """Ranges with these starts are read for something under this name that one alone can have.

        Of all who wait for that and nothing else, only as many are woken as there is new. See
        `RecordType.handed_out`.
        """

    def until(self, time_us: int) -> None:
        """What was read holds until this store time only.

        Who waits looks again then, and a commit that comes later is refused.
        """


class VersionView(View, Protocol):
    """A View of one version."""

    @property
    def version(self) -> int | None:
        """The commit version that is seen; None in a transaction."""


class Sink(Protocol):
    """Where writes go: each to a commit of its own, to a transaction's, or to a pipeline's."""

    @property
    def default(self) -> Callable[[Any], Any] | None:
        """What makes a value that can be stored of one that would be refused."""

    def put(self, key: bytes, payload: bytes, expires: int) -> Any:
        """Write one record; the version of the commit. `expires` is as `inmem.record.end_of` has it."""

    def write(self, ops: list[list[Any]]) -> Any:
        """Some operations of a write set, whose only result is the version of the commit."""

    def call(self, procedure: str, arguments: list[Any], pending: type[Pending[Any]]) -> Any:
        """One procedure, whose result may come at the commit, in a `pending`."""

    def join(
        self, procedure: str, head: Any, items: list[Any], part: Callable[[Any, int], Any],
        pending: type[Pending[Any]], *, is_one: bool = False,
    ) -> Any:
        """One procedure on a list of items, which may travel with the items of other calls.

        Gives a list of what `part(result of the procedure, position)` is for
        each item, or a list of `pending`; with `is_one` the only one of it.
        """

    def ask(
        self, procedure: str, arguments: list[Any], convert: Callable[[Any], Any], *, alone: str = "",
        shows_time: bool = True, is_sure: bool = False,
    ) -> Any:
        """One procedure, whose result is wanted at once; inside a transaction that makes reads.

        `alone` names the method if the call must be a commit of its own. If
        what `convert` gives does not show when the call was made, the commit
        gives it its time, unless what it wrote was read before.
        """

    def drive(self, steps: Steps[T]) -> Any:
        """Take steps of which each may need what this returned for the one before; what they return."""


class WatchedReads(Protocol):
    """What somebody has read, and waits for a change of."""

    def wait(self, deadline: float) -> None:
        """Sleep until something has changed; `deadline` is of `time.monotonic`, or infinite.

        Raises:
            WaitTimeoutError: nothing has changed until the deadline.
            RunDeletedError: the run was deleted.
            ClosedError: the database was closed.
        """


class Draft(View, Sink, Protocol):
    """One attempt at a transaction: reads of one version, tracked, under its own writes."""

    version: int | None

    @property
    def is_over(self) -> bool:
        """Whether it was committed or aborted."""

    def commit(self) -> None:
        """Send what was read and written, as one.

        Raises:
            ConflictError: something that was read has changed.
            CommitUnknownError: no answer before the deadline.
        """

    def abort(self) -> None:
        """Drop everything."""

    @property
    def seen_version(self) -> int:
        """The commit version that is read."""

    def watched(self, prefix: bytes) -> WatchedReads:
        """Drop everything; what was read, to be waited for. `prefix` is that of the run that waits.

        Raises:
            InvariantError: nothing was read.
        """


class MomentView(View, Protocol):
    """A View of one committed version."""

    @property
    def version(self) -> int:
        """The commit version that is seen."""

    def close(self) -> None:
        """End it."""


class Stored(Protocol):
    """One version of all that is stored, as it is stored: expired records too, and tables beside them."""

    @property
    def version(self) -> int:
        """The commit version."""

    @property
    def now_us(self) -> int:
        """Store time."""

    def get(self, key: bytes, /) -> bytes | None:
        """The record under a key."""

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """Keys and records of a range."""

    def table(self, table: Table, /) -> Iterator[Item]:
        """All entries of a table."""

    def close(self) -> None:
        """End it."""


class Batches(Protocol):
    """Writes that are sent without waiting for each answer."""

    def sink(self) -> Sink:
        """Where the writes of one group go: consecutive ones travel together as one commit."""

    def flush(self) -> None:
        """Send what is left, wait for all answers and raise the first error."""

    def close(self) -> None:
        """Take no more writes."""

    def in_flight(self) -> int:
        """How many commits are sent and not answered."""


class Engine(Protocol):
    """What serves a database."""

    settings: Settings  # of this handle
    name: str  # of the store: its path, or its URL without secrets; `inmem.open` takes it
    database_id: bytes
    leaving: set[Leaves]  # who has to leave when this is closed

    @property
    def path(self) -> Path | None:
        """The data directory; None if the store is on a server."""

    @property
    def durability(self) -> str:
        """How durable commits are, as the store was created."""

    def latest(self) -> View:
        """The newest version at each call."""

    def direct(self) -> Sink:
        """A commit for each write."""

    def snapshot(self) -> MomentView:
        """One version, as of now."""

    def transaction(self, *, timeout_s: float | None, sync: bool) -> Draft:
        """A transaction that reads from now on."""

    def pipeline(self, *, sync: bool) -> Batches:
        """Writes without waiting for each."""

    def session(self) -> Any:
        """Where commits go that somebody has put together himself: see `client.pipeline.SessionSource`."""

    def stored(self) -> Stored:
        """One version to read whole runs of, for as long as that takes."""

    def request(self, kind: int, timeout_s: float) -> tuple[int, Mapping[str, Any]]:
        """A question about the store as a whole: see `wire`."""

    def pass_on(self, name: bytes) -> None:
        """Wake one more of those who wait by `View.for_one`."""

    def prefixes(self) -> Iterable[bytes]:
        """Every prefix that has records, in order."""

    def check_there(self) -> None:
        """Raise DatabaseGoneError if what is there by its name is not this store any more."""

    def check(self) -> CheckReport:
        """Verify what is stored; changes nothing."""

    def backup(self, file: Path) -> BackupReport:
        """Copy one moment of the store to a new file.

        Raises:
            InvalidInputError: the store is on a server, which has its own means.
        """

    def is_same_store(self, other: Engine) -> bool:
        """Whether both serve one and the same store."""

    def close(self) -> None:
        """Give it back."""
