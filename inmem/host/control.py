"""The control file: one page that names the writer, the image and the time. It is never replaced.

Invariant: every process that has the directory open maps the same page, and
never acts on half of an update. Single words (version, durable, clock offset)
are aligned and change atomically. The other fields change between two
increments of the sequence word, which is odd during an update.

Layout, native byte order (the file never leaves its machine), 4,096 bytes:

    word  meaning
    0     magic "INMEMCTL"
    1     version of this file and of what is in memory: the image, its names, the board
    2     sequence, odd during an update
    3     generation: which image directory, 0 before the first. Its upper 24 bits
          count when purges begin and end, and are odd while dead records may be
          in the image: see `storage.purges`
    4     epoch: which incarnation of the writer, 0 before the first
    5     clock offset: store time less boot time, microseconds
    6     version: the last published commit
    7     durable: the last commit known to survive a power cut
    8     process id of the writer, 0 when none serves
    9     inode of the writer's process id namespace
    10-11 boot id
    12-13 database id
    14-45 image directory: length, then bytes
    46-61 endpoint: length, then bytes
    62    number of sessions that the last commits came from
    63-   of the writer alone: which commit it decides, and in which ones writers
          died; see `writer.suspects`. Earlier releases leave them as they are
"""

from __future__ import annotations

import io
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inmem.config import CONTROL_VERSION, MAX_CONTROL_PATH
from inmem.errors import CorruptionError, FormatVersionError, LimitError, PermissionDeniedError
from inmem.host.files import is_locked, leads_to, open_private
from inmem.host.interrupts import let_through

SIZE: Final = 4096
MAGIC: Final = int.from_bytes(b"INMEMCTL", "little")

SEQUENCE: Final = 2
GENERATION: Final = 3
EPOCH: Final = 4
CLOCK: Final = 5
VERSION: Final = 6
DURABLE: Final = 7
PID: Final = 8
NAMESPACE: Final = 9
ACTIVE: Final = 62
_RELEASE: Final = 1  # the word of the version
_BEFORE: Final = 1  # the version of the release before
SUSPECTS: Final = 63  # the first word of those
_PHASE: Final = 1 << 40  # in the word of the generation
_WORD: Final = (1 << 64) - 1
_BOOT: Final = 10 * 8
_DATABASE: Final = 12 * 8
_IMAGE: Final = 14 * 8
_ENDPOINT: Final = 46 * 8
_PATHS = ((_IMAGE, 32 * 8), (_ENDPOINT, 16 * 8))
assert _IMAGE + 32 * 8 == _ENDPOINT and MAX_CONTROL_PATH <= 32 * 8 - 1 and _ENDPOINT + 16 * 8 == ACTIVE * 8


def boot_id() -> bytes:
    """The identity of this boot of the machine, 16 bytes."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))


def pid_namespace() -> int:
    """The inode of this process's process id namespace."""
    return os.stat("/proc/self/ns/pid").st_ino


def generation_of(word: int) -> int:
    """The generation in its word."""
    return word & (_PHASE - 1)


def may_have_dead(word: int) -> bool:
    """Whether dead records may be in the image, by the word of the generation."""
    return word & _PHASE != 0


def _opened(path: Path, writable: bool) -> io.FileIO:
    """The file, opened to be written to where that is allowed.

    In the lower layer of an overlay that makes it the file that the writer
    opens: one that was opened to be read stays what it was.
    """
    try:
        return open_private(path, os.O_RDWR)
    except PermissionDeniedError as error:
        let_through(error)
        if writable:
            raise
    return open_private(path, os.O_RDONLY)


@dataclass(frozen=True, slots=True)
class ControlState:
    """The fields of the control file at one moment."""

    generation: int
    epoch: int
    pid: int
    namespace: int
    boot: bytes
    database_id: bytes
    image: str
    endpoint: str


class Control:
    """The mapped control file. `words[GENERATION]` and the like are one memory read."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        with _opened(path, writable) as file:
            self._info = os.fstat(file.fileno())
            if self._info.st_size != SIZE:
                raise CorruptionError(f"{path} is not {SIZE} bytes", file=str(path), offset=0)
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._map = mmap.mmap(file.fileno(), SIZE, access=access)
        self._view = memoryview(self._map)
        self.words = self._view.cast("Q")
        if self.words[0] != MAGIC:
            raise CorruptionError(f"{path} is no control file", file=str(path), offset=0)
        if self.words[_RELEASE] not in (_BEFORE, CONTROL_VERSION):
            raise FormatVersionError(
                f"{path} has version {self.words[_RELEASE]}, this release uses {CONTROL_VERSION}",
                found=self.words[_RELEASE], supported=CONTROL_VERSION,
            )

    @property
    def is_of_before(self) -> bool:
        """Whether the release before uses this directory, or was the last one to do so."""
        return self.words[_RELEASE] == _BEFORE

    def take_over(self) -> None:
        """From now on it is this release's, and the one before refuses it."""
        self.words[_RELEASE] = CONTROL_VERSION
        self.flush()

    def is_current(self) -> bool:
        """Whether the path still leads to this file: it is never replaced."""
        return leads_to(self.path, self._info)

    def boot(self) -> bytes:
        """The boot of the last writer, also where it died in an update."""
        return bytes(self._view[_BOOT : _BOOT + 16])

    @property
    def page(self) -> memoryview:
        """The bytes of the page."""
        return self._view

    @staticmethod
    def initial(database_id: bytes) -> bytes:
        """The bytes of a control file that no writer has touched yet."""
        page = bytearray(SIZE)
        words = memoryview(page).cast("Q")
        words[0], words[_RELEASE] = MAGIC, CONTROL_VERSION
        page[_DATABASE : _DATABASE + 16] = database_id
        return bytes(page)

    def read(self) -> ControlState | None:
        """All fields at one moment; None during an update."""
        before = self.words[SEQUENCE]
        if before & 1:
            return None
        state = ControlState(
            generation=generation_of(self.words[GENERATION]),
            epoch=self.words[EPOCH],
            pid=self.words[PID],
            namespace=self.words[NAMESPACE],
            boot=bytes(self._view[_BOOT : _BOOT + 16]),
            database_id=bytes(self._view[_DATABASE : _DATABASE + 16]),
            image=self._path(_IMAGE),
            endpoint=self._path(_ENDPOINT),
        )
        return state if self.words[SEQUENCE] == before else None

    def _path(self, offset: int) -> str:
        length = self._view[offset]
        return bytes(self._view[offset + 1 : offset + 1 + length]).decode()

    def update(
        self, *, image: str | None = None, endpoint: str | None = None,
        boot: bytes | None = None, **words: int,
    ) -> None:
        """Change several fields at once; for the writer only. Readers see all or none.

        A writer that died in an update left the sequence odd. The next update
        repairs that, whatever it changes.
        """
        names = {"generation": GENERATION, "epoch": EPOCH, "clock": CLOCK, "version": VERSION,
                 "durable": DURABLE, "pid": PID, "namespace": NAMESPACE}
        encoded = [
            (offset, room, text.encode())
            for (offset, room), text in zip(_PATHS, (image, endpoint), strict=True)
            if text is not None
        ]
        for _, room, data in encoded:
            if len(data) > room - 1:
                raise LimitError(
                    f"a path of {len(data)} bytes does not fit the control file",
                    what="path", size=len(data), limit=room - 1,
                )
        self.words[SEQUENCE] |= 1
        for name, value in words.items():
            if name == "generation":
                value |= self.words[GENERATION] & -_PHASE & _WORD
            self.words[names[name]] = value
        if boot is not None:
            self._view[_BOOT : _BOOT + 16] = boot
        for offset, _, data in encoded:
            self._view[offset] = len(data)
            self._view[offset + 1 : offset + 1 + len(data)] = data
        self.words[SEQUENCE] += 1

    def say_dead(self, may_be: bool) -> None:
        """Tell readers whether dead records may be in the image; for the writer only. One word changes.

        Each change counts, so that a reader that sees one word twice knows that nothing came in between.
        """
        word = self.words[GENERATION]
        if may_have_dead(word) != may_be:
            self.words[GENERATION] = word + _PHASE & _WORD

    def flush(self) -> None:
        """Write the page to the disk, so that a later boot sees whether the writer left cleanly."""
        self._map.flush()

    def check_machine(self) -> None:
        """Refuse a directory whose writer runs in another container.

        Raises:
            PermissionDeniedError: a writer of this boot serves from another
                process id namespace, so its process and its shared memory
                cannot be seen from here.
        """
        state = self.read()
        elsewhere = state and state.pid and state.boot == boot_id() and state.namespace != pid_namespace()
        # One that was killed with its container has left its number here, and holds no lock.
        if elsewhere and is_locked(self.path.with_name("writer.lock")):
            raise PermissionDeniedError(
                f"{self.path.parent} is served from another container",
                path=str(self.path.parent),
                hint="Share /dev/shm and the process id namespace, or use one store per container.",
            )

    def close(self) -> None:
        """Unmap."""
        self.words.release()
        self._view.release()
        self._map.close()
