"""A file to import, as people give it: a file, a pipe, a stream, compressed or not.

It is read twice. What can be read only once is kept aside on the disk meanwhile.
A file of another kind is refused by the name of its kind.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from inmem.errors import InvalidInputError

_BUFFER: Final = 1 << 20
_HEAD: Final = 64  # bytes that tell what a file is

# Of https://www.rfc-editor.org/rfc/rfc1952, https://tukaani.org/xz/xz-file-format.txt and file(1).
_COMPRESSED: Final[dict[bytes, Callable[[Any], Any]]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_REWRITTEN: Final = "A program has rewritten it: import the file as it was exported."
_OTHERS: Final = {
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "Decompress it: `zstd -dc FILE | inmem import -`."),
    b"PK\x03\x04": ("is a zip archive", "Unpack it: `unzip -p FILE | inmem import -`."),
    b"\xef\xbb\xbf": ("begins with a byte order mark (UTF-8)", _REWRITTEN),
    b"\xff\xfe": ("is UTF-16 text", _REWRITTEN),
    b"\xfe\xff": ("is UTF-16 text", _REWRITTEN),
    b"SQLite format 3\0": ("is an SQLite database", "Only what `inmem export` wrote can be imported."),
    b"%PDF-": ("is a PDF document", "Only what `inmem export` wrote can be imported."),
    b"<": ("is HTML or XML", "Was it an error page of a server that was stored? Fetch the file again."),
}


class GivenFile:
    """A file that can be read from its beginning as often as wanted."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.size = path.stat().st_size  # as it lies on the disk
        self._path = path
        self._raw: BinaryIO | None = None

    @contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """What it holds, decompressed.

        Raises:
            InvalidInputError: it is a file of another kind.
        """
        with ExitStack() as stack:
            raw = self._raw = stack.enter_context(self._path.open("rb", buffering=_BUFFER))
            head = raw.read(_HEAD)
            raw.seek(0)
            for magic, (problem, hint) in _OTHERS.items():
                if head.startswith(magic):
                    raise InvalidInputError(f"{self.name} {problem}", argument="file", hint=hint)
            for magic, decompressed in _COMPRESSED.items():
                if head.startswith(magic):
                    yield cast(BinaryIO, stack.enter_context(decompressed(raw)))
                    return
            yield raw

    def position(self) -> int:
        """How much of `size` was read."""
        return 0 if self._raw is None or self._raw.closed else self._raw.tell()


def path_of(file: object, method: str) -> Path | None:
    """The path that was given; None for an open file, which has this method.

    Raises:
        InvalidInputError: it is neither.
    """
    if isinstance(file, str | os.PathLike):
        name = os.fspath(file)
        if not isinstance(name, str) or "\0" in name:
            raise InvalidInputError("file must be a path without NUL, as a str", argument="file")
        return Path(name)
    if not callable(getattr(file, method, None)):
        problem = f"file must be a path or an open binary file, not {type(file).__name__}"
        raise InvalidInputError(problem, argument="file")
    return None


def check_given(path: Path) -> None:
    """Refuse what is no file, before anything is done for it.

    Raises:
        OSError: there is nothing of this name.
        InvalidInputError: it is a directory.
    """
    if stat.S_ISDIR(path.stat().st_mode):
        raise InvalidInputError(
            f"{path} is a directory, and an export is a file", argument="file",
            hint="Is it a data directory? `inmem export` makes a file of its runs.",
        )


@contextmanager
def given_file(file: Path | str | BinaryIO) -> Iterator[GivenFile]:
    """A file by its path, or one that is open for reading, from where it stands.

    Raises:
        OSError: it cannot be read.
        InvalidInputError: it is a directory, or no file at all.
    """
    with ExitStack() as stack:
        path = path_of(file, "read")
        if path is not None:
            check_given(path)
            if stat.S_ISREG(path.stat().st_mode):
                yield GivenFile(path, str(path))
                return
            name, stream = str(path), stack.enter_context(path.open("rb", buffering=_BUFFER))
        else:
            name, stream = str(getattr(file, "name", "the file")), cast(Any, file)
        aside = stack.enter_context(tempfile.TemporaryFile(prefix="inmem-import-"))
        # What there is and no more: who waits in one call for a whole buffer may not hear a signal.
        read = getattr(stream, "read1", stream.read)
        while block := read(_BUFFER):
            aside.write(block)
        aside.flush()
        yield GivenFile(Path(f"/proc/self/fd/{aside.fileno()}"), name)  # it has no name that could be left
