"""Checkpoints: all tables of one version in one file, which the log then continues.

Invariant: a file that reads without an error is, byte for byte and to its
end, what was written from one snapshot. Any other file is refused with its
name and an offset. A checkpoint gets its name only when it is durable, and
what it replaces is removed after that. So at every moment the newest
checkpoint and the log after it hold everything.

The format is our own. It does not change with LMDB's, and has no free pages.
A backup is a file in the same format.

File: a head of 16 bytes, then frames, all integers little-endian.

    offset  size  field
    0       8     magic, b"INMEMCKP"
    8       4     format version
    12      4     flags, 0; a reader refuses flags that it does not know
    16      ...   frames, back to back

    frame: payload length u32, checksum u64, payload

The checksum is xxh3_64 of the payload, seeded with the checksum of the frame
before, so no frame can be missing, doubled, moved or exchanged. The first
frame has the seed 0, and is hashed with the 16 bytes of the head before it.
The payloads are MessagePack:

    the first   map: database (16 bytes), version, checksum (of the version's
                record in the log), epoch, clock_us, settings (map)
    the others  [table, [key, value, key, value, ...]], keys in their order,
                tables in theirs
    the last    [-1, number of entries in all frames before]
"""

from __future__ import annotations

import errno
import io
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from inmem.config import FORMAT_VERSION
from inmem.errors import CorruptionError, FormatVersionError
from inmem.host.files import open_private, sync_directory
from inmem.storage.environment import Table

# The tables that are copied. EXPIRY could be derived from DATA, but that would take longer than reading it.
COPIED: Final = (Table.DATA, Table.SESSIONS, Table.FENCES, Table.EXPIRY)
MAGIC: Final = b"INMEMCKP"
_HEAD: Final = struct.Struct("<8sII")
_VERSION_AT: Final = 8
_FRAME: Final = struct.Struct("<IQ")
_FRAME_BYTES: Final = 1 << 20  # payload at which a frame ends: bounds memory on both sides
_MAX_FRAME: Final = 1 << 27  # far above a frame of one largest value
_END: Final = -1
_NAME: Final = re.compile(r"[0-9]{20}\.checkpoint\Z")
_FIELDS: Final = {
    "database": bytes, "version": int, "checksum": int, "epoch": int, "clock_us": int, "settings": dict
}
assert _HEAD.size == 16 and _FRAME.size == 12


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """The first frame of a file: its database, and the record of the log that it ends with."""

    database: bytes
    version: int
    checksum: int
    epoch: int
    clock_us: int
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """The size of a file."""

    entries: int
    bytes: int


def checkpoint_path(directory: Path, version: int) -> Path:
    """The path of the checkpoint of a version."""
    return directory / f"{version:020d}.checkpoint"


def checkpoint_files(directory: Path) -> list[Path]:
    """The checkpoints of a directory, oldest first; other files are ignored."""
    try:
        return sorted(path for path in directory.iterdir() if _NAME.match(path.name))
    except FileNotFoundError:
        return []


def write_checkpoint(
    path: Path | io.FileIO, header: CheckpointHeader, tables: Iterable[tuple[Table, Iterable[Any]]]
) -> Written:
    """Write a new file, mode 0600, durable with its name on return; or an empty one that has none yet.

    `tables` gives each table with its entries in order. Cost: about 1 µs an
    entry, and the disk's time.

    Raises:
        FileExistsError: the path is taken.
        OSError: the disk failed; the caller removes what was written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with io.BufferedWriter(open_private(path, flags) if isinstance(path, Path) else _same(path)) as file:
        head = _HEAD.pack(MAGIC, FORMAT_VERSION, 0)
        file.write(head)
        payload = msgpack.packb({name: getattr(header, name) for name in _FIELDS})
        checksum = xxh3_64_intdigest(head + payload)
        file.write(_FRAME.pack(len(payload), checksum) + payload)
        entries = 0
        for table, items in tables:
            for flat in _in_chunks(items):
                payload = msgpack.packb([int(table), flat])
                checksum = xxh3_64_intdigest(payload, checksum)
                file.write(_FRAME.pack(len(payload), checksum))
                file.write(payload)
                entries += len(flat) // 2
        payload = msgpack.packb([_END, entries])
        file.write(_FRAME.pack(len(payload), xxh3_64_intdigest(payload, checksum)) + payload)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    if isinstance(path, Path):
        sync_directory(path.parent)
    return Written(entries, size)


def _same(file: io.FileIO) -> io.FileIO:
    """A file from its beginning, which stays open when this is closed."""
    file.seek(0)
    return io.FileIO(file.fileno(), "r+", closefd=False)


def _in_chunks(items: Iterable[tuple[bytes, bytes]]) -> Iterator[list[bytes]]:
    flat: list[bytes] = []
    size = 0
    for key, value in items:
        flat.append(key)
        flat.append(value)
        size += len(key) + len(value)
        if size >= _FRAME_BYTES:
            yield flat
            flat, size = [], 0
    if flat:
        yield flat


class Lost(NamedTuple):
    """Bytes of a damaged file in which no frame is proved whole, and why."""

    offset: int
    end: int
    reason: str


class CheckpointReader:
    """Reads a file: its `header`, then its entries. Use it with `with`."""

    def __init__(self, path: Path | io.FileIO) -> None:
        self.path = path if isinstance(path, Path) else Path("the new file")
        self._offset = 0
        raw = open_private(path, os.O_RDONLY) if isinstance(path, Path) else _same(path)
        self._file: BinaryIO = io.BufferedReader(raw, 1 << 20)
        try:
            self.bytes = os.fstat(self._file.fileno()).st_size
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _corrupt(self, problem: str) -> CorruptionError:
        return CorruptionError(
            f"{self.path} at {self._offset}: {problem}", file=str(self.path), offset=self._offset
        )

    def _read(self, count: int) -> bytes:
        """`count` bytes, fewer only at the end.

        Raises:
            CorruptionError: the disk cannot read a sector.
        """
        try:
            return self._file.read(count)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise self._corrupt("the disk cannot read it") from error

    def _read_header(self) -> CheckpointHeader:
        head = self._read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise self._corrupt("the file is cut short")
        magic, version, flags = _HEAD.unpack(head)
        if magic != MAGIC:
            raise self._corrupt("no checkpoint or backup")
        self._offset = _HEAD.size
        try:
            payload, self._checksum = self._read_frame(head, 0)
        except CorruptionError:
            # The version may be what is damaged: with a wrong checksum it is not taken for another release.
            if version == FORMAT_VERSION and not flags:
                raise
            self._offset = _VERSION_AT
            raise self._corrupt(f"damaged, or of format version {version} with flags {flags:#x}") from None
        if version != FORMAT_VERSION or flags:
            raise FormatVersionError(
                f"{self.path} has format version {version} and flags {flags:#x}, "
                f"this release reads version {FORMAT_VERSION} without flags",
                found=version, supported=FORMAT_VERSION,
            )
        fields = self._unpack(payload)
        if type(fields) is not dict or any(type(fields.get(n)) is not t for n, t in _FIELDS.items()):
            raise self._corrupt("the first frame does not say what this is")
        return CheckpointHeader(**{name: fields[name] for name in _FIELDS})

    def _read_frame(self, before: bytes, seed: int) -> tuple[bytes, int]:
        frame = self._read(_FRAME.size)
        if len(frame) < _FRAME.size:
            raise self._corrupt("the file is cut short")
        length, checksum = _FRAME.unpack(frame)
        if length > _MAX_FRAME:
            raise self._corrupt(f"a frame of {length} bytes")
        payload = self._read(length)
        if len(payload) < length:
            raise self._corrupt("the file is cut short")
        if xxh3_64_intdigest(before + payload if before else payload, seed) != checksum:
            raise self._corrupt("a frame has a wrong checksum")
        self._offset += _FRAME.size + length
        return payload, checksum

    def _unpack(self, payload: bytes) -> Any:
        try:
            return msgpack.unpackb(payload)
        except (ValueError, TypeError) as error:
            raise self._corrupt(f"a frame does not parse: {error}") from None

    def frames(self) -> Iterator[tuple[Table, list[tuple[bytes, bytes]]]]:
        """The entries, some at a time: (table, [(key, value), ...]). Can be read once.

        Raises:
            CorruptionError: with the offset of the frame that cannot be right.
        """
        entries = 0
        checksum = self._checksum
        while True:
            payload, checksum = self._read_frame(b"", checksum)
            table, content = self._unpack(payload)
            if table == _END:
                if content != entries:
                    raise self._corrupt(f"{entries} entries, and the end says {content}")
                if self._read(1):
                    raise self._corrupt("something follows the end")
                return
            if table not in COPIED:
                raise self._corrupt(f"entries of table {table}")
            entries += len(content) // 2
            yield Table(table), _pairs(content)

    def whole_frames(self) -> Iterator[tuple[Table, list[tuple[bytes, bytes]]] | Lost]:
        """Like `frames`, but reads on after damage: the frames that are proved whole, and what is lost.

        A frame is proved by its checksum, whose seed is the stored checksum
        of the frame before. So the frame after a damaged payload is proved
        again, and a frame in which only the checksum is damaged is proved by
        the frame after it. After a damaged length, or where the disk cannot
        read, nothing more is found.
        """
        offset, seeds = self._offset, [self._checksum]
        lost: int | None = None  # where the frames begin that are not proved
        reason, doubtful = "", None  # why; and the first such payload, while the next frame may prove it
        while True:
            try:
                frame = self._read(_FRAME.size)
                length, stored = _FRAME.unpack(frame) if len(frame) == _FRAME.size else (self.bytes, 0)
                end = offset + _FRAME.size + length
                if length > _MAX_FRAME or end > self.bytes:
                    raise self._corrupt("the file is cut short, or a length is damaged")
                payload = self._read(length)
            except CorruptionError as error:
                yield Lost(offset if lost is None else lost, self.bytes, reason or error.message)
                return
            computed = [xxh3_64_intdigest(payload, seed) for seed in seeds]
            if stored in computed:
                if lost is not None and doubtful is not None and computed.index(stored) == 1:
                    table, content = self._unpack(doubtful)
                    yield Table(table), _pairs(content)
                elif lost is not None:
                    yield Lost(lost, offset, reason)
                lost, reason, doubtful, seeds = None, "", None, [stored]
                table, content = self._unpack(payload)
                if table == _END:
                    if end < self.bytes:
                        yield Lost(end, self.bytes, "something follows the end")
                    return
                yield Table(table), _pairs(content)
            elif lost is None:
                lost, reason, doubtful = offset, "a frame has a wrong checksum", payload
                seeds = [stored, computed[0]]
            else:
                doubtful, seeds = None, [stored]
            offset = end

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def verify_checkpoint(path: Path | io.FileIO) -> tuple[CheckpointHeader, Written]:
    """Read a whole file; returns its header and its size.

    Raises:
        CorruptionError: it is damaged.
        FormatVersionError: another release wrote it.
    """
    with CheckpointReader(path) as reader:
        entries = sum(len(items) for _, items in reader.frames())
        return reader.header, Written(entries, reader.bytes)


def newest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint to recover from, None without any."""
    return next(reversed(checkpoint_files(directory)), None)
