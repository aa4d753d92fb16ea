"""Greetings: how a client's session is registered, and how it ends.

Invariant: a client is told that its session is registered only after the
registration was published. A session ends with its process, as nobody else
can ask for its outcomes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from inmem.config import FORMAT_VERSION, PROTOCOL_VERSION
from inmem.errors import BusyError, FormatVersionError, InmemError, StoreFullError
from inmem.wire import GOODBYE_HEADER, parse_hello, to_wire, welcome
from inmem.writer.endpoint import Endpoint
from inmem.writer.outcomes import Sessions
from inmem.writer.refusals import Refusals
from inmem.writer.watch import is_running


class Registered(NamedTuple):
    """What a HELLO has asked for."""

    session: bytes
    is_resumed: bool
    wants_slot: bool


class Greeter:
    """Answers HELLO and GOODBYE, and knows the process behind each connection."""

    def __init__(
        self, sessions: Sessions, endpoint: Endpoint, refusals: Refusals, database_id: bytes
    ) -> None:
        self._sessions = sessions
        self._endpoint = endpoint
        self._refusals = refusals
        self._database_id = database_id
        self._pids: dict[bytes, int] = {}  # of each connected peer

    def register(self, frame: bytes, peer: bytes, now_us: int) -> Registered | InmemError | None:
        """Register the session of a HELLO; an error, or None for a malformed one."""
        try:
            fields = parse_hello(frame)
        except ValueError:
            return None
        session: bytes = fields["session"]
        try:
            self._check(fields)
            if session not in self._sessions and not fields["resume"]:
                self._sessions.register(session, now_us)
        except InmemError as error:
            self._refusals.add(error)
            return error
        self._pids[peer] = fields["pid"]
        return Registered(session, fields["resume"], fields.get("slot") is not False)

    def _check(self, fields: dict[str, Any]) -> None:
        for name, ours in (("protocol", PROTOCOL_VERSION), ("format", FORMAT_VERSION)):
            if fields[name] != ours:
                raise FormatVersionError(
                    f"the client speaks {name} version {fields[name]}, the writer {ours}",
                    found=fields[name], supported=ours,
                    hint="Use one release of inmem in all programs that share a store.",
                )
        if fields["database"] != self._database_id:
            raise BusyError("this socket serves another database", what="database")

    def welcome(self, peer: bytes, registered: Registered | InmemError | None) -> None:
        """Answer a HELLO, after the group that publishes its registration."""
        sessions, endpoint = self._sessions, self._endpoint
        if registered is None:
            return
        if isinstance(registered, InmemError):
            frame = welcome(error=to_wire(registered))
        elif not sessions.is_stored(registered.session) and not registered.is_resumed:
            problem = StoreFullError("the session could not be registered: image or log are full")
            frame = welcome(error=to_wire(problem))
        else:
            session = registered.session
            known = session in sessions
            wants = known and registered.wants_slot
            slot = endpoint.slots.give(session, self._pids[peer], peer) if wants else -1
            frame = welcome(
                epoch=endpoint.epoch, known=known,
                last=sessions.last_sequence(session) if known else 0,
                slot=slot, board=endpoint.board_path,
            )
        endpoint.mailbox.answer(peer, frame)

    def goodbye(self, peer: bytes, frame: bytes) -> None:
        """End the session of a GOODBYE."""
        if len(frame) == GOODBYE_HEADER.size:
            session = GOODBYE_HEADER.unpack(frame)[1]
            self._sessions.drop(session)
            self._endpoint.slots.take(session)
            self._pids.pop(peer, None)

    def clients(self) -> int:
        """How many processes are connected."""
        return sum(is_running(pid) for pid in set(self._pids.values()))

    def end_dead(self) -> None:
        """End the sessions of processes that have ended."""
        dead = {pid for pid in set(self._pids.values()) if not is_running(pid)}
        if dead:
            self._pids = {peer: pid for peer, pid in self._pids.items() if pid not in dead}
            for session in self._endpoint.slots.take_all(dead):
                self._sessions.drop(session)

    def disconnect_all(self) -> None:
        """Forget all connections: the socket that they were of was replaced."""
        self._pids.clear()
