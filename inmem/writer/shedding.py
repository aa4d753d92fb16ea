"""Load shedding: a thread of the writer that shuts connections before memory or descriptors run out.

Invariant: messages that the writer has not yet decided take a bounded amount
of its memory, whatever peers send.

libzmq bounds what it holds for a peer by counting whole messages. It does not
count bytes, and a multipart message that never ends is never counted. So the
thread measures the memory of the process itself. Beyond the limit it shuts
the connections that are sending at that moment; if that does not help, all.
A client of ours connects again and sends what is unanswered, so a shut
connection costs it time and nothing else.

While nothing arrives there is nothing to measure: the thread sleeps until a
connection can be read or accepted. It may miss one that libzmq is quicker to
take; so the writer wakes it after the first group, and when descriptors came.

libzmq also ends the process when it cannot accept a connection for want of a
descriptor. So the limit of descriptors is raised as far as it goes, and the
newest connections are shut when their number comes near it.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import resource
import select
import socket
import stat
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from inmem.config import MAX_MAILBOX_BYTES
from inmem.writer.journal import Journal

_INTERVAL_S: Final = 0.025  # between two measurements: a sender of 2 GB/s sends 50 MB in it
_SHORT_INTERVAL_S: Final = 0.005  # once a quarter of the limit is used: a busy machine adds its own delay
_SPARE_FILES: Final = 4096  # or a quarter of the limit: what may be accepted between two measurements
_QUIET: Final = 40  # measurements without a message, about a second: then the thread sleeps
_BEFORE_ALL: Final = 100  # measurements after which shutting the senders has not helped: half a second

journal = Journal()


class LoadShedder:
    """Shuts connections when waiting messages take too much memory, or files come near their limit."""

    def __init__(self, path: Path) -> None:
        self.allowance = 0  # bytes that the group at hand may take while it is decided
        self.groups = 0  # of messages, that were taken
        self.is_asleep = False
        self._files = 0  # open, when it fell asleep
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._path = str(path)
        self._base = anonymous_bytes()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load-shedder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self.wake()
        self._thread.join()
        os.close(self._bell)

    def wake(self) -> None:
        """Measure again, as something has arrived."""
        os.eventfd_write(self._bell, 1)

    def look(self) -> None:
        """Wake the thread if it sleeps and connections have come or gone. Cost: 10 µs."""
        if self.is_asleep and len(os.listdir("/proc/self/fd")) != self._files:
            self.wake()

    def _sleep(self) -> None:
        """Sleep until something can be read, by this thread's own look or by another's word."""
        groups = self.groups
        with select.epoll() as epoll:
            epoll.register(self._bell, select.EPOLLIN)
            for number, _ in self._sockets():
                try:
                    epoll.register(number, select.EPOLLIN | select.EPOLLET)
                except OSError:
                    continue  # it was closed in between
            self._files = len(os.listdir("/proc/self/fd"))
            self.is_asleep = True  # before the look: who takes messages after it sees that
            if groups == self.groups and not self._stopping.is_set():
                epoll.poll()
            self.is_asleep = False
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def _run(self) -> None:
        beyond = used = 0  # beyond: measurements in a row above the limit
        quiet = groups = 0  # quiet: measurements in a row without a message
        while not self._stopping.wait(_INTERVAL_S if used < MAX_MAILBOX_BYTES // 4 else _SHORT_INTERVAL_S):
            self._keep_descriptors()
            used = self._used()
            if used > MAX_MAILBOX_BYTES:
                return_free_memory()  # freed memory of a large group would be counted as messages
                used = self._used()
            if used <= MAX_MAILBOX_BYTES:
                beyond = 0
                quiet = quiet + 1 if groups == self.groups and used < MAX_MAILBOX_BYTES // 4 else 0
                groups = self.groups
                if quiet >= _QUIET:
                    quiet = 0
                    self._sleep()
                continue
            beyond += 1
            shut_all = beyond > _BEFORE_ALL
            shut = sum(self._shut(connection, shut_all) for connection in self._connections())
            if shut:
                journal.warning("shut", waiting_bytes=used, connections=shut)
            return_free_memory()
            if shut_all:
                # With no connection left, all memory is the writer's own.
                self._base, beyond = anonymous_bytes(), 0

    def _keep_descriptors(self) -> None:
        """Shut the newest connections if open files come near the limit."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        excess = len(os.listdir("/proc/self/fd")) - limit + min(_SPARE_FILES, limit // 4)
        if excess <= 0:
            return
        shut = 0
        for connection in self._connections(newest_first=True):
            connection.shutdown(socket.SHUT_RDWR)
            shut += 1
            if shut >= excess:
                break
        journal.warning("shut", open_files_limit=limit, newest_connections=shut)

    def _used(self) -> int:
        """Bytes of memory that waiting messages take."""
        return anonymous_bytes() - self._base - self.allowance

    def _connections(self, *, newest_first: bool = False) -> Iterator[socket.socket]:
        """Every accepted connection, as a duplicate that the block closes."""
        for _, connection in self._sockets(newest_first=newest_first):
            try:
                accepts = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            except OSError:
                continue
            if not accepts:
                yield connection

    def _sockets(self, *, newest_first: bool = False) -> Iterator[tuple[int, socket.socket]]:
        """The sockets of this address with their numbers, as duplicates that the block closes."""
        names = os.listdir("/proc/self/fd")
        # The lowest free descriptor is given out first, so the newest connection mostly has the highest.
        for name in sorted(names, key=int, reverse=True) if newest_first else names:
            try:
                # Sockets only: closing a duplicate of another file may drop its locks.
                if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    continue
                connection = socket.socket(fileno=os.dup(int(name)))
            except OSError:
                continue  # it was closed in between
            with connection:
                try:
                    ours = connection.getsockname() == self._path
                except OSError:
                    continue
                if ours:
                    yield int(name), connection

    @staticmethod
    def _shut(connection: socket.socket, always: bool) -> bool:
        """Shut a connection if it is sending, or always; whether it was shut."""
        waiting = array.array("i", [0])
        try:
            fcntl.ioctl(connection, termios.FIONREAD, waiting)
            if not (waiting[0] or always):
                return False
            # libzmq's own descriptor meets the end of the stream, and libzmq drops what it held.
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False  # the peer has closed it
        return True


def anonymous_bytes() -> int:
    """Memory of this process that is neither a file's nor shared. Cost: 15 µs."""
    with open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * _PAGE


def return_free_memory() -> None:
    """Have malloc give freed memory back to the system, so that it is not counted as messages."""
    if _trim is not None:
        _trim(0)


_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_trim: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
