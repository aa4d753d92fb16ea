"""One connection of an event loop to a writer's mailbox: it moves frames, and knows no commits."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from inmem.client.zmtp import ZmtpCodec
from inmem.config import MAX_MESSAGE_BYTES


class ConnectedSession(Protocol):
    """Who is told what happens on a connection: see `inmem.aio.session`."""

    open: set[LoopConnection]

    def shaken(self, connection: LoopConnection) -> None: ...

    def received(self, connection: LoopConnection, frames: list[bytes]) -> None: ...

    def lost(self, connection: LoopConnection) -> None: ...

    def flush(self) -> None: ...


class LoopConnection(asyncio.Protocol):
    """One connection to a writer's mailbox."""

    def __init__(self, session: ConnectedSession, epoch: int) -> None:
        self.epoch = epoch
        self.codec = ZmtpCodec(MAX_MESSAGE_BYTES)
        self.transport: asyncio.Transport | None = None
        self.is_writable = False
        self.has_ended = asyncio.get_running_loop().create_future()
        self._session = session
        session.open.add(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # which that of another loop is no subclass of
        self.is_writable = True
        self.transport.write(self.codec.first)

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        assert self.transport is not None
        self.transport.write(self.codec.head(len(frame)) + frame)

    def data_received(self, data: bytes) -> None:
        codec = self.codec
        was_ready = codec.is_ready
        codec.feed(data)
        if codec.is_ready and not was_ready:
            self._session.shaken(self)
        frames = []
        while (frame := codec.frame()) is not None:
            frames.append(frame)
        if frames:
            self._session.received(self, frames)
        if codec.ended:
            self.close()

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._session.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_writable = False
        self._session.open.discard(self)
        if not self.has_ended.done():
            self.has_ended.set_result(None)
        self._session.lost(self)

    def close(self) -> None:
        """Close it; what was sent still arrives."""
        if self.transport is not None:
            self.transport.close()
        else:
            self._session.open.discard(self)  # it was never made
